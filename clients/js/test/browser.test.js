import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { test } from "node:test";
import { browser, open } from "./browser.js";
import { serve, sleep, until } from "./helper.js";

test("a page publishes, and receives 10,000 messages in order", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  const got = await page.evaluate(async (url) => {
    start(url);
    const n = 10_000;
    const bytes = new Uint8Array([1, 2, 255]);
    const got = [];
    const kinds = [];
    const done = new Promise((resolve) => {
      client.topic("t").subscribe({ from: "oldest" }, (m) => {
        if (typeof m.value !== "number") kinds.push(m.value instanceof Uint8Array ? [...m.value] : m.value);
        else if (got.push(m.value) === n) resolve();
      });
    });
    await client.topic("t").publish(bytes);
    await client.topic("t").publish("text");
    for (let i = 0; i < n; i += 1000) await Promise.all(Array.from({ length: 1000 }, (_, k) => client.topic("t").publish(i + k)));
    await done;
    await client.close();
    return { inOrder: got.every((v, i) => v === i), n: got.length, kinds };
  }, server.url);
  assert.deepEqual(got, { inOrder: true, n: 10_000, kinds: [[1, 2, 255], "text"] });
});

test("a page that comes online connects at once, and goes on where it was", async (t) => {
  const server = await serve(t);
  const page = await open(t, { query: "?last=60000" });
  await page.evaluate(async (url) => {
    window.got = [];
    window.client = echo.connect(url, { backoff: { first: 60_000, last: 60_000 } });
    client.on("state", (s) => states.push(s.state));
    await client.topic("t").subscribe({}, (m) => void got.push(m.value)).ready;
  }, server.url);
  await page.context().setOffline(true);
  await server.cut();
  await page.waitForFunction(() => states.at(-1) === "down");
  await server.publish("t", [{ id: "1", type: "application/json", data: "1" }]);
  await page.evaluate(() => void (window.published = client.topic("t").publish(2)));
  await sleep(200);
  assert.equal(await page.evaluate(() => states.at(-1)), "down");
  await page.context().setOffline(false);
  await page.waitForFunction(() => states.at(-1) === "up", undefined, { timeout: 3000 });
  await page.evaluate(() => published);
  await page.waitForFunction(() => got.length === 2);
  assert.deepEqual(await page.evaluate(() => got), [1, 2]);
});

test("a link that died unnoticed while a page was offline is asked, and given up, when it is online", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  await page.evaluate(async (url) => {
    start(url);
    window.got = [];
    await client.topic("t").subscribe({}, (m) => void got.push(m.value)).ready;
  }, server.url);
  await page.context().setOffline(true);
  await server.mute(true);
  await server.publish("t", [{ id: "1", type: "application/json", data: "1" }]);
  await sleep(300);
  assert.deepEqual(await page.evaluate(() => [states.at(-1), socket.readyState, navigator.onLine]), ["up", 1, false], "Chromium leaves links open");
  const began = Date.now();
  await page.context().setOffline(false);
  await page.waitForFunction(() => states.includes("down"), undefined, { timeout: 8000 });
  assert.ok(Date.now() - began < 7000, `after ${Date.now() - began} ms, not the 35 s of silence`);
  await server.mute(false);
  await page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await page.evaluate(() => [got, states.at(-1)]), [[1], "up"]);
});

// An attempt of before is of a network that is gone.
for (const [what, breaks, part] of [
  ["fails then", true, "link"],
  ["is not answered", false, "link"],
  ["waits for a token, and fails then", true, "token"],
]) {
  test(`a page that comes online while an attempt ${what} connects at once`, async (t) => {
    const server = await serve(t);
    const waiting = [];
    const nowhere = createServer((c) => waiting.push(c.on("error", () => {}))).listen(0, "127.0.0.1");
    await once(nowhere, "listening");
    t.after(() => {
      for (const c of waiting) c.destroy();
      nowhere.close();
    });
    const page = await open(t);
    await page.evaluate(([url, nowhere, part]) => {
      window.away = true;
      window.asked = 0;
      Math.random = () => 0.5;
      window.client = echo.connect(url, {
        backoff: { first: 60_000, last: 60_000 },
        token: () => part === "token" && asked++ === 0 ? new Promise((_, reject) => (window.fail = () => reject(new Error("no network")))) : "t",
        WebSocket: class extends WebSocket {
          constructor(url, protocols) {
            super(away && part === "link" ? nowhere : url, protocols);
          }
        },
      });
      client.on("state", (s) => states.push(s.state));
    }, [server.url, `ws://127.0.0.1:${nowhere.address().port}`, part]);
    if (part === "link") await until("it is under way", () => waiting.length === 1);
    else await page.waitForFunction("window.fail");
    await page.evaluate(() => {
      away = false;
      dispatchEvent(new Event("online"));
    });
    if (breaks && part === "link") waiting[0].destroy();
    if (part === "token") await page.evaluate(() => fail());
    await page.waitForFunction(() => states.at(-1) === "up", undefined, { timeout: 3000 });
  });
}

test("what a page was publishing when it was reloaded is published once", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  await page.evaluate(async (url) => {
    start(url, "box");
    await client.topic("t").publish("first");
  }, server.url);
  await server.mute(true);
  await page.evaluate(() => void client.topic("t").publish("stored, not answered").catch(() => {}));
  await until("it is stored", async () => (await server.read("t")).length === 2);
  await server.refuse(true);
  await server.cut();
  await page.evaluate(async () => {
    for (let i = 0; i < 50; i++) void client.topic("t").publish(`waits ${i}`).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 200)); // until it is in the database
  });
  assert.equal(await page.evaluate(() => client.pending), 51);
  await page.reload();
  await page.waitForFunction("window.loaded");
  await server.mute(false);
  await server.refuse(false);
  await page.evaluate(async (url) => {
    start(url, "box");
    await client.topic("t").publish("last");
  }, server.url);
  const want = ["first", "stored, not answered", ...Array.from({ length: 50 }, (_, i) => `waits ${i}`), "last"];
  assert.deepEqual((await server.read("t")).map((m) => m.text), want);
  await page.waitForFunction(() => client.pending === 0);
  await page.reload();
  await page.waitForFunction("window.loaded");
  await page.evaluate(async (url) => {
    start(url, "box");
    await client.topic("t").publish("very last");
  }, server.url);
  assert.deepEqual((await server.read("t")).map((m) => m.text), [...want, "very last"], "nothing was left");
});

test("a page that is reloaded again and again in mid-publish publishes all it kept once, in order", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  const loads = 8;
  for (let load = 0; load < loads; load++) {
    await page.evaluate(([url, load]) => {
      start(url, "box");
      localStorage[`answered ${load}`] = 0;
      const more = async () => {
        for (let i = 0; ; ) {
          for (let k = 0; k < 5; k++, i++) void client.topic("t").publish(`${load} ${i}`).then(() => (localStorage[`answered ${load}`] = i), () => {});
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
      };
      void more();
    }, [server.url, load]);
    await sleep(60 + 37 * load);
    if (load % 3 === 2) await server.cut(); // and the link breaks with it
    await page.reload();
    await page.waitForFunction("window.loaded");
  }
  const answered = await page.evaluate(async ([url, loads]) => {
    start(url, "box");
    await client.topic("t").publish("last");
    return Array.from({ length: loads }, (_, i) => Number(localStorage[`answered ${i}`]));
  }, [server.url, loads]);
  await page.waitForFunction(() => client.pending === 0);
  const stored = (await server.read("t")).map((m) => m.text);
  assert.equal(stored.pop(), "last");
  const of = Array.from({ length: loads }, () => []);
  for (const s of stored) of[s.split(" ")[0]].push(s);
  of.forEach((got, load) => {
    assert.deepEqual(got, got.map((_, i) => `${load} ${i}`), "the first ones, each once, in order");
    assert.ok(got.length >= answered[load], `${got.length} of ${answered[load]}`);
  });
  assert.deepEqual(stored, of.flat(), "what a page left goes before what the next one has");
  assert.ok(answered.filter((n) => n > 0).length >= loads / 2, `${answered}: the pages were at it`);
  assert.equal(new Set((await server.read("t")).map((m) => m.id)).size, stored.length + 1);
});

test("a tab takes over what another one leaves when it is closed, and nothing while it is open", async (t) => {
  const server = await serve(t);
  const context = await browser.newContext();
  const [a, b] = [await open(t, { context }), await open(t, { context })];
  await server.refuse(true);
  const wait = (page, text) => page.evaluate(async ([url, text]) => {
    start(url, "tabs");
    void client.topic("t").publish(text).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 200));
    return client.pending;
  }, [server.url, text]);
  assert.equal(await wait(a, "of a"), 1);
  assert.equal(await wait(b, "of b"), 1, "what another tab has is its own");
  await a.close();
  await b.waitForFunction(() => client.pending === 2);
  await server.refuse(false);
  await b.waitForFunction(() => client.pending === 0);
  assert.deepEqual((await server.read("t")).map((m) => m.text).sort(), ["of a", "of b"]);
});

test("an outbox goes on without locks that the browser refuses", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  await page.evaluate(async (url) => {
    LockManager.prototype.request = () => Promise.reject(new DOMException("not in this page", "SecurityError"));
    start(url, "box");
    await client.topic("t").publish("stored");
  }, server.url);
  assert.deepEqual((await server.read("t")).map((m) => m.text), ["stored"]);
});

test("an outbox whose database the browser closed opens it again", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  await page.evaluate(async (url) => {
    const { transaction } = IDBDatabase.prototype;
    IDBDatabase.prototype.transaction = function (...args) {
      window.database = this;
      return transaction.apply(this, args);
    };
    start(url, "box");
    await client.topic("t").publish("before");
    database.close();
    await Promise.all(["a", "b", "c"].map((v) => client.topic("t").publish(v)));
  }, server.url);
  assert.deepEqual((await server.read("t")).map((m) => m.text), ["before", "a", "b", "c"]);
  await page.evaluate(() => client.close());
  assert.equal(await page.evaluate(() => new Promise((resolve) => {
    indexedDB.open("box").onsuccess = (e) => (e.target.result.transaction("publishes").objectStore("publishes").count().onsuccess = (e) => resolve(e.target.result));
  })), 0, "nothing is left");
});

test("what another tab leaves and cannot be read at first is taken over later", async (t) => {
  const server = await serve(t);
  const context = await browser.newContext();
  const [a, b] = [await open(t, { context }), await open(t, { context })];
  await server.refuse(true);
  for (const page of [a, b]) {
    await page.evaluate(async (url) => {
      start(url, "tabs");
      void client.topic("t").publish(`of ${client.pending}`).catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, 200));
    }, server.url);
  }
  await b.evaluate(() => {
    const { getAll } = IDBObjectStore.prototype;
    window.failures = 0;
    IDBObjectStore.prototype.getAll = function (...args) {
      if (failures++ === 0) throw new DOMException("not now", "UnknownError");
      return getAll.apply(this, args);
    };
  });
  await a.close();
  await b.waitForFunction(() => client.pending === 2);
  assert.equal(await b.evaluate(() => failures), 2);
  await server.refuse(false);
  await b.waitForFunction(() => client.pending === 0);
  assert.equal((await server.read("t")).length, 2);
});

test("10,000 messages pass a slow handler of a page in order, in bounded memory", async (t) => {
  const server = await serve(t, "-ring", "20000");
  const n = 10_000;
  for (let i = 0; i < n; i += 1000) {
    await server.publish("t", Array.from({ length: 1000 }, (_, k) => ({ id: `${i + k}`, type: "application/json", data: JSON.stringify({ n: i + k, payload: `${i + k} `.padEnd(2000, "x") }) })));
  }
  const page = await open(t);
  const cdp = await page.context().newCDPSession(page);
  const heap = async () => {
    await cdp.send("HeapProfiler.collectGarbage");
    const { usedSize, embedderHeapUsedSize = 0, backingStorageSize = 0 } = await cdp.send("Runtime.getHeapUsage");
    return usedSize + embedderHeapUsedSize + backingStorageSize;
  };
  await page.evaluate(async (url) => {
    start(url);
    window.handled = window.wrong = 0;
    await client.topic("other").subscribe({}, () => {}).ready;
  }, server.url);
  const before = await heap();
  await page.evaluate(() => {
    client.topic("t").subscribe({ from: "oldest" }, async (m) => {
      if (m.value.n !== handled || !m.value.payload.startsWith(`${handled} x`)) wrong++;
      if (handled % 10 === 9) await new Promise((resolve) => setTimeout(resolve, 4)); // 4 s in all
      handled++;
    });
  });
  let most = 0;
  let ahead = 0;
  let looks = 0;
  for (let handled = 0; handled < n; looks++) {
    handled = await page.evaluate(() => handled);
    ahead = Math.max(ahead, (await server.stats()).Delivered - (await page.evaluate(() => handled)));
    most = Math.max(most, (await heap()) - before);
    await sleep(50);
  }
  t.diagnostic(`${most} bytes of heap at most in ${looks} looks, ${ahead} messages ahead`);
  assert.deepEqual(await page.evaluate(() => [handled, wrong]), [n, 0]);
  assert.ok(looks > 10, `${looks} looks`);
  assert.ok(ahead <= 256, `${ahead} messages ahead of the handler`);
  assert.ok(most < 4 << 20, `${most} bytes of heap for messages of 20 MB`);
});

test("a page sees the close code of a token that is refused", async (t) => {
  const server = await serve(t);
  await server.tokens({ good: { subject: "me" } });
  const page = await open(t);
  const wrong = await page.evaluate(async (url) => {
    start(url, undefined, { token: "wrong" });
    const refused = await client.topic("t").publish(1).catch((e) => e);
    const { state, error } = client.state;
    return { closes, state, code: error.code, refused: [refused.name, refused.cause.code] };
  }, server.url);
  assert.deepEqual(wrong, { closes: [4203], state: "closed", code: 202, refused: ["NotPublishedError", 202] });
  const asked = await page.evaluate(async (url) => {
    closes.length = 0;
    const tokens = ["wrong", "good"];
    start(url, undefined, { token: () => tokens.shift() });
    await client.topic("t").publish(1);
    return { closes, state: client.state.state, left: tokens.length };
  }, server.url);
  assert.deepEqual(asked, { closes: [4203], state: "up", left: 0 });
});

test("a page that is kicked sees the close code, gets a new token and goes on", async (t) => {
  const server = await serve(t);
  await server.tokens({ a: { subject: "me" }, b: { subject: "me" } });
  const page = await open(t);
  await page.evaluate(async (url) => {
    window.tokens = ["a", "b"];
    window.got = [];
    start(url, undefined, { token: () => tokens.shift() });
    await client.topic("t").subscribe({}, (m) => void got.push(m.value)).ready;
  }, server.url);
  assert.equal((await server.kick("me")).kicked, 1);
  await server.publish("t", [{ id: "1", type: "application/json", data: "1" }]);
  await page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await page.evaluate(() => [closes, tokens, states]), [[4202], [], ["connecting", "up", "down", "connecting", "up"]]);
});

test("a page that floods the server sees the close code, and stops", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  for (const what of ["mistakes", "frames"]) {
    const seen = await page.evaluate(async ([url, what]) => {
      closes.length = 0;
      start(url);
      const up = client.topic("t").publish(1);
      await up;
      const closed = new Promise((resolve) => client.on("state", (s) => s.state === "closed" && resolve(s)));
      if (what === "frames") socket.send('{"t":"ping","n":1}\n'.repeat(5000));
      else for (let i = 0; i < 5000; i++) socket.send('{"t":"welcome"}\n');
      const { error } = await closed;
      const refused = await client.topic("t").publish(2).catch((e) => e.name);
      return { closes, code: error.code, refused, states: states.splice(0) };
    }, [server.url, what]);
    assert.deepEqual(seen, { closes: [4302], code: 104, refused: "NotPublishedError", states: ["connecting", "up", "closed"] }, what);
  }
  await sleep(300);
  assert.equal((await server.links()).accepted, 2);
});

test("a page that is late to leave a drained server sees the close code, and connects at once", async (t) => {
  const server = await serve(t);
  const page = await open(t);
  await page.evaluate(async (url) => {
    const { random } = Math;
    Math.random = () => 100; // its timer is late
    window.got = [];
    start(url, undefined, { backoff: { first: 60_000, last: 60_000 } });
    client.on("state", (s) => s.state === "down" && (Math.random = random));
    await client.topic("t").subscribe({}, (m) => void got.push(m.value)).ready;
    socket.addEventListener("close", () => (Math.random = random));
  }, server.url);
  await server.drain(300);
  await server.publish("t", [{ id: "1", type: "application/json", data: "1" }]);
  await page.waitForFunction(() => closes.length === 1);
  await page.waitForFunction(() => states.at(-1) === "up", undefined, { timeout: 2000 });
  await server.publish("t", [{ id: "2", type: "application/json", data: "2" }]);
  await page.waitForFunction(() => got.length === 2);
  assert.deepEqual(await page.evaluate(() => [closes, got, states]), [[4001], [1, 2], ["connecting", "up", "down", "connecting", "up"]]);
});

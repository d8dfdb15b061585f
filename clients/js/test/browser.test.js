import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { serve, sleep, until } from "./helper.js";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
let browser;
let pages;

before(async () => {
  if (!existsSync(executablePath)) throw new Error(`there is no ${executablePath}; install it: apt-get update && apt-get install -y chromium (or say in CHROMIUM where it is)`);
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  // Pages come from here, so that they load while the server of a test is down.
  pages = createServer(async (q, r) => {
    const { pathname } = new URL(q.url, "http://x");
    const file = pathname.startsWith("/dist/") ? `..${pathname}` : "pages/index.html";
    const type = file.endsWith(".js") ? "text/javascript" : "text/html";
    const body = await readFile(new URL(file, import.meta.url)).catch(() => undefined);
    r.writeHead(body ? 200 : 404, { "content-type": type }).end(body);
  }).listen(0, "127.0.0.1");
  await once(pages, "listening");
});

after(async () => {
  await browser?.close();
  pages?.close();
});

/** Opens a page in a context of its own, or one that is given. */
async function open(t, { context, query = "" } = {}) {
  context ??= await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  const failed = [];
  page.on("pageerror", (e) => failed.push(e));
  t.after(() => assert.deepEqual(failed, []));
  await page.goto(`http://127.0.0.1:${pages.address().port}/${query}`);
  await page.waitForFunction("window.loaded");
  return page;
}

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

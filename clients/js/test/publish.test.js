import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryOutbox, NotPublishedError, OutboxFullError, UnknownOutcomeError, ClosedError } from "../dist/index.js";
import { client, script, serve, sleep, state, until, welcome } from "./helper.js";

/** What a test's subscription got. */
function collect(topic, options = {}) {
  const got = [];
  const sub = topic.subscribe(options, (m) => void got.push(m));
  return { got, sub };
}

test("what one client publishes another receives as it was", async (t) => {
  const server = await serve(t);
  const a = client(t, server.url);
  const b = client(t, server.url);
  const { got, sub } = collect(b.topic("t"));
  await sub.ready;
  const bytes = new Uint8Array(70000).map((_, i) => i * 7);
  const values = [{ a: [1, null, "ü", { b: true }] }, null, 0, false, [], "text", "", "line\nand\ttab", "bell\u0007 and nul\u0000", "\ufeffmark", bytes, new Uint8Array(), "日本語 🎈"];
  for (const v of values) {
    const r = await a.topic("t").publish(v, { key: "k", header: { x: "y" } });
    assert.match(r.id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    assert.match(r.position, /^\d+-\d+$/);
    assert.equal(r.duplicate, false);
  }
  await until("all came", () => got.length === values.length);
  assert.deepEqual(got.map((m) => m.value), values);
  assert.deepEqual(got.map((m) => m.type), values.map((v) => (typeof v === "string" ? "text/plain" : v instanceof Uint8Array ? "application/octet-stream" : "application/json")));
  for (const m of got) {
    assert.equal(m.key, "k");
    assert.equal(m.header.x, "y");
    assert.ok(Math.abs(m.time - Date.now()) < 60_000);
  }
});

test("the type that the publisher says decides how a string travels", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await echo.topic("t").publish("a", { type: "application/json" });
  await echo.topic("t").publish("a", { type: "text/csv" });
  await echo.topic("t").publish({ a: 1 }, { type: "application/vnd.x+json" });
  const kept = await server.read("t");
  assert.deepEqual(kept.map((m) => [m.type, m.text]), [["application/json", '"a"'], ["text/csv", "a"], ["application/vnd.x+json", '{"a":1}']]);
});

test("what other programs publish arrives, whatever it is", async (t) => {
  const server = await serve(t);
  const { got, sub } = collect(client(t, server.url).topic("t"));
  await sub.ready;
  await server.publish("t", [
    { id: "1", type: "application/json", data: '{ "a" :\n 1, "__proto__": {"x":1} }' },
    { id: "2", type: "application/json", data: "not JSON" },
    { id: "3", type: "", data: "" },
    { id: "4", type: "text/plain", data: Uint8Array.of(0xff, 0x00) },
    { id: "5", type: "image/x", data: "looks like text" },
    { id: "6", type: "text/plain", data: "" },
  ]);
  await until("all came", () => got.length === 6);
  assert.equal(got[0].value.a, 1);
  assert.equal({}.x, undefined);
  assert.deepEqual(got[1].value, new Uint8Array(Buffer.from("not JSON")));
  assert.equal(got[2].value, undefined);
  assert.deepEqual(got[3].value, Uint8Array.of(0xff, 0x00));
  assert.equal(got[4].value, "looks like text");
  assert.equal(got[5].value, "");
});

test("a header's names are names, __proto__ too", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const { got, sub } = collect(echo.topic("t"));
  await sub.ready;
  await echo.topic("t").publish(1, { header: [["__proto__", "p"], ["constructor", "c"], ["toString", "s"]] });
  await echo.topic("t").publish(2, { header: new Map([["a", "b"]]) });
  await echo.topic("t").publish(3);
  await until("all came", () => got.length === 3);
  assert.deepEqual(Object.entries(got[0].header), [["__proto__", "p"], ["constructor", "c"], ["toString", "s"]]);
  assert.equal(Object.getPrototypeOf(got[0].header), null);
  assert.equal(got[1].header.a, "b");
  assert.equal(got[2].header.toString, undefined);
  assert.deepEqual((await server.read("t"))[0].header, JSON.parse('{"__proto__":"p","constructor":"c","toString":"s"}'));
});

test("messages are stored in the order of publishing, and a thousand wait for a link", async (t) => {
  const server = await serve(t);
  await server.refuse(true);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const all = Array.from({ length: 1000 }, (_, i) => topic.publish(i));
  assert.equal(echo.pending, 1000);
  await assert.rejects(topic.publish("too many"), (e) => e instanceof OutboxFullError && e instanceof NotPublishedError);
  await server.refuse(false);
  await Promise.all(all);
  assert.equal(echo.pending, 0);
  await Promise.all(Array.from({ length: 1000 }, (_, i) => topic.publish(1000 + i)));
  assert.deepEqual((await server.read("t")).map((m) => Number(m.text)), Array.from({ length: 2000 }, (_, i) => i));
});

test("messages on links that break are stored once, in order", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url, { maxOutbox: 5000 });
  await state(echo, "up");
  await server.storm(5, 60);
  const topic = echo.topic("t");
  const all = [];
  for (let i = 0; i < 1500; i++) {
    all.push(topic.publish(i, { header: { pad: "x".repeat(200) } }));
    if (i % 10 === 0) await sleep(2);
  }
  const receipts = await Promise.all(all);
  await server.storm(0, 0, 0);
  const { accepted } = await server.links();
  assert.ok(accepted > 5, `the link broke ${accepted} times`);
  const kept = await server.read("t");
  assert.deepEqual(kept.map((m) => Number(m.text)), Array.from({ length: 1500 }, (_, i) => i));
  assert.deepEqual(receipts.map((r) => r.id), kept.map((m) => m.id));
});

test("a publish whose answer is lost is sent again, and is a duplicate", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await state(echo, "up");
  await server.mute(true);
  const published = echo.topic("t").publish("once");
  await until("it is stored", async () => (await server.read("t")).length === 1);
  await server.cut();
  await server.mute(false);
  assert.equal((await published).duplicate, true);
  assert.equal((await server.read("t")).length, 1);
});

test("more than max_publish messages, and larger ones than fit under way, all arrive", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url, { maxOutbox: 3000 });
  const big = "x".repeat(1_000_000);
  await Promise.all([...Array(2500).keys()].map((i) => echo.topic("t").publish(i)).concat([...Array(12).keys()].map(() => echo.topic("big").publish(big))));
  assert.equal((await server.read("t")).length, 2500);
  assert.equal((await server.read("big")).filter((m) => m.text === big).length, 12);
  assert.equal((await server.stats()).Errors, 0);
});

test("a message larger than the server takes is refused here, and others go on", async (t) => {
  const server = await serve(t, "-max-message", "2000");
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const small = Array.from({ length: 100 }, (_, i) => topic.publish("ü".repeat(i)));
  await assert.rejects(topic.publish("ü".repeat(1000)), (e) => e instanceof NotPublishedError && e.code === 103);
  await Promise.all(small);
  assert.equal((await server.links()).accepted, 1);
});

test("wrong arguments are told at once, and reach no server", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  assert.throws(() => echo.topic("no spaces"), TypeError);
  assert.throws(() => echo.topic(""), TypeError);
  const loop = {};
  loop.loop = loop;
  for (const v of [undefined, () => {}, Symbol("s"), 1n, loop]) await assert.rejects(topic.publish(v), TypeError);
  await assert.rejects(topic.publish(1, { id: "" }), TypeError);
  await assert.rejects(topic.publish(1, { id: "ü".repeat(65) }), TypeError);
  await assert.rejects(topic.publish(1, { key: 1 }), TypeError);
  await assert.rejects(topic.publish(1, { header: { a: 1 } }), TypeError);
  await assert.rejects(topic.publish(1, { timeout: 0 }), RangeError);
  assert.throws(() => topic.subscribe({ group: "-" }), TypeError);
  assert.throws(() => topic.subscribe({ from: "yesterday" }), TypeError);
  assert.throws(() => topic.subscribe({ from: { position: "1" } }), TypeError);
  assert.throws(() => topic.subscribe({ prefetch: 0 }), RangeError);
  assert.throws(() => topic.subscribe({ concurrency: NaN }), RangeError);
  assert.throws(() => topic.subscribe({ group: "g", lease: -1 }), RangeError);
  assert.throws(() => topic.subscribe({}, "no function"), TypeError);
  assert.equal(echo.pending, 0);
  await topic.publish(1);
  assert.equal((await server.stats()).Errors, 0);
});

test("a publish that is given up before it is sent was not published", async (t) => {
  const server = await serve(t);
  await server.refuse(true);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const abort = new AbortController();
  const aborted = topic.publish("aborted", { signal: abort.signal });
  const late = topic.publish("late", { timeout: 20 });
  const kept = topic.publish("kept");
  abort.abort(new Error("no more"));
  await assert.rejects(aborted, (e) => e instanceof NotPublishedError && e.cause.message === "no more");
  await assert.rejects(late, NotPublishedError);
  await assert.rejects(topic.publish("never", { signal: AbortSignal.abort() }), NotPublishedError);
  await server.refuse(false);
  await kept;
  assert.deepEqual((await server.read("t")).map((m) => m.text), ["kept"]);
});

test("a publish that is given up after it was sent has an unknown outcome", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await state(echo, "up");
  await server.mute(true);
  const abort = new AbortController();
  const aborted = echo.topic("t").publish(1, { signal: abort.signal });
  const late = echo.topic("t").publish(2, { timeout: 50 });
  await assert.rejects(late, UnknownOutcomeError);
  abort.abort();
  await assert.rejects(aborted, UnknownOutcomeError);
  assert.equal(echo.pending, 0);
});

test("errors of the server have its codes", async (t) => {
  let n = 0;
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      if (++n <= 4) link.send({ t: "err", rid: f.rid, code: [204, 305, 304, 504][n - 1], text: "so" });
      else link.send({ t: "pubok", rid: f.rid, count: 1, at: ["7-7"] });
    }
  });
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await assert.rejects(topic.publish(1), (e) => e instanceof NotPublishedError && e.code === 204);
  await assert.rejects(topic.publish(1), (e) => e instanceof UnknownOutcomeError && e.code === 305);
  await assert.rejects(topic.publish(1), (e) => e instanceof NotPublishedError && e.code === 304);
  assert.equal((await topic.publish(1)).position, "7-7", "what a server that goes away refuses is tried again");
});

test("close waits for what is under way, and refuses what comes after it", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await state(echo, "up");
  const all = Array.from({ length: 500 }, (_, i) => echo.topic("t").publish(i));
  await echo.close();
  await Promise.all(all);
  assert.equal(echo.state.state, "closed");
  assert.equal((await server.read("t")).length, 500);
  await assert.rejects(echo.topic("t").publish(1), (e) => e instanceof NotPublishedError && e.cause instanceof ClosedError);
  assert.throws(() => echo.topic("t").subscribe(), ClosedError);
  await until("the link is closed", async () => (await server.links()).open === 0);
});

test("what an outbox holds when a client ends the next one publishes, once", async (t) => {
  const server = await serve(t);
  const outbox = memoryOutbox();
  const first = client(t, server.url, { outbox });
  await first.topic("t").publish("before");
  await server.mute(true);
  const unanswered = first.topic("t").publish("sent, not answered");
  await until("it is stored", async () => (await server.read("t")).length === 2);
  await server.refuse(true);
  await server.cut();
  const unsent = first.topic("t").publish("not sent");
  const gone = [assert.rejects(unanswered, UnknownOutcomeError), assert.rejects(unsent, UnknownOutcomeError)];
  await sleep(10);
  await first.close({ timeout: 10 });
  await Promise.all(gone);
  await server.mute(false);
  await server.refuse(false);
  const second = client(t, server.url, { outbox });
  await second.topic("t").publish("after");
  assert.deepEqual((await server.read("t")).map((m) => m.text), ["before", "sent, not answered", "not sent", "after"]);
  assert.equal((await server.stats()).Duplicates, 1);
  await sleep(10);
  const left = [];
  await outbox.open("x", (l) => left.push(...l));
  assert.deepEqual(left, [], "what is stored is forgotten");
});

test("an outbox that does not take a message fails its publish", async (t) => {
  const server = await serve(t);
  const outbox = { ...memoryOutbox(), add: async () => { throw new Error("disk full"); } };
  const echo = client(t, server.url, { outbox });
  await assert.rejects(echo.topic("t").publish(1), (e) => e instanceof NotPublishedError && e.cause.message === "disk full");
  assert.equal(echo.pending, 0);
  const broken = client(t, server.url, { outbox: { ...outbox, open: async () => { throw new Error("no disk"); } }, errorsExpected: true });
  await assert.rejects(broken.topic("t").publish(1), NotPublishedError);
  assert.match(broken.errors[0].message, /outbox cannot be opened/);
});

test("no more than max_publish messages are unanswered", async (t) => {
  let under = 0;
  let most = 0;
  const server = await script(t, async (link) => {
    link.send({ ...welcome, max_publish: 3 });
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      most = Math.max(most, ++under);
      setTimeout(() => {
        under--;
        link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"] });
      }, 5);
    }
  });
  const echo = client(t, server.url);
  await Promise.all(Array.from({ length: 20 }, (_, i) => echo.topic("t").publish(i)));
  assert.equal(most, 3);
});

test("what may be stored since an earlier link is sent as that, whatever the server refuses in between", async (t) => {
  const sent = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      sent.push([link.n, f.string, f.again ?? false]);
      if (f.string === "a" && sent.filter((s) => s[1] === "a").length === 4) link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"], again: true });
      else if (link.n === 1) link.ws.terminate();
      else {
        link.send({ t: "err", rid: f.rid, code: { a: 504, b: 503, c: 304 }[f.string] });
        if (link.n === 2) setTimeout(() => link.ws.terminate(), 20);
      }
    }
  });
  const echo = client(t, server.url);
  assert.equal((await echo.topic("t").publish("a")).duplicate, true);
  assert.deepEqual(sent.slice(0, 4), [[1, "a", false], [2, "a", true], [3, "a", true], [3, "a", true]]);
});

for (const [what, answers] of [["given up", [503]], ["refused", [304]], ["refused after all", [306, 204]]]) {
  test(`what may be stored since an earlier link and is ${what} has an unknown outcome`, async (t) => {
    let n = 0;
    const server = await script(t, async (link) => {
      link.send(welcome);
      for (;;) {
        const f = await link.next("pub");
        if (f.t === "closed") return;
        if (link.n === 1) link.ws.terminate();
        else link.send({ t: "err", rid: f.rid, code: answers[n++] });
      }
    });
    const abort = new AbortController();
    const published = client(t, server.url).topic("t").publish(1, { signal: abort.signal });
    const outcome = assert.rejects(published, (e) => e instanceof UnknownOutcomeError && (what === "given up" || e.code === answers.at(-1)));
    if (what === "given up") {
      await until("the first answer", () => n === 1);
      await sleep(30);
      abort.abort();
    }
    await outcome;
  });
}

test("what the server refuses for the moment keeps its place", async (t) => {
  const stored = [];
  let refuse = 2;
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      if (f.string === "a" && refuse-- > 0) link.send({ t: "err", rid: f.rid, code: 503 });
      else {
        stored.push(f.string);
        link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"] });
      }
    }
  });
  const topic = client(t, server.url).topic("t");
  const a = topic.publish("a");
  await until("the first answer", () => refuse === 1);
  await sleep(20);
  await Promise.all([a, topic.publish("b"), topic.publish("c"), topic.publish("d")]);
  assert.deepEqual(stored, ["a", "b", "c", "d"]);
});

test("what the server refused goes before what came after it, on the next link too", async (t) => {
  const sent = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      if (link.n === 2) {
        sent.push([f.string, f.again ?? false, f.rid]);
        link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"] });
      } else if (f.string === "a") link.send({ t: "err", rid: f.rid, code: 503 });
      else if (f.string === "c") setTimeout(() => link.ws.terminate(), 20);
    }
  });
  const echo = client(t, server.url);
  await state(echo, "up");
  await Promise.all(["a", "b", "c"].map((v) => echo.topic("t").publish(v)));
  assert.deepEqual(sent.map((s) => s.slice(0, 2)), [["a", false], ["b", true], ["c", true]]);
  assert.ok(sent[0][2] < sent[1][2] && sent[1][2] < sent[2][2], "numbers ascend");
});

test("what an outbox was asked to keep when a client ends has an unknown outcome, what it was not is not published", async (t) => {
  const server = await serve(t);
  await server.refuse(true);
  const memory = memoryOutbox();
  const calls = [];
  let go = () => {};
  const slow = {
    ...memory,
    add: async (entries) => {
      calls.push("add");
      await new Promise((resolve) => (go = resolve));
      await memory.add(entries);
      calls.push("added");
    },
    close: async () => void calls.push("close"),
  };
  const first = client(t, server.url, { outbox: slow });
  const asked = assert.rejects(first.topic("t").publish("asked"), UnknownOutcomeError);
  await until("it is asked", () => calls.length === 1);
  const given = new AbortController();
  const unwanted = assert.rejects(first.topic("t").publish("unwanted", { signal: given.signal }), NotPublishedError);
  given.abort();
  const closed = first.close({ timeout: 200 });
  await asked;
  await unwanted;
  assert.deepEqual(calls, ["add"]);
  go();
  await closed;
  assert.deepEqual(calls, ["add", "added", "close"]);
  const unopened = client(t, server.url, { outbox: { ...memory, open: () => sleep(50) } });
  const never = assert.rejects(unopened.topic("t").publish("never"), NotPublishedError);
  await unopened.close({ timeout: 10 });
  await never;
  await sleep(60);
  await server.refuse(false);
  const next = client(t, server.url, { outbox: memory });
  await next.topic("t").publish("next");
  assert.deepEqual((await server.read("t")).map((m) => m.text), ["asked", "next"]);
});

test("an answer that covers more than there is takes no longer", async (t) => {
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("pub");
      if (f.t === "closed") return;
      link.send({ t: "pubok", rid: f.rid, count: 1e15, at: ["1-1"] });
    }
  });
  const echo = client(t, server.url);
  assert.equal((await echo.topic("t").publish(1)).position, "1-1");
  await echo.topic("t").publish(2);
});

test("numbers of frames are whole, whatever the caller's are", async (t) => {
  const frames = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push(f);
      if (f.t === "pub") link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"] });
      if (f.t === "sub") link.send({ t: "subok", sid: f.sid, lease: 60_000 }, { t: "run", sid: f.sid }, { t: "dlv", n: 1, pos: "1-0", id: "a" }, { t: "dlv", n: 2, pos: "2-0", id: "b" });
      if (f.t === "extend" || f.t === "nack") link.send({ t: "ok", rid: f.rid });
    }
  });
  const echo = client(t, server.url);
  await state(echo, "up");
  const topic = echo.topic("t");
  await topic.publish(1, { timeout: 1499.5 });
  await topic.publish(1, { timeout: Infinity });
  await assert.rejects(topic.publish(1, { timeout: 1e12 }), RangeError);
  const it = topic.subscribe({ group: "g", lease: 99.5, prefetch: 20.5, prefetchBytes: 1000.5 })[Symbol.asyncIterator]();
  const [a, b] = [(await it.next()).value, (await it.next()).value];
  await a.extend(10.5);
  await a.nack(0.1);
  await b.nack(1e300);
  topic.subscribe({ prefetch: 1e300, prefetchBytes: Number.MAX_VALUE });
  await until("all are sent", () => frames.filter((f) => f.t === "sub").length === 2);
  for (const f of frames) for (const [k, v] of Object.entries(f)) assert.ok(typeof v !== "number" || Number.isSafeInteger(v), `${f.t} has ${k} ${v}`);
  assert.equal(frames.filter((f) => f.within > 0).length, 1);
  await echo.close({ timeout: Infinity });
});

test("the server takes a publish with a fraction of a millisecond", async (t) => {
  const server = await serve(t);
  await client(t, server.url).topic("t").publish(1, { timeout: 4999.5 });
  assert.equal((await server.stats()).Errors, 0);
});

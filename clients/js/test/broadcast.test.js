import assert from "node:assert/strict";
import { test } from "node:test";
import { comparePositions, ClosedError, GapError, SubscriptionError } from "../dist/index.js";
import { client, script, serve, sleep, state, until, welcome } from "./helper.js";

const numbers = (n, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const publishAll = (topic, values) => Promise.all(values.map((v) => topic.publish(v)));

test("a subscription begins where it is told to", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const receipts = [];
  for (const i of numbers(5)) {
    receipts.push(await topic.publish(i));
    await sleep(2);
  }
  const time = new Date();
  await sleep(2);
  const begin = async (options, handler) => {
    const got = [];
    const sub = topic.subscribe(options, (m) => void got.push(m.value));
    await sub.ready;
    return got;
  };
  const all = {
    none: await begin({}),
    newest: await begin({ from: "newest" }),
    oldest: await begin({ from: "oldest" }),
    position: await begin({ from: { position: receipts[2].position } }),
    id: await begin({ from: { id: receipts[3].id } }),
    time: await begin({ from: { time } }),
    zero: await begin({ from: { position: "0-0" } }),
  };
  await topic.publish(5);
  const want = { none: [5], newest: [5], oldest: numbers(6), position: [3, 4, 5], id: [4, 5], time: [5], zero: numbers(6) };
  await until("all came", () => Object.keys(want).every((k) => all[k].length >= want[k].length));
  assert.deepEqual(all, want);
  const missing = topic.subscribe({ from: { id: "no such" } });
  await assert.rejects(missing.ready, (e) => e instanceof SubscriptionError && e.code === 404);
  await assert.rejects(missing.closed, SubscriptionError);
  await assert.rejects(missing[Symbol.asyncIterator]().next(), SubscriptionError);
});

test("for await gets messages, its position moves when the next is asked for, and break ends it", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const receipts = await publishAll(topic, numbers(10));
  const sub = topic.subscribe({ from: "oldest" });
  const got = [];
  for await (const m of sub) {
    assert.equal(sub.position, m.value === 0 ? "0-0" === sub.position ? "0-0" : sub.position : receipts[m.value - 1].position);
    got.push(m.value);
    if (m.value === 5) break;
  }
  assert.deepEqual(got, numbers(6));
  assert.equal(sub.position, receipts[5].position);
  await sub.closed;
  assert.deepEqual(await sub[Symbol.asyncIterator]().next(), { done: true, value: undefined });
  const rest = [];
  topic.subscribe({ from: { position: sub.position } }, (m) => void rest.push(m.value));
  await until("the rest came", () => rest.length === 4);
  assert.deepEqual(rest, [6, 7, 8, 9]);
});

test("position is that up to which all handlers are done, whatever their order", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const receipts = await publishAll(topic, numbers(4));
  const done = [];
  let most = 0;
  let running = 0;
  const sub = topic.subscribe({ from: "oldest", concurrency: 3 }, async (m) => {
    most = Math.max(most, ++running);
    await new Promise((resolve) => (done[m.value] = resolve));
    running--;
  });
  await sub.ready;
  const start = sub.position;
  await until("three run", () => running === 3);
  await sleep(20);
  assert.equal(most, 3);
  done[1]();
  await until("the fourth runs", () => done[3]);
  assert.equal(sub.position, start);
  done[0]();
  await until("the position moves over both", () => sub.position === receipts[1].position);
  done[3]();
  done[2]();
  await until("the position is the last", () => sub.position === receipts[3].position);
});

test("a handler that fails is told of, and the next message comes", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url, { errorsExpected: true });
  const topic = echo.topic("t");
  const told = [];
  const got = [];
  const a = topic.subscribe({ onError: (e, m) => told.push([e.message, m.value]) }, (m) => {
    got.push(m.value);
    if (m.value === 1) throw new Error("thrown");
    if (m.value === 2) return Promise.reject("rejected");
  });
  const b = topic.subscribe({}, () => Promise.reject(new Error("to the client")));
  await Promise.all([a.ready, b.ready]);
  await publishAll(topic, [1, 2, 3]);
  await until("all came", () => got.length === 3 && echo.errors.length === 3);
  assert.deepEqual(told, [["thrown", 1], ["rejected", 2]]);
  assert.match(echo.errors[0].message, /to the client/);
});

test("on links that break at random nothing is lost, doubled or out of order", async (t) => {
  const server = await serve(t);
  const publisher = client(t, server.url, { maxOutbox: 5000 });
  const reader = client(t, server.url);
  const got = [];
  const sub = reader.topic("t").subscribe({ prefetch: 64, concurrency: 1 }, async (m) => {
    if (m.value % 50 === 0) await sleep(3);
    got.push(m.value);
  });
  await sub.ready;
  await server.storm(5, 60, 7);
  const all = [];
  for (const i of numbers(2000)) {
    all.push(publisher.topic("t").publish(i, { header: { pad: "x".repeat(100) } }));
    if (i % 20 === 0) await sleep(2);
  }
  await Promise.all(all);
  await server.storm(0, 0, 0);
  await until("all came", () => got.length >= 2000);
  assert.deepEqual(got, numbers(2000));
  assert.ok(reader.states.filter((s) => s.state === "up").length > 3, "the reader's link broke");
});

test("what was published while the link was down, and the server restarted, comes", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const got = [];
  const sub = echo.topic("t").subscribe({}, (m) => void got.push(m.value));
  await sub.ready;
  await server.refuse(true);
  await server.restart();
  await state(echo, "connecting");
  await server.publish("t", numbers(300).map((i) => ({ id: `i${i}`, type: "application/json", data: String(i) })));
  await server.refuse(false);
  await until("all came", () => got.length === 300);
  assert.deepEqual(got, numbers(300));
});

test("a loss is told, in its place", async (t) => {
  const server = await serve(t, "-keep", "10", "-drop", "-ring", "1");
  const echo = client(t, server.url, { errorsExpected: true });
  const got = [];
  const options = { from: "newest", onGap: (gap) => got.push(gap) };
  const sub = echo.topic("t").subscribe(options, (m) => void got.push(m.value));
  const other = echo.topic("t").subscribe({}, () => {});
  await Promise.all([sub.ready, other.ready]);
  await server.publish("t", numbers(3).map((i) => ({ id: `i${i}`, type: "application/json", data: String(i) })));
  await until("the first came", () => got.length === 3);
  const before = sub.position;
  await server.refuse(true);
  await server.restart();
  for (const i of numbers(100)) await server.publish("t", [{ id: `j${i}`, type: "application/json", data: String(100 + i) }]);
  await server.refuse(false);
  await until("the rest came", () => got.at(-1) === 199);
  const gap = got[3];
  assert.ok(gap instanceof GapError, `got ${gap}`);
  assert.equal(gap.count, 90);
  assert.equal(gap.topic, "t");
  assert.ok(comparePositions(gap.position, before) > 0);
  assert.deepEqual(got.slice(4), numbers(10, 190));
  await until("without onGap it is an error of the client", () => echo.errors.some((e) => e instanceof GapError));
});

test("a slow handler has no more than prefetch messages here", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url, { maxOutbox: 3000 });
  await publishAll(echo.topic("t"), numbers(1000));
  await publishAll(echo.topic("big"), Array(40).fill("x".repeat(10_000)));
  const delivered = async () => (await server.stats()).Delivered;
  let release = () => {};
  let handled = 0;
  const slow = client(t, server.url);
  slow.topic("t").subscribe({ from: "oldest", prefetch: 50 }, async () => {
    await new Promise((resolve) => (release = resolve));
    handled++;
  });
  await until("50 came", async () => (await delivered()) >= 50);
  await sleep(100);
  assert.equal(await delivered(), 50);
  await server.cut(); // which must not bring more
  await until("the link is down", () => slow.states.some((s) => s.state === "down"));
  await state(slow, "up");
  await sleep(100);
  assert.equal(await delivered(), 50);
  while (handled < 200) {
    release();
    await sleep(0);
    if (handled % 20 === 0) assert.ok((await delivered()) <= handled + 51, `${await delivered()} sent with ${handled} handled`);
  }
  await until("credit came back", async () => (await delivered()) >= 200);
  const had = await delivered();
  slow.topic("big").subscribe({ from: "oldest", prefetchBytes: 100_000 }, () => new Promise(() => {}));
  await until("some large ones came", async () => (await delivered()) >= had + 10);
  await sleep(100);
  const large = (await delivered()) - had;
  assert.ok(large >= 10 && large <= 12, `${large} large messages for 100,000 bytes`);
  await slow.close({ timeout: 1 });
});

test("credit comes back for every message, however its bytes are counted", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  let n = 0;
  const sub = echo.topic("t").subscribe({ prefetchBytes: 20_000 }, () => void n++);
  await sub.ready;
  // White space does not travel, and counts.
  const data = "[" + " ".repeat(5000) + "]";
  for (const k of numbers(20)) await server.publish("t", numbers(10).map((i) => ({ id: `${k}-${i}`, type: "application/json", data })));
  await until("all came", () => n === 200);
});

test("10,000 messages pass a slow-ish handler in bounded memory", async (t) => {
  const server = await serve(t);
  const publisher = client(t, server.url, { maxOutbox: 20_000 });
  const payload = "x".repeat(2000);
  for (let i = 0; i < 10; i++) await publishAll(publisher.topic("t"), numbers(1000, 1000 * i).map((n) => ({ n, payload })));
  await publisher.close();
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  const echo = client(t, server.url);
  let n = 0;
  let most = 0;
  let wrong = 0;
  const sub = echo.topic("t").subscribe({ from: "oldest" }, async (m) => {
    if (m.value.n !== n++) wrong++;
    if (n % 100 === 0) {
      await sleep(1);
      globalThis.gc?.();
      most = Math.max(most, process.memoryUsage().heapUsed - before);
    }
  });
  await until("all came", () => n === 10_000, 30_000);
  await sub.close();
  assert.equal(wrong, 0);
  assert.ok(globalThis.gc, "run with --expose-gc");
  assert.ok(most < 8 << 20, `${most} bytes of heap for messages of 20 MB`);
});

test("a server that leaves out a message, or says one twice, is not believed", async (t) => {
  let asked = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    const f = await link.next("sub");
    asked.push(f);
    link.send({ t: "subok", sid: 1, pos: "5-0" }, { t: "run", sid: 1 });
    const m = (pos, prev, id) => ({ t: "msg", pos, prev, id, time: "2026-01-01T00:00:00Z", type: "text/plain", string: id });
    if (link.n === 1) link.send({ t: "run", sid: 1 }, m("6-0", "5-0", "a"), m("6-0", "5-0", "a"), m("8-0", "7-0", "c"));
    else link.send({ t: "run", sid: 1 }, m("7-0", "6-0", "b"), m("8-0", "7-0", "c"), { t: "msg", pos: "9-0", prev: "8-0", id: "e", type: "image/x" });
    await link.next("closed");
  });
  const echo = client(t, server.url);
  const got = [];
  echo.topic("t").subscribe({}, (m) => void got.push(m.id));
  await until("all came", () => got.length === 4);
  assert.deepEqual(got, ["a", "b", "c", "e"]);
  assert.equal(asked[1].from, "pos");
  assert.equal(asked[1].pos, "6-0");
  assert.match(echo.states.find((s) => s.state === "down").error.message, /left out/);
});

test("a subscription that the server could not keep is opened again, one it may not have ends", async (t) => {
  let subs = 0;
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("sub");
      if (f.t === "closed") return;
      subs++;
      if (f.topic === "gone") link.send({ t: "subok", sid: f.sid, pos: "1-0" }, { t: "subend", sid: f.sid, code: 204 });
      else if (subs < 4) link.send({ t: "err", sid: f.sid, code: 502 });
      else link.send({ t: "subok", sid: f.sid, pos: "1-0" });
    }
  });
  const echo = client(t, server.url);
  await echo.topic("t").subscribe({}, () => {}).ready;
  assert.equal(subs, 4);
  const gone = echo.topic("gone").subscribe({});
  await assert.rejects(gone.closed, (e) => e instanceof SubscriptionError && e.code === 204);
});

test("positions are compared as the numbers that they are", () => {
  const sorted = ["0-0", "0-1", "0-10", "1-0", "9-5", "10-0", "10-18446744073709551615", "18446744073709551615-0"];
  for (const [i, a] of sorted.entries()) for (const [j, b] of sorted.entries()) assert.equal(Math.sign(comparePositions(a, b)), Math.sign(i - j), `${a} ${b}`);
});

test("close of a subscription waits for its handler, and no other begins", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  let began = 0;
  let done = 0;
  const sub = topic.subscribe({}, async () => {
    began++;
    await sleep(50);
    done++;
  });
  await sub.ready;
  await publishAll(topic, [1, 2, 3]);
  await until("one began", () => began === 1);
  await sub.close();
  assert.equal(done, 1);
  await sleep(60);
  assert.equal(began, 1);
  const unready = client(t, "ws://127.0.0.1:1").topic("t").subscribe();
  await unready.close();
  await assert.rejects(unready.ready, ClosedError);
});

test("close again waits for the same, and so does closed", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  let began = false;
  let done = false;
  const sub = echo.topic("t").subscribe({}, async () => {
    began = true;
    await sleep(150);
    done = true;
  });
  await sub.ready;
  await echo.topic("t").publish(1);
  await until("it began", () => began);
  const first = sub.close();
  const order = [];
  const all = [
    sub.closed.then(() => order.push(`closed, ${done}`)),
    sub.close().then(() => order.push(`again, ${done}`)),
    echo.close().then(() => order.push(`client, ${done}`)),
  ];
  await first;
  assert.ok(done);
  await Promise.all(all);
  assert.deepEqual(order.sort(), ["again, true", "client, true", "closed, true"]);
});

test("a client that is closed waits no longer than it was told to, whatever its subscriptions were", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  let began = false;
  const sub = echo.topic("t").subscribe({}, () => ((began = true), sleep(1000)));
  await sub.ready;
  await echo.topic("t").publish(1);
  await until("it began", () => began);
  void sub.close({ timeout: 2000 });
  const at = Date.now();
  await echo.close({ timeout: 50 });
  assert.ok(Date.now() - at < 500);
});

test("a message that cannot be read is lost, and told, and costs no credit", async (t) => {
  const acks = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("sub", "ack");
      if (f.t === "closed") return;
      if (f.t === "ack") {
        acks.push(f.pos);
        continue;
      }
      const bad = [{ base64: "%%%" }, { header: { a: 1 }, data: 1 }, { header: "x" }, { type: 7, base64: "" }];
      link.send({ t: "subok", sid: 1, pos: "1-0" }, { t: "run", sid: 1 }, { t: "msg", pos: "2-0", prev: "1-0", id: "a" });
      bad.forEach((m, i) => link.send({ t: "run", sid: 1 }, { t: "msg", pos: `${i + 3}-0`, prev: `${i + 2}-0`, id: `bad${i}`, ...m }));
      link.send({ t: "run", sid: 1 }, { t: "msg", pos: "7-0", prev: "6-0", id: "b" });
    }
  });
  const echo = client(t, server.url, { errorsExpected: true });
  const got = [];
  const sub = echo.topic("t").subscribe({ prefetch: 4, onGap: (g) => got.push(`${g.count} at ${g.position}`) }, (m) => void got.push(m.id));
  await until("all came", () => got.at(-1) === "b");
  assert.deepEqual(got, ["a", "1 at 3-0", "1 at 4-0", "1 at 5-0", "1 at 6-0", "b"]);
  assert.equal(echo.errors.length, 4);
  assert.ok(echo.errors.every((e, i) => new RegExp(`message bad${i} of t cannot be read`).test(e.message)), `${echo.errors}`);
  assert.equal(server.links(), 1);
  await until("all is acknowledged", () => acks.at(-1) === "7-0");
  assert.equal(sub.position, "7-0");
});

for (const group of [undefined, "g"]) {
  test(`a ${group ? "group " : ""}subscription that ended is opened again, and nothing is said of it before the answer`, async (t) => {
    const frames = [];
    const server = await script(t, async (link) => {
      link.send(welcome);
      let subs = 0;
      for (;;) {
        const f = await link.next();
        if (f.t === "closed") return;
        frames.push(f);
        if (f.rid) link.send({ t: "ok", rid: f.rid });
        if (f.t !== "sub") continue;
        subs++;
        const m = (n) => (group ? { t: "dlv", n, attempt: 1, pos: `${n}-0`, id: `${n}` } : { t: "msg", pos: `${n}-0`, prev: `${n - 1}-0`, id: `${n}` });
        if (subs === 1) link.send({ t: "subok", sid: 1, pos: "0-0", lease: 30 }, { t: "run", sid: 1 }, m(1), m(2), m(3), { t: "subend", sid: 1, code: 502 });
        else if (subs === 2) link.send({ t: "err", sid: 1, code: 503 });
        else {
          await sleep(150);
          frames.push({ t: "subok" });
          link.send({ t: "subok", sid: 1, pos: "0-0", lease: 30 }, { t: "run", sid: 1 }, m(group ? 1 : 4));
        }
      }
    });
    const echo = client(t, server.url);
    const got = [];
    const options = { prefetch: 10, onError: () => {} };
    if (group) options.group = group;
    const sub = echo.topic("t").subscribe(options, async (m) => {
      got.push(m.id);
      await sleep(100);
    });
    await until("the subscription is open again", () => frames.some((f) => f.t === "subok"));
    const between = frames.slice(0, frames.findIndex((f) => f.t === "subok"));
    assert.deepEqual(between.filter((f) => f.t !== "ping").map((f) => f.t), group ? ["sub", "sub", "sub"] : ["sub", "sub", "sub"]);
    await until("the rest came", () => got.at(-1) === (group ? "1" : "4") && got.length === (group ? 2 : 4));
    await until("credit is all back", () => {
      const given = frames.slice(frames.findLastIndex((f) => f.t === "sub")).reduce((n, f) => n + (f.credit ?? 0), 0);
      return given === 10;
    });
    await sub.close();
  });
}

test("a subscription that ends time and again is opened ever less often", async (t) => {
  t.mock.method(Math, "random", () => 0.9);
  let subs = 0;
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next("sub");
      if (f.t === "closed") return;
      subs++;
      link.send({ t: "subok", sid: 1, pos: "1-0" }, { t: "subend", sid: 1, code: 502 });
    }
  });
  client(t, server.url).topic("t").subscribe({}, () => {});
  await sleep(2100); // after 275, 500, 950 and 1850 ms
  assert.equal(subs, 4);
});

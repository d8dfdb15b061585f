import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, NotPublishedError, SubscriptionError } from "../dist/index.js";
import { uuid } from "../dist/id.js";
import { client, script, serve, sleep, state, until, WebSocket, welcome } from "./helper.js";

test("a token is asked for before each connect", async (t) => {
  const server = await serve(t);
  await server.tokens({ a: { subject: "me" }, b: { subject: "me" } });
  const tokens = ["a", "b"];
  let asked = 0;
  const echo = client(t, server.url, { token: async () => tokens[asked++] });
  await echo.topic("t").publish(1);
  assert.equal(asked, 1);
  await server.cut();
  await echo.topic("t").publish(2);
  assert.equal(asked, 2);
});

test("a fresh token is sent before the old one ends, and the link stays", async (t) => {
  const server = await serve(t);
  await server.tokens({ t1: { subject: "me", ttl: 1500 }, t2: { subject: "me", ttl: 1500 }, t3: { subject: "me" } });
  let asked = 0;
  const echo = client(t, server.url, { token: () => `t${++asked}` });
  await state(echo, "up");
  await until("two more tokens", () => asked === 3, 5000);
  await sleep(1700);
  await echo.topic("t").publish(1);
  assert.equal(asked, 3);
  assert.equal((await server.links()).accepted, 1);
});

test("a token that is refused is asked for again, one that is given once is not", async (t) => {
  const server = await serve(t);
  await server.tokens({ good: { subject: "me" } });
  const tokens = ["bad", "", "good"];
  const echo = client(t, server.url, { token: () => tokens.shift() });
  await echo.topic("t").publish(1);
  const downs = echo.states.filter((s) => s.state === "down");
  assert.deepEqual(downs.map((s) => s.error.code), [202, 201]);
  const fixed = client(t, server.url, { token: "bad" });
  await assert.rejects(fixed.topic("t").publish(1), (e) => e instanceof NotPublishedError && e.cause.code === 202);
  assert.equal(fixed.state.state, "closed");
  assert.equal(fixed.state.error.code, 202);
  const failing = client(t, server.url, { token: () => Promise.reject(new Error("no network")) });
  await until("it is down", () => failing.states.some((s) => s.state === "down" && /no network/.test(s.error.message)));
});

test("a client that is kicked gets a new token, and what it may not do is refused", async (t) => {
  const server = await serve(t);
  await server.tokens({ a: { subject: "me" }, b: { subject: "me", deny: "secret" } });
  const tokens = ["a", "b"];
  const echo = client(t, server.url, { token: () => tokens.shift() ?? "b" });
  const sub = echo.topic("secret").subscribe({ group: "g" }, () => {});
  await sub.ready;
  assert.equal((await server.kick("me")).kicked, 1);
  await assert.rejects(sub.closed, (e) => e instanceof SubscriptionError && e.code === 204);
  await assert.rejects(echo.topic("secret").publish(1), (e) => e instanceof NotPublishedError && e.code === 204);
  assert.equal(echo.states.find((s) => s.state === "down").error.code, 4202);
  await echo.topic("open").publish(1);
});

test("a server that nothing is heard of is given up, one that is quiet is not", async (t) => {
  const server = await serve(t, "-ping", "700ms", "-pong", "400ms");
  const echo = client(t, server.url);
  await state(echo, "up");
  await sleep(2500);
  assert.equal((await server.links()).accepted, 1, "a quiet link stays up");
  await server.mute(true);
  const began = Date.now();
  await until("it is down", () => echo.states.some((s) => s.state === "down"));
  assert.ok(Date.now() - began < 2000);
  assert.match(echo.states.find((s) => s.state === "down").error.message, /nothing was heard/);
  await server.mute(false);
  await state(echo, "up");
});

test("a server that says nothing by itself is asked before it is given up", async (t) => {
  const server = await script(t, async (link) => {
    link.send({ ...welcome, ping: 1000 });
    for (;;) {
      const f = await link.next("ping");
      if (f.t === "closed") return;
      link.send({ t: "pong", n: f.n });
    }
  });
  client(t, server.url);
  await sleep(2200);
  assert.equal(server.links(), 1);
});

test("a ping is answered", async (t) => {
  let pong;
  const server = await script(t, async (link) => {
    link.send(welcome, { t: "ping", n: 77 });
    pong = await link.next("pong");
  });
  client(t, server.url);
  assert.equal((await until("a pong", () => pong)).n, 77);
});

test("a drained server is left within its time, and all goes on at the next", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url, { backoff: { first: 10_000, last: 10_000 } });
  const got = [];
  const sub = echo.topic("t").subscribe({}, (m) => void got.push(m.value));
  await sub.ready;
  await server.drain(600);
  const began = Date.now();
  await until("the link is another", () => echo.states.filter((s) => s.state === "up").length === 2, 3000);
  assert.ok(Date.now() - began < 1500, `after ${Date.now() - began} ms`);
  await echo.topic("t").publish(1);
  await until("it came", () => got.length === 1);
});

for (const [code, stops] of [[4001, false], [4002, false], [4004, false], [4099, false], [4201, false], [4202, false], [4301, true], [4302, true], [4303, true], [4399, true], [1011, false], [1000, false]]) {
  test(`close code ${code}: the client ${stops ? "stops" : "connects again"}`, async (t) => {
    const server = await script(t, async (link) => {
      link.send(welcome);
      if (link.n === 1) link.close(code, "because");
    });
    const echo = client(t, server.url, { token: () => "t" });
    await until("the first link ended", () => echo.states.some((s) => s.state === "down" || s.state === "closed"));
    if (!stops) return void (await until("a second link", () => server.links() === 2 && echo.state.state === "up"));
    await sleep(100);
    assert.equal(server.links(), 1);
    assert.equal(echo.state.state, "closed");
    assert.equal(echo.state.error.code, code);
    assert.match(echo.state.error.message, /because/);
    await assert.rejects(echo.topic("t").publish(1), NotPublishedError);
  });
}

for (const [what, ends] of [
  ["a drain", (link) => (link.send({ t: "drain", within: 60_000 }), setTimeout(() => link.ws.terminate(), 50))],
  ["a close that says so", (link) => link.close(4001, "going away")],
]) {
  test(`a client whose server goes away after ${what} connects at once`, async (t) => {
    const server = await script(t, async (link) => {
      link.send(welcome);
      if (link.n === 1) ends(link);
    });
    const echo = client(t, server.url, { backoff: { first: 60_000, last: 60_000 } });
    await until("a second link", () => server.links() === 2, 1000);
    await state(echo, "up");
  });
}

test("a drain that gives for ever, or no sensible time, makes no haste", async (t) => {
  const server = await script(t, async (link) => {
    link.send(welcome, { t: "drain", within: 1e15 }, { t: "drain", within: 1 });
    await link.next("closed");
  });
  client(t, server.url);
  await sleep(300);
  assert.equal(server.links(), 1);
});

for (const [what, frames] of [
  ["goes away at once", [{ t: "drain", within: 0 }]],
  ["has times of no sense", [{ t: "drain", within: "soon" }, { t: "drain", within: -1 }]],
  ["closes with 1009", 1009],
  ["sends what cannot be", [{ t: "run", sid: 1 }, { t: "msg", pos: "9-0", prev: "8-0" }]],
]) {
  test(`a server that ${what}, time and again, is asked ever less often`, async (t) => {
    t.mock.method(Math, "random", () => 0.5);
    const server = await script(t, async (link) => {
      link.send({ ...welcome, ping: "often", max_publish: -1 });
      await link.next("sub");
      link.send({ t: "subok", sid: 1, pos: "1-0" });
      const f = await link.next("pub"); // the same each time
      if (frames === 1009) link.close(1009, "too big");
      else if (f.t === "pub") link.send(...frames);
      await link.next("closed");
    });
    const echo = client(t, server.url, { backoff: { first: 20, last: 10_000 } });
    echo.topic("t").subscribe({}, () => {});
    echo.topic("t").publish("x".repeat(100)).catch(() => {});
    await sleep(1300); // 10, 20, 40, 80, 160, 320 and 640 ms
    assert.ok(server.links() >= 4 && server.links() <= 8, `${server.links()} links`);
  });
}

test("a token is not asked for more often than once a second, and not before its time", async (t) => {
  const asked = { soon: 0, never: 0 };
  for (const [name, ttl] of [["soon", 3], ["never", 1e15]]) {
    const server = await script(t, async (link) => {
      link.send({ ...welcome, ttl });
      for (;;) {
        const f = await link.next("auth");
        if (f.t === "closed") return;
        link.send({ t: "ok", rid: f.rid, ttl });
      }
    });
    client(t, server.url, { token: () => `t${++asked[name]}` });
  }
  await sleep(2300);
  assert.deepEqual(asked, { soon: 3, never: 1 });
});

test("an answer to a request of a former link is none", async (t) => {
  let rid;
  const server = await script(t, async (link) => {
    link.send({ ...welcome, ttl: link.n === 1 ? 1200 : 0 });
    if (link.n === 1) {
      rid = (await link.next("auth")).rid;
      return link.ws.terminate();
    }
    link.send({ t: "ok", rid, ttl: 1 });
  });
  let asked = 0;
  client(t, server.url, { token: () => `t${++asked}` });
  await until("a second link", () => server.links() === 2);
  await sleep(1300);
  assert.equal(asked, 3);
});

for (const [what, bad] of [
  ["no JSON", "{"],
  ["no object", "7"],
  ["no type", "{}"],
  ["a message without a sensible position", ['{"t":"run","sid":1}', '{"t":"msg","pos":7}']],
]) {
  test(`from a server that says ${what} the client goes away, and comes again`, async (t) => {
    const server = await script(t, async (link) => {
      link.send(welcome);
      await link.next("sub");
      link.send({ t: "subok", sid: 1, pos: "1-0" });
      if (link.n === 1) link.send(...[bad].flat());
      await link.next("closed");
    });
    const echo = client(t, server.url);
    echo.topic("t").subscribe({}, () => {});
    await until("a second link", () => server.links() === 2);
    await state(echo, "up");
  });
}

test("frames, fields, answers and subscriptions that a client does not know it ignores", async (t) => {
  const server = await script(t, async (link) => {
    link.send({ ...welcome, more: 1 }, "", { t: "later", x: {} }, { t: "ok", rid: 99 }, { t: "err", rid: 98, code: 101 }, { t: "pubok", rid: 97, count: 3 }, { t: "subok", sid: 96 }, { t: "run", sid: 95 }, { t: "msg", pos: "1-0", id: "x" }, { t: "gap", pos: "2-0" }, { t: "subend", sid: 94, code: 501 });
    const f = await link.next("pub");
    link.send({ t: "pubok", rid: f.rid, count: 1, at: ["1-1"] });
  });
  const echo = client(t, server.url);
  assert.equal((await echo.topic("t").publish(1)).position, "1-1");
  assert.equal(server.links(), 1);
});

test("pauses between attempts are random, grow and end", async (t) => {
  let attempts = [];
  class Refused extends EventTarget {
    constructor() {
      super();
      attempts.push(Date.now());
      queueMicrotask(() => this.dispatchEvent(Object.assign(new Event("close"), { code: 1006, reason: "" })));
    }
    close() {}
  }
  const echo = client(t, "ws://x", { WebSocket: Refused, backoff: { first: 10, last: 80 } });
  await until("many attempts", () => attempts.length === 20);
  const pauses = attempts.slice(1).map((a, i) => a - attempts[i]);
  assert.ok(Math.max(...pauses) <= 110, `${pauses}`);
  assert.ok(pauses[0] <= 25 && pauses[1] <= 40, `${pauses}`);
  assert.ok(new Set(pauses).size > 5, `${pauses}`);
  assert.equal(echo.states.filter((s) => s.state === "connecting").length, attempts.length);
});

test("a client can be closed at any moment, and by who listens", async (t) => {
  const server = await serve(t);
  for (const name of ["connecting", "up"]) {
    const echo = client(t, server.url);
    await new Promise((resolve) => echo.on("state", (s) => s.state === name && resolve(echo.close())));
    assert.equal(echo.state.state, "closed");
    assert.equal(echo.state.error, undefined);
  }
  const down = client(t, "ws://127.0.0.1:1");
  await new Promise((resolve) => down.on("state", (s) => s.state === "down" && resolve(down.close())));
  await sleep(100);
  assert.equal(down.states.at(-1).state, "closed");
});

test("wrong URLs and options are told at once", () => {
  assert.throws(() => connect("ftp://x", { WebSocket }), TypeError);
  assert.throws(() => connect("/relative", { WebSocket }), TypeError);
  assert.throws(() => connect("ws://x", { WebSocket, backoff: { first: 0 } }), RangeError);
  assert.throws(() => connect("ws://x", { WebSocket, maxOutbox: 0 }), RangeError);
});

test("ids tell the time that they were made at, and do not repeat", () => {
  const at = Date.parse("2026-11-21T10:00:00.123Z");
  assert.equal(parseInt(uuid(at).replace("-", "").slice(0, 12), 16), at);
  assert.equal(new Set(Array.from({ length: 10_000 }, () => uuid())).size, 10_000);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { EchoError, GapError, LeaseLostError } from "../dist/index.js";
import { client, script, serve, sleep, state, until, welcome } from "./helper.js";

const numbers = (n, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const publishAll = (topic, values) => Promise.all(values.map((v) => topic.publish(v)));

test("two clients share the messages of a group, another group has them all", async (t) => {
  const server = await serve(t);
  const clients = [client(t, server.url), client(t, server.url), client(t, server.url)];
  const got = [[], [], []];
  const subs = clients.map((c, i) => c.topic("t").subscribe({ group: i < 2 ? "g" : "h", prefetch: 4 }, async (m) => {
    got[i].push(m.value);
    await sleep(1);
  }));
  await Promise.all(subs.map((s) => s.ready));
  await publishAll(clients[0].topic("t"), numbers(200));
  await until("all came", () => got[0].length + got[1].length === 200 && got[2].length === 200);
  assert.deepEqual([...got[0], ...got[1]].sort((a, b) => a - b), numbers(200));
  assert.ok(got[0].length > 20 && got[1].length > 20, `${got[0].length} and ${got[1].length}`);
  assert.deepEqual(got[2], numbers(200));
});

test("for await settles by hand", async (t) => {
  const server = await serve(t, "-lease", "1s");
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, ["ack", "nack", "release", "forgotten"]);
  const seen = [];
  const sub = topic.subscribe({ group: "g" });
  assert.equal(sub.position, undefined);
  const settled = new Set();
  for await (const m of sub) {
    seen.push(`${m.value} ${m.attempt}`);
    assert.equal(m.group, "g");
    if (m.value === "ack") await m.ack();
    else if (m.value === "nack" && m.attempt === 1) await m.nack(100);
    else if (m.value === "release" && !settled.has("release")) await m.release();
    else if (m.value === "forgotten" && m.attempt === 1) continue;
    else await m.ack();
    settled.add(m.value);
    assert.ok(m.settled);
    await assert.rejects(m.ack(), EchoError);
    if (seen.length === 7) break;
  }
  assert.deepEqual(seen.slice(0, 4), ["ack 1", "nack 1", "release 1", "forgotten 1"]);
  assert.deepEqual(seen.slice(4).sort(), ["forgotten 2", "nack 2", "release 1"]);
});

test("a handler that fails has the message again after the delay, and all is settled in the end", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const told = [];
  const attempts = [];
  const at = [];
  const sub = topic.subscribe({ group: "g", retryDelay: (attempt) => attempt * 50, onError: (e) => told.push(e.message) }, (m) => {
    attempts.push(m.attempt);
    at.push(Date.now());
    if (m.attempt < 3) throw new Error(`no ${m.attempt}`);
  });
  await topic.publish(1);
  await until("three attempts", () => attempts.length === 3);
  assert.deepEqual(attempts, [1, 2, 3]);
  assert.deepEqual(told, ["no 1", "no 2"]);
  assert.ok(at[1] - at[0] >= 45 && at[2] - at[1] >= 95, `after ${at[1] - at[0]} and ${at[2] - at[1]} ms`);
  await sub.close();
  const rest = topic.subscribe({ group: "g" }, () => assert.fail("it was acknowledged"));
  await rest.ready;
  await sleep(50);
});

test("what expired, or was sent home for another group, is done with and handed to nobody", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const subscriptions = [
    [{ group: "g" }, ["ours", "later", "whenever", "plain"]],
    [{ group: "h" }, ["others", "later", "whenever", "plain"]],
    [{}, ["later", "whenever", "plain"]],
  ];
  const got = subscriptions.map(() => []);
  const subs = subscriptions.map(([o], i) => topic.subscribe(o, (m) => void got[i].push(m.value)));
  const iterated = [];
  const loop = (async () => {
    for await (const m of topic.subscribe({ group: "i" })) {
      iterated.push(m.value);
      await m.ack();
      if (m.value === "plain") return;
    }
  })();
  await Promise.all(subs.map((s) => s.ready));
  await topic.publish("expired", { header: { "echo-expires": String(Date.now() - 1) } });
  await topic.publish("ours", { header: { "echo-for": "g" } });
  await topic.publish("others", { header: { "echo-for": "h" } });
  await topic.publish("later", { header: { "echo-expires": String(Date.now() + 60_000) } });
  await topic.publish("whenever", { header: { "echo-expires": "soon" } });
  await topic.publish("plain");
  await until("the last one came", () => got.every((values) => values.at(-1) === "plain"));
  await loop;
  subscriptions.forEach(([, want], i) => assert.deepEqual(got[i], want));
  assert.deepEqual(iterated, ["later", "whenever", "plain"]);
  await subs[0].close();
  const rest = topic.subscribe({ group: "g" }, (m) => assert.fail(`${m.value} was not acknowledged`));
  await rest.ready;
  await sleep(50);
});

test("the lease goes on while a handler runs, and for what waits behind it", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const attempts = [];
  topic.subscribe({ group: "g", lease: 150 }, async (m) => {
    attempts.push(m.attempt);
    await sleep(500);
  });
  const other = client(t, server.url);
  await publishAll(topic, [1, 2, 3]);
  await until("the first runs", () => attempts.length === 1);
  const stolen = [];
  other.topic("t").subscribe({ group: "g", lease: 150 }, (m) => void stolen.push(m.value));
  await until("all are handled", () => attempts.length === 3);
  await sleep(550);
  assert.deepEqual(attempts, [1, 1, 1]);
  assert.deepEqual(stolen, []);
});

test("extend keeps a delivery that nobody else does, and a lost one says so", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, ["kept", "lost"]);
  const sub = topic.subscribe({ group: "g", lease: 200 })[Symbol.asyncIterator]();
  const kept = (await sub.next()).value;
  const lost = (await sub.next()).value;
  const waiting = sub.next(); // so that neither is extended any more
  await kept.extend(5000);
  const again = (await waiting).value;
  assert.equal(again.value, "lost");
  assert.equal(again.attempt, 2);
  await assert.rejects(lost.ack(), LeaseLostError);
  await assert.rejects(lost.extend(), LeaseLostError);
  await again.ack();
  await kept.ack();
});

test("credit comes back for leases that are lost", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, numbers(6));
  const first = new Map();
  const it = topic.subscribe({ group: "g", lease: 100, prefetch: 2 })[Symbol.asyncIterator]();
  for (let i = 0; i < 2; i++) {
    const m = (await it.next()).value;
    first.set(m.value, m);
  }
  void it.next().then((r) => r.value?.ack());
  await sleep(250);
  for (const m of first.values()) await assert.rejects(m.extend(), LeaseLostError);
  const left = new Set();
  for (;;) {
    const r = await Promise.race([it.next(), sleep(1000)]);
    if (!r) break;
    left.add(r.value.value);
    await r.value.ack();
    if (left.size === 5) break;
  }
  assert.equal(left.size, 5);
});

test("a session goes on after a cut: what is held may be settled, and nothing comes twice", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, numbers(20));
  const seen = [];
  const sub = topic.subscribe({ group: "g", prefetch: 8 });
  const it = sub[Symbol.asyncIterator]();
  const m = (await it.next()).value;
  seen.push([m.value, m.attempt]);
  await server.cut();
  await state(echo, "up");
  assert.equal(echo.states.at(-1).resumed, echo.states.length > 2);
  await m.ack();
  assert.ok(echo.states.some((s) => s.state === "up" && s.resumed));
  while (seen.length < 20) {
    const m = (await it.next()).value;
    seen.push([m.value, m.attempt]);
    await m.ack();
  }
  assert.deepEqual(seen, numbers(20).map((i) => [i, 1]));
  assert.equal((await server.stats()).Resumed, 1);
});

test("an acknowledgement whose answer is lost counts", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await echo.topic("t").publish(1);
  const m = (await echo.topic("t").subscribe({ group: "g" })[Symbol.asyncIterator]().next()).value;
  await server.mute(true);
  const acked = m.ack();
  await sleep(50); // until it has reached the server
  await server.cut();
  await server.mute(false);
  await acked;
});

test("a session that the server does not know any more is lost, and its messages come again", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, [1, 2, 3]);
  const it = topic.subscribe({ group: "g" })[Symbol.asyncIterator]();
  const m = (await it.next()).value;
  const unanswered = assert.rejects(m.extend().then(() => server.restart()).then(() => m.ack()), LeaseLostError);
  await unanswered;
  assert.ok(m.settled);
  const again = [];
  while (again.length < 3) {
    const m = (await it.next()).value;
    again.push(`${m.value} ${m.attempt}`);
    await m.ack();
  }
  assert.deepEqual(again.sort(), ["1 2", "2 2", "3 2"]);
});

test("on links that break at random a group loses nothing, and two members double nothing while sessions go on", async (t) => {
  const server = await serve(t);
  const publisher = client(t, server.url, { maxOutbox: 5000 });
  const seen = new Map();
  let repeated = 0;
  const lost = [];
  const members = [client(t, server.url), client(t, server.url)];
  const subs = members.map((c) => c.topic("t").subscribe({ group: "g", prefetch: 16, concurrency: 4, onError: (e) => lost.push(e) }, async (m) => {
    await sleep(1);
    if (m.attempt > 1) repeated++;
    seen.set(m.value, (seen.get(m.value) ?? 0) + 1);
  }));
  await Promise.all(subs.map((s) => s.ready));
  await server.storm(10, 100, 3);
  const all = [];
  for (const i of numbers(1000)) {
    all.push(publisher.topic("t").publish(i));
    if (i % 10 === 0) await sleep(3);
  }
  await Promise.all(all);
  await until("all came", () => seen.size === 1000);
  await server.storm(0, 0, 0);
  await sleep(100);
  assert.equal([...seen.values()].filter((n) => n > 1).length, 0, `${repeated} repeated, lost: ${lost.map((e) => e.message).slice(0, 3)}`);
  assert.ok(members.every((c) => c.states.filter((s) => s.state === "up" && s.resumed).length > 2), "the links broke");
  assert.deepEqual(lost, []);
  await Promise.all(subs.map((s) => s.close()));
  const rest = publisher.topic("t").subscribe({ group: "g" }, () => assert.fail("all was acknowledged"));
  await rest.ready;
  await sleep(50);
});

test("a slow member has no more than prefetch deliveries, and a cut brings no more", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  await publishAll(echo.topic("t"), numbers(300));
  const delivered = async () => (await server.stats()).Delivered;
  const it = echo.topic("t").subscribe({ group: "g", prefetch: 20 })[Symbol.asyncIterator]();
  const held = [];
  while (held.length < 5) held.push((await it.next()).value);
  await sleep(50);
  assert.equal(await delivered(), 20);
  await server.cut();
  await until("the session goes on", () => echo.states.some((s) => s.resumed));
  await sleep(50);
  assert.equal(await delivered(), 20);
  await Promise.all(held.map((m) => m.ack()));
  await until("credit came back", async () => (await delivered()) === 25);
  for (let i = 0; i < 295; i++) await (await it.next()).value.ack();
  assert.equal(await delivered(), 300);
});

test("what was not handled goes back at once when a subscription closes, and was not attempted", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, numbers(10));
  let began = 0;
  const sub = topic.subscribe({ group: "g" }, async () => {
    began++;
    await sleep(50);
  });
  await until("one runs", () => began === 1);
  await sub.close();
  const rest = [];
  const next = topic.subscribe({ group: "g" }, (m) => void rest.push([m.value, m.attempt]));
  await until("the rest came", () => rest.length === 9);
  assert.equal(began, 1);
  assert.deepEqual(rest, numbers(9, 1).map((i) => [i, 1]));
  await next.close();
});

test("a subscription that is closed without a link is closed when the session goes on", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  const stay = topic.subscribe({ group: "stay" }, () => {});
  const sub = topic.subscribe({ group: "g" });
  await Promise.all([stay.ready, sub.ready]);
  await publishAll(topic, [1]);
  await sub[Symbol.asyncIterator]().next();
  await server.refuse(true);
  await server.cut();
  await until("the link is down", () => echo.state.state !== "up");
  await sub.close({ timeout: 10 });
  await server.refuse(false);
  await state(echo, "up");
  const again = [];
  client(t, server.url).topic("t").subscribe({ group: "g" }, (m) => void again.push(m.attempt));
  await until("it came again", () => again.length === 1, 2000);
});

test("losses of a group are told", async (t) => {
  const server = await serve(t, "-keep", "10", "-drop");
  const echo = client(t, server.url);
  const gaps = [];
  const got = [];
  const it = echo.topic("t").subscribe({ group: "g", prefetch: 4, onGap: (g) => gaps.push(g) });
  await it.ready;
  for (const i of numbers(50)) await server.publish("t", [{ id: `i${i}`, type: "application/json", data: String(i) }]);
  for await (const m of it) {
    got.push(m.value);
    await m.ack();
    if (m.value === 49) break;
  }
  assert.ok(gaps.length > 0 && gaps.every((g) => g instanceof GapError && g.group === "g"));
  assert.equal(got.length + gaps.reduce((n, g) => n + g.count, 0), 50);
});

test("a loss does not stop a member that takes one message at a time", async (t) => {
  const server = await serve(t, "-keep", "10", "-drop");
  const echo = client(t, server.url);
  const got = [];
  const sub = echo.topic("t").subscribe({ group: "g", prefetch: 1, onGap: () => {} });
  await sub.ready;
  for (const i of numbers(50)) await server.publish("t", [{ id: `i${i}`, type: "application/json", data: String(i) }]);
  void (async () => {
    for await (const m of sub) {
      got.push(m.value);
      await m.ack();
    }
  })();
  await until("the last came", () => got.at(-1) === 49, 1000);
});

test("requests about deliveries wait until the subscription is resumed, and go again", async (t) => {
  const frames = [];
  let accept = false;
  const server = await script(t, async (link) => {
    link.send({ ...welcome, resumed: link.n > 1 });
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push({ link: link.n, ...f });
      if (f.t === "sub") {
        link.send({ t: "subok", sid: f.sid, lease: 60000, resumed: link.n > 1 });
        if (link.n === 1) link.send({ t: "run", sid: f.sid }, { t: "dlv", n: 1, attempt: 1, pos: "1-0", id: "a" }, { t: "dlv", n: 2, attempt: 1, pos: "2-0", id: "b" });
      } else if (f.t === "ack" && link.n === 1) link.ws.terminate();
      else if (f.t === "ack") link.send({ t: "ok", rid: f.rid, ns: [2] });
    }
  });
  const echo = client(t, server.url);
  const it = echo.topic("t").subscribe({ group: "g" })[Symbol.asyncIterator]();
  const [a, b] = [(await it.next()).value, (await it.next()).value];
  const [ra, rb] = await Promise.allSettled([a.ack(), b.ack()]);
  assert.equal(ra.status, "fulfilled");
  assert.ok(rb.reason instanceof LeaseLostError);
  const second = frames.filter((f) => f.link === 2);
  assert.deepEqual(second.map((f) => f.t), ["sub", "ack"]);
  assert.equal(second[0].resumed, true);
  assert.equal(second[0].seen, 2);
  assert.equal(second[0].credit, 256);
  assert.deepEqual([second[1].again, second[1].ns], [true, [1, 2]]);
  assert.equal(second[1].rid, frames.find((f) => f.t === "ack").rid);
});

test("what is lost with a session, or with a subscription in it, costs no credit", async (t) => {
  const frames = [];
  const server = await script(t, async (link) => {
    link.send({ ...welcome, resumed: link.n === 2 });
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push({ link: link.n, ...f });
      if (f.t !== "sub") continue;
      link.send({ t: "subok", sid: f.sid, lease: 60000 }, { t: "run", sid: f.sid }, { t: "dlv", n: 1, attempt: 1, pos: "1-0", id: `${link.n}` });
      await sleep(20);
      if (link.n < 3) link.ws.terminate();
    }
  });
  const echo = client(t, server.url);
  const it = echo.topic("t").subscribe({ group: "g", prefetch: 10 })[Symbol.asyncIterator]();
  const held = [];
  while (held.length < 3) held.push((await it.next()).value);
  await assert.rejects(held[0].ack(), LeaseLostError);
  await assert.rejects(held[1].ack(), LeaseLostError);
  const given = (n) => frames.filter((f) => f.link === n && (f.t === "sub" || f.t === "flow")).reduce((sum, f) => sum + (f.credit ?? 0), 0);
  assert.deepEqual([given(1), given(2), given(3)], [10, 10, 10]);
  assert.deepEqual(frames.filter((f) => f.t === "sub").map((f) => f.credit), [10, 9, 10]);
});

test("what nobody settles is given up when its lease is over, and the group goes on", async (t) => {
  const server = await serve(t);
  const echo = client(t, server.url);
  const topic = echo.topic("t");
  await publishAll(topic, numbers(20));
  const attempts = new Map();
  const skipped = [];
  for await (const m of topic.subscribe({ group: "g", lease: 200, prefetch: 4 })) {
    if (m.attempt === 1) {
      skipped.push(m);
      continue;
    }
    attempts.set(m.value, m.attempt);
    await m.ack();
    if (attempts.size === 20) break;
  }
  assert.deepEqual([...attempts].sort(([a], [b]) => a - b), numbers(20).map((i) => [i, 2]));
  assert.ok(skipped.every((m) => m.settled));
  await assert.rejects(skipped[0].ack(), LeaseLostError);
});

test("a delivery that is given up gives its credit back once, and is not settled any more", async (t) => {
  const frames = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push(f);
      if (f.t === "sub") link.send({ t: "subok", sid: f.sid, lease: 200 }, { t: "run", sid: f.sid }, ...[1, 2, 3].map((n) => ({ t: "dlv", n, attempt: 1, pos: `${n}-0`, id: `${n}`, data: "x" })));
      else if (f.rid) link.send({ t: "ok", rid: f.rid });
    }
  });
  const echo = client(t, server.url);
  const it = echo.topic("t").subscribe({ group: "g", prefetch: 10 })[Symbol.asyncIterator]();
  const [a, b, c] = [(await it.next()).value, (await it.next()).value, (await it.next()).value];
  const began = Date.now();
  await b.extend(600);
  await until("the first is given up", () => a.settled);
  assert.ok(Date.now() - began >= 190, `after ${Date.now() - began} ms`);
  assert.deepEqual([b.settled, c.settled], [false, false]);
  await assert.rejects(a.ack(), LeaseLostError);
  await until("the second is given up", () => b.settled);
  assert.ok(Date.now() - began >= 590, `after ${Date.now() - began} ms`);
  await c.ack();
  await sleep(50);
  const flows = frames.filter((f) => f.t === "flow");
  assert.deepEqual(flows.map((f) => f.credit), [1, 1]);
  assert.ok(flows.every((f) => f.bytes > 0 && f.sid === 1));
  assert.deepEqual(frames.filter((f) => f.t === "ack").map((f) => f.ns), [[3]]);
  assert.ok(frames.filter((f) => f.t === "extend" && !f.lease).every((f) => f.ns.length === 1 && f.ns[0] === 3), "what is handed out last is extended, and nothing else");
});

test("what a handler could not settle is given up too", async (t) => {
  let asked = 0;
  const frames = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push(f);
      if (f.t === "sub") link.send({ t: "subok", sid: f.sid, lease: 300 }, { t: "run", sid: f.sid }, { t: "dlv", n: 1, attempt: 1, pos: "1-0", id: "a" });
      else if (f.t === "ack" && ++asked) link.send({ t: "err", rid: f.rid, code: 502 });
      else if (f.rid) link.send({ t: "ok", rid: f.rid });
    }
  });
  t.mock.method(Math, "random", () => 0.01);
  const told = [];
  client(t, server.url).topic("t").subscribe({ group: "g", onError: (e) => told.push(e.code) }, () => {});
  await until("it is told", () => told.length === 1);
  assert.deepEqual([told, asked], [[502], 5]);
  await until("credit is given back", () => frames.some((f) => f.t === "flow" && f.credit === 1), 2000);
});

test("leases are extended when something comes, if timers are late as in a hidden page", async (t) => {
  const { setTimeout: timeout } = globalThis;
  t.mock.method(globalThis, "setTimeout", (f, ms, ...rest) => timeout(f, ms >= 50 && ms < 1000 ? 60_000 : ms, ...rest));
  const extended = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    const ping = setInterval(() => link.send({ t: "ping", n: 1 }), 100);
    for (;;) {
      const f = await link.next("sub", "extend");
      if (f.t === "closed") return clearInterval(ping);
      if (f.t === "sub") link.send({ t: "subok", sid: f.sid, lease: 300 }, { t: "run", sid: f.sid }, { t: "dlv", n: 1, attempt: 1, pos: "1-0", id: "a" }, { t: "dlv", n: 2, attempt: 1, pos: "2-0", id: "b" });
      else {
        extended.push([Date.now(), f.ns]);
        link.send({ t: "ok", rid: f.rid });
      }
    }
  });
  const echo = client(t, server.url);
  const began = Date.now();
  const it = echo.topic("t").subscribe({ group: "g" })[Symbol.asyncIterator]();
  const a = (await it.next()).value;
  await (await it.next()).value;
  await until("leases are extended four times", () => extended.length === 4, 2000);
  assert.ok(Date.now() - began >= 390, `after ${Date.now() - began} ms`);
  extended.reduce((last, [at]) => (assert.ok(at - last < 290, `${at - last} ms`), at), began);
  assert.ok(extended.every(([, ns]) => ns.length === 1 && ns[0] === 2));
  assert.ok(a.settled, "what nobody settles is looked at too");
});

test("a delivery that cannot be read goes back to the group after the delay, and the others come", async (t) => {
  const frames = [];
  const server = await script(t, async (link) => {
    link.send(welcome);
    for (;;) {
      const f = await link.next();
      if (f.t === "closed") return;
      frames.push(f);
      if (f.t === "sub") link.send({ t: "subok", sid: f.sid, lease: 60_000 }, { t: "run", sid: f.sid }, { t: "dlv", n: 1, attempt: 3, pos: "1-0", id: "a", base64: "%" }, { t: "dlv", n: 2, attempt: 1, pos: "2-0", id: "b" });
      else if (f.rid) link.send({ t: "ok", rid: f.rid });
    }
  });
  const echo = client(t, server.url, { errorsExpected: true });
  const got = [];
  echo.topic("t").subscribe({ group: "g", retryDelay: (attempt) => attempt * 100 }, (m) => void got.push(m.id));
  await until("both are settled", () => frames.some((f) => f.t === "nack") && frames.some((f) => f.t === "ack"));
  assert.deepEqual(got, ["b"]);
  const nack = frames.find((f) => f.t === "nack");
  assert.deepEqual([nack.ns, nack.delay], [[1], 300]);
  assert.match(echo.errors[0].message, /message a of t cannot be read/);
  assert.equal(server.links(), 1);
});

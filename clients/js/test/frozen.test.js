import assert from "node:assert/strict";
import { test } from "node:test";
import { tab } from "./browser.js";
import { client, serve, sleep, until } from "./helper.js";

const numbers = (n, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const publish = (server, ns) => server.publish("t", ns.map((n) => ({ id: `${n}`, type: "application/json", data: `${n}` })));
const sorted = (ns) => [...ns].sort((a, b) => a - b);

/**
 * Opens a tab that reads a topic and is a member of a group of it, whose first
 * handlers do not end before `release` is called.
 */
async function reader(t, server, lease) {
  const page = await tab(t);
  await page.evaluate(async ([url, lease]) => {
    window.ticks = 0;
    setInterval(() => ticks++, 20);
    start(url);
    window.resumed = [];
    client.on("state", (s) => s.state === "up" && resumed.push(s.resumed));
    window.errors = [];
    client.on("error", (e) => errors.push(e.message));
    window.got = [];
    const all = client.topic("t").subscribe({ onGap: (g) => errors.push(`gap of ${g.count}`) }, (m) => void got.push(m.value));
    window.handled = [];
    window.failed = []; // deliveries that could not be settled
    window.holding = [];
    const until = new Promise((resolve) => (window.release = resolve));
    window.member = client.topic("t").subscribe({ group: "g", prefetch: 16, concurrency: 2, lease: lease ?? undefined, onError: (e, m) => failed.push([m.value, e.name]) }, async (m) => {
      holding.push(m.value);
      if (m.attempt === 1 && m.value < 16) await until;
      handled.push([m.value, m.attempt]);
    });
    await Promise.all([all.ready, member.ready]);
  }, [server.url, lease]);
  return page;
}

/** Freezes a tab, or stops it, and sees that it is. */
async function freeze(page, how = "freeze") {
  await page[how]();
  const ticks = await page.evaluate("ticks");
  await sleep(300);
  assert.equal(await page.evaluate("ticks"), ticks, "the tab is frozen");
}

/** Sees that nothing is left in the group, but what a further member is given. */
async function nothingLeft(t, server) {
  const left = [];
  await client(t, server.url).topic("t").subscribe({ group: "g" }, (m) => void left.push(m.value)).ready;
  await sleep(200);
  assert.deepEqual(left, []);
}

test("a frozen tab that the server gave up goes on where it was", async (t) => {
  const server = await serve(t, "-ping", "500ms", "-pong", "500ms");
  const page = await reader(t, server);
  await publish(server, numbers(20));
  await page.until("got.length === 20 && holding.length === 2");
  await page.evaluate(() => {
    window.published = Promise.all(Array.from({ length: 50 }, (_, i) => client.topic("out").publish(i)));
  });
  await freeze(page);
  await publish(server, numbers(250, 20)); // on the link that is up
  await until("the server gives the link up", async () => (await server.stats()).Links === 0, 5000);
  await publish(server, numbers(250, 270));
  await sleep(500);
  assert.equal(await page.evaluate("got.length"), 20, "nothing came meanwhile");
  assert.deepEqual(await page.evaluate("[holding, handled, resumed]"), [[0, 1], [], [false]]);
  await page.thaw();
  await page.until("got.length === 520");
  assert.deepEqual(await page.evaluate("got"), numbers(520));
  await page.evaluate("release()");
  await page.until("handled.length === 520");
  await page.evaluate("published");
  assert.deepEqual((await server.read("out")).map((m) => m.text), numbers(50).map(String));
  const handled = await page.evaluate("handled");
  assert.deepEqual(sorted(handled.map(([n]) => n)), numbers(520));
  assert.deepEqual(handled.filter(([, attempt]) => attempt > 1), [], "the session went on");
  assert.deepEqual(await page.evaluate("[resumed, failed, errors]"), [[false, true], [], []]);
  await page.evaluate("client.close()");
  await nothingLeft(t, server);
});

test("a tab that was frozen for longer than its session is held has again what it held", async (t) => {
  const server = await serve(t, "-ping", "500ms", "-pong", "500ms", "-hold", "300ms");
  const page = await reader(t, server);
  await publish(server, numbers(100));
  await page.until("got.length === 100 && holding.length === 2");
  await freeze(page);
  await until("the server gives the link up", async () => (await server.stats()).Links === 0, 5000);
  await publish(server, numbers(100, 100));
  await until("and the session", async () => (await server.stats()).Sessions === 0, 5000);
  await page.thaw();
  await page.until("resumed.length === 2");
  await page.evaluate("release()");
  await page.until("handled.length === 202"); // the two that ran are handled again
  assert.deepEqual(await page.evaluate("got"), numbers(200));
  const handled = await page.evaluate("handled");
  assert.deepEqual(sorted(handled.map(([n]) => n)), [0, 0, 1, 1, ...numbers(198, 2)]);
  assert.deepEqual(sorted(handled.filter(([, attempt]) => attempt > 1).map(([n]) => n)), numbers(16), "what it held");
  assert.deepEqual(await page.evaluate("[resumed, errors]"), [[false, false], []]);
  await page.evaluate("client.close()");
  await nothingLeft(t, server);
});

test("what a frozen tab holds another member handles, and the tab goes on when it is thawed", async (t) => {
  const server = await serve(t, "-ping", "500ms", "-pong", "500ms", "-hold", "300ms");
  const page = await reader(t, server);
  await publish(server, numbers(100));
  await page.until("got.length === 100 && holding.length === 2");
  await freeze(page);
  const other = [];
  const sub = client(t, server.url).topic("t").subscribe({ group: "g" }, (m) => void other.push(m.value));
  await publish(server, numbers(100, 100));
  await until("another member has it all", () => new Set(other).size === 200);
  await page.thaw();
  await page.until("resumed.length === 2 && got.length === 200");
  await page.evaluate("release()");
  await sub.close();
  await publish(server, numbers(100, 200));
  await page.until("handled.length === 102 && got.length === 300");
  assert.deepEqual(await page.evaluate("got"), numbers(300));
  assert.deepEqual(sorted((await page.evaluate("handled")).map(([n]) => n)), [0, 1, ...numbers(100, 200)]);
  assert.equal(other.length, 200);
  assert.deepEqual(await page.evaluate("errors"), []);
  await page.evaluate("client.close()");
  await nothingLeft(t, server);
});

// Chromium breaks the link of a frozen tab when it thaws it, and that of a stopped one stays.
for (const [what, begin, end] of [["frozen", "freeze", "thaw"], ["stopped", "stop", "go"]]) {
  test(`a tab that was ${what} for longer than its leases, and not given up, goes on`, async (t) => {
    const server = await serve(t);
    const page = await reader(t, server, 400);
    await publish(server, numbers(100));
    await page.until("got.length === 100 && holding.length === 2");
    await freeze(page, begin);
    await publish(server, numbers(50, 100));
    await sleep(1500); // more than three leases
    const other = [];
    const sub = client(t, server.url).topic("t").subscribe({ group: "g", prefetch: 4 }, (m) => void other.push(m.value));
    await until("another member has what the tab held", () => numbers(16).every((n) => other.includes(n)));
    await sub.close();
    await page[end]();
    await page.evaluate("release()");
    await page.until("got.length === 150");
    await publish(server, numbers(50, 150));
    const all = async () => new Set([...other, ...(await page.evaluate("handled.map(([n]) => n)"))]);
    await until("all is handled", async () => (await all()).size === 200);
    await page.until("got.length === 200");
    assert.deepEqual(await page.evaluate("got"), numbers(200));
    assert.ok(numbers(50, 150).every((n) => !other.includes(n)));
    assert.deepEqual(await page.evaluate("errors"), []);
    assert.ok((await page.evaluate("resumed.slice(1)")).every((r) => r));
    if (what === "stopped") assert.equal(await page.evaluate("resumed.length"), 1, "the link stayed");
    assert.ok((await page.evaluate("failed")).every(([, name]) => name === "LeaseLostError"));
    await page.evaluate("client.close()");
    await nothingLeft(t, server);
  });
}

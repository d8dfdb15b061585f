// What the tests have in common: the server under test, and clients of it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { WebSocket as WS, WebSocketServer } from "ws";
import { connect } from "../dist/index.js";

export { sleep };

/** Where there is no global WebSocket, that of the package ws. */
export const WebSocket = globalThis.WebSocket ?? WS;

const ends = new WeakMap();

/** Calls functions after a test, the last one first: clients end before their servers. */
function after(t, f) {
  if (!ends.has(t)) {
    const all = [];
    ends.set(t, all);
    t.after(async () => {
      const failed = [];
      for (const f of all.reverse()) await Promise.resolve(f()).catch((e) => failed.push(e));
      if (failed.length > 0) throw failed[0];
    });
  }
  ends.get(t).push(f);
}

/** Starts a server, which ends with the test. Its methods are the commands of test/server. */
export async function serve(t, ...flags) {
  const child = spawn(fileURLToPath(new URL(".bin/server", import.meta.url)), flags, { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const line = async () => JSON.parse((await lines.next()).value);
  const { proxy, direct } = await line();
  after(t, async () => {
    child.kill("SIGCONT");
    child.stdin.end();
    if (child.exitCode === null) await once(child, "exit");
  });
  let last = Promise.resolve();
  const order = (command, args = {}) =>
    (last = last.then(async () => {
      child.stdin.write(JSON.stringify({ do: command, ...args }) + "\n");
      const answer = await line();
      if (answer.error) throw new Error(`${command}: ${answer.error}`);
      return answer;
    }));
  return {
    url: `ws://${proxy}/echo`,
    page: `http://${proxy}`,
    directPage: `http://${direct}`,
    signal: (name) => child.kill(name),
    cut: () => order("cut"),
    refuse: (on) => order("refuse", { on }),
    mute: (on) => order("mute", { on }),
    storm: (least, most, seed = 1) => order("storm", { least, most, seed }),
    links: () => order("links"),
    restart: () => order("restart"),
    drain: (within) => order("drain", { within }),
    kick: (subject) => order("kick", { subject }),
    tokens: (tokens) => order("tokens", { tokens }),
    stats: () => order("stats"),
    /** Messages with `data` as a string or bytes. */
    publish: (topic, msgs) => order("publish", { topic, msgs: msgs.map((m) => ({ ...m, data: Buffer.from(m.data).toString("base64") })) }),
    /** What a topic keeps, with `text`: its data as a string. */
    read: async (topic) => (await order("read", { topic })).map((m) => ({ ...m, text: Buffer.from(m.data ?? "", "base64").toString() })),
  };
}

/** Connects a client, which is closed after the test. What it reports and the test does not expect fails the test. */
export function client(t, url, options = {}) {
  const echo = connect(url, { WebSocket, backoff: { first: 5, last: 50 }, ...options });
  echo.errors = [];
  echo.states = [];
  echo.on("error", (e) => echo.errors.push(e));
  echo.on("state", (s) => echo.states.push(s));
  after(t, async () => {
    await echo.close({ timeout: 500 });
    if (!options.errorsExpected && echo.errors.length > 0) throw new AggregateError(echo.errors, `the client reported: ${echo.errors.map((e) => e.message)}`);
  });
  return echo;
}

/** Waits until a condition holds; `what` says it. */
export async function until(what, condition, within = 10_000) {
  const end = Date.now() + within;
  for (;;) {
    const v = await condition();
    if (v) return v;
    if (Date.now() > end) throw new Error(`not within ${within} ms: ${what}`);
    await sleep(5);
  }
}

/** Fulfils when a client is in a state. */
export async function state(echo, name) {
  return until(`state ${name}`, () => echo.state.state === name && echo.state);
}

/** A server that says what a test wants: `talk` is called with each link, which has send, next (a frame) and close. */
export async function script(t, talk) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "echo.v1+json" });
  await once(server, "listening");
  let links = 0;
  server.on("connection", async (ws) => {
    const frames = [];
    let wake = () => {};
    ws.on("message", (b) => {
      for (const l of b.toString().split("\n")) if (l) frames.push(JSON.parse(l));
      wake();
    });
    ws.on("error", () => {});
    ws.on("close", () => {
      frames.push({ t: "closed" });
      wake();
    });
    const link = {
      ws,
      n: ++links,
      send: (...fs) => ws.send(fs.map((f) => (typeof f === "string" ? f : JSON.stringify(f)) + "\n").join("")),
      async next(...types) {
        for (;;) {
          while (frames.length === 0) await new Promise((resolve) => (wake = resolve));
          const f = frames.shift();
          if (types.length === 0 || types.includes(f.t)) return f;
          if (f.t === "closed") return f;
        }
      },
      close: (code, reason) => ws.close(code, reason),
    };
    link.hello = await link.next("hello");
    await talk(link);
  });
  after(t, () => {
    for (const ws of server.clients) ws.terminate();
    server.close();
  });
  return { url: `ws://127.0.0.1:${server.address().port}`, links: () => links };
}

export const welcome = { t: "welcome", session: "s", ping: 35000, max_message: 2097152, max_frames: 1024, max_subs: 128, max_publish: 1024 };

// A peer of echo over the package ws, without our client. It does to messages
// what a WebSocket library may: cuts them up, puts control frames between the
// pieces, offers compression, sends text as bytes and bytes of every size. It
// checks what comes back and writes a report of each form on a line.
//
//     node peer.mjs ws://127.0.0.1:1234/echo
import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const { WebSocket } = createRequire(new URL("../../../clients/js/package.json", import.meta.url))("ws");
const url = process.argv[2];
const patience = 10_000;
setTimeout(() => {
  console.error("it takes too long");
  process.exit(1);
}, 3 * patience).unref();

// What this peer needs of the binary form.
const varint = (n) => {
  const out = [];
  for (n = BigInt(n); n > 0x7fn; n >>= 7n) out.push(Number(n & 0x7fn) | 0x80);
  return Buffer.from([...out, Number(n)]);
};
const run = (b) => Buffer.concat([varint(Buffer.byteLength(b)), Buffer.from(b)]);
const position = (p) => Buffer.concat((p ?? "0-0").split("-").map(varint));
const bool = (b) => Buffer.from([b ? 1 : 0]);
const start = (s) => Buffer.from([["", "oldest", "newest", "id", "time", "pos"].indexOf(s ?? "")]);
const time = (ns) => varint(BigInt.asUintN(64, BigInt(ns ?? 0) << 1n));
const header = (h = {}) => Buffer.concat([varint(Object.keys(h).length), ...Object.entries(h).flat().map(run)]);
const numbers = (ns = []) => Buffer.concat([ns.length, ...ns].map(varint));
const requests = {
  hello: [1, (f) => [run(f.client ?? ""), run(f.token ?? ""), run(f.session ?? "")]],
  sub: [6, (f) => [varint(f.sid), run(f.topic), run(f.group ?? ""), start(f.from), position(f.pos), run(""), time(0), varint(0), varint(f.credit ?? 0), varint(f.bytes ?? 0)]],
  ack: [14, (f) => [varint(f.rid ?? 0), varint(f.sid), position(f.pos), numbers(f.ns), bool(f.again)]],
  pub: [18, (f) => [varint(f.rid), run(f.topic), run(f.id), time(f.nanos), run(f.key ?? ""), run(f.type ?? ""), header(f.header), run(f.body ?? "")]],
  ping: [20, (f) => [varint(f.n)]],
  pong: [21, (f) => [varint(f.n)]],
};

/** Reads a batch of the binary form. */
class Reader {
  constructor(b) {
    this.b = b;
    this.i = 0;
  }
  take(n) {
    assert(this.i + n <= this.b.length, "a frame is cut off");
    return this.b.subarray(this.i, (this.i += n));
  }
  number() {
    let n = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const c = this.take(1)[0];
      n |= BigInt(c & 0x7f) << shift;
      if (c < 0x80) return n <= Number.MAX_SAFE_INTEGER ? Number(n) : n;
    }
  }
  run = () => this.take(this.number());
  string = () => this.run().toString();
  bool = () => this.take(1)[0] === 1;
  position = () => `${this.number()}-${this.number()}`;
  time = () => BigInt(this.number()) >> 1n;
  list = (of) => Array.from({ length: this.number() }, of);
  header = () => Object.fromEntries(this.list(() => [this.string(), this.string()]));
  /** Fields by name, as far as the frame has them. */
  fields(t, kinds) {
    const f = { t };
    for (const [name, kind] of Object.entries(kinds)) if (this.i < this.b.length) f[name] = this[kind]();
    return f;
  }
  numbers = () => this.list(() => this.number());
  positions = () => this.list(() => this.position());
}
const message = { id: "string", time: "time", key: "string", type: "string", header: "header", body: "run" };
const answers = {
  2: ["welcome", { session: "string", resumed: "bool", ttl: "number", ping: "number", max_message: "number" }],
  4: ["ok", { rid: "number", ttl: "number", ns: "numbers" }],
  5: ["err", { rid: "number", count: "number", sid: "number", code: "number", text: "string" }],
  7: ["subok", { sid: "number", pos: "position", lease: "number", resumed: "bool" }],
  10: ["run", { sid: "number" }],
  11: ["msg", { pos: "position", prev: "position", ...message }],
  12: ["dlv", { n: "number", attempt: "number", pos: "position", ...message }],
  19: ["pubok", { rid: "number", count: "number", at: "positions" }],
  20: ["ping", { n: "number" }],
  21: ["pong", { n: "number" }],
};

const binary = {
  name: "bin",
  binary: true,
  encode: (frames) =>
    Buffer.concat(
      frames.map((f) => {
        const [number, fields] = requests[f.t];
        return run(Buffer.concat([Buffer.from([number]), ...fields(f)]));
      }),
    ),
  decode(batch) {
    const frames = [];
    for (const r = new Reader(batch); r.i < batch.length; ) {
      const body = new Reader(r.run());
      const known = answers[body.take(1)[0]];
      if (known) frames.push(body.fields(...known));
    }
    return frames;
  },
};

const rfc3339 = (ns) => new Date(Number(ns / 1_000_000n)).toISOString().replace(/\.\d+Z/, `.${String(ns % 1_000_000_000n).padStart(9, "0")}Z`);
const json = {
  name: "json",
  binary: false,
  encode: (frames) =>
    Buffer.from(
      frames
        .map(({ nanos, body, ...f }) => {
          if (nanos) f.time = rfc3339(nanos);
          if (body?.length > 0) f.base64 = body.toString("base64"); // the server takes it with any type
          return JSON.stringify(f) + "\n";
        })
        .join(""),
    ),
  decode: (batch) =>
    batch
      .toString()
      .split("\n")
      .slice(0, -1)
      .map((line) => {
        const { data, string, base64, ...f } = JSON.parse(line);
        if (f.t !== "msg" && f.t !== "dlv") return f;
        const body = data !== undefined ? Buffer.from(JSON.stringify(data)) : string !== undefined ? Buffer.from(string) : Buffer.from(base64 ?? "", "base64");
        const [, seconds, nanos] = /^(.*?)(?:\.(\d+))?Z$/.exec(f.time);
        return { key: "", type: "", header: {}, ...f, time: BigInt(Date.parse(seconds + "Z")) * 1_000_000n + BigInt((nanos ?? "").padEnd(9, "0")), body };
      }),
};

/** Opens a link: an array of the frames that came, and what one does with a link. */
async function open(form, { options = {}, hello = true } = {}) {
  const ws = new WebSocket(url, `echo.v1+${form.name}`, { headers: { authorization: "Bearer guest" }, ...options });
  const link = { ws, came: [], pongs: [], code: undefined, failed: undefined };
  let wake = () => {};
  ws.on("message", (batch, isBinary) => {
    try {
      assert.equal(isBinary, form.binary, "messages are of the form's kind");
      let sid = 0;
      for (const f of form.decode(batch)) {
        if (f.t === "run") sid = f.sid;
        else if (f.t === "ping") link.send({ t: "pong", n: f.n });
        else link.came.push(f.t === "msg" || f.t === "dlv" ? { ...f, sid } : f);
      }
    } catch (e) {
      link.failed ??= e;
    }
    wake();
  });
  ws.on("pong", (b) => link.pongs.push(b.toString()));
  ws.on("close", (code) => {
    link.code = code;
    wake();
  });
  const until = async (what, condition) => {
    for (const end = Date.now() + patience; ; ) {
      if (link.failed) throw link.failed;
      const v = condition();
      if (v !== undefined) return v;
      if (Date.now() > end) assert.fail(`${what} did not come; there is ${JSON.stringify(link.came.slice(0, 3), (_, v) => (typeof v === "bigint" ? String(v) : v))}, code ${link.code}`);
      await Promise.race([new Promise((resolve) => (wake = resolve)), sleep(100)]);
    }
  };
  link.bytes = (b, options = {}) => ws.send(b, { binary: form.binary, compress: true, ...options });
  link.send = (...frames) => link.bytes(form.encode(frames));
  link.expect = (t, fields = {}) =>
    until(`${t} ${JSON.stringify(fields)}`, () => {
      const i = link.came.findIndex((f) => f.t === t && Object.entries(fields).every(([k, v]) => f[k] === v));
      if (i >= 0) return link.came.splice(i, 1)[0];
      assert.equal(link.code, undefined, `the link was closed before ${t} came`);
    });
  link.closed = () => until("a close", () => link.code);
  link.pong = (text) => until("a pong", () => (link.pongs.includes(text) ? true : undefined));
  link.ping = async (n = 7) => {
    link.send({ t: "ping", n });
    await link.expect("pong", { n });
  };
  ws.on("error", (e) => (link.error = e));
  await Promise.race([once(ws, "open"), once(ws, "error").then(([e]) => Promise.reject(e))]);
  if (hello) {
    link.send({ t: "hello", client: "peer.mjs" });
    link.welcome = await link.expect("welcome");
  }
  return link;
}

const base = 1_790_000_000_123_456_789n;
const steps = {
  async "no compression"(form) {
    // ws throws if a server takes what was not offered, or in a way that was not.
    const link = await open(form, { options: { perMessageDeflate: { threshold: 0, clientMaxWindowBits: 10, serverNoContextTakeover: true } } });
    assert.equal(link.ws.extensions, "");
    assert.equal(link.ws.protocol, `echo.v1+${form.name}`);
    await link.ping(); // which ws would compress, had it been agreed
    link.ws.close(1000, "done");
    assert.equal(await link.closed(), 1000);
    for (const [options, protocols, status] of [
      [{ origin: "https://evil.example.org" }, [`echo.v1+${form.name}`], 403],
      [{}, ["mqtt"], 400],
      [{}, [], 400],
    ]) {
      const ws = new WebSocket(url, protocols, options);
      const [e] = await once(ws, "error");
      assert.match(e.message, new RegExp(`Unexpected server response: ${status}`));
    }
    const page = await open(form, { options: { origin: new URL(url).origin.replace("ws:", "http:") } });
    page.ws.terminate();
  },

  async "publish and broadcast"(form, report) {
    const topic = "open." + form.name;
    const link = await open(form);
    link.send({ t: "sub", sid: 1, topic, credit: 1000, bytes: 1 << 20 });
    const { pos } = await link.expect("subok", { sid: 1 });
    const kinds = [
      ["application/octet-stream", Buffer.from(Array.from({ length: 256 }, (_, i) => i))],
      ["text/plain", Buffer.from("two lines\nand \u{1f375}")],
      ["application/json", Buffer.from('{"of":"tea","is":[1,2.5,null]}')],
      ["", Buffer.alloc(0)],
      ["application/octet-stream", Buffer.alloc(20_000, 0xa5)],
    ];
    const msgs = Array.from({ length: 100 }, (_, i) => {
      const [type, body] = kinds[i % kinds.length];
      return { id: `m${i}`, nanos: base + BigInt(i), key: `k${i % 3}`, type, header: i % 2 ? { n: `${i}` } : {}, body };
    });
    for (let i = 0; i < msgs.length; i++) link.send({ t: "pub", rid: i + 1, topic, ...msgs[i] });
    const at = [];
    while (at.length < msgs.length) at.push(...(await link.expect("pubok", { rid: at.length + 1 })).at);
    let last = pos;
    for (const [i, m] of msgs.entries()) {
      const got = await link.expect("msg", { sid: 1 });
      assert.deepEqual([got.id, got.time, got.key, got.type, got.header, got.pos], [m.id, m.nanos, m.key, m.type, m.header, at[i]]);
      assert(got.body.equals(m.body), m.id);
      assert.equal(got.prev, last);
      last = got.pos;
    }
    report.Sent = msgs.map((m) => ({ ID: m.id, Key: m.key, Type: m.type, Time: rfc3339(m.nanos), Header: m.header, Data: m.body.toString("base64") }));
    link.ws.close();
  },

  async fragments(form) {
    const link = await open(form, { hello: false });
    const pieces = async (batch, size) => {
      for (let i = 0; i < batch.length; i += size) {
        link.bytes(batch.subarray(i, i + size), { fin: i + size >= batch.length });
        if (i % 5 === 0) link.ws.ping(`${i}`); // control frames may come between
        if (i % 11 === 0) await sleep(1);
      }
    };
    await pieces(form.encode([{ t: "hello" }]), 1);
    await link.expect("welcome");
    await pieces(form.encode(Array.from({ length: 50 }, (_, i) => ({ t: "ping", n: 1000 + i }))), 7); // frames of the protocol cut in two
    for (let i = 0; i < 50; i++) await link.expect("pong", { n: 1000 + i });
    await link.pong("0");
    link.bytes("", { fin: false }); // pieces with nothing in them
    link.bytes(form.encode([{ t: "ping", n: 1 }]), { fin: false });
    link.bytes("", { fin: true });
    await link.expect("pong", { n: 1 });
    link.bytes(""); // a message with no frames
    await link.ping();
    link.ws.close();
  },

  async "a group"(form) {
    const topic = "open." + form.name;
    const link = await open(form);
    link.send({ t: "sub", sid: 4, topic, group: "g", credit: 10, bytes: 1 << 20 });
    await link.expect("subok", { sid: 4 });
    for (let n = 1; n <= 100; n++) {
      const d = await link.expect("dlv", { sid: 4 });
      assert.deepEqual([d.n, d.attempt, d.id], [n, 1, `m${n - 1}`]);
      link.send({ t: "ack", rid: n, sid: 4, ns: [n] });
      assert.deepEqual((await link.expect("ok", { rid: n })).ns ?? [], []);
    }
    link.ws.close();
  },

  async "as large as may be"(form) {
    const link = await open(form);
    const ping = form.encode([{ t: "ping", n: 3 }]);
    const most = link.welcome.max_message;
    assert.equal(most, 64 << 10);
    // Blanks after a frame of the JSON form, a frame of an unknown type in the other.
    const rest = most - ping.length;
    const padding = form.binary ? run(Buffer.alloc(rest - 3, 0xf0)) : Buffer.alloc(rest, " ");
    const batch = Buffer.concat([ping, padding]);
    assert.equal(batch.length, most);
    link.bytes(batch);
    await link.expect("pong", { n: 3 });
    for (let i = 0; i < most; i += 4096) link.bytes(batch.subarray(i, i + 4096), { fin: i + 4096 >= most });
    await link.expect("pong", { n: 3 });
    link.ws.close();
  },

  async "too large"(form) {
    const blanks = (n) => Buffer.alloc(n, " ");
    const link = await open(form);
    link.bytes(blanks(link.welcome.max_message + 1));
    assert.equal(await link.closed(), 1009);
    const pieces = await open(form);
    for (let i = 0; i < 8; i++) pieces.bytes(blanks(8 << 10), { fin: false });
    pieces.bytes(blanks(1), { fin: false });
    assert.equal(await pieces.closed(), 1009, "in pieces, whose end nobody waits for");
    const first = await open(form, { hello: false });
    first.bytes(blanks((16 << 10) + 1));
    assert.equal(await first.closed(), 1009, "the first message is 16 KiB at most");
    // Who is still sending when the server closes may see the connection reset
    // instead of the code.
    const more = await open(form);
    more.bytes(blanks(3 << 20));
    assert([1006, 1009].includes(await more.closed()));
  },

  async "control frames"(form) {
    const link = await open(form);
    for (const text of ["", "x", "y".repeat(125)]) {
      link.ws.ping(text);
      await link.pong(text);
    }
    link.ws.pong("that nobody asked for");
    await link.ping();
    link.ws.close(4999, "a code of our own");
    assert.equal(await link.closed(), 4999);
    const gone = await open(form);
    gone.ws.terminate();
    await gone.closed();
  },

  async "of the wrong kind"(form) {
    const link = await open(form);
    link.bytes(form.encode([{ t: "ping", n: 1 }]), { binary: !form.binary });
    assert.equal(await link.closed(), 4301);
    if (form === json) {
      const bad = await open(form);
      bad.bytes(Buffer.from('{"t":"ping","n":1,"x":"\xff"}\n', "latin1")); // text that is not UTF-8
      assert.equal((await bad.expect("err")).code, 101);
      await bad.ping();
      bad.ws.close();
    }
  },
};

for (const form of [json, binary]) {
  const report = { Form: form.name, Did: [] };
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step(form, report);
    } catch (e) {
      throw new Error(`${form.name}: ${name}: ${e.message}`, { cause: e });
    }
    report.Did.push(name);
  }
  console.log(JSON.stringify(report));
}

import { asError, describe, EchoError } from "./errors.js";
import { amount, byteLength, parseFrame, protocol, type Frame } from "./frame.js";

/** What this package needs of a WebSocket: what browsers, Node 22 and the package `ws` have. */
export interface WebSocketLike {
  readonly protocol: string;
  readonly readyState: number;
  send(data: string): void;
  close(code?: number, reason?: string): void;
  addEventListener(type: string, listener: (event: never) => void): void;
}

export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** Why a link ended. */
export interface End {
  error: Error;
  /** The close code, if the server closed the link. */
  code: number | undefined;
}

/** Who a link belongs to. What they throw ends the link. */
export interface LinkOwner {
  welcome(link: Link, f: Frame): void;
  /** A message, delivery or gap of a subscription. */
  message(sid: number, f: Frame, line: string): void;
  frame(f: Frame): void;
  /** Called after what came together. */
  heard(): void;
  /** Called once, and nothing after it. */
  ended(link: Link, end: End): void;
}

// A batch has so many characters at most; a longer frame goes alone.
const batchLength = 32 << 10;

/** How long a link may take to open, the welcome included. */
export const openWithin = 10_000;

/**
 * A link over one WebSocket: it joins frames to batches and takes them apart,
 * and sees to it that the server is alive.
 */
export class Link {
  readonly #ws: WebSocketLike;
  readonly #owner: LinkOwner;
  readonly #lines: string[] = [];
  #flushing = false;
  #over = false;
  #refused: Frame | undefined; // what the server said before it closed
  #heard = Date.now();
  #silence = 0; // after which the server is gone; 0 before the welcome
  #pinged = false;
  #timer: ReturnType<typeof setTimeout>;

  /** Of a message that the server takes, in bytes. */
  maxMessage = 16 << 10;
  #maxFrames = 1;

  constructor(Class: WebSocketClass, url: string, hello: object, owner: LinkOwner) {
    this.#owner = owner;
    this.#timer = setTimeout(() => this.fail(new EchoError("the server did not answer in time")), openWithin);
    this.#ws = new Class(url, [protocol]);
    this.#ws.addEventListener("open", () => this.#open(hello));
    this.#ws.addEventListener("message", (e: { data: unknown }) => this.#message(e.data));
    this.#ws.addEventListener("close", (e: { code: number; reason: string }) => this.#closed(e.code, e.reason));
    // The close that follows says more; some versions of Node leave it out.
    this.#ws.addEventListener("error", () => setTimeout(() => this.#closed(1006, ""), 50));
  }

  /** Sends a frame, with what else there is to say at the moment. */
  send(frame: object): void {
    this.sendLine(JSON.stringify(frame));
  }

  /** Sends a frame that is encoded. */
  sendLine(line: string): void {
    if (this.#over) return;
    this.#lines.push(line);
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => this.#flush());
  }

  /** Asks for a sign of life, and gives the link up if none comes soon. */
  probe(within: number): void {
    if (this.#over || this.#silence === 0) return;
    const asked = Date.now();
    this.#ping();
    setTimeout(() => {
      if (this.#heard < asked) this.fail(new EchoError("nothing was heard of the server"));
    }, within);
  }

  /** Gives the link up. */
  fail(error: Error): void {
    this.#end({ error, code: undefined });
    this.#ws.close();
  }

  /** Says that the client will not come back. The returned promise ends when the link has, or soon. */
  bye(): Promise<void> {
    if (this.#over) return Promise.resolve();
    this.send({ t: "bye" });
    this.#flush();
    this.#over = true;
    clearTimeout(this.#timer);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000);
      this.#ws.addEventListener("close", () => {
        clearTimeout(timer);
        resolve();
      });
      this.#ws.close(1000);
    });
  }

  #open(hello: object): void {
    if (this.#over) return this.#ws.close();
    if (this.#ws.protocol !== protocol) return this.fail(new EchoError(`the server does not speak ${protocol}`));
    this.send(hello);
  }

  #message(data: unknown): void {
    if (this.#over) return;
    this.#heard = Date.now();
    this.#pinged = false;
    try {
      if (typeof data !== "string") throw new EchoError("the server sent what is not text");
      let run = 0;
      for (let i = 0; i < data.length && !this.#over; ) {
        let j = data.indexOf("\n", i);
        if (j < 0) j = data.length;
        const line = data.slice(i, j);
        i = j + 1;
        if (line === "") continue;
        const f = parseFrame(line);
        if (f.t === "run") run = f.sid ?? 0;
        else if (f.t === "msg" || f.t === "dlv" || f.t === "gap") this.#owner.message(run, f, line);
        else this.#frame(f);
      }
      if (!this.#over) this.#owner.heard();
    } catch (e) {
      this.fail(asError(e));
    }
  }

  #frame(f: Frame): void {
    switch (f.t) {
      case "welcome":
        if (this.#silence > 0) break;
        this.#silence = Math.max(amount(f.ping), 1000);
        this.maxMessage = amount(f.max_message) || Infinity;
        this.#maxFrames = amount(f.max_frames) || Infinity;
        clearTimeout(this.#timer);
        this.#watch();
        this.#owner.welcome(this, f);
        break;
      case "ping":
        this.send({ t: "pong", n: f.n });
        break;
      case "pong":
        break;
      case "err":
        if (!f.rid && !f.sid) this.#refused = f;
        else this.#owner.frame(f);
        break;
      default:
        this.#owner.frame(f);
    }
  }

  /** Looks, from time to time, whether something was heard. A server that has nothing to say is asked before it is given up. */
  #watch(): void {
    const silent = Date.now() - this.#heard;
    if (silent >= this.#silence) return this.fail(new EchoError("nothing was heard of the server"));
    if (silent >= this.#silence / 2 && !this.#pinged) {
      this.#pinged = true;
      this.#ping();
    }
    const next = silent >= this.#silence / 2 ? this.#silence - silent : this.#silence / 2 - silent;
    this.#timer = setTimeout(() => this.#watch(), Math.min(next + 1, 60_000));
  }

  #ping(): void {
    this.send({ t: "ping", n: Date.now() });
  }

  #flush(): void {
    this.#flushing = false;
    const lines = this.#lines;
    // Of characters that take three bytes at most.
    const most = Math.min(batchLength, Math.floor(this.maxMessage / 3));
    for (let i = 0; i < lines.length && !this.#over; ) {
      let j = i;
      let length = 0;
      do length += lines[j++]!.length + 1;
      while (j < lines.length && j - i < this.#maxFrames && length + lines[j]!.length < most);
      this.#ws.send(lines.slice(i, j).join("\n") + "\n");
      i = j;
    }
    lines.length = 0;
  }

  #closed(code: number, reason: string): void {
    const r = this.#refused;
    let why = code === 1006 ? "the link broke, or was not let in" : `the server closed the link with ${code}${reason && `: ${reason}`}`;
    if (r) why += `; it said: ${describe(r.code ?? 0, r.text)}`;
    this.#end({ error: new EchoError(why, { code: r?.code ?? code }), code });
  }

  #end(end: End): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#lines.length = 0;
    this.#owner.ended(this, end);
  }
}

/** Whether the server takes a frame of a length: `line` with a newline, in bytes. */
export function fits(line: string, link: Link): boolean {
  return line.length * 3 < link.maxMessage || byteLength(line) < link.maxMessage;
}

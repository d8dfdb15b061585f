import { asError, ClosedError, describe, EchoError, GapError, SubscriptionError } from "./errors.js";
import { checkName, isPosition, longest, positionOf, type Frame, type Header, type Position } from "./frame.js";
import type { Link } from "./link.js";

/** A message of a topic. */
export interface Message<T = unknown> {
  readonly topic: string;
  readonly id: string;
  readonly position: Position;
  readonly time: Date;
  /** Empty if it has none. */
  readonly key: string;
  /** The media type. */
  readonly type: string;
  /** An object without a prototype. */
  readonly header: Header;
  /** What JSON says; a string of a text; a `Uint8Array` of all else. */
  readonly value: T;
}

/** A message that a group gave to this client, and to no other at the time. Settle it once. */
export interface Delivery<T = unknown> extends Message<T> {
  readonly group: string;
  /** How often it was delivered, this time included. */
  readonly attempt: number;
  /** Ack, nack or release was called, or the lease is over. */
  readonly settled: boolean;
  /** The message is done. Rejects with a `LeaseLostError` if the group has it again. */
  ack(): Promise<void>;
  /** The group delivers it again, after a delay in milliseconds. */
  nack(delay?: number): Promise<void>;
  /** The group delivers it again, as if it had not been delivered: `attempt` stays. */
  release(): Promise<void>;
  /** The lease ends so many milliseconds from now; by default, as long as it was at first. */
  extend(lease?: number): Promise<void>;
}

/** Where a subscription begins. */
export type Start =
  | "oldest"
  | "newest"
  | { readonly position: Position }
  | { readonly id: string }
  | { readonly time: Date };

/** Options of a subscription. */
export interface SubscribeOptions {
  /** Where to begin: `"newest"` by default. Of a group it counts when the group is new, and `"oldest"` is the default. */
  from?: Start | undefined;
  /** How many messages may be here and not handled; 256 by default. */
  prefetch?: number;
  /** How many bytes they may have, which the last one may exceed; 1 MiB by default. */
  prefetchBytes?: number;
  /** How many handlers may run at a time; 1 by default. */
  concurrency?: number;
  /** Told of messages that are lost to the subscription, or cannot be read, in their place in the order. */
  onGap?: (gap: GapError) => void;
  /** Told of what a handler threw, or its promise was rejected with, and of a delivery that could not be settled after it. */
  onError?: (error: Error, message: Message) => void;
}

/** Options of a subscription as a member of a group. */
export interface GroupOptions extends SubscribeOptions {
  group: string;
  /**
   * How long a delivery may stay unsettled, in milliseconds; by default the server
   * says. It is extended while the delivery waits here or is handled, or is the
   * last that an iteration handed out.
   */
  lease?: number;
  /** How long before what a handler failed at is delivered again, in milliseconds; 1 second by default. */
  retryDelay?: number | ((attempt: number, error: Error) => number);
}

export type Handler<M> = (message: M) => unknown;

/** A subscription. Without a handler, iterate over it. */
export interface Subscription<M extends Message = Message> extends AsyncIterable<M> {
  readonly topic: string;
  readonly group: string | undefined;
  /**
   * The place up to which every message is handled, for `from: { position }` of
   * a later subscription; undefined before the first answer, and of a group.
   */
  readonly position: Position | undefined;
  /** Fulfils when the server said for the first time that it is subscribed. */
  readonly ready: Promise<void>;
  /** Fulfils when `close` has; rejects if the server ended the subscription. */
  readonly closed: Promise<void>;
  /**
   * Ends it: waits for handlers that run, for 5 seconds by default. What was not
   * handled goes back to a group. Called again, it waits for the same.
   */
  close(options?: { timeout?: number }): Promise<void>;
}

/** What subscriptions need of their client. */
export interface Host {
  /** The link, if it is up. */
  readonly link: Link | undefined;
  nextRid(): number;
  request(rid: number, answered: (f: Frame) => void): void;
  forgetRequest(rid: number): void;
  report(e: Error): void;
  /** Ends a subscription at the server, if need be later. */
  unsubscribe(sid: number): void;
}

export const defaultPrefetch = 256;
export const defaultPrefetchBytes = 1 << 20;
const closeWithin = 5000;
const wellAfter = 30_000; // a subscription that went on for so long

function positive(name: string, n: number | undefined, other: number): number {
  if (n === undefined) return other;
  if (!Number.isFinite(n) || n < 1) throw new RangeError(`${name}: ${n} is not 1 or more`);
  return Math.min(Math.floor(n), Number.MAX_SAFE_INTEGER);
}

/** The fields of a `sub` that say where to begin. */
function startFields(from: Start | undefined): object {
  if (from === undefined || from === "oldest" || from === "newest") return { from };
  if (typeof from === "object" && from !== null) {
    if ("position" in from && isPosition(from.position)) return { from: "pos", pos: from.position };
    if ("id" in from && typeof from.id === "string" && from.id !== "") return { from: "id", id: from.id };
    if ("time" in from && from.time instanceof Date) return { from: "time", time: from.time.toISOString() };
  }
  throw new TypeError(`from: want "oldest", "newest", { position }, { id } or { time }`);
}

type Item<M> = { message: M } | { gap: GapError };

/**
 * What subscriptions of both kinds have in common: messages that came wait in a
 * queue for a handler, or for whoever iterates.
 */
export abstract class Sub<M extends Message> implements Subscription<M> {
  readonly ready: Promise<void>;
  readonly closed: Promise<void>;
  protected readonly start: object;
  protected readonly prefetch: number;
  protected readonly prefetchBytes: number;
  protected queue: Item<M>[] = [];
  protected over = false;
  /** The server answered on this link. */
  protected open = false;
  readonly #concurrency: number;
  readonly #handler: Handler<M> | undefined;
  readonly #options: SubscribeOptions;
  #running = 0;
  #takers: ((r: IteratorResult<M> | Error) => void)[] = [];
  #retry: ReturnType<typeof setTimeout> | undefined;
  #tries = 0; // since it last went on for a while
  #since = 0; // when the server answered
  #closing: Promise<void> | undefined;
  #error: Error | undefined;
  #idle: (() => void)[] = [];
  #resolve = { ready: () => {}, closed: () => {} };
  #reject: { ready: (e: Error) => void; closed: (e: Error) => void } = { ready: () => {}, closed: () => {} };

  constructor(
    protected readonly host: Host,
    readonly sid: number,
    readonly topic: string,
    readonly group: string | undefined,
    o: SubscribeOptions,
    handler: Handler<M> | undefined,
  ) {
    checkName("topic", topic);
    if (group !== undefined) checkName("group", group);
    if (handler !== undefined && typeof handler !== "function") throw new TypeError("the handler is no function");
    this.start = startFields(o.from);
    this.prefetch = positive("prefetch", o.prefetch, defaultPrefetch);
    this.prefetchBytes = positive("prefetchBytes", o.prefetchBytes, defaultPrefetchBytes);
    this.#concurrency = positive("concurrency", o.concurrency, 1);
    this.#options = o;
    this.#handler = handler;
    this.ready = new Promise((resolve, reject) => {
      this.#resolve.ready = resolve;
      this.#reject.ready = reject;
    });
    this.closed = new Promise((resolve, reject) => {
      this.#resolve.closed = resolve;
      this.#reject.closed = reject;
    });
    this.ready.catch(() => {}); // nobody need look
    this.closed.catch(() => {});
  }

  abstract get position(): Position | undefined;

  /** The frame that subscribes, or does so again. `resumed`: the session goes on. */
  protected abstract request(resumed: boolean): object;
  /** The server subscribed. */
  protected abstract subscribed(f: Frame): void;
  /** Takes a message in, and returns it, or the loss that it is, unless nobody wants it. */
  protected abstract take(f: Frame, line: string): M | GapError | undefined;
  /** Takes a loss in. */
  protected abstract lost(gap: GapError): void;
  /** A message may be handed out now. */
  protected abstract get handsOut(): boolean;
  /** A message is handed out. */
  protected abstract began(m: M): void;
  /** A message is not to be handed out, and done with. */
  protected abstract pass(m: M): void;
  /** Its handler is done, or whoever iterates asks for the next one. */
  protected abstract done(m: M | GapError, failed?: Error): void | Promise<void>;
  /** The link is down. */
  protected abstract detached(): void;
  /** The server holds nothing any more. */
  protected abstract forget(): void;
  /** Fulfils when what was settled is so at the server too. */
  protected abstract settled(): Promise<void>;
  /** Gives back what waits. */
  protected abstract abandon(): void;
  /** Something came on the link: timers may be late, so what is due is done. */
  abstract heard(): void;

  /** Subscribes on a link. */
  up(link: Link, resumed: boolean): void {
    clearTimeout(this.#retry);
    link.send(this.request(resumed));
  }

  down(): void {
    clearTimeout(this.#retry);
    this.open = false;
    this.detached();
  }

  answered(f: Frame): void {
    if (f.t === "subok") {
      this.open = true;
      this.#since = Date.now();
      this.subscribed(f);
      this.#resolve.ready();
      this.pump();
      return;
    }
    const { open } = this;
    this.down();
    this.forget();
    if (this.over) return;
    if ((f.code ?? 0) >= 500) return this.#again(open);
    const who = this.group === undefined ? "subscription" : `subscription of group ${this.group}`;
    this.end(new SubscriptionError(`${who} to ${this.topic}: ${describe(f.code ?? 0, f.text)}`, { code: f.code }));
  }

  message(f: Frame, line: string): void {
    if (this.over) return;
    if (f.t === "gap") {
      const gap = new GapError(this.topic, this.group, f.count ?? 0, positionOf(f));
      this.lost(gap);
      this.queue.push({ gap });
    } else {
      const it = this.take(f, line);
      if (it instanceof GapError) this.queue.push({ gap: it });
      else if (it) this.queue.push({ message: it });
    }
    this.pump();
  }

  /** Ends it for good, unless the application did. */
  end(error: Error): void {
    if (this.over) return;
    this.#end(error);
    this.#reject.closed(error);
  }

  #end(error?: Error): void {
    this.over = true;
    this.#error = error;
    clearTimeout(this.#retry);
    if (error) this.forget();
    else this.abandon();
    this.queue = [];
    for (const f of this.#takers.splice(0)) f(error ?? { done: true, value: undefined });
    this.#reject.ready(error ?? new ClosedError("the subscription is closed"));
  }

  close({ timeout = closeWithin }: { timeout?: number } = {}): Promise<void> {
    return (this.#closing ??= this.#close(timeout));
  }

  async #close(timeout: number): Promise<void> {
    const ended = this.over; // by the server
    if (!ended) this.#end();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, Math.min(timeout, longest))));
    const handled = this.#running === 0 ? Promise.resolve() : new Promise<void>((resolve) => this.#idle.push(resolve));
    await Promise.race([handled.then(() => this.settled()), late]);
    clearTimeout(timer);
    if (ended) return;
    this.forget();
    this.host.unsubscribe(this.sid);
    this.#resolve.closed();
  }

  [Symbol.asyncIterator](): AsyncIterator<M> {
    if (this.#handler) throw new TypeError("a subscription with a handler cannot be iterated over");
    let last: M | undefined;
    const settle = () => {
      if (last) void this.done(last);
      last = undefined;
    };
    return {
      next: async () => {
        settle();
        const r = await this.#next();
        if (!r.done) last = r.value;
        return r;
      },
      return: async () => {
        settle();
        await this.close();
        return { done: true, value: undefined };
      },
    };
  }

  #next(): Promise<IteratorResult<M>> {
    return new Promise((resolve, reject) => {
      if (this.over) {
        if (this.#error) reject(this.#error);
        else resolve({ done: true, value: undefined });
        return;
      }
      this.#takers.push((r) => (r instanceof Error ? reject(r) : resolve(r)));
      this.pump();
    });
  }

  /** The server ended it, or refused it. */
  get broken(): boolean {
    return this.#error !== undefined;
  }

  /** There is a handler. */
  protected get handled(): boolean {
    return this.#handler !== undefined;
  }

  /** Hands out what may be. */
  protected pump(): void {
    while (this.queue.length > 0 && !this.over && this.handsOut) {
      const item = this.queue[0]!;
      if ("gap" in item) {
        this.queue.shift();
        this.#gap(item.gap);
        continue;
      }
      if (this.#passesBy(item.message)) {
        this.queue.shift();
        this.pass(item.message);
        continue;
      }
      if (this.#handler) {
        if (this.#running >= this.#concurrency) return;
        this.queue.shift();
        void this.#handle(this.#handler, item.message);
      } else {
        const taker = this.#takers.shift();
        if (!taker) return;
        this.queue.shift();
        this.began(item.message);
        taker({ done: false, value: item.message });
      }
    }
  }

  /** Whether a message was sent home for another group, or its time to live is over. Dead letters are for all, at any time. */
  #passesBy({ topic, header }: M): boolean {
    if (/.\.dead$/.test(topic)) return false;
    const wanted = header["echo-for"];
    const expires = header["echo-expires"];
    return (wanted !== undefined && wanted !== (this.group ?? "")) || (expires !== undefined && /^[+-]?\d+$/.test(expires) && Number(expires) <= Date.now());
  }

  async #handle(handler: Handler<M>, m: M): Promise<void> {
    this.#running++;
    this.began(m);
    let failed: Error | undefined;
    try {
      await handler(m);
    } catch (e) {
      failed = asError(e);
      this.failed(failed, m);
    }
    try {
      await this.done(m, failed);
    } catch (e) {
      this.failed(asError(e), m);
    }
    this.#running--;
    if (this.#running === 0) this.#idle.splice(0).forEach((f) => f());
    this.pump();
  }

  /** Tells of what went wrong with a message. */
  protected failed(e: Error, m: Message): void {
    if (!this.#options.onError) return this.host.report(new EchoError(`message ${m.id} of ${this.topic}: ${e.message}`, { cause: e }));
    try {
      this.#options.onError(e, m);
    } catch (e) {
      this.host.report(asError(e));
    }
  }

  #gap(gap: GapError): void {
    void this.done(gap);
    try {
      if (this.#options.onGap) this.#options.onGap(gap);
      else this.host.report(gap);
    } catch (e) {
      this.host.report(asError(e));
    }
  }

  /** A message of the topic cannot be read. */
  protected unreadable(f: Frame, e: unknown): Error {
    const error = new EchoError(`message ${f.id} of ${this.topic} cannot be read: ${asError(e).message}`, { cause: e });
    this.host.report(error);
    return error;
  }

  /** Subscribes again a while after the server could not. */
  #again(open: boolean): void {
    if (open && Date.now() - this.#since > wellAfter) this.#tries = 0;
    const most = Math.min(20_000, 250 * 2 ** this.#tries++);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      if (!this.over && this.host.link) this.host.link.send(this.request(false));
    }, Math.random() * most + 50);
  }
}

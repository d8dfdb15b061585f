import { Broadcast } from "./broadcast.js";
import { asError, ClosedError, EchoError } from "./errors.js";
import { Events } from "./events.js";
import { amount, checkName, longest, type Frame } from "./frame.js";
import { Group } from "./group.js";
import { Link, openWithin, type End, type LinkOwner, type WebSocketClass } from "./link.js";
import type { Outbox } from "./outbox.js";
import { Publisher, type PublishOptions, type Receipt } from "./publisher.js";
import type { Delivery, GroupOptions, Handler, Host, Message, Sub, SubscribeOptions, Subscription } from "./subscription.js";

/** How a client is. */
export type State =
  | { readonly state: "connecting" }
  /** `resumed`: what groups delivered before is still held. */
  | { readonly state: "up"; readonly resumed: boolean }
  | { readonly state: "down"; readonly error: Error }
  /** `error` says why it will not connect again, if it was not closed by the application. */
  | { readonly state: "closed"; readonly error: Error | undefined };

/** The events of a client. */
export interface EchoEvents {
  state: State;
  /** What went wrong and is nobody else's to hear of. Without a listener it goes to the console. */
  error: Error;
}

/** Options of {@link connect}. */
export interface ConnectOptions {
  /** A token, or what returns one that is good now: it is called before each connect, and when the token is about to expire. */
  token?: string | (() => string | Promise<string>);
  /** How many messages may wait to be published; 1,000 by default. */
  maxOutbox?: number;
  /** Keeps what is published until it is stored; in memory by default, without outliving the client. */
  outbox?: Outbox;
  /** Between attempts to connect a random part of `first` passes, doubled up to `last`; 250 ms and 20 s by default. */
  backoff?: { first?: number; last?: number };
  /** Names the client to the server. */
  client?: string;
  /** The WebSocket class, where there is no global one. */
  WebSocket?: WebSocketClass;
}

/** Connects, for ever, to the server at a `ws:`, `wss:`, `http:` or `https:` URL, which in a page may be relative. */
export function connect(url: string | URL, options: ConnectOptions = {}): Echo {
  return new Echo(url, options);
}

// A link that was up for so long shows that the server is well.
const wellAfter = 30_000;
const closeWithin = 5000;
const goingAway = 4001; // close code
const leaveWithin = 5 * 60_000; // after a drain, whatever the server says
const leavePause = 250; // of clients whose server went away, so that they do not come all at once
const freshenPause = 1000; // between asking for tokens for one link

/** A client. Make one with {@link connect}. */
export class Echo {
  readonly #url: string;
  readonly #options: ConnectOptions;
  readonly #WebSocket: WebSocketClass;
  readonly #backoff: { first: number; last: number };
  readonly #events = new Events<EchoEvents>();
  readonly #publisher: Publisher;
  readonly #subs = new Map<number, Sub<never>>();
  readonly #requests = new Map<number, (f: Frame) => void>();
  readonly #unsubscribe = new Set<number>(); // when the session goes on
  readonly #host: Host;
  #state: State = { state: "connecting" };
  #link: Link | undefined; // that is up
  #opening: Link | undefined;
  #session: string | undefined;
  #since = 0; // when the link was up
  #drain: { timer: ReturnType<typeof setTimeout>; left: boolean } | undefined; // the server goes away; left: so did the client
  #auth: ReturnType<typeof setTimeout> | undefined;
  #rid = 0;
  #sid = 0;
  #wake = () => {};
  #online = false; // since the attempt under way began, the browser came online
  #closing: Promise<void> | undefined;
  #ended = false;

  constructor(url: string | URL, options: ConnectOptions = {}) {
    const u = new URL(url, globalThis.location?.href);
    u.protocol = u.protocol.replace(/^http/, "ws");
    if (u.protocol !== "ws:" && u.protocol !== "wss:") throw new TypeError(`${u.protocol}: want a ws or wss URL`);
    u.hash = "";
    this.#url = u.href;
    this.#options = options;
    const Class = options.WebSocket ?? (globalThis.WebSocket as WebSocketClass | undefined);
    if (!Class) throw new TypeError("there is no WebSocket here: give one as an option, such as that of the package ws");
    this.#WebSocket = Class;
    const { first = 250, last = 20_000 } = options.backoff ?? {};
    if (!(first > 0 && last >= first)) throw new RangeError(`backoff: want 0 < first ≤ last, not ${first} and ${last}`);
    this.#backoff = { first, last };
    const max = options.maxOutbox ?? 1000;
    if (!(max >= 1)) throw new RangeError(`maxOutbox: ${max} is not 1 or more`);
    const link = () => this.#link;
    this.#host = {
      get link() {
        return link();
      },
      nextRid: () => ++this.#rid,
      request: (rid, answered) => void this.#requests.set(rid, answered),
      forgetRequest: (rid) => void this.#requests.delete(rid),
      report: (e) => this.#report(e),
      unsubscribe: (sid) => this.#end(sid),
    };
    this.#publisher = new Publisher(options.outbox, max, () => ++this.#rid, (e) => this.#report(e));
    globalThis.addEventListener?.("online", this.#cameOnline);
    void this.#run();
  }

  /** How the client is now. */
  get state(): State {
    return this.#state;
  }

  /** How many messages are published and not answered for. */
  get pending(): number {
    return this.#publisher.count;
  }

  /** Listens to an event, until the function that it returns is called. */
  on<K extends keyof EchoEvents>(event: K, listener: (event: EchoEvents[K]) => void): () => void {
    return this.#events.on(event, listener);
  }

  /** Names a topic, and says what its messages carry. It asks nothing of the server. */
  topic<T = unknown>(name: string): Topic<T> {
    checkName("topic", name);
    return new Topic<T>(name, {
      publish: (value, o) => this.#publisher.publish(name, value, o),
      subscribe: (o, handler) => this.#subscribe(name, o, handler),
    });
  }

  /**
   * Ends the client: waits for handlers that run and, if the link is up, for
   * publishes that are not answered, 5 seconds at most by default. What is held
   * of groups goes back at once.
   */
  close({ timeout = closeWithin }: { timeout?: number } = {}): Promise<void> {
    return (this.#closing ??= this.#close(timeout));
  }

  async #close(timeout: number): Promise<void> {
    if (this.#ended) return;
    const subs = [...this.#subs.values()];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, Math.min(timeout, longest))));
    const closed: Promise<unknown>[] = subs.map((s) => s.close({ timeout }));
    if (this.#link) closed.push(this.#publisher.idle());
    await Promise.race([Promise.all(closed), late]);
    const link = this.#link;
    this.#link = undefined;
    this.#stop();
    await Promise.all([link?.bye(), Promise.race([this.#publisher.closed, late])]);
    clearTimeout(timer);
  }

  /** Ends everything. */
  #stop(error?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    globalThis.removeEventListener?.("online", this.#cameOnline);
    clearTimeout(this.#auth);
    clearTimeout(this.#drain?.timer);
    const why = error ?? new ClosedError("the client is closed");
    for (const s of this.#subs.values()) s.end(why);
    this.#subs.clear();
    this.#requests.clear();
    this.#publisher.end(why);
    this.#opening?.fail(why);
    this.#wake();
    this.#set({ state: "closed", error });
  }

  #set(s: State): void {
    this.#state = s;
    this.#events.emit("state", s);
  }

  #report(e: Error): void {
    if (!this.#events.emit("error", e)) console.error("echo:", e);
  }

  readonly #cameOnline = (): void => {
    this.#wake();
    if (this.#link) return this.#link.probe(5000);
    // An attempt under way is of a network that is gone.
    this.#online = true;
    this.#opening?.fail(new EchoError("the browser came online"));
  };

  /** Keeps a link up. */
  async #run(): Promise<void> {
    const { first, last } = this.#backoff;
    let tries = 0; // since the server was last well
    await Promise.resolve(); // who called connect listens now
    while (!this.#ended) {
      this.#set({ state: "connecting" });
      this.#since = Infinity;
      this.#online = false;
      const { error, code } = await this.#once();
      if (this.#ended) return;
      if (hopeless(code, this.#options.token)) return this.#stop(error);
      this.#set({ state: "down", error });
      if (this.#ended) return; // by who listened
      if (Date.now() - this.#since > wellAfter) tries = 0;
      let pause = Math.random() * Math.min(first * 2 ** tries, last, longest);
      // At once, unless one server after another goes away.
      if (tries === 0 && (this.#drain || code === goingAway)) pause = this.#drain?.left ? 0 : Math.random() * leavePause;
      clearTimeout(this.#drain?.timer);
      this.#drain = undefined;
      tries++;
      const woken =
        this.#online ||
        (await new Promise<boolean>((resolve) => {
          const timer = setTimeout(() => resolve(false), pause);
          this.#wake = () => {
            clearTimeout(timer);
            resolve(true);
          };
        }));
      if (woken) tries = 0;
    }
  }

  /** Opens a link, and returns why it ended. */
  async #once(): Promise<End> {
    let token: string | undefined;
    try {
      token = await this.#token();
    } catch (e) {
      return { error: new EchoError(`getting a token: ${asError(e).message}`, { cause: e }), code: undefined };
    }
    if (this.#ended) return { error: new ClosedError("the client is closed"), code: undefined };
    return await new Promise<End>((resolve) => {
      const owner: LinkOwner = {
        welcome: (link, f) => this.#up(link, f),
        message: (sid, f, line) => this.#subs.get(sid)?.message(f, line),
        frame: (f) => this.#frame(f),
        heard: () => this.#subs.forEach((s) => s.heard()),
        ended: (link, end) => {
          if (this.#opening === link) this.#opening = undefined;
          if (this.#link === link) this.#down();
          resolve(end);
        },
      };
      const hello = { t: "hello", client: this.#options.client ?? "echo-js", token: token || undefined, session: this.#session };
      try {
        this.#opening = new Link(this.#WebSocket, this.#url, hello, owner);
      } catch (e) {
        resolve({ error: asError(e), code: undefined });
      }
    });
  }

  async #token(): Promise<string | undefined> {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new EchoError(`no token within ${openWithin} ms`)), openWithin);
    });
    try {
      return await Promise.race([Promise.resolve().then(token), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Takes a link into use: subscriptions first, then what was not answered. */
  #up(link: Link, f: Frame): void {
    this.#opening = undefined;
    this.#link = link;
    this.#since = Date.now();
    this.#online = false;
    this.#session = f.session;
    const resumed = f.resumed ?? false;
    if (resumed) for (const sid of [...this.#unsubscribe]) this.#end(sid);
    else this.#unsubscribe.clear();
    for (const s of this.#subs.values()) s.up(link, resumed);
    this.#publisher.up(link, amount(f.max_publish) || 1);
    this.#freshen(amount(f.ttl));
    this.#set({ state: "up", resumed });
  }

  #down(): void {
    this.#link = undefined;
    clearTimeout(this.#auth);
    this.#requests.clear(); // what is to be sent again has its number
    for (const s of this.#subs.values()) s.down();
    this.#publisher.down();
  }

  #frame(f: Frame): void {
    const waits = f.rid ? this.#requests.get(f.rid) : undefined;
    if (waits) {
      this.#requests.delete(f.rid!);
      waits(f);
    } else if (f.t === "pubok" || (f.t === "err" && f.rid)) {
      this.#publisher.answered(f);
    } else if (f.t === "subok" || f.t === "subend" || f.t === "err") {
      const s = this.#subs.get(f.sid ?? 0);
      s?.answered(f);
      if (s?.broken) this.#subs.delete(s.sid);
    } else if (f.t === "drain") {
      this.#leave(amount(f.within));
    }
  }

  /** Leaves the link at a random moment, as the server asked for, to connect again at once. */
  #leave(within: number): void {
    if (this.#drain) return;
    const link = this.#link;
    const drain = {
      left: false,
      timer: setTimeout(() => {
        drain.left = true;
        link?.fail(new EchoError("the server is going away"));
      }, Math.random() * Math.min(within, leaveWithin)),
    };
    this.#drain = drain;
  }

  /** Sends a fresh token in good time before a ttl ends. */
  #freshen(ttl: number): void {
    clearTimeout(this.#auth);
    if (ttl <= 0 || typeof this.#options.token !== "function") return;
    const link = this.#link;
    const end = Date.now() + ttl;
    // Later, if it fails; in the end the link does, and the next one has its own.
    const retry = () => {
      if (this.#link === link && end - Date.now() > freshenPause) this.#freshen(end - Date.now());
    };
    this.#auth = setTimeout(() => {
      this.#token().then(
        (token) => {
          if (!link || this.#link !== link) return;
          const rid = ++this.#rid;
          this.#requests.set(rid, (f) => (f.t === "ok" ? this.#freshen(amount(f.ttl)) : retry()));
          link.send({ t: "auth", rid, token });
        },
        (e: unknown) => {
          this.#report(new EchoError(`getting a token: ${asError(e).message}`, { cause: e }));
          retry();
        },
      );
    }, Math.min(Math.max(ttl * 0.75, freshenPause), longest));
  }

  #subscribe(topic: string, o: SubscribeOptions & { group?: string }, handler: Handler<never> | undefined): Sub<never> {
    if (this.#ended || this.#closing) throw new ClosedError("the client is closed");
    const sid = this.#sid + 1;
    const s = (
      o.group === undefined
        ? new Broadcast(this.#host, sid, topic, o, handler as Handler<Message> | undefined)
        : new Group(this.#host, sid, topic, o as GroupOptions, handler as Handler<Delivery> | undefined)
    ) as unknown as Sub<never>;
    this.#sid = sid;
    this.#subs.set(sid, s);
    if (this.#link) s.up(this.#link, false);
    return s;
  }

  /** Ends a subscription at the server, on this link or, if the session goes on, on the next. */
  #end(sid: number): void {
    this.#subs.delete(sid);
    this.#unsubscribe.add(sid);
    if (!this.#link) return;
    const rid = ++this.#rid;
    this.#requests.set(rid, () => this.#unsubscribe.delete(sid));
    this.#link.send({ t: "unsub", rid, sid });
  }
}

/** Whether connecting again is of no use. */
function hopeless(code: number | undefined, token: ConnectOptions["token"]): boolean {
  if (code === undefined) return false;
  return (code >= 4300 && code < 4400) || (code === 4203 && typeof token !== "function");
}

interface Client {
  publish(value: unknown, o?: PublishOptions): Promise<Receipt>;
  subscribe(o: SubscribeOptions & { group?: string }, handler: Handler<never> | undefined): unknown;
}

/** A topic, whose messages carry values of a type. The type is the caller's word: what comes is not checked. */
export class Topic<T = unknown> {
  readonly #client: Client;

  /** @internal */
  constructor(
    readonly name: string,
    client: Client,
  ) {
    this.#client = client;
  }

  /**
   * Publishes a value, and fulfils when the server has stored it. It waits for
   * the link if there is none. It rejects with a `NotPublishedError` if the
   * message was surely not stored, with an `UnknownOutcomeError` if it may have been.
   * Messages are stored in the order of publishing, but for one that the server
   * refused for the moment: those that were under way with it may pass it.
   */
  publish(value: T, options?: PublishOptions): Promise<Receipt> {
    return this.#client.publish(value, options);
  }

  /**
   * Subscribes as a member of a group, which share the messages. A delivery is
   * acknowledged when its handler's promise fulfils, and delivered again when
   * that is rejected. Without a handler, iterate, and settle each delivery: one
   * that is not when the next is asked for is lost when its lease is over, and
   * delivered again.
   */
  subscribe(options: GroupOptions, handler?: Handler<Delivery<T>>): Subscription<Delivery<T>>;
  /** Subscribes to every message. A message is handled when its handler's promise is settled, whichever way. */
  subscribe(options?: SubscribeOptions, handler?: Handler<Message<T>>): Subscription<Message<T>>;
  subscribe(options: SubscribeOptions & { group?: string } = {}, handler?: Handler<never>): unknown {
    return this.#client.subscribe(options, handler);
  }
}

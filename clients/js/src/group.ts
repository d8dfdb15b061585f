import { fields, weigh } from "./broadcast.js";
import { asError, describe, EchoError, LeaseLostError, type GapError } from "./errors.js";
import type { Frame } from "./frame.js";
import { Sub, type Delivery, type GroupOptions, type Handler, type Host, type Message } from "./subscription.js";

type Kind = "ack" | "nack" | "release" | "extend";

/** A request about deliveries that waits for its answer, or for a link. */
interface Settlement {
  kind: Kind;
  delay: number;
  deliveries: GroupDelivery[];
  rid: number; // 0 before it is sent
  done: ((e?: Error) => void)[]; // by delivery
}

const longest = 2 ** 31 - 1; // of a timer, in milliseconds

class GroupDelivery implements Delivery {
  readonly topic!: string;
  readonly id!: string;
  readonly position!: string;
  readonly time!: Date;
  readonly key!: string;
  readonly type!: string;
  readonly header!: Message["header"];
  readonly value: unknown;
  readonly group: string;
  readonly attempt: number;
  readonly #sub: Group;
  /** The number of the delivery, and what it weighs. */
  readonly n: number;
  readonly bytes: number;
  /** It is extended: it waits for its handler, or that runs. */
  kept = true;
  lost = false;
  settled = false;

  constructor(sub: Group, group: string, f: Frame, bytes: number) {
    Object.assign(this, fields(sub.topic, f));
    this.#sub = sub;
    this.group = group;
    this.attempt = f.attempt ?? 1;
    this.n = f.n ?? 0;
    this.bytes = bytes;
  }

  ack(): Promise<void> {
    return this.#sub.settle(this, "ack");
  }

  nack(delay = 0): Promise<void> {
    return this.#sub.settle(this, "nack", delay);
  }

  release(): Promise<void> {
    return this.#sub.settle(this, "release");
  }

  extend(lease = 0): Promise<void> {
    return this.#sub.settle(this, "extend", lease);
  }
}

/** A subscription as a member of a group. */
export class Group extends Sub<GroupDelivery> {
  readonly #name: string;
  readonly #retryDelay: (attempt: number, error: Error) => number;
  readonly #leaseWanted: number;
  #lease = 0; // as the server said; 0 if it has none
  #known = false;
  #seen = 0;
  #handedOut = 0; // the last that was, by number
  #stopping = false; // subscribed again, to take no more
  #held = new Map<number, GroupDelivery>(); // by number; not settled
  #bytes = 0; // of them
  #batch: Settlement[] = []; // of the moment, in order
  #waiting: Settlement[] = []; // for the server, in order
  #timer: ReturnType<typeof setTimeout> | undefined;
  #idle: (() => void)[] = [];

  constructor(host: Host, sid: number, topic: string, o: GroupOptions, handler: Handler<GroupDelivery> | undefined) {
    super(host, sid, topic, o.group, o, handler);
    this.#name = o.group;
    if (o.lease !== undefined && !(o.lease > 0 && o.lease <= longest)) throw new RangeError(`lease: ${o.lease} is not above 0`);
    this.#leaseWanted = Math.ceil(o.lease ?? 0);
    const delay = o.retryDelay ?? 1000;
    this.#retryDelay = typeof delay === "function" ? delay : () => delay;
    this.#retryDelay(1, new EchoError("")); // so that what is no function, nor a number, shows now
  }

  get position(): undefined {
    return undefined;
  }

  /** Takes note of whether the session goes on; if not, nothing of it is held. */
  override up(link: NonNullable<Host["link"]>, resumed: boolean): void {
    if (!resumed) this.#lose();
    super.up(link, resumed);
  }

  protected request(resumed: boolean): object {
    return {
      t: "sub",
      sid: this.sid,
      topic: this.topic,
      group: this.#name,
      ...this.start,
      lease: this.#leaseWanted || undefined,
      credit: this.over ? 0 : Math.max(0, this.prefetch - this.#held.size),
      bytes: this.over ? 0 : Math.max(0, this.prefetchBytes - this.#bytes),
      resumed: resumed || undefined,
      // What came and is not to be handled goes back, and no credit comes back to one that ends.
      seen: (resumed && (this.over ? this.#handedOut : this.#seen)) || undefined,
      manual: this.over || undefined,
    };
  }

  protected subscribed(f: Frame): void {
    if (this.#stopping) {
      this.#stopping = false;
      return;
    }
    this.#lease = f.lease ?? 0;
    const counted = { credit: this.#held.size, bytes: this.#bytes };
    if (!f.resumed && this.#known) this.#lose();
    // What the request counted as held, and is lost, costs no credit.
    if (counted.credit > this.#held.size && !this.over) this.host.link?.send({ t: "flow", sid: this.sid, ...counted });
    this.#known = true;
    for (const s of this.#waiting) this.#send(s, true);
    this.#watch();
  }

  protected take(f: Frame, line: string): GroupDelivery {
    const d = new GroupDelivery(this, this.#name, f, weigh(f, line));
    this.#seen = d.n;
    this.#held.set(d.n, d);
    this.#bytes += d.bytes;
    return d;
  }

  protected lost(_: GapError): void {}

  // While there is no link, nobody knows whether what waits is still held.
  protected get handsOut(): boolean {
    return this.open;
  }

  protected began(d: GroupDelivery): void {
    this.#handedOut = d.n;
  }

  protected async done(d: GroupDelivery | GapError, failed?: Error): Promise<void> {
    if (!(d instanceof GroupDelivery)) return;
    if (this.handled && !d.settled) {
      if (failed) await this.#insist(d, "nack", this.#delay(d, failed));
      else await this.#insist(d, "ack", 0);
    }
    d.kept = false; // who did not settle it until now has to see to it
  }

  protected detached(): void {
    this.#stopping = false;
    clearTimeout(this.#timer);
  }

  protected settled(): Promise<void> {
    if (this.#batch.length + this.#waiting.length === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  protected abandon(): void {
    for (const item of [...this.queue]) if ("message" in item) this.#loseOne(item.message);
    if (!this.open) return; // the next link's request says it
    this.#stopping = true;
    this.host.link?.send({ t: "flow", sid: this.sid, once: true }); // takes back what there is
    this.host.link?.send(this.request(true));
  }

  protected forget(): void {
    clearTimeout(this.#timer);
    this.#lose();
  }

  /** Settles a delivery, or extends its lease. */
  settle(d: GroupDelivery, kind: Kind, delay = 0): Promise<void> {
    if (!Number.isFinite(delay) || delay < 0) return Promise.reject(new RangeError(`${delay} ms: want 0 or more`));
    if (d.lost) return Promise.reject(lost(d));
    if (d.settled) return Promise.reject(new EchoError(`delivery ${d.id} is settled already`));
    if (kind !== "extend") {
      d.settled = true;
      this.#drop(d);
    }
    return new Promise((resolve, reject) => {
      this.#add(kind, Math.ceil(delay), d, (e) => (e ? reject(e) : resolve()));
    });
  }

  #delay(d: GroupDelivery, failed: Error): number {
    try {
      const ms = this.#retryDelay(d.attempt, failed);
      if (Number.isFinite(ms) && ms >= 0) return ms;
      throw new RangeError(`retryDelay: ${ms} ms: want 0 or more`);
    } catch (e) {
      this.failed(asError(e), d);
      return 1000;
    }
  }

  /** Settles for a handler, and tries again while the server cannot. */
  async #insist(d: GroupDelivery, kind: "ack" | "nack", delay: number): Promise<void> {
    for (let i = 1; ; i++) {
      try {
        return await this.settle(d, kind, delay);
      } catch (e) {
        if (i >= 5 || d.settled || this.over || !(e instanceof EchoError)) throw e;
        await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** i * Math.random()));
      }
    }
  }

  #drop(d: GroupDelivery): void {
    if (this.#held.delete(d.n)) this.#bytes -= d.bytes;
  }

  /** Puts a delivery into a request, with others of the moment. */
  #add(kind: Kind, delay: number, d: GroupDelivery, done: (e?: Error) => void): void {
    const last = this.#batch.at(-1);
    if (last && last.kind === kind && last.delay === delay && last.deliveries.length < 100) {
      last.deliveries.push(d);
      last.done.push(done);
      return;
    }
    this.#batch.push({ kind, delay, deliveries: [d], rid: 0, done: [done] });
    if (this.#batch.length > 1) return;
    queueMicrotask(() => {
      for (const s of this.#batch.splice(0)) {
        this.#waiting.push(s);
        if (this.open) this.#send(s, false);
      }
    });
  }

  #send(s: Settlement, again: boolean): void {
    const link = this.host.link;
    if (!link) return;
    const sent = s.rid > 0;
    s.rid ||= this.host.nextRid();
    this.host.request(s.rid, (f) => this.#answer(s, f));
    const f: Record<string, unknown> = { t: s.kind === "release" ? "nack" : s.kind, rid: s.rid, sid: this.sid, ns: s.deliveries.map((d) => d.n) };
    if (again && sent && s.kind !== "extend") f.again = true;
    if (s.kind === "release") f.release = true;
    if (s.kind === "nack" && s.delay > 0) f.delay = s.delay;
    if (s.kind === "extend" && s.delay > 0) f.lease = s.delay;
    link.send(f);
  }

  #answer(s: Settlement, f: Frame): void {
    this.#waiting.splice(this.#waiting.indexOf(s), 1);
    const gone = new Set(f.ns);
    s.deliveries.forEach((d, i) => {
      if (f.t === "err") {
        if (s.kind !== "extend") this.#hold(d);
        s.done[i]!(new EchoError(`${s.kind} of delivery ${d.id}: ${describe(f.code ?? 0, f.text)}`, { code: f.code }));
      } else if (gone.has(d.n)) {
        this.#loseOne(d);
        s.done[i]!(lost(d));
      } else s.done[i]!();
    });
    this.#rest();
  }

  #hold(d: GroupDelivery): void {
    d.settled = false;
    this.#held.set(d.n, d);
    this.#bytes += d.bytes;
  }

  /** Notes that a delivery is not held any more. */
  #loseOne(d: GroupDelivery): void {
    this.#drop(d);
    d.lost = d.settled = true;
    const i = this.queue.findIndex((item) => "message" in item && item.message === d);
    if (i >= 0) this.queue.splice(i, 1);
  }

  /** Notes that nothing is held any more of what was. */
  #lose(): void {
    this.#seen = this.#handedOut = 0;
    for (const d of [...this.#held.values()]) this.#loseOne(d);
    for (const s of [...this.#waiting.splice(0), ...this.#batch.splice(0)]) {
      if (s.rid > 0) this.host.forgetRequest(s.rid);
      s.deliveries.forEach((d, i) => {
        d.lost = d.settled = true;
        s.done[i]!(lost(d));
      });
    }
    this.#rest();
  }

  #rest(): void {
    if (this.#batch.length + this.#waiting.length === 0) this.#idle.splice(0).forEach((f) => f());
  }

  /** Extends, from time to time, the leases of what waits for a handler or is handled. */
  #watch(): void {
    clearTimeout(this.#timer);
    if (this.#lease <= 0) return;
    this.#timer = setTimeout(() => {
      for (const d of this.#held.values()) {
        if (d.kept) this.settle(d, "extend").catch(() => {});
      }
      this.#watch();
    }, Math.min(this.#lease / 3, longest));
  }
}

function lost(d: Delivery): LeaseLostError {
  return new LeaseLostError(`delivery ${d.id} of group ${d.group} is not held any more`);
}

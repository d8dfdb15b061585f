import { fields, weigh } from "./broadcast.js";
import { asError, describe, EchoError, LeaseLostError, type GapError } from "./errors.js";
import { amount, longest, whole, type Frame } from "./frame.js";
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
  /** When its lease is over, by this clock, unless the server extends it once more. */
  until = Infinity;
  extending = 0; // requests that are not answered

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
  #counted = { credit: 0, bytes: 0 }; // what the last request counted as held
  #owed = { credit: 0, bytes: 0 }; // of that, what was given up before the answer
  #known = false;
  #seen = 0;
  #handedOut = 0; // the last that was, by number
  #stopping = false; // subscribed again, to take no more
  #held = new Map<number, GroupDelivery>(); // by number; not settled
  #bytes = 0; // of them
  #batch: Settlement[] = []; // of the moment, in order
  #waiting: Settlement[] = []; // for the server, in order
  #extendAt = Infinity; // when leases are extended
  #timer: ReturnType<typeof setTimeout> | undefined; // for it
  #lapseAt = Infinity; // when leases that nobody extends are looked at
  #lapse: ReturnType<typeof setTimeout> | undefined; // for it
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
    this.#counted = { credit: this.#held.size, bytes: this.#bytes };
    this.#owed = { credit: 0, bytes: 0 };
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
    this.#lease = amount(f.lease);
    if (!f.resumed && this.#known) {
      this.#lose();
      this.#owed = this.#counted;
    }
    // What the request counted as held, and is not any more, costs no credit.
    this.#give(this.#owed);
    this.#known = true;
    for (const s of this.#waiting) this.#send(s, true);
    this.#watch();
  }

  protected take(f: Frame, line: string): GroupDelivery | undefined {
    const bytes = weigh(f, line);
    let d: GroupDelivery;
    let failed: Error | undefined;
    try {
      d = new GroupDelivery(this, this.#name, f, bytes);
    } catch (e) {
      failed = this.unreadable(f, e);
      const { t, n, attempt, id, pos } = f;
      d = new GroupDelivery(this, this.#name, { t, n, attempt, id, pos } as Frame, bytes);
    }
    if (this.#lease > 0) d.until = performance.now() + this.#lease;
    this.#seen = d.n;
    this.#held.set(d.n, d);
    this.#bytes += d.bytes;
    if (!failed) return d;
    // Another member may be able to read it, or this one another time.
    d.kept = false;
    this.#insist(d, "nack", this.#delay(d, failed)).catch((e: unknown) => {
      if (!d.lost) this.host.report(asError(e));
    });
    return undefined;
  }

  protected lost(_: GapError): void {}

  // While there is no link, nobody knows whether what waits is still held.
  protected get handsOut(): boolean {
    return this.open;
  }

  protected began(d: GroupDelivery): void {
    this.#handedOut = d.n;
  }

  protected pass(d: GroupDelivery): void {
    this.began(d);
    this.#insist(d, "ack", 0)
      .catch((e: unknown) => {
        if (!d.lost) this.host.report(asError(e));
      })
      .finally(() => {
        d.kept = false;
        this.#expect(d);
      });
  }

  protected async done(d: GroupDelivery | GapError, failed?: Error): Promise<void> {
    if (!(d instanceof GroupDelivery)) return;
    try {
      if (this.handled && !d.settled) {
        if (failed) await this.#insist(d, "nack", this.#delay(d, failed));
        else await this.#insist(d, "ack", 0);
      }
    } finally {
      d.kept = false; // who did not settle it until now has to see to it
      this.#expect(d);
    }
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
    this.#extendAt = Infinity;
    this.#lose();
  }

  heard(): void {
    const now = performance.now();
    if (now >= this.#lapseAt) this.#lapseDue();
    if (now >= this.#extendAt && this.open) this.#extend();
  }

  /** Settles a delivery, or extends its lease. */
  settle(d: GroupDelivery, kind: Kind, delay = 0): Promise<void> {
    if (!Number.isFinite(delay) || delay < 0) return Promise.reject(new RangeError(`${delay} ms: want 0 or more`));
    if (d.lost) return Promise.reject(lost(d));
    if (d.settled) return Promise.reject(new EchoError(`delivery ${d.id} is settled already`));
    if (kind === "extend") d.extending++;
    else {
      d.settled = true;
      this.#drop(d);
    }
    return new Promise((resolve, reject) => {
      this.#add(kind, whole(delay), d, (e) => (e ? reject(e) : resolve()));
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
      if (s.kind === "extend") {
        d.extending--;
        if (f.t !== "err" && this.#lease > 0) d.until = performance.now() + (s.delay || this.#lease);
        this.#expect(d);
      }
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
    this.#expect(d);
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
    clearTimeout(this.#lapse);
    this.#lapseAt = Infinity;
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
    const now = performance.now();
    this.#extendAt = Math.min(this.#extendAt, now + Math.max(this.#lease / 3, 10));
    this.#timer = setTimeout(() => this.#extend(), Math.min(this.#extendAt - now, longest));
  }

  #extend(): void {
    this.#extendAt = Infinity;
    for (const d of this.#held.values()) {
      if (d.kept) this.settle(d, "extend").catch(() => {});
    }
    this.#watch();
  }

  /** Sees to it that a delivery is given up when its lease is over, if nobody settles it until then. */
  #expect(d: GroupDelivery): void {
    if (d.kept || d.settled || d.extending > 0) return;
    const at = d.until + Math.min(this.#lease / 10, 1000);
    if (at >= this.#lapseAt) return;
    clearTimeout(this.#lapse);
    this.#lapseAt = at;
    this.#lapse = setTimeout(() => this.#lapseDue(), Math.min(Math.max(at - performance.now(), 0), longest));
  }

  /** Gives up deliveries whose leases are over: the group has them again, and the server gives no credit back for them. */
  #lapseDue(): void {
    clearTimeout(this.#lapse);
    this.#lapseAt = Infinity;
    const now = performance.now();
    const back = { credit: 0, bytes: 0 };
    for (const d of [...this.#held.values()]) {
      if (d.kept || d.extending > 0) continue;
      if (d.until > now) {
        this.#expect(d);
        continue;
      }
      this.#loseOne(d);
      back.credit++;
      back.bytes += d.bytes;
    }
    this.#give(back);
  }

  /** Gives credit back that no settlement does, now or when the server has answered. */
  #give(back: { credit: number; bytes: number }): void {
    if (back.credit === 0 || this.over) return;
    if (this.open) {
      this.host.link?.send({ t: "flow", sid: this.sid, ...back });
      return;
    }
    this.#owed.credit += back.credit;
    this.#owed.bytes += back.bytes;
  }
}

function lost(d: Delivery): LeaseLostError {
  return new LeaseLostError(`delivery ${d.id} of group ${d.group} is not held any more`);
}

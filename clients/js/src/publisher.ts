import { asError, describe, EchoError, NotPublishedError, OutboxFullError, UnknownOutcomeError } from "./errors.js";
import { amount, byteLength, checkName, encodeHeader, encodeValue, longest, whole, type Frame, type HeaderInit, type Position } from "./frame.js";
import { uuid } from "./id.js";
import { fits, type Link } from "./link.js";
import type { Outbox, OutboxEntry } from "./outbox.js";

/** Options of a publish. */
export interface PublishOptions {
  /** What the message is about. Messages of a key keep their order. */
  key?: string;
  /** Names and values that go with the message. */
  header?: HeaderInit;
  /** The media type, if it is to be another than that of the value. */
  type?: string;
  /** Unique to the message; made by default. At most 128 bytes. */
  id?: string;
  /** When it was published, now by default. */
  time?: Date;
  /** Gives the publish up. */
  signal?: AbortSignal;
  /** Gives the publish up after so many milliseconds, below 2^31. */
  timeout?: number;
}

/** What is known of a message that was stored. */
export interface Receipt {
  readonly id: string;
  /** Where it stands in its topic. */
  readonly position: Position;
  /** It was sent again, and had been stored the first time. */
  readonly duplicate: boolean;
}

interface Entry {
  seq: number;
  key: string; // in the outbox
  frame: string; // the fields of its pub that stay the same, without the first brace
  bytes: number;
  id: string;
  deadline: number; // Infinity for none
  sent: boolean; // on this link, and not answered
  unsure: boolean; // sent on a link that broke before the answer: it may be stored
  given: boolean; // up, or settled
  left: boolean; // to another client, in the outbox
  adding: boolean; // the outbox was asked to keep it
  stored: boolean; // in the outbox
  settle: (r: Receipt | Error) => void;
}

// So many bytes may be unanswered, so that pings pass by them.
const bytesUnderWay = 4 << 20;

/** What is published, in order, from when it is until it is stored. */
export class Publisher {
  readonly #outbox: Outbox | undefined;
  readonly #max: number;
  readonly #nextRid: () => number;
  readonly #report: (e: Error) => void;
  readonly #client = uuid();
  readonly #underWay = new Map<number, Entry>(); // by rid, in order
  #waiting: Entry[] = []; // in order
  #adding: Entry[] = [];
  #added: Promise<void> | undefined; // when those that are adding are
  #removing: string[] = [];
  readonly #busy = new Set<Promise<void>>(); // what the outbox is asked for
  #link: Link | undefined;
  #most = 1;
  #bytes = 0; // under way
  #seq = 0;
  #count = 0; // neither answered nor given up
  #ready: Promise<void> | undefined; // the outbox is open
  #opened: boolean;
  #last = 0; // rid that was given
  #paused: ReturnType<typeof setTimeout> | undefined;
  #refused = 0; // the last rid when the server refused something for the moment; 0 when it takes more again
  #ended: Error | undefined;
  #closed: Promise<void> = Promise.resolve();
  #idle: (() => void)[] = [];

  constructor(outbox: Outbox | undefined, max: number, nextRid: () => number, report: (e: Error) => void) {
    this.#outbox = outbox;
    this.#max = max;
    this.#nextRid = nextRid;
    this.#report = report;
    this.#opened = outbox === undefined;
    this.#ready = outbox?.open(this.#client, (left) => this.#take(left)).catch((e: unknown) => {
      report(new EchoError("the outbox cannot be opened", { cause: e }));
      throw e;
    });
    this.#ready?.catch(() => {}).then(() => {
      this.#opened = true;
      this.#pump();
    });
  }

  /** How many messages are published and not answered for. */
  get count(): number {
    return this.#count;
  }

  /** Fulfils when nothing waits to be answered. */
  idle(): Promise<void> {
    return this.#count === 0 ? Promise.resolve() : new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Takes a link into use: what was not answered goes first, again. */
  up(link: Link, most: number): void {
    this.#link = link;
    this.#most = most;
    this.#pump();
  }

  /** Notes that there is no link. */
  down(): void {
    this.#link = undefined;
    clearTimeout(this.#paused);
    this.#paused = undefined;
    this.#refused = 0;
    const entries = [...this.#underWay.values()];
    for (const e of entries) {
      e.sent = false;
      e.unsure = true;
    }
    this.#underWay.clear();
    this.#bytes = 0;
    this.#wait(entries);
  }

  /** Gives everything up. */
  end(error: Error): void {
    if (this.#ended) return;
    this.#ended = error;
    this.down();
    for (const e of this.#waiting.splice(0)) this.#giveUp(e, error, this.#outbox !== undefined);
    if (this.#outbox) this.#closed = this.#close(this.#outbox);
  }

  /** Fulfils when the outbox is closed, after `end`. */
  get closed(): Promise<void> {
    return this.#closed;
  }

  /** Closes the outbox when it has done what it was asked for. */
  async #close(outbox: Outbox): Promise<void> {
    await Promise.allSettled([this.#ready]);
    while (this.#busy.size > 0) await Promise.allSettled(this.#busy);
    await outbox.close().catch(() => {});
  }

  async publish(topic: string, value: unknown, o: PublishOptions = {}): Promise<Receipt> {
    checkName("topic", topic);
    const id = o.id ?? uuid();
    if (typeof id !== "string" || id === "" || byteLength(id) > 128) throw new TypeError("id: want 1 to 128 bytes");
    if (o.key !== undefined && typeof o.key !== "string") throw new TypeError("key: want a string");
    if (o.timeout !== undefined && !(o.timeout > 0 && (o.timeout <= longest || o.timeout === Infinity))) throw new RangeError(`timeout: ${o.timeout} is not above 0, or more than ${longest}`);
    const { type, field, json } = encodeValue(value, o.type);
    const time = (o.time ?? new Date()).toISOString();
    const head = JSON.stringify({ topic, id, time, key: o.key || undefined, type: type || undefined, header: encodeHeader(o.header) });
    const frame = `${head.slice(1, -1)},"${field}":${json}}`;
    if (this.#ended) throw new NotPublishedError("the client is closed", { cause: this.#ended });
    if (this.#count >= this.#max) throw new OutboxFullError(`${this.#max} messages wait to be published`);
    return await new Promise<Receipt>((resolve, reject) => {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const entry = this.#entry(frame, id, (r) => {
        clearTimeout(timer);
        o.signal?.removeEventListener("abort", abort);
        if (r instanceof Error) reject(r);
        else resolve(r);
      });
      const abort = () => this.#giveUp(entry, o.signal!.reason, false);
      if (o.signal?.aborted) return abort();
      o.signal?.addEventListener("abort", abort);
      if (o.timeout !== undefined && o.timeout !== Infinity) {
        entry.deadline = Date.now() + o.timeout;
        timer = setTimeout(() => this.#giveUp(entry, new EchoError(`no answer within ${o.timeout} ms`), false), o.timeout);
      }
      this.#waiting.push(entry);
      if (this.#outbox) this.#keep(entry);
      else this.#pump();
    });
  }

  #entry(frame: string, id: string, settle: (r: Receipt | Error) => void): Entry {
    this.#count++;
    const seq = ++this.#seq;
    const key = `${this.#client}:${seq.toString(36).padStart(10, "0")}`;
    const entry: Entry = { seq, key, frame, id, bytes: frame.length, deadline: Infinity, sent: false, unsure: false, given: false, left: false, adding: false, stored: !this.#outbox, settle: () => {} };
    entry.settle = (r) => {
      if (entry.given) return;
      entry.given = true;
      this.#count--;
      settle(r);
      if (this.#count === 0) this.#idle.splice(0).forEach((f) => f());
    };
    return entry;
  }

  /** Takes over what another client left. Nobody waits for it. */
  #take(left: OutboxEntry[]): void {
    if (this.#ended) return;
    const entries = left.map(({ key, frame }) => {
      const { id } = JSON.parse(`{${frame}`) as { id: string };
      const e = this.#entry(frame, id, (r) => {
        if (r instanceof Error && !this.#ended) this.#report(r);
      });
      return Object.assign(e, { key, seq: this.#opened ? e.seq : e.seq - 2 ** 50, stored: true, unsure: true });
    });
    this.#wait(entries);
    this.#pump();
  }

  /** Puts an entry into the outbox, with others of the moment. */
  #keep(entry: Entry): void {
    this.#adding.push(entry);
    const added = this.#added ?? (this.#added = this.#ask(this.#addAll()));
    added.then(
      () => {
        entry.stored = entry.adding;
        if (entry.given && !entry.left) this.#forget(entry);
        this.#pump();
      },
      (e: unknown) => {
        this.#drop(entry);
        entry.settle(new NotPublishedError("the outbox did not take the message", { cause: e }));
        this.#pump();
      },
    );
  }

  async #addAll(): Promise<void> {
    const [opened] = await Promise.allSettled([this.#ready]);
    const entries = this.#adding.filter((e) => !e.given);
    this.#adding = [];
    this.#added = undefined;
    if (opened.status === "rejected") throw opened.reason;
    if (entries.length === 0) return;
    for (const e of entries) e.adding = true;
    await this.#outbox!.add(entries.map(({ key, frame }) => ({ key, frame })));
  }

  /** Takes an entry out of the outbox. */
  #forget(entry: Entry): void {
    if (!this.#outbox || !entry.stored) return;
    entry.stored = false;
    this.#removing.push(entry.key);
    if (this.#removing.length === 1) void this.#ask(this.#removeAll());
  }

  async #removeAll(): Promise<void> {
    await Promise.resolve(); // with others of the moment
    const keys = this.#removing;
    this.#removing = [];
    try {
      await this.#outbox!.remove(keys);
    } catch (e) {
      if (!this.#ended) this.#report(new EchoError("the outbox did not forget a message", { cause: e }));
    }
  }

  /** Takes note of what the outbox is asked for, until it is done. */
  #ask(p: Promise<void>): Promise<void> {
    this.#busy.add(p);
    const done = () => void this.#busy.delete(p);
    p.then(done, done);
    return p;
  }

  /** Puts entries where they belong among those that wait. */
  #wait(entries: Entry[]): void {
    if (entries.length === 0) return;
    this.#waiting = [...entries.filter((e) => !e.given), ...this.#waiting].sort((a, b) => a.seq - b.seq);
  }

  #drop(entry: Entry): void {
    const i = this.#waiting.indexOf(entry);
    if (i >= 0) this.#waiting.splice(i, 1);
  }

  /** Gives an entry up, unless it is answered. If it is kept, another client may publish it: from when the outbox is asked to keep it. */
  #giveUp(entry: Entry, cause: unknown, kept: boolean): void {
    if (entry.given) return;
    this.#drop(entry);
    entry.left = kept;
    if (!kept) this.#forget(entry);
    const why = asError(cause).message;
    entry.settle(
      entry.sent || entry.unsure || (kept && (entry.stored || entry.adding))
        ? new UnknownOutcomeError(`whether message ${entry.id} ${kept ? "is, or will be," : "was"} stored is not known: ${why}`, { cause })
        : new NotPublishedError(`message ${entry.id} was not published: ${why}`, { cause }),
    );
  }

  /** Sends what the link takes. */
  #pump(): void {
    const link = this.#link;
    if (!link || !this.#opened || this.#paused) return;
    const most = this.#refused ? 1 : this.#most;
    let n = 0;
    for (const e of this.#waiting) {
      if (!e.stored || this.#underWay.size >= most || (this.#bytes > 0 && this.#bytes + e.bytes > bytesUnderWay)) break;
      n++;
      this.#send(e, link);
    }
    this.#waiting.splice(0, n);
  }

  #send(e: Entry, link: Link): void {
    const rid = this.#nextRid();
    let line = `{"t":"pub","rid":${rid}`;
    if (e.unsure) line += ',"again":true';
    if (e.deadline !== Infinity) line += `,"within":${Math.max(1, whole(e.deadline - Date.now()))}`;
    line += "," + e.frame;
    if (!fits(line, link)) {
      const what = `message ${e.id} has ${byteLength(line)} bytes as a frame, the server takes ${link.maxMessage}`;
      queueMicrotask(() => this.#refuse(e, what, 103));
      return;
    }
    this.#last = rid;
    e.sent = true;
    this.#bytes += e.bytes;
    this.#underWay.set(rid, e);
    link.sendLine(line);
  }

  /** Gives an answer to those who wait for it. */
  answered(f: Frame): void {
    const first = f.rid!;
    const after = first + (amount(f.count) || 1);
    const again: Entry[] = [];
    for (const [rid, e] of this.#underWay) {
      if (rid < first) continue;
      if (rid >= after) break;
      this.#underWay.delete(rid);
      this.#bytes -= e.bytes;
      e.sent = false;
      if (f.t === "err" && !e.given && (f.code === 306 || f.code === 503 || f.code === 504)) {
        again.push(e); // not stored by this attempt, and worth another one
        continue;
      }
      if (rid > this.#refused) this.#refused = 0;
      if (f.t === "pubok") {
        this.#forget(e);
        e.settle({ id: e.id, position: f.at?.[rid - first] ?? "0-0", duplicate: f.again ?? false });
      } else if (f.code === 305) {
        this.#forget(e);
        e.settle(new UnknownOutcomeError(`whether message ${e.id} was stored is not known`, { code: 305 }));
      } else this.#refuse(e, `message ${e.id} was not published: ${describe(amount(f.code), f.text)}`, f.code);
    }
    if (again.length > 0) this.#pause(again);
    this.#pump();
  }

  /** Settles what is surely not stored by this attempt. Of one before nobody knows. */
  #refuse(e: Entry, what: string, code: number | undefined): void {
    this.#forget(e);
    e.settle(e.unsure ? new UnknownOutcomeError(`${what}; whether it was stored before is not known`, { code }) : new NotPublishedError(what, { code }));
  }

  /**
   * Waits a moment before entries are sent once more, in their order. Nothing
   * passes them that is not under way: until the server takes something, one is
   * sent at a time.
   */
  #pause(entries: Entry[]): void {
    this.#refused = this.#last;
    this.#wait(entries);
    this.#paused ??= setTimeout(() => {
      this.#paused = undefined;
      this.#pump();
    }, 250 + Math.random() * 750);
  }
}

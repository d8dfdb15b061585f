import { EchoError, GapError } from "./errors.js";
import { byteLength, comparePositions, decodeHeader, decodeValue, positionOf, type Frame, type Position } from "./frame.js";
import { Sub, type Handler, type Host, type Message, type SubscribeOptions } from "./subscription.js";

/** A message or gap that came and is not handled, or is behind one that is not. */
interface Place {
  what: Message | GapError;
  position: Position;
  credit: number; // messages, which is 0 of a gap
  bytes: number;
  old: boolean; // it came on a former link, and the server knows nothing of it
  done: boolean;
}

/** What a message weighs: about as many bytes as the server counts. */
export function weigh(f: Frame, line: string): number {
  const around = 60 + (f.id?.length ?? 0) + (f.time?.length ?? 0) + (f.pos?.length ?? 0) + (f.prev?.length ?? 0);
  return Math.max(1, byteLength(line) - around);
}

/** What both kinds of messages have. */
export function fields(topic: string, f: Frame): Message {
  return {
    topic,
    id: f.id ?? "",
    position: f.pos ?? "0-0",
    time: new Date(f.time ?? NaN),
    key: f.key ?? "",
    type: f.type ?? "",
    header: decodeHeader(f),
    value: decodeValue(f),
  };
}

/** A subscription of its own: every message, in order. */
export class Broadcast extends Sub<Message> {
  #known = false;
  #last: Position = "0-0"; // the last that came
  #position: Position | undefined; // everything up to it is handled
  #places: Place[] = []; // in order; those before #first are gone
  #first = 0;
  #byMessage = new Map<Message | GapError, Place>();
  #bytes = 0; // of places
  #credits = 0;
  #acked = { credit: 0, bytes: 0 }; // handled, and the server is not told
  #owed = { credit: 0, bytes: 0 }; // of former links, handled, and credit is not given for it

  constructor(host: Host, sid: number, topic: string, o: SubscribeOptions, handler: Handler<Message> | undefined) {
    super(host, sid, topic, undefined, o, handler);
  }

  get position(): Position | undefined {
    return this.#position;
  }

  protected request(): object {
    this.#acked = { credit: 0, bytes: 0 };
    this.#owed = { credit: 0, bytes: 0 };
    return {
      t: "sub",
      sid: this.sid,
      topic: this.topic,
      ...(this.#known ? { from: "pos", pos: this.#last } : this.start),
      credit: Math.max(0, this.prefetch - this.#credits),
      bytes: Math.max(0, this.prefetchBytes - this.#bytes),
    };
  }

  protected subscribed(f: Frame): void {
    if (this.#known) return this.#advance(); // over what was handled meanwhile
    this.#known = true;
    this.#last = this.#position = positionOf(f);
  }

  protected take(f: Frame, line: string): Message | GapError | undefined {
    const position = positionOf(f);
    if (comparePositions(f.prev ?? "0-0", this.#last) > 0) throw new EchoError(`the server left out what is between ${this.#last} and ${f.prev} in ${this.topic}`);
    if (comparePositions(position, this.#last) <= 0) return undefined; // it came before
    const what = this.#read(f, position);
    this.#push({ what, position, credit: 1, bytes: weigh(f, line), old: false, done: false });
    return what;
  }

  /** Reads a message. One that cannot be read is lost, as it would be the same if it came again. */
  #read(f: Frame, position: Position): Message | GapError {
    try {
      return fields(this.topic, f);
    } catch (e) {
      this.unreadable(f, e);
      return new GapError(this.topic, undefined, 1, position);
    }
  }

  protected lost(gap: GapError): void {
    this.#push({ what: gap, position: gap.position, credit: 0, bytes: 0, old: false, done: false });
  }

  protected get handsOut(): boolean {
    return true;
  }

  protected began(): void {}

  protected pass(m: Message): void {
    this.done(m);
  }

  protected done(m: Message | GapError): void {
    const place = this.#byMessage.get(m);
    if (!place) return;
    place.done = true;
    this.#advance();
  }

  protected detached(): void {
    for (let i = this.#first; i < this.#places.length; i++) this.#places[i]!.old = true;
  }

  protected async settled(): Promise<void> {}

  protected abandon(): void {}

  heard(): void {}

  protected forget(): void {}

  #push(p: Place): void {
    this.#last = p.position;
    this.#places.push(p);
    this.#byMessage.set(p.what, p);
    this.#bytes += p.bytes;
    this.#credits += p.credit;
  }

  /** Moves on over what is handled, and gives credit back a good deal at a time. */
  #advance(): void {
    while (this.#first < this.#places.length && this.#places[this.#first]!.done) {
      const p = this.#places[this.#first++]!;
      this.#byMessage.delete(p.what);
      this.#position = p.position;
      this.#bytes -= p.bytes;
      this.#credits -= p.credit;
      const back = p.old ? this.#owed : this.#acked;
      back.credit += p.credit;
      back.bytes += p.bytes;
    }
    if (this.#first === this.#places.length || this.#first > 1024) {
      this.#places = this.#places.slice(this.#first);
      this.#first = 0;
    }
    const link = this.host.link;
    if (!link || !this.open || this.over) return;
    const idle = this.#places.length === 0;
    if (this.#due(this.#acked, idle)) {
      link.send({ t: "ack", sid: this.sid, pos: this.#position });
      this.#acked = { credit: 0, bytes: 0 };
    }
    if (this.#due(this.#owed, idle)) {
      link.send({ t: "flow", sid: this.sid, ...this.#owed });
      this.#owed = { credit: 0, bytes: 0 };
    }
  }

  #due(back: { credit: number; bytes: number }, idle: boolean): boolean {
    return back.credit > 0 && (idle || back.credit >= this.prefetch / 4 || back.bytes >= this.prefetchBytes / 4);
  }
}

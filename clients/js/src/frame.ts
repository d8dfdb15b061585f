import { EchoError } from "./errors.js";

/** The sub-protocol that this client speaks. */
export const protocol = "echo.v1+json";

/**
 * A place in a topic, `"<hi>-<lo>"`. Compare with {@link comparePositions}, not
 * with `<`.
 */
export type Position = string;

/** A frame from the server. Which fields count depends on its type; one that is absent is zero. */
export interface Frame {
  t: string;
  rid?: number;
  sid?: number;
  count?: number;
  session?: string;
  resumed?: boolean;
  ttl?: number;
  ping?: number;
  max_message?: number;
  max_frames?: number;
  max_publish?: number;
  code?: number;
  text?: string;
  pos?: Position;
  prev?: Position;
  lease?: number;
  n?: number;
  ns?: number[];
  attempt?: number;
  within?: number;
  id?: string;
  time?: string;
  key?: string;
  type?: string;
  header?: Record<string, string>;
  data?: unknown;
  string?: string;
  base64?: string;
  at?: Position[];
  again?: boolean;
}

/** Reads a line of a batch. */
export function parseFrame(line: string): Frame {
  const f: unknown = JSON.parse(line);
  if (typeof f !== "object" || f === null || typeof (f as Frame).t !== "string") {
    throw new EchoError("the server sent what is no frame");
  }
  return f as Frame;
}

/** A number that the server said, 0 if it said none that makes sense. */
export function amount(v: unknown): number {
  return typeof v === "number" && v > 0 && Number.isFinite(v) ? v : 0;
}

/** The number for a frame that is not below `n`: frames have whole ones, below 2^53. */
export function whole(n: number): number {
  return Math.min(Math.ceil(n), Number.MAX_SAFE_INTEGER);
}

/** The longest that a timer takes, in milliseconds. */
export const longest = 2 ** 31 - 1;

const position = /^(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})$/;

/** Whether a value is a position. */
export function isPosition(v: unknown): v is Position {
  return typeof v === "string" && position.test(v);
}

/** The position of a frame. */
export function positionOf(f: Frame): Position {
  const p: unknown = f.pos ?? "0-0";
  if (!isPosition(p)) throw new EchoError(`the server sent ${JSON.stringify(p)} for a position`);
  return p;
}

/** Returns a number below, equal to or above 0, as `a` stands before, at or after `b` in their topic. */
export function comparePositions(a: Position, b: Position): number {
  if (a === b) return 0;
  const i = a.indexOf("-");
  const j = b.indexOf("-");
  return compareDecimals(a.slice(0, i), b.slice(0, j)) || compareDecimals(a.slice(i + 1), b.slice(j + 1));
}

// The numbers have 64 bits, and no zeros before them.
function compareDecimals(a: string, b: string): number {
  return a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);
}

const name = /^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$/;

/** Throws unless `s` can name a topic or a group. */
export function checkName(kind: "topic" | "group", s: unknown): asserts s is string {
  if (typeof s !== "string" || !name.test(s)) {
    throw new TypeError(`${kind} name ${JSON.stringify(s)}: want 1 to 200 of A-Z a-z 0-9 . _ -, the first a letter or digit`);
  }
}

/** Whether a media type is JSON's, or built on it. */
export function isJSON(type: string): boolean {
  const t = type.split(";", 1)[0]!.trim().toLowerCase();
  return t === "application/json" || t.endsWith("+json");
}

/** What carries a value: its media type, and the one of the three fields for data with what it says, as JSON. */
export interface Content {
  type: string;
  field: "data" | "string" | "base64";
  json: string;
}

/**
 * Returns what carries a value: bytes as they are, a string as text unless
 * `type` is JSON's, all else as JSON.
 */
export function encodeValue(value: unknown, type?: string): Content {
  if (value instanceof ArrayBuffer) value = new Uint8Array(value);
  if (value instanceof Uint8Array) return { type: type ?? "application/octet-stream", field: "base64", json: `"${toBase64(value)}"` };
  if (typeof value === "string" && !isJSON(type ?? "text/plain")) return { type: type ?? "text/plain", field: "string", json: JSON.stringify(value) };
  const json = JSON.stringify(value) as string | undefined; // which throws for what JSON has not
  if (json === undefined) throw new TypeError(`a value of type ${typeof value} cannot be published: it is neither JSON, a string nor bytes`);
  return { type: type ?? "application/json", field: "data", json };
}

/** Returns the value that a message carries. */
export function decodeValue(f: Frame): unknown {
  if (f.data !== undefined) return f.data;
  if (f.string !== undefined) return f.string;
  const text = f.type?.startsWith("text/") ?? false;
  if (f.base64 !== undefined) {
    const bytes = fromBase64(f.base64);
    return text ? (utf8(bytes) ?? bytes) : bytes;
  }
  if (text) return "";
  return !f.type || isJSON(f.type) ? undefined : new Uint8Array();
}

// Text with control characters comes as base64; other text that does is no UTF-8.
function utf8(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

const chunk = 0x8000; // arguments that a function takes at once

function toBase64(bytes: Uint8Array): string {
  let s = "";
  for (let i = 0; i < bytes.length; i += chunk) s += String.fromCharCode(...bytes.subarray(i, i + chunk));
  return btoa(s);
}

function fromBase64(s: string): Uint8Array {
  return Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
}

/** Names and values that come with a message. An object without a prototype: any name is just a name. */
export type Header = Readonly<Record<string, string>>;

/** What a header can be made of. */
export type HeaderInit = Readonly<Record<string, string>> | Iterable<readonly [string, string]>;

/** Returns a header of its own made of what the caller gave, or undefined if that is empty. */
export function encodeHeader(init: HeaderInit | undefined): Header | undefined {
  if (init === undefined) return undefined;
  const pairs = Symbol.iterator in init ? (init as Iterable<readonly [string, string]>) : Object.entries(init);
  const header = Object.create(null) as Record<string, string>;
  let empty = true;
  for (const [k, v] of pairs) {
    if (typeof k !== "string" || typeof v !== "string") throw new TypeError(`header ${String(k)}: names and values are strings`);
    header[k] = v;
    empty = false;
  }
  return empty ? undefined : header;
}

const none: Header = Object.freeze(Object.create(null) as Header);

/** Returns the header of a frame without a prototype. */
export function decodeHeader(f: Frame): Header {
  return f.header === undefined ? none : (encodeHeader(f.header) ?? none);
}

/** How many bytes a string is as UTF-8. */
export function byteLength(s: string): number {
  let n = s.length;
  for (let i = 0; i < s.length; i++) {
    const c = s.charCodeAt(i);
    if (c < 0x80) continue;
    if (c < 0x800) n++;
    else n += 2;
    if (c >= 0xd800 && c < 0xdc00 && i + 1 < s.length) {
      const d = s.charCodeAt(i + 1);
      if (d >= 0xdc00 && d < 0xe000) i++; // a pair: two units, four bytes
    }
  }
  return n;
}

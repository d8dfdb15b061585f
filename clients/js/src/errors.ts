const texts: Record<number, string> = {
  101: "bad frame",
  103: "too big",
  104: "too many",
  201: "a token is needed",
  202: "token not accepted",
  203: "token expired",
  204: "forbidden or unknown topic",
  303: "refused",
  304: "topic full",
  305: "outcome unknown",
  306: "too many publishes under way",
  402: "too many subscriptions",
  403: "bad start",
  404: "message not found",
  405: "unsupported",
  501: "internal error",
  502: "transport unavailable",
  503: "overloaded",
  504: "shutting down",
};

/** What a code of the protocol says, with what the server said besides. */
export function describe(code: number, text?: string): string {
  const what = `${texts[code] ?? "refused"} (${code})`;
  return text ? `${what}: ${text}` : what;
}

interface Details {
  code?: number | undefined;
  cause?: unknown;
}

/** The class of all errors that this package makes, but for a `TypeError` or `RangeError` for a wrong argument. */
export class EchoError extends Error {
  override name = "EchoError";
  /** The code of the protocol, if the server said one, or the code that it closed the link with. */
  readonly code: number | undefined;

  constructor(message: string, details: Details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = details.code;
  }
}

/** The message was surely not stored. */
export class NotPublishedError extends EchoError {
  override name = "NotPublishedError";
}

/** The message was surely not stored, as too many wait to be. */
export class OutboxFullError extends NotPublishedError {
  override name = "OutboxFullError";
}

/** Whether the message was, or is yet to be, stored is not known. */
export class UnknownOutcomeError extends EchoError {
  override name = "UnknownOutcomeError";
}

/** The delivery is not this client's any more: its lease is over, or its session is. The group has the message again. */
export class LeaseLostError extends EchoError {
  override name = "LeaseLostError";
}

/** The server refused or ended a subscription. */
export class SubscriptionError extends EchoError {
  override name = "SubscriptionError";
}

/** The client, or the subscription, is closed. */
export class ClosedError extends EchoError {
  override name = "ClosedError";
}

/** Messages are lost to a subscription, or cannot be read. It goes on after `position`. */
export class GapError extends EchoError {
  override name = "GapError";

  constructor(
    readonly topic: string,
    readonly group: string | undefined,
    /** How many, 0 if nobody knows. */
    readonly count: number,
    readonly position: string,
  ) {
    super(`${group === undefined ? "a subscription" : `group ${group}`} lost ${count || "an unknown number of"} messages of ${topic} before position ${position}`);
  }
}

/** The error that something became, whatever was thrown. */
export function asError(e: unknown): Error {
  return e instanceof Error ? e : new EchoError(String(e), { cause: e });
}

export { connect, type ConnectOptions, type Echo, type EchoEvents, type State, type Topic } from "./client.js";
export {
  ClosedError,
  EchoError,
  GapError,
  LeaseLostError,
  NotPublishedError,
  OutboxFullError,
  SubscriptionError,
  UnknownOutcomeError,
} from "./errors.js";
export { comparePositions, type Header, type HeaderInit, type Position } from "./frame.js";
export { indexedDBOutbox } from "./indexeddb.js";
export type { WebSocketClass, WebSocketLike } from "./link.js";
export { memoryOutbox, type Outbox, type OutboxEntry } from "./outbox.js";
export type { PublishOptions, Receipt } from "./publisher.js";
export type { Delivery, GroupOptions, Handler, Message, Start, SubscribeOptions, Subscription } from "./subscription.js";

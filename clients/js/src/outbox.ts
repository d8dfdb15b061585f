/** A publish that an outbox keeps. */
export interface OutboxEntry {
  /** Unique. It begins with the name of the client that made it, and those of a client are in order. */
  readonly key: string;
  /** What is published, encoded. */
  readonly frame: string;
}

/**
 * Keeps publishes until the server has stored them, so that a client that comes
 * later, as after a reload of the page, can go on with them.
 */
export interface Outbox {
  /**
   * Begins, for a client of a name. `take` is called with what clients that are
   * gone left, in order: before the promise settles, and again if another one
   * goes later.
   */
  open(client: string, take: (left: OutboxEntry[]) => void): Promise<void>;
  /** Keeps entries. They are durable when the promise fulfils. */
  add(entries: OutboxEntry[]): Promise<void>;
  /** Forgets entries. */
  remove(keys: string[]): Promise<void>;
  /** Ends, when what was asked for is done. What was not removed is left for another client. */
  close(): Promise<void>;
}

/**
 * Returns an outbox in memory: it outlives a client, not the page. Give it to
 * one client at a time.
 */
export function memoryOutbox(): Outbox {
  const kept = new Map<string, OutboxEntry>();
  return {
    open: async (_, take) => take([...kept.values()]),
    add: async (entries) => entries.forEach((e) => kept.set(e.key, e)),
    remove: async (keys) => keys.forEach((k) => kept.delete(k)),
    close: async () => {},
  };
}

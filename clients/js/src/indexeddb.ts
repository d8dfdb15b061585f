import type { Outbox, OutboxEntry } from "./outbox.js";

const store = "publishes";
const retry = { first: 1000, last: 60_000 }; // pauses before what another tab left is asked for again

/**
 * Returns an outbox in the IndexedDB database of a name, which outlives the
 * page. Clients of several tabs may use the same name: each has its own entries,
 * and those of a tab that is gone another one takes over, as far as the browser
 * has the Web Locks API; without it, whoever comes takes all there is.
 */
export function indexedDBOutbox(name: string): Outbox {
  let db: Promise<IDBDatabase> | undefined; // undefined while it is closed
  let open = false;
  let closed = new AbortController();
  let release = () => {};

  /** Returns the database, and opens it if need be. */
  function database(): Promise<IDBDatabase> {
    if (!open) throw new Error(`outbox ${name} is not open`);
    if (db) return db;
    const opening = new Promise<IDBDatabase>((resolve, reject) => {
      const r = indexedDB.open(name, 1);
      r.onupgradeneeded = () => r.result.createObjectStore(store, { keyPath: "key" });
      r.onsuccess = () => resolve(r.result);
      r.onerror = () => reject(r.error ?? new Error(`outbox ${name} cannot be opened`));
      r.onblocked = () => reject(new Error(`outbox ${name} is blocked by another version of it`));
    });
    db = opening;
    opening.catch(() => gone(opening));
    return opening;
  }

  function gone(was: Promise<IDBDatabase>): void {
    if (db === was) db = undefined;
  }

  /** Runs a transaction and waits until it is durable. */
  async function change<T>(mode: IDBTransactionMode, f: (s: IDBObjectStore) => IDBRequest<T> | void): Promise<T> {
    const tx = await transaction(mode);
    return await new Promise((resolve, reject) => {
      const r = f(tx.objectStore(store));
      tx.oncomplete = () => resolve(r?.result as T);
      tx.onabort = tx.onerror = () => reject(tx.error ?? new Error(`outbox ${name}: transaction aborted`));
    });
  }

  /** Begins a transaction, once more if the browser closed the database, as it does when it clears what sites keep. */
  async function transaction(mode: IDBTransactionMode): Promise<IDBTransaction> {
    const was = database();
    try {
      return (await was).transaction(store, mode, { durability: "strict" });
    } catch (e) {
      if ((e as Error).name !== "InvalidStateError") throw e;
      gone(was);
      return (await database()).transaction(store, mode, { durability: "strict" });
    }
  }

  const read = (client: string) => change<OutboxEntry[]>("readonly", (s) => s.getAll(IDBKeyRange.bound(client, client + "\uffff")));
  const lock = (client: string) => `echo outbox ${name} ${client}`;

  /** Holds a lock until the outbox is closed, after f, and reports whether it does. */
  function hold(locks: LockManager, client: string, until: Promise<void>, f: () => Promise<void>): Promise<boolean> {
    return new Promise((resolve) => {
      locks
        .request(lock(client), { ifAvailable: true }, async (l) => {
          if (!l) return resolve(false);
          await f();
          resolve(true);
          await until;
        })
        .catch(() => resolve(false));
    });
  }

  /** Takes over what another client has when it goes. */
  async function follow(locks: LockManager, client: string, until: Promise<void>, adopt: () => Promise<void>): Promise<void> {
    const { signal } = closed;
    for (let pause = retry.first; !signal.aborted; pause = Math.min(2 * pause, retry.last)) {
      try {
        return await locks.request(lock(client), { signal }, async () => {
          await adopt();
          await until;
        });
      } catch {
        if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }

  async function close(): Promise<void> {
    closed.abort();
    release();
    open = false;
    db?.then(
      (d) => d.close(),
      () => {},
    );
    db = undefined;
  }

  return {
    async open(client, take) {
      closed = new AbortController();
      open = true;
      const until = new Promise<void>((resolve) => (release = resolve));
      try {
        const keys = (await change<IDBValidKey[]>("readonly", (s) => s.getAllKeys())) as string[];
        const locks = globalThis.navigator?.locks;
        // A client holds the lock of its name, and of those whose entries it took.
        if (!locks || !(await hold(locks, client, until, async () => {}))) return take(await change<OutboxEntry[]>("readonly", (s) => s.getAll()));
        for (const other of new Set(keys.map((k) => k.slice(0, client.length)))) {
          const adopt = async () => take(await read(other));
          if (!(await hold(locks, other, until, adopt))) void follow(locks, other, until, adopt);
        }
      } catch (e) {
        await close();
        throw e;
      }
    },
    add: (entries) => change("readwrite", (s) => entries.forEach((e) => s.put(e))),
    remove: (keys) => change("readwrite", (s) => keys.forEach((k) => s.delete(k))),
    close,
  };
}

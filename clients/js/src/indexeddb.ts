import type { Outbox, OutboxEntry } from "./outbox.js";

const store = "publishes";

/**
 * Returns an outbox in the IndexedDB database of a name, which outlives the
 * page. Clients of several tabs may use the same name: each has its own entries,
 * and those of a tab that is gone another one takes over, as far as the browser
 * has the Web Locks API; without it, whoever comes takes all there is.
 */
export function indexedDBOutbox(name: string): Outbox {
  let db: IDBDatabase | undefined;
  let closed = new AbortController();
  let release = () => {};

  /** Runs a transaction and waits until it is durable. */
  function change<T>(mode: IDBTransactionMode, f: (s: IDBObjectStore) => IDBRequest<T> | void): Promise<T> {
    return new Promise((resolve, reject) => {
      if (!db) throw new Error(`outbox ${name} is not open`);
      const tx = db.transaction(store, mode, { durability: "strict" });
      const r = f(tx.objectStore(store));
      tx.oncomplete = () => resolve(r?.result as T);
      tx.onabort = tx.onerror = () => reject(tx.error ?? new Error(`outbox ${name}: transaction aborted`));
    });
  }

  const read = (client: string) => change<OutboxEntry[]>("readonly", (s) => s.getAll(IDBKeyRange.bound(client, client + "\uffff")));
  const lock = (client: string) => `echo outbox ${name} ${client}`;

  return {
    async open(client, take) {
      closed = new AbortController();
      const until = new Promise<void>((resolve) => (release = resolve));
      db = await new Promise<IDBDatabase>((resolve, reject) => {
        const r = indexedDB.open(name, 1);
        r.onupgradeneeded = () => r.result.createObjectStore(store, { keyPath: "key" });
        r.onsuccess = () => resolve(r.result);
        r.onerror = () => reject(r.error ?? new Error(`outbox ${name} cannot be opened`));
        r.onblocked = () => reject(new Error(`outbox ${name} is blocked by another version of it`));
      });
      const keys = (await change<IDBValidKey[]>("readonly", (s) => s.getAllKeys())) as string[];
      const locks = globalThis.navigator?.locks;
      if (!locks) return take(await change<OutboxEntry[]>("readonly", (s) => s.getAll()));
      // A client holds the lock of its name, and of those whose entries it took.
      void locks.request(lock(client), () => until);
      for (const other of new Set(keys.map((k) => k.slice(0, client.length)))) {
        const adopt = async () => {
          take(await read(other));
        };
        const taken = await new Promise<boolean>((resolve, reject) => {
          locks
            .request(lock(other), { ifAvailable: true }, async (l) => {
              if (!l) return resolve(false);
              await adopt();
              resolve(true);
              await until;
            })
            .catch(reject);
        });
        if (taken) continue;
        locks
          .request(lock(other), { signal: closed.signal }, async () => {
            await adopt();
            await until;
          })
          .catch(() => {}); // closed before the other client went
      }
    },
    add: (entries) => change("readwrite", (s) => entries.forEach((e) => s.put(e))),
    remove: (keys) => change("readwrite", (s) => keys.forEach((k) => s.delete(k))),
    async close() {
      closed.abort();
      release();
      db?.close();
      db = undefined;
    },
  };
}

/** Listeners by the names of events. */
export class Events<E extends { [K in keyof E]: unknown }> {
  readonly #listeners = new Map<keyof E, Set<(event: never) => void>>();

  on<K extends keyof E>(name: K, listener: (event: E[K]) => void): () => void {
    let set = this.#listeners.get(name);
    if (!set) this.#listeners.set(name, (set = new Set()));
    set.add(listener);
    return () => void set.delete(listener);
  }

  /** Calls the listeners, and reports whether there is any. What one throws does not concern the others. */
  emit<K extends keyof E>(name: K, event: E[K]): boolean {
    const set = this.#listeners.get(name);
    for (const f of [...(set ?? [])] as ((event: E[K]) => void)[]) {
      try {
        f(event);
      } catch (e) {
        console.error(`echo: a listener of ${String(name)} threw`, e);
      }
    }
    return set !== undefined && set.size > 0;
  }
}

/** Brings pages from the store into the cache; a page that several operations want is read once. */
import { PageFault, type PageCache } from "./core/page-cache.js";
import type { MetadataReader } from "./store/metadata-store.js";

export class PageLoader {
  private readonly loading = new Map<string, Promise<void>>();

  constructor(
    private readonly cache: PageCache,
    private readonly store: MetadataReader,
  ) {}

  /**
   * The pages are in the cache and, where `pins` is given, pinned under it. Fails with Corrupt, or
   * as the store does.
   */
  async load(keys: readonly string[], pins?: Set<string>): Promise<void> {
    await Promise.all(keys.map((key) => this.loadOne(key, pins)));
  }
  private async loadOne(key: string, pins: Set<string> | undefined): Promise<void> {
    // A page may be dropped again before it is pinned, when the cache is small.
    while (!this.cache.has(key)) {
      let running = this.loading.get(key);
      if (running === undefined) {
        running = this.read(key).finally(() => this.loading.delete(key));
        this.loading.set(key, running);
        // The page stays until everybody who waits for it has pinned it, however small the cache
        // is.
        running
          .then(() => undefined)
          .then(() => undefined)
          .then(
            () => this.cache.unpin(key),
            () => undefined, // Reported to those who wait.
          );
      }
      await running;
      if (pins === undefined) return;
    }
    this.pin(key, pins);
  }
  private async read(key: string): Promise<void> {
    const data = await this.store.loadPage(key);
    this.cache.load(key, data);
    this.cache.pin(key);
  }
  pin(key: string, pins: Set<string> | undefined): void {
    if (pins === undefined || pins.has(key) || !this.cache.has(key)) return;
    pins.add(key);
    this.cache.pin(key);
  }
  release(pins: Set<string>): void {
    for (const key of pins) this.cache.unpin(key);
    pins.clear();
  }

  /** Runs `read` until nothing is missing. */
  async run<T>(read: () => T): Promise<T> {
    const pins = new Set<string>();
    try {
      for (;;) {
        const touched = new Set<string>();
        this.cache.touched = touched;
        try {
          return read();
        } catch (error) {
          if (!(error instanceof PageFault)) throw error;
          this.cache.touched = undefined;
          for (const key of touched) this.pin(key, pins);
          await this.load(error.keys, pins);
        } finally {
          this.cache.touched = undefined;
        }
      }
    } finally {
      this.release(pins);
    }
  }
}

/**
 * Pages in memory. Operations run synchronously against it; a page that is not here raises
 * `PageFault`, and the shell loads it and runs the operation again. Clean pages that nobody pins
 * are dropped least recently used first; dirty ones stay until the checkpoint has written them.
 * Pins keep what a waiting operation needs, so that its next run gets further.
 */
import { LRUCache } from "lru-cache";
import { assert } from "../../cluster/base/assert.js";
import { decodePage, type Page, type PageBody } from "./page.js";

/** Control flow, not an error: the operation needs these pages first. */
export class PageFault extends Error {
  override readonly name = "PageFault";
  constructor(readonly keys: readonly string[]) {
    super(`pages not in memory: ${keys.join(" ")}`);
  }
}

export class PageCache {
  private readonly resident = new Map<string, Page>();
  private readonly evictable: LRUCache<string, Page>;
  /** Dirty or being written. */
  readonly dirty = new Map<string, Page>();
  /**
   * Every page that an operation has asked for since this was set; the shell pins them for its
   * retry.
   */
  touched: Set<string> | undefined;

  /** `bytesMax`: rough bytes of clean pages. */
  constructor(bytesMax: number) {
    this.evictable = new LRUCache<string, Page>({
      maxSize: bytesMax,
      sizeCalculation: (page) => page.weight,
      dispose: (_page, key, reason) => {
        if (reason === "evict") this.resident.delete(key);
      },
    });
  }
  get count(): number {
    return this.resident.size;
  }
  has(key: string): boolean {
    return this.resident.has(key);
  }
  /** The page; PageFault when it is not here. */
  get(key: string): Page {
    this.touched?.add(key);
    const page = this.resident.get(key);
    if (page === undefined) throw new PageFault([key]);
    this.evictable.get(key); // Marks it as used, if it is there at all.
    return page;
  }
  peek(key: string): Page | undefined {
    return this.resident.get(key);
  }
  /**
   * Takes in what the store had (undefined: nothing). An earlier arrival wins: it may have changed
   * since.
   */
  load(key: string, data: Buffer | undefined): Page {
    const known = this.resident.get(key);
    if (known !== undefined) return known;
    const page = decodePage(key, data);
    this.resident.set(key, page); // Whoever loads pins it next; unpinning makes it evictable.
    return page;
  }
  /** Takes in a page that the store does not have: there is no need to ask it. */
  loadEmpty(key: string): void {
    if (this.resident.has(key)) return;
    this.settle(this.load(key, undefined));
  }
  pin(key: string): void {
    const page = this.resident.get(key);
    assert(page !== undefined, `page ${key} is pinned but not in memory`);
    page.pins++;
    this.evictable.delete(key);
  }
  unpin(key: string): void {
    const page = this.resident.get(key);
    assert(page !== undefined && page.pins > 0, `page ${key} is not pinned`);
    page.pins--;
    this.settle(page);
  }
  /** Keeps the page in memory, or no longer. */
  setResident(page: Page, resident: boolean): void {
    if (page.resident === resident) return;
    page.resident = resident;
    if (resident) this.evictable.delete(page.key);
    else this.settle(page);
  }
  /** The page was changed by batch `seq`. */
  changed(page: Page, seq: number): void {
    assert(this.resident.get(page.key) === page, `page ${page.key} changed outside the cache`);
    page.applied = seq;
    if (page.dirtyFrom === 0) {
      page.dirtyFrom = seq;
      this.dirty.set(page.key, page);
      this.evictable.delete(page.key);
    }
  }
  /** Its present form is about to be written. */
  flushing(page: Page): void {
    assert(page.flushingFrom === 0 && page.dirtyFrom !== 0, `page ${page.key} flushed twice`);
    page.flushingFrom = page.dirtyFrom;
    page.dirtyFrom = 0;
  }
  /** `stored`: whether a stored form exists now; undefined: the write failed. */
  flushed(page: Page, stored: boolean | undefined): void {
    if (stored === undefined) page.dirtyFrom = page.flushingFrom;
    else page.stored = stored;
    page.flushingFrom = 0;
    if (page.dirtyFrom === 0) this.dirty.delete(page.key);
    this.settle(page);
  }
  /** Batches up to here need not be replayed; Infinity when every page is clean. */
  completeUpTo(): number {
    let first = Infinity;
    for (const page of this.dirty.values()) {
      const from = page.flushingFrom === 0 ? page.dirtyFrom : page.flushingFrom;
      if (from < first) first = from;
    }
    return first - 1;
  }
  private settle(page: Page<PageBody>): void {
    const clean = page.dirtyFrom === 0 && page.flushingFrom === 0;
    if (page.pins === 0 && clean && !page.resident) {
      this.evictable.set(page.key, page);
      // One page alone may be above the limit; lru-cache then refuses it.
      if (!this.evictable.has(page.key)) this.resident.delete(page.key);
    }
  }
}

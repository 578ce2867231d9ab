/**
 * Writes dirty pages in the background and trims the journal below them.
 *
 * A page may be written only with batches that are safe. Busy pages always carry the open batch, so
 * their form is taken at the moment a batch is sealed (then memory holds exactly the batches up to
 * it) and written once that batch is safe. A split directory page is written after the pages that
 * took over its entries.
 */
import { describeError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import { directoryPageKey, encodePage, type Page } from "./core/page.js";
import type { PageCache } from "./core/page-cache.js";
import { WRITE_BYTES_MAX, type MetadataStore, type PageChange } from "./store/metadata-store.js";
import type { JournalWriter } from "./journal-writer.js";

/** Bytes of pages encoded at one sealing: bounds the pause of the event loop. */
const SLICE_BYTES = 1024 * 1024;
const SLICE_PAGES = 256;

interface Taken {
  page: Page;
  change: PageChange;
}

export class Checkpointer {
  private round: string[] = [];
  private running: Promise<void> | undefined;
  private slice: { resolve: (taken: { seq: number; pages: Taken[] }) => void } | undefined;
  private batches: number[] = [];
  checkpoint: number;

  constructor(
    private readonly parts: {
      cache: PageCache;
      store: MetadataStore;
      journal: JournalWriter;
      logger: Logger;
      checkpoint: number;
      /** Batches in the store. */
      batches: readonly number[];
      onFailure: (error: unknown) => void;
    },
  ) {
    this.checkpoint = parts.checkpoint;
    this.batches = [...parts.batches];
  }
  /** A batch was sealed. */
  onSealed(seq: number): void {
    this.batches.push(seq);
    if (this.slice !== undefined) this.take(seq);
  }
  /** Runs one round over the pages that are dirty now; joins one that is running. */
  run(): Promise<void> {
    this.running ??= this.write().finally(() => (this.running = undefined));
    return this.running;
  }

  private async write(): Promise<void> {
    const { cache, journal, store, logger } = this.parts;
    try {
      // Longer directory prefixes first: children before parents.
      this.round = [...cache.dirty.keys()].sort((a, b) => a.length - b.length);
      const pages = this.round.length;
      while (this.round.length > 0) {
        const { seq, pages: taken } = await this.nextSlice();
        await new Promise<void>((resolve) => journal.whenSafe(seq, resolve));
        await this.store(taken);
      }
      const complete = Math.min(cache.completeUpTo(), journal.safe);
      if (complete > this.checkpoint) {
        await store.writeCheckpoint(complete);
        this.checkpoint = complete;
        await store.trim(this.batches.filter((seq) => seq <= complete));
        this.batches = this.batches.filter((seq) => seq > complete);
        logger.debug({ checkpoint: complete, pages }, "checkpoint written");
      }
    } catch (error) {
      this.parts.onFailure(error);
    }
  }
  private nextSlice(): Promise<{ seq: number; pages: Taken[] }> {
    return new Promise((resolve) => {
      this.slice = { resolve };
      // Nothing is open: memory holds what has been sealed.
      if (this.parts.journal.current > this.parts.journal.last) this.take(this.parts.journal.last);
    });
  }
  private take(seq: number): void {
    const taken: Taken[] = [];
    let bytes = 0;
    while (bytes < SLICE_BYTES && taken.length < SLICE_PAGES) {
      const key = this.round.pop();
      if (key === undefined) break;
      const page = this.parts.cache.peek(key);
      if (page === undefined || page.dirtyFrom === 0 || page.flushingFrom !== 0) continue;
      const children = this.unwrittenChildren(page);
      if (children.length > 0) {
        this.round.push(key, ...children);
        continue;
      }
      bytes += this.takePage(page, taken);
    }
    const { slice } = this;
    this.slice = undefined;
    slice?.resolve({ seq, pages: taken });
  }
  private takePage(page: Page, taken: Taken[]): number {
    this.parts.cache.flushing(page);
    const data = page.empty ? undefined : encodePage(page);
    taken.push({ page, change: { key: page.key, data } });
    return data?.length ?? 0;
  }
  /** Pages that took over this page's entries and have no stored form yet nor are being written. */
  private unwrittenChildren(page: Page): string[] {
    if (page.body.kind !== "d" || !(page.body).split) return [];
    const [ino, prefix] = page.key.slice(1).split(".") as [string, string];
    const children: string[] = [];
    for (const digit of "0123456789abcdef") {
      const key = directoryPageKey(Number.parseInt(ino, 16), prefix + digit);
      const child = this.parts.cache.peek(key);
      if (
        child !== undefined &&
        child.dirtyFrom !== 0 &&
        !child.stored &&
        child.flushingFrom === 0
      ) {
        children.push(key);
      }
    }
    return children;
  }

  /** In order, in requests below the store's limit. */
  private async store(taken: readonly Taken[]): Promise<void> {
    let group: Taken[] = [];
    let bytes = 0;
    const { cache, store } = this.parts;
    const send = async (): Promise<void> => {
      const part = group;
      group = [];
      bytes = 0;
      if (part.length === 0) return;
      let ok = false;
      try {
        const changes = part
          .filter(({ page, change }) => page.stored || change.data !== undefined)
          .map(({ change }) => change);
        if (changes.length > 0) await store.writePages(changes);
        ok = true;
      } finally {
        for (const { page, change } of part) {
          cache.flushed(page, ok ? change.data !== undefined : undefined);
        }
      }
    };
    try {
      for (const item of taken) {
        const size = (item.change.data?.length ?? 0) + 100;
        if (bytes + size > WRITE_BYTES_MAX || group.length >= 128) await send();
        group.push(item);
        bytes += size;
      }
      await send();
    } catch (error) {
      for (const { page } of taken) if (page.flushingFrom !== 0) cache.flushed(page, undefined);
      this.parts.logger.error({ err: describeError(error) }, "metadata pages could not be written");
      throw error;
    }
  }
}

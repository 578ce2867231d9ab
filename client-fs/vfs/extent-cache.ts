/**
 * File data that was read, in pages, bounded by bytes; shared by all files of a mount. A page is a
 * promise while it is fetched, so that concurrent readers share one fetch.
 *
 * Invariant: a page in the cache holds what the OSDs hold, as of a moment after the last `drop` of
 * its range: whoever changes objects drops the range before and after. Dirty data are never here:
 * they overlay what is read (writer.ts).
 *
 * Memory of pages that left the cache is used again as soon as no read is under way that began
 * before they left: a read may hold pieces of them until the kernel has its answer.
 */
import { LRUCache } from "lru-cache";
import type { Ino } from "../../cluster/base/ids.js";

export const PAGE_BYTES = 1024 * 1024;
/** A page counts this much at least. */
export const PAGE_WEIGHT_MIN = 4_096;

export interface Page {
  readonly ino: Ino;
  readonly index: number;
  /** Bytes that count against the bound. */
  readonly weight: number;
  /**
   * Pieces in order; undefined while the fetch runs. Shorter than a page only at the end of the
   * file.
   */
  pieces: readonly Buffer[] | undefined;
  length: number;
  readonly ready: Promise<void>;
  /** Gives the memory of `pieces` back. */
  recycle: (() => void) | undefined;
}
/** What a fetch brought. */
export interface Fetched {
  pieces: readonly Buffer[];
  recycle?: () => void;
}
/** A read under way. */
export interface Reading {
  /** Pages had left the cache when it began. */
  readonly departed: number;
  /** Gives back what it fetched past the cache. */
  recycle: (() => void) | undefined;
}
/** Pages whose memory waits for reads to end; more are left to the garbage collector. */
const LIMBO_MAX = 64;

export class ExtentCache {
  private readonly pages: LRUCache<string, Page> | undefined;
  private readonly byIno = new Map<Ino, Map<number, Page>>();
  private departed = 0;
  private readonly limbo: { departed: number; recycle: () => void }[] = [];
  /** Reads that have not ended, in the order of their beginning. */
  private readonly readings = new Set<Reading>();
  private readonly answers = new WeakMap<readonly Buffer[], Reading>();

  /** `bytes`: 0 keeps nothing. */
  constructor(bytes: number) {
    if (bytes < PAGE_BYTES) return;
    this.pages = new LRUCache<string, Page>({
      maxSize: bytes,
      sizeCalculation: (page) => page.weight,
      dispose: (page) => this.forget(page),
    });
  }

  /** Of pages kept. */
  get bytes(): number {
    return this.pages?.calculatedSize ?? 0;
  }
  get enabled(): boolean {
    return this.pages !== undefined;
  }

  get(ino: Ino, index: number): Page | undefined {
    const page = this.byIno.get(ino)?.get(index);
    if (page !== undefined) this.pages!.get(key(ino, index));
    return page;
  }
  has(ino: Ino, index: number): boolean {
    return this.byIno.get(ino)?.has(index) === true;
  }

  /** A read begins, which may hold pages until `end`, or `done` of its `answer`. */
  begin(): Reading {
    const reading: Reading = { departed: this.departed, recycle: undefined };
    this.readings.add(reading);
    return reading;
  }
  end(reading: Reading): void {
    if (!this.readings.delete(reading)) return;
    reading.recycle?.();
    this.sweep();
  }
  answer(reading: Reading, pieces: readonly Buffer[]): void {
    this.answers.set(pieces, reading);
  }
  /** Nobody looks at the pieces of this answer any more. */
  done(pieces: readonly Buffer[]): void {
    const reading = this.answers.get(pieces);
    if (reading !== undefined) this.end(reading);
  }
  private sweep(): void {
    const oldest = this.readings.values().next().value?.departed ?? Infinity;
    while (this.limbo.length > 0 && this.limbo[0]!.departed <= oldest) {
      this.limbo.shift()!.recycle();
    }
    if (this.limbo.length > LIMBO_MAX) this.limbo.shift();
  }

  /** Starts a page. A fetch that fails, or whose range is dropped meanwhile, is not kept. */
  fetch(ino: Ino, index: number, length: number, read: Promise<Fetched>): Page {
    const page: Page = {
      ino,
      index,
      weight: Math.max(length, PAGE_WEIGHT_MIN),
      pieces: undefined,
      length,
      recycle: undefined,
      ready: read.then(
        (fetched) => {
          page.pieces = fetched.pieces;
          // Who asked for it and it is here no more: somebody may look at it at any time.
          if (this.byIno.get(ino)?.get(index) === page) page.recycle = fetched.recycle;
        },
        (error: unknown) => {
          this.remove(page);
          throw error;
        },
      ),
    };
    page.ready.catch(() => undefined); // Read-ahead that nobody waits for; readers see the error.
    if (this.pages === undefined) return page;
    // First the cache: what it evicts for this page may empty (and so end) the inode's own map.
    this.pages.set(key(ino, index), page);
    let pages = this.byIno.get(ino);
    if (pages === undefined) this.byIno.set(ino, (pages = new Map<number, Page>()));
    pages.set(index, page);
    return page;
  }

  /** Forgets what overlaps [start, end). */
  drop(ino: Ino, start: number, end: number): void {
    const pages = this.byIno.get(ino);
    if (pages === undefined) return;
    const first = Math.floor(start / PAGE_BYTES);
    const last = Math.floor((Math.max(end, start + 1) - 1) / PAGE_BYTES);
    if (last - first < pages.size) {
      for (let index = first; index <= last; index++) {
        const page = pages.get(index);
        if (page !== undefined) this.remove(page);
      }
    } else {
      for (const page of [...pages.values()]) {
        if (page.index >= first && page.index <= last) this.remove(page);
      }
    }
  }
  dropAll(ino: Ino): void {
    const pages = this.byIno.get(ino);
    if (pages === undefined) return;
    for (const page of [...pages.values()]) this.remove(page);
  }

  private remove(page: Page): void {
    const name = key(page.ino, page.index);
    // Another fetch may have taken the place.
    if (this.byIno.get(page.ino)?.get(page.index) === page) this.pages!.delete(name);
  }
  private forget(page: Page): void {
    const pages = this.byIno.get(page.ino);
    if (pages?.get(page.index) !== page) return;
    pages.delete(page.index);
    if (pages.size === 0) this.byIno.delete(page.ino);
    const { recycle } = page;
    if (recycle === undefined) return;
    page.recycle = undefined;
    this.limbo.push({ departed: ++this.departed, recycle });
    this.sweep();
  }
}

function key(ino: Ino, index: number): string {
  return `${ino}:${index}`;
}

/** [from, from + length) of the concatenation of `pieces`, without copying. */
export function slice(pieces: readonly Buffer[], from: number, length: number): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  const end = from + length;
  for (const piece of pieces) {
    if (at >= end) break;
    const next = at + piece.length;
    if (next > from) {
      found.push(
        at >= from && next <= end
          ? piece
          : piece.subarray(Math.max(from - at, 0), Math.min(piece.length, end - at)),
      );
    }
    at = next;
  }
  return found;
}

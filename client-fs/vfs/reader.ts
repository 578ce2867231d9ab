/**
 * Reads of one file: pages of the shared cache for readers that go forward (with read-ahead),
 * single object reads for those that jump; dirty data of the writer overlay both. Holes and
 * objects that do not exist read as zeros, because an OSD said so; an unreachable object is a wait
 * or an error.
 *
 * A read takes the overlay before it asks for objects: what is flushed meanwhile is in the
 * overlay, what is written meanwhile is concurrent.
 */
import type { AccessOptions, ObjectAccess, ObjectAddress } from "../../osd/client/object-access.js";
import { extentsOf, type StripeLayout } from "../../osd/client/striper.js";
import type { Ino } from "../../cluster/base/ids.js";
import {
  PAGE_BYTES,
  slice,
  type ExtentCache,
  type Fetched,
  type Page,
  type Reading,
} from "./extent-cache.js";
import type { ReadStream } from "./handle.js";
import type { Segment } from "./writer.js";

/** First window of a reader that seems to go forward; it doubles. */
const WINDOW_MIN = 1024 * 1024;
/** The kernel's own read-ahead arrives slightly out of order. */
const STREAM_SLACK = 2 * 1024 * 1024;
const ZEROS = Buffer.alloc(1024 * 1024);

export interface ReaderFile {
  readonly ino: Ino;
  size(): number;
  layout(): StripeLayout;
  address(index: number): ObjectAddress;
  access(index: number): AccessOptions;
  overlay(offset: number, end: number): Segment[];
}

export class FileReader {
  constructor(
    private readonly file: ReaderFile,
    private readonly objects: ObjectAccess,
    private readonly cache: ExtentCache,
    private readonly readAheadBytes: number,
  ) {}

  /**
   * Bytes [offset, offset + length) that are within the file. `stream` undefined: past the cache
   * (O_DIRECT). Whoever has used the bytes says so with `ExtentCache.done`.
   */
  read(offset: number, length: number, stream: ReadStream | undefined): Promise<Buffer[]> {
    const end = Math.min(offset + length, this.file.size());
    if (end <= offset) return NOTHING;
    const reading = this.cache.begin();
    return this.readRange(offset, end, stream, reading).then(
      (pieces) => {
        this.cache.answer(reading, pieces);
        return pieces;
      },
      (error: unknown) => {
        this.cache.end(reading);
        throw error;
      },
    );
  }
  private readRange(
    offset: number,
    end: number,
    stream: ReadStream | undefined,
    reading: Reading,
  ): Promise<Buffer[]> {
    const segments = this.file.overlay(offset, end);
    if (segments.length > 0) {
      const only = segments.length === 1 ? segments[0]! : undefined;
      if (only !== undefined && only.start === offset && only.data.length === end - offset) {
        return Promise.resolve([only.data]);
      }
    }
    const base =
      stream === undefined || !this.cache.enabled
        ? this.fetchFor(reading, offset, end - offset)
        : this.readCached(offset, end, stream, reading);
    if (segments.length === 0) return base;
    return base.then((pieces) => [overlaid(pieces, offset, end - offset, segments)]);
  }

  private async fetchFor(reading: Reading, offset: number, length: number): Promise<Buffer[]> {
    const { pieces, recycle } = await this.fetch(offset, length);
    reading.recycle = recycle;
    return [...pieces];
  }

  private readCached(
    offset: number,
    end: number,
    stream: ReadStream,
    reading: Reading,
  ): Promise<Buffer[]> {
    const forward = Math.abs(offset - stream.next) <= STREAM_SLACK;
    const first = Math.floor(offset / PAGE_BYTES);
    const last = Math.floor((end - 1) / PAGE_BYTES);
    if (forward) {
      stream.next = Math.max(stream.next, end);
      this.readAhead(stream, last + 1);
    } else {
      stream.next = end;
      stream.window = 0;
      for (let index = first; index <= last; index++) {
        // One that jumps and finds only part of it here asks for what it needs, not for whole
        // pages.
        if (!this.cache.has(this.file.ino, index))
          return this.fetchFor(reading, offset, end - offset);
      }
    }
    if (first === last) {
      const page = this.page(first);
      const from = offset - first * PAGE_BYTES;
      if (page.pieces !== undefined) return Promise.resolve(fromPage(page, from, end - offset));
      return page.ready.then(() => fromPage(page, from, end - offset));
    }
    const pages: Page[] = [];
    for (let index = first; index <= last; index++) pages.push(this.page(index));
    return this.gather(pages, offset, end);
  }

  private async gather(pages: readonly Page[], offset: number, end: number): Promise<Buffer[]> {
    const found: Buffer[] = [];
    for (const page of pages) {
      if (page.pieces === undefined) await page.ready;
      const start = page.index * PAGE_BYTES;
      const from = Math.max(offset - start, 0);
      const to = Math.min(end - start, PAGE_BYTES);
      for (const piece of fromPage(page, from, to - from)) found.push(piece);
    }
    return found;
  }

  /** The first page of a small file, for who will read it soon. */
  fetchAhead(): void {
    const isWanted = this.cache.enabled && this.readAheadBytes > 0 && this.file.size() > 0;
    if (isWanted && !this.cache.has(this.file.ino, 0)) this.page(0);
  }

  private page(index: number): Page {
    const { ino } = this.file;
    const known = this.cache.get(ino, index);
    const start = index * PAGE_BYTES;
    const length = Math.min(this.file.size() - start, PAGE_BYTES);
    // A page from before the file grew has too little; what it lacks may have been written since.
    if (known !== undefined && known.length >= length) return known;
    if (known !== undefined) this.cache.drop(ino, start, start + PAGE_BYTES);
    return this.cache.fetch(ino, index, length, this.fetch(start, length));
  }

  private readAhead(stream: ReadStream, from: number): void {
    if (this.readAheadBytes === 0) return;
    const size = this.file.size();
    // A file of a page or two needs no window.
    if (from * PAGE_BYTES >= size) return;
    stream.window = Math.min(Math.max(2 * stream.window, WINDOW_MIN), this.readAheadBytes);
    const until = Math.min(stream.next + stream.window, size);
    for (let index = from; index * PAGE_BYTES < until; index++) {
      if (!this.cache.has(this.file.ino, index)) this.page(index);
    }
  }

  /** Straight from the OSDs: pieces of exactly `length` bytes together. */
  private fetch(offset: number, length: number): Promise<Fetched> {
    const extents = extentsOf(this.file.layout(), offset, length);
    if (extents.length === 1) {
      const extent = extents[0]!;
      return this.fetchExtent(extent.index, extent.offset, length);
    }
    return Promise.all(
      extents.map((extent) => this.fetchExtent(extent.index, extent.offset, extent.length)),
    ).then((parts) => ({
      pieces: parts.flatMap(({ pieces }) => pieces),
      recycle: () => {
        for (const part of parts) part.recycle?.();
      },
    }));
  }

  private fetchExtent(index: number, offset: number, length: number): Promise<Fetched> {
    return this.objects
      .read(this.file.address(index), offset, length, this.file.access(index))
      .then(({ data, recycle }) => {
        const missing = length - data.length;
        const pieces =
          missing === 0 ? [data] : data.length === 0 ? zeros(length) : [data, ...zeros(missing)];
        return recycle === undefined ? { pieces } : { pieces, recycle };
      });
  }
}

const NOTHING: Promise<Buffer[]> = Promise.resolve([]);

function zeros(length: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let left = length; left > 0; left -= ZEROS.length) {
    pieces.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
  }
  return pieces;
}

/** A new array: it stands for this answer alone. */
function fromPage(page: Page, from: number, length: number): Buffer[] {
  const pieces = page.pieces!;
  if (pieces.length === 1) {
    const piece = pieces[0]!;
    return from === 0 && length === piece.length ? [piece] : [piece.subarray(from, from + length)];
  }
  return slice(pieces, from, length);
}

function overlaid(
  pieces: readonly Buffer[],
  offset: number,
  length: number,
  segments: readonly Segment[],
): Buffer {
  const whole = Buffer.allocUnsafeSlow(length);
  let at = 0;
  for (const piece of pieces) at += piece.copy(whole, at);
  for (const { start, data } of segments) data.copy(whole, start - offset);
  return whole;
}

/**
 * Buffered writes of one file: dirty pieces, and object writes in flight.
 *
 * Invariants: `dirty` is sorted and free of overlaps; what is in flight is never changed and two
 * flights never overlap in bytes, so the OSDs get overlapping rewrites in order; a piece leaves
 * only when its bytes are durable, superseded, cut off by a truncation, or when an error was
 * recorded for them.
 *
 * Each piece is one copy out of the driver's buffer. Sequential streams go out as soon as
 * STREAM_BYTES are together; everything else when somebody asks (fsync, recall, age, memory, the
 * close of what is not small).
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock } from "../../cluster/platform/ports.js";
import type { ObjectAccess, ObjectAddress, AccessOptions } from "../../osd/client/object-access.js";
import { extentsOf, type StripeLayout } from "../../osd/client/striper.js";
import { PAGE_WEIGHT_MIN, type ExtentCache } from "./extent-cache.js";

/** A run of this many bytes is worth an object write at once. */
export const STREAM_BYTES = 2 * 1024 * 1024;
/** Largest object write. */
const FLIGHT_BYTES = 4 * 1024 * 1024;
/** Object writes of one mount in flight. */
const FLIGHTS_MAX = 64;
const FLIGHT_BYTES_MAX = 32 * 1024 * 1024;
/** Room for small appends that follow. */
const APPEND_ROOM_MIN = 4096;
const APPEND_ROOM_MAX = 256 * 1024;
/** Pause before a write-back that failed for want of an answer is tried again. */
const RETRY_MS = 1_000;
const RECYCLE_MS = 3_000;
/**
 * Small files that were closed stay until their age or others want them written (`writeBackAgeMs`):
 * who makes many does not wait for the OSDs, whom a burst of writes costs a fraction of the same
 * writes one by one, and what is removed meanwhile is never written. Larger ones go at once.
 */
export const LINGER_BYTES = 64 * 1024;
/** Of all files that stay. */
const LINGER_FILES_MAX = 8 * 1024;
const LINGER_BYTES_MAX = 16 * 1024 * 1024;
/** When there are more, this share of them goes, the oldest first. */
const LINGER_SHARE = 1 / 16;

interface Piece {
  start: number;
  length: number;
  /** May have room beyond `length`. */
  buffer: Buffer;
  /** Order of the oldest write in it. */
  seq: number;
  bornMs: number;
  /** `buffer` is one of the budget's, and this piece the only one in it. */
  pooled: boolean;
}
interface Flight {
  start: number;
  end: number;
  pieces: Piece[];
  /** Of the oldest piece. */
  seq: number;
  /** `FileWriter.generation` when it started. */
  generation: number;
  /** `WriterFile.otherChanges` when it started. */
  others: number;
  startedMs: number;
}
export interface Segment {
  start: number;
  data: Buffer;
}

/** What a writer needs to know about its file. */
export interface WriterFile {
  readonly ino: Ino;
  layout(): StripeLayout;
  address(index: number): ObjectAddress;
  access(index: number): AccessOptions;
  mtimeNs(): bigint;
  size(): number;
  /** Another figure when anything but this writer may have changed bytes; -1: it may do so now. */
  otherChanges(): number;
  /** Something must be known before [start, end) is written; undefined: it is. */
  beforeWrite(start: number, end: number): Promise<unknown> | undefined;
  /** A write-back failed for good: its bytes are lost. */
  onError(error: DssError): void;
  /** Nothing is dirty or in flight any more. */
  onClean(): void;
}

/** Most writes of a stream have this size; larger than any other buffer that is worth keeping. */
const POOLED_BYTES = 1024 * 1024;
const POOL_MAX = 16;

/** Shared by all files of a mount: bounds memory and flights, and says when to write back. */
export class WriteBudget {
  private used = 0;
  private flights = 0;
  private flightBytes = 0;
  private waiters: { bytes: number; resolve: () => void }[] = [];
  /** Files with dirty data, the longest dirty first. */
  private readonly files = new Set<FileWriter>();
  private readonly starved = new Set<FileWriter>();
  /** Small files whose last writer has closed, the longest closed first, and their bytes. */
  private readonly lingering = new Map<FileWriter, number>();
  private lingeringBytes = 0;
  /** Fresh large buffers cost page faults and collections of garbage; these are used again. */
  private readonly pool: Buffer[] = [];

  constructor(
    private readonly bytesMax: number,
    readonly clock: Clock,
    readonly objects: ObjectAccess,
    readonly cache: ExtentCache,
    readonly logger: Logger,
  ) {}

  get dirtyBytes(): number {
    return this.used;
  }
  takeBuffer(): Buffer {
    return this.pool.pop() ?? Buffer.allocUnsafeSlow(POOLED_BYTES);
  }
  putBuffer(buffer: Buffer): void {
    if (this.pool.length < POOL_MAX) this.pool.push(buffer);
  }
  /**
   * True when there is room at once; otherwise `wait`. One write larger than everything is let
   * through alone.
   */
  tryReserve(bytes: number): boolean {
    if (this.waiters.length > 0) return false;
    if (this.used + bytes > this.bytesMax && this.used > 0) return false;
    this.used += bytes;
    if (this.used > this.bytesMax / 2) this.kick();
    return true;
  }
  wait(bytes: number): Promise<void> {
    this.kick();
    return new Promise((resolve) => this.waiters.push({ bytes, resolve }));
  }
  free(bytes: number): void {
    this.used -= bytes;
    while (this.waiters.length > 0) {
      const { bytes: wanted, resolve } = this.waiters[0]!;
      if (this.used + wanted > this.bytesMax && this.used > 0) break;
      this.waiters.shift();
      this.used += wanted;
      resolve();
    }
    if (this.waiters.length > 0) this.kick();
  }
  /** Memory runs low: the files that have waited longest go first. */
  private kick(): void {
    for (const file of this.files) {
      if (this.full) return;
      file.pumpAll();
    }
  }
  /** Everything older than `ageMs`. */
  writeBackOlder(ageMs: number): void {
    const limit = this.clock.now() - ageMs;
    for (const file of this.files) if (file.oldestMs <= limit) file.pumpAll();
  }
  /** The file's last writer has closed it. `mayLinger`: its bytes would outlive this process. */
  writeBackClosed(file: FileWriter, mayLinger: boolean): void {
    this.endLingering(file);
    const bytes = file.waitingBytes;
    if (!mayLinger || bytes > LINGER_BYTES) {
      file.pumpAll();
      return;
    }
    this.lingering.set(file, bytes);
    this.lingeringBytes += bytes;
    if (this.lingering.size > LINGER_FILES_MAX || this.lingeringBytes > LINGER_BYTES_MAX) {
      this.endOldest(Math.ceil(this.lingering.size * LINGER_SHARE));
    }
  }
  private endOldest(count: number): void {
    for (const file of this.lingering.keys()) {
      if (count-- <= 0) return;
      this.endLingering(file);
      file.pumpAll();
    }
  }
  private endLingering(file: FileWriter): void {
    this.lingeringBytes -= this.lingering.get(file) ?? 0;
    this.lingering.delete(file);
  }
  dirtyFiles(): FileWriter[] {
    return [...this.files];
  }

  get full(): boolean {
    return this.flights >= FLIGHTS_MAX || this.flightBytes >= FLIGHT_BYTES_MAX;
  }
  takeOff(bytes: number): void {
    this.flights++;
    this.flightBytes += bytes;
  }
  land(bytes: number): void {
    this.flights--;
    this.flightBytes -= bytes;
    for (const file of this.starved) {
      if (this.full) return;
      this.starved.delete(file);
      file.pump();
    }
    if (this.waiters.length > 0) this.kick();
  }
  starve(file: FileWriter): void {
    this.starved.add(file);
  }
  setDirty(file: FileWriter, dirty: boolean): void {
    if (dirty) this.files.add(file);
    else {
      this.files.delete(file);
      this.starved.delete(file);
      this.endLingering(file);
    }
  }
}

export class FileWriter {
  private dirty: Piece[] = [];
  private flights: Flight[] = [];
  private dirtyBytes = 0;
  private nextSeq = 1;
  /** Pieces up to this order are to be written; 0: only streams. */
  private wantedSeq = 0;
  private changed: (() => void)[] = [];
  private failures = 0;
  private retryAtMs = 0;
  /** Rises with every `discard`: flights of before must not come back. */
  private generation = 0;
  private held = 0;
  /** Flushes that a removal's `hold` must not stop. */
  private urgent = 0;
  oldestMs = 0;

  constructor(
    private readonly file: WriterFile,
    private readonly budget: WriteBudget,
  ) {}

  get clean(): boolean {
    return this.dirty.length === 0 && this.flights.length === 0;
  }

  get inFlight(): boolean {
    return this.flights.length > 0;
  }
  /** Bytes that are not on their way yet. */
  get waitingBytes(): number {
    return this.dirtyBytes;
  }

  /** Copies `data` into the buffers; the caller has reserved its length. */
  put(offset: number, data: Buffer): void {
    const end = offset + data.length;
    if (data.length === 0) return;
    const now = this.budget.clock.now();
    if (this.dirty.length === 0) {
      this.oldestMs = now;
      this.budget.setDirty(this, true);
    }
    let at = this.firstEndingAfter(offset);
    const found = this.dirty[at];
    if (found !== undefined && found.start <= offset && found.start + found.length >= end) {
      data.copy(found.buffer, offset - found.start); // A rewrite in place.
      this.budget.free(data.length);
      return;
    }
    const before = this.dirty[at - 1];
    if (
      before !== undefined &&
      before.start + before.length === offset &&
      before.buffer.length - before.length >= data.length &&
      (found === undefined || found.start >= end)
    ) {
      data.copy(before.buffer, before.length);
      before.length += data.length;
      this.dirtyBytes += data.length;
      at--;
    } else {
      at = this.cut(offset, end);
      const follows = this.dirty[at - 1];
      const appends = follows !== undefined && follows.start + follows.length === offset;
      const pooled = data.length === POOLED_BYTES;
      const buffer = pooled
        ? this.budget.takeBuffer()
        : Buffer.allocUnsafeSlow(roomFor(data.length, appends ? follows.length : 0));
      data.copy(buffer);
      const { length } = data;
      const seq = this.nextSeq++;
      const piece: Piece = { start: offset, length, buffer, seq, bornMs: now, pooled };
      this.dirty.splice(at, 0, piece);
      this.dirtyBytes += data.length;
    }
    this.stream(at);
  }

  /**
   * What is newer than the objects in [offset, end), oldest first: later ones win. Copies: buffers
   * are used again as soon as their bytes are durable.
   */
  overlay(offset: number, end: number): Segment[] {
    const found: Segment[] = [];
    const add = (piece: Piece): void => {
      const from = Math.max(piece.start, offset);
      const to = Math.min(piece.start + piece.length, end);
      if (from >= to) return;
      found.push({
        start: from,
        data: Buffer.from(piece.buffer.subarray(from - piece.start, to - piece.start)),
      });
    };
    for (const flight of this.flights) {
      if (flight.start < end && flight.end > offset) for (const piece of flight.pieces) add(piece);
    }
    for (let at = this.firstEndingAfter(offset); at < this.dirty.length; at++) {
      if (this.dirty[at]!.start >= end) break;
      add(this.dirty[at]!);
    }
    return found;
  }

  /**
   * All that was written and is not durable, if that is no more than `max` bytes. The bytes are
   * those of the buffers: they change with the next write.
   */
  unwritten(max: number): Segment[] | undefined {
    if (this.dirtyBytes > max || this.flights.length > 0) return undefined;
    return this.dirty.map(({ start, length, buffer }) => {
      return { start, data: buffer.length === length ? buffer : buffer.subarray(0, length) };
    });
  }

  /** True when nothing of [offset, end) is dirty or in flight. */
  isClean(offset: number, end: number): boolean {
    if (this.dirty.length === 0 && this.flights.length === 0) return true;
    const piece = this.dirty[this.firstEndingAfter(offset)];
    if (piece !== undefined && piece.start < end) return false;
    return !this.flights.some((flight) => flight.start < end && flight.end > offset);
  }

  /**
   * Resolves when everything written so far in the range is durable (or given up, see `onError`).
   * Fails with the error of a write-back that could not reach the OSDs, unless `untilDone`, which
   * tries until it can. `recalled`: also while a removal holds this back, because the leader may
   * not execute the removal before what was recalled is given back. (Should the removal be through
   * after all, an object may be made once more that nobody owns; scrub collects it.)
   */
  async flush(
    range: { start: number; end: number } = EVERYTHING,
    options: { untilDone?: boolean; recalled?: boolean } = {},
  ): Promise<void> {
    if (options.recalled === true) this.urgent++;
    try {
      await this.flushRange(range, options.untilDone === true);
    } finally {
      if (options.recalled === true) this.urgent--;
    }
  }
  private async flushRange(
    range: { start: number; end: number },
    untilDone: boolean,
  ): Promise<void> {
    const mark = this.nextSeq - 1;
    const failures = this.failures;
    while (this.holds(mark, range)) {
      this.wantedSeq = Math.max(this.wantedSeq, mark);
      this.pump();
      if (!this.holds(mark, range)) break;
      await new Promise<void>((resolve) => this.changed.push(resolve));
      if (this.failures !== failures && !untilDone) {
        throw this.lastFailure ?? new DssError("TimedOut", "write-back failed");
      }
    }
  }
  private lastFailure: DssError | undefined;

  /** Writes back all that is dirty now, without waiting for it. */
  pumpAll(): void {
    this.wantedSeq = this.nextSeq - 1;
    this.pump();
  }

  /**
   * A truncation to `size`: dirty data beyond are dropped; resolves when nothing beyond is in
   * flight. The caller keeps writers away until then.
   */
  async cutOff(size: number): Promise<void> {
    this.cut(size, Number.MAX_SAFE_INTEGER);
    while (this.flights.some((flight) => flight.end > size)) {
      await new Promise<void>((resolve) => this.changed.push(resolve));
      this.cut(size, Number.MAX_SAFE_INTEGER); // A flight that failed for now came back.
    }
    this.settled();
  }

  /**
   * Nothing new is sent until `resume`; resolves when nothing is in flight. Before a removal: a
   * write that arrives after the file's objects were purged would make one again that nobody owns.
   */
  async hold(): Promise<void> {
    this.held++;
    while (this.flights.length > 0) {
      await new Promise<void>((resolve) => this.changed.push(resolve));
    }
  }
  resume(): void {
    this.held--;
    if (this.dirty.length > 0) this.pump();
  }

  /** The file is gone, or the session: nothing more is written. Flights end by themselves. */
  discard(): void {
    this.generation++;
    for (const piece of this.dirty) this.budget.free(piece.length);
    this.dirty = [];
    this.dirtyBytes = 0;
    this.settled();
    this.wake();
  }

  // ---- Pieces ----------------------------------------------------------------------------------

  private firstEndingAfter(offset: number): number {
    const { dirty } = this;
    const last = dirty[dirty.length - 1];
    if (last === undefined || last.start + last.length <= offset) return dirty.length;
    let low = 0;
    let high = dirty.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const piece = dirty[middle]!;
      if (piece.start + piece.length > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Takes [start, end) out of the dirty pieces; returns where a new piece belongs. */
  private cut(start: number, end: number): number {
    const first = this.firstEndingAfter(start);
    let last = first;
    const kept: Piece[] = [];
    let at = first;
    let freed = 0;
    while (last < this.dirty.length && this.dirty[last]!.start < end) {
      const piece = this.dirty[last++]!;
      const pieceEnd = piece.start + piece.length;
      freed += Math.min(pieceEnd, end) - Math.max(piece.start, start);
      if (piece.start < start) {
        const length = start - piece.start;
        kept.push({ ...piece, length, buffer: piece.buffer.subarray(0, length), pooled: false });
        at++;
      }
      if (pieceEnd > end) {
        const skip = end - piece.start;
        const buffer = piece.buffer.subarray(skip, piece.length);
        kept.push({ ...piece, start: end, length: pieceEnd - end, buffer, pooled: false });
      }
    }
    if (last > first) {
      this.dirty.splice(first, last - first, ...kept);
      this.dirtyBytes -= freed;
      this.budget.free(freed);
    }
    return at;
  }

  private holds(mark: number, { start, end }: { start: number; end: number }): boolean {
    for (const flight of this.flights) {
      if (flight.seq <= mark && flight.start < end && flight.end > start) return true;
    }
    for (let at = this.firstEndingAfter(start); at < this.dirty.length; at++) {
      const piece = this.dirty[at]!;
      if (piece.start >= end) return false;
      if (piece.seq <= mark) return true;
    }
    return false;
  }

  // ---- Flights ---------------------------------------------------------------------------------

  /** The piece at `at` was written: a long enough run around it goes out. */
  private stream(at: number): void {
    if (this.dirtyBytes < STREAM_BYTES || this.budget.full || this.mustWait()) return;
    let first = at;
    let bytes = this.dirty[at]!.length;
    while (first > 0 && bytes < STREAM_BYTES) {
      const previous = this.dirty[first - 1]!;
      if (previous.start + previous.length !== this.dirty[first]!.start) break;
      bytes += previous.length;
      first--;
    }
    if (bytes < STREAM_BYTES) return;
    // Up to a boundary, so that rewrites and reads meet whole units.
    const runEnd = this.dirty[at]!.start + this.dirty[at]!.length;
    const end = Math.floor(runEnd / STREAM_BYTES) * STREAM_BYTES;
    if (end <= this.dirty[first]!.start) return;
    this.launch(first, end);
  }

  /** Starts what is wanted, as far as the limits permit. */
  pump(): void {
    if (this.mustWait()) return;
    let at = 0;
    while (at < this.dirty.length) {
      const piece = this.dirty[at]!;
      if (piece.seq > this.wantedSeq) {
        at++;
        continue;
      }
      if (this.budget.full) {
        this.budget.starve(this);
        return;
      }
      // A launch takes the pieces away; one that overlaps a flight waits for it.
      if (!this.launch(at, Number.MAX_SAFE_INTEGER)) at++;
    }
  }

  private mustWait(): boolean {
    const isHeld = this.held > 0 && this.urgent === 0;
    return isHeld || (this.retryAtMs > 0 && this.budget.clock.now() < this.retryAtMs);
  }

  /** One object write: contiguous pieces from `first`, below `limit`, within one object. */
  private launch(first: number, limit: number): boolean {
    const start = this.dirty[first]!.start;
    let end = start;
    let last = first;
    const bound = Math.min(limit, start + FLIGHT_BYTES);
    while (last < this.dirty.length && end < bound && this.dirty[last]!.start === end) {
      end = Math.min(this.dirty[last]!.start + this.dirty[last]!.length, bound);
      last++;
    }
    const extent = extentsOf(this.file.layout(), start, end - start)[0]!;
    end = start + extent.length;
    if (this.flights.some((flight) => flight.start < end && flight.end > start)) return false;
    const pieces: Piece[] = [];
    let seq = Number.MAX_SAFE_INTEGER;
    let taken = first;
    for (; taken < last && this.dirty[taken]!.start < end; taken++) {
      const piece = this.dirty[taken]!;
      seq = Math.min(seq, piece.seq);
      const length = Math.min(piece.length, end - piece.start);
      const whole = length === piece.buffer.length;
      const buffer = whole ? piece.buffer : piece.buffer.subarray(0, length);
      pieces.push({ ...piece, length, buffer, pooled: piece.pooled && whole });
      if (length < piece.length) {
        const rest = piece.buffer.subarray(length);
        this.dirty[taken] = {
          ...piece,
          start: end,
          length: piece.length - length,
          buffer: rest,
          pooled: false,
        };
        break;
      }
    }
    this.dirty.splice(first, taken - first);
    this.dirtyBytes -= end - start;
    const { generation } = this;
    const others = this.file.otherChanges();
    const startedMs = this.budget.clock.now();
    const flight: Flight = { start, end, pieces, seq, generation, others, startedMs };
    this.flights.push(flight);
    this.budget.takeOff(end - start);
    this.budget.cache.drop(this.file.ino, start, end);
    const send = (): Promise<number> =>
      this.budget.objects.write(
        this.file.address(extent.index),
        extent.offset,
        pieces.map((piece) => piece.buffer),
        { ...this.file.access(extent.index), mtimeNs: this.file.mtimeNs() },
      );
    const before = this.file.beforeWrite(start, end);
    (before === undefined ? send() : before.then(send)).then(
      () => this.onLanded(flight, undefined),
      (error: unknown) => {
        if (!isDssError(error)) throw error;
        this.onLanded(flight, error);
      },
    );
    return true;
  }

  private onLanded(flight: Flight, error: DssError | undefined): void {
    // Readers that began while this was in flight may have put older bytes into the cache.
    this.budget.cache.drop(this.file.ino, flight.start, flight.end);
    this.flights.splice(this.flights.indexOf(flight), 1);
    const bytes = flight.end - flight.start;
    if (error === undefined || flight.generation !== this.generation) {
      if (error === undefined) {
        this.retryAtMs = 0;
        if (!this.cacheForReaders(flight)) this.recycle(flight);
      }
      this.budget.free(bytes);
    } else if (error.retry === "never" || error.retry === "other-replica") {
      this.budget.free(bytes);
      this.lastFailure = error;
      this.file.onError(error);
      this.complain(error, "write-back failed: the data are lost");
    } else {
      this.failures++;
      this.lastFailure = error;
      this.takeBack(flight);
      this.complain(error, "write-back failed for now and will be repeated");
      this.retrySoon();
    }
    this.budget.land(bytes);
    this.pump();
    this.settled();
    this.wake();
  }

  /** A small file that was written as a whole is often read next: its bytes stay in the cache. */
  private cacheForReaders({ start, end, pieces, generation, others }: Flight): boolean {
    const { cache } = this.budget;
    const isWhole = start === 0 && end === this.file.size() && end <= CACHED_BYTES_MAX;
    const isOurs = others >= 0 && others === this.file.otherChanges();
    const isLast = this.clean && generation === this.generation && isOurs;
    if (!isWhole || !isLast || !cache.enabled) return false;
    cache.fetch(this.file.ino, 0, end, Promise.resolve({ pieces: [wholeOf(pieces, end)] }));
    return true;
  }

  /**
   * Not after a long time: the bytes may have been sent again while the first attempt still waits
   * in a socket.
   */
  private recycle(flight: Flight): void {
    if (this.budget.clock.now() - flight.startedMs > RECYCLE_MS) return;
    for (const piece of flight.pieces) if (piece.pooled) this.budget.putBuffer(piece.buffer);
  }

  /** What a failed flight carried is dirty again, except where it was overwritten since. */
  private takeBack(flight: Flight): void {
    for (const piece of flight.pieces) {
      let at = piece.start;
      const end = piece.start + piece.length;
      while (at < end) {
        const index = this.firstEndingAfter(at);
        const next = this.dirty[index];
        if (next !== undefined && next.start <= at) {
          const covered = Math.min(next.start + next.length, end) - at;
          this.budget.free(covered);
          at += covered;
          continue;
        }
        const to = next === undefined ? end : Math.min(next.start, end);
        const buffer = piece.buffer.subarray(at - piece.start, to - piece.start);
        const length = to - at;
        this.dirty.splice(index, 0, { ...piece, start: at, length, buffer, pooled: false });
        this.dirtyBytes += to - at;
        at = to;
      }
    }
    if (this.dirty.length > 0) this.budget.setDirty(this, true);
  }

  private retrySoon(): void {
    const { clock } = this.budget;
    if (this.retryAtMs > clock.now()) return;
    this.retryAtMs = clock.now() + RETRY_MS;
    clock.setTimer(RETRY_MS, () => {
      this.retryAtMs = 0;
      this.pump();
      this.wake();
    });
  }

  private complain(error: DssError, message: string): void {
    this.budget.logger.error({ ino: this.file.ino, error: describeError(error) }, message);
  }

  private settled(): void {
    if (this.dirty.length > 0) {
      this.oldestMs = this.dirty[0]!.bornMs;
      return;
    }
    this.budget.setDirty(this, false);
    if (this.flights.length === 0) this.file.onClean();
  }
  private wake(): void {
    const waiters = this.changed;
    this.changed = [];
    for (const resolve of waiters) resolve();
  }
}

/** Of a file whose bytes go to the cache once they are written back. */
const CACHED_BYTES_MAX = 64 * 1024;
/** As one buffer, which holds no memory but its own. */
function wholeOf(pieces: readonly Piece[], length: number): Buffer {
  const first = pieces[0]!.buffer;
  const isSmall = first.buffer.byteLength <= 2 * Math.max(length, PAGE_WEIGHT_MIN);
  if (pieces.length === 1 && isSmall) return first;
  const whole = Buffer.allocUnsafeSlow(length);
  let at = 0;
  for (const { buffer } of pieces) at += buffer.copy(whole, at);
  return whole;
}

const EVERYTHING = { start: 0, end: Number.MAX_SAFE_INTEGER };

/** With room to grow when it looks like a series of small appends. */
function roomFor(length: number, previous: number): number {
  if (length >= APPEND_ROOM_MAX) return length;
  return Math.max(length, Math.min(Math.max(2 * previous, APPEND_ROOM_MIN), APPEND_ROOM_MAX));
}

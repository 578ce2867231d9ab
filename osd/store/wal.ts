/**
 * The write-ahead log: a ring of preallocated segments, written in groups. A group is everything
 * that gathered while the one before it was being synced; it goes out as one write and one
 * fdatasync (docs/on-disk.md, "WAL").
 *
 * Invariants:
 * - One group is in flight at a time. Its header declares that everything before it was synced, so
 *   all groups but the last found at recovery are known to have been durable.
 * - Groups are whole 4 KiB pages; a page that holds a synced group is never written again.
 * - A regular group leaves the last page of its segment free, so that an empty group, which only
 *   declares, always fits: a checkpoint can make progress when the log is full.
 *
 * Owner of: where the log ends, what is durable, which groups wait.
 */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE, crc32 } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { Clock, Disk, DiskFile } from "../../cluster/platform/ports.js";
import { ByteWriter } from "./bytes.js";
import type { Durable } from "./chunk-store.js";
import type { Overlay, OverlayEntry } from "./overlay.js";

const DIRECTORY = "wal";
export const WAL_MAGIC = 0x57535344; // "DSSW"
export const WAL_VERSION = 1;
/** Bytes before a group's first record. */
export const HEADER_BYTES = 72;
export const SALT_BYTES = 8;
const HEAD_CAPACITY = 32 * 1024;
/** A group is sealed when it reaches this many bytes of data, so that latency stays bounded. */
const GROUP_DATA_BYTES_MAX = 2 * 1024 * 1024;
/** Up to here a group is written on the event loop's thread: handing it over costs more. */
const SYNC_WRITE_BYTES_MAX = 64 * 1024;

export interface WalGeometry {
  segments: number;
  segmentBytes: number;
  /** Secret of this store: a client's data cannot pass for a group's header. */
  salt: Buffer;
}

/** Where the log was when the index was last committed. */
export interface WalPoint {
  /** Number of the last group that the index contains. */
  number: number;
  /** Where that group ends. */
  position: number;
}
export const WAL_START: WalPoint = { number: 0, position: 0 };

export interface WalGroup {
  /** Order of creation in this process; empty groups have none. */
  order: number;
  head: ByteWriter;
  records: number;
  entries: OverlayEntry[];
  /** Writes to data files that must be synced before this group counts as durable. */
  directs: Promise<void>[];
  touched: Set<number>;
  callbacks: Durable[];
  /** Set when it is written. */
  point: WalPoint;
}

/** A group that was sealed: its point is known once it is written. */
export type SealedPoint = Pick<WalGroup, "order" | "point">;

export interface WalHost {
  /** Syncs data files that direct writes touched. */
  syncData(touched: ReadonlySet<number>): Promise<void>;
  /** The overlay has room; when it has none, regular groups wait for `kick`. */
  mayWrite(): boolean;
  /** A group has become durable; its callbacks run after this. */
  onDurable(): void;
  /** The next group does not fit before a checkpoint frees segments. */
  onFull(): void;
  onError(error: unknown): void;
}

export const pages = (bytes: number): number => Math.ceil(bytes / BLOCK_SIZE) * BLOCK_SIZE;
const segmentPath = (index: number): string => `${DIRECTORY}/${String(index).padStart(3, "0")}`;

export class Wal {
  private current: WalGroup;
  private sealed: WalGroup[] = [];
  /** Groups that a checkpoint makes durable without logging them; regular ones wait meanwhile. */
  private unlogged: WalGroup[] = [];
  private inFlight: WalGroup | undefined;
  private flight: Promise<void> = Promise.resolve();
  private drainWaiters: (() => void)[] = [];
  private dead = false;
  private kicked = false;
  private nextOrder = 1;
  private readonly heads: ByteWriter[] = [];
  private declareWanted = false;
  private declareWaiters: { order: number; resolve: () => void; reject: (e: Error) => void }[] = [];

  /**
   * Order of the last durable group, and of the last one that a later durable group declares.
   * What recovery replayed has order 0 and is not declared yet, unless it ended with an empty
   * group.
   */
  durable = 0;
  declared = -1;
  private lastSealed: SealedPoint;
  /** The end of the last group written. */
  private end: WalPoint;
  /** Everything up to here is in the index. */
  private tail: WalPoint;

  readonly counters = {
    walGroups: 0,
    walRecords: 0,
    walBytes: 0,
    walEmptyGroups: 0,
    walStalls: 0,
    walUnlogged: 0,
  };

  constructor(
    private readonly files: readonly DiskFile[],
    private readonly geometry: WalGeometry,
    start: { tail: WalPoint; end: WalPoint; isDeclared: boolean },
    private readonly overlay: Overlay,
    private readonly clock: Clock,
    private readonly host: WalHost,
  ) {
    this.tail = start.tail;
    this.end = start.end;
    this.lastSealed = { order: 0, point: start.end };
    if (start.isDeclared) this.declared = 0;
    this.current = this.newGroup(this.nextOrder++);
  }

  static async format(disk: Disk, geometry: WalGeometry): Promise<void> {
    await disk.makeDirectory(DIRECTORY);
    const zeros = Buffer.alloc(Math.min(1024 * 1024, geometry.segmentBytes));
    for (let i = 0; i < geometry.segments; i++) {
      const file = await disk.open(segmentPath(i), { create: true });
      for (let at = 0; at < geometry.segmentBytes; at += zeros.length) {
        await file.write(
          [zeros.subarray(0, Math.min(zeros.length, geometry.segmentBytes - at))],
          at,
        );
      }
      await file.sync();
      await file.close();
    }
    await disk.syncDirectory(DIRECTORY);
  }

  static async openFiles(disk: Disk, geometry: WalGeometry): Promise<DiskFile[]> {
    const files: DiskFile[] = [];
    for (let i = 0; i < geometry.segments; i++) files.push(await disk.open(segmentPath(i)));
    return files;
  }

  /** Bytes between the checkpoint and the end, and how many there may be. */
  get fill(): { used: number; size: number } {
    const size = this.geometry.segments * this.geometry.segmentBytes;
    return { used: this.end.position - this.tail.position, size };
  }

  /** Bytes of data in groups that are not written yet. */
  get waitingBytes(): number {
    let blocks = this.current.entries.length;
    for (const group of this.sealed) blocks += group.entries.length;
    for (const group of this.unlogged) blocks += group.entries.length;
    return blocks * BLOCK_SIZE;
  }

  private newGroup(order: number): WalGroup {
    const head = this.heads.pop() ?? new ByteWriter(HEAD_CAPACITY);
    head.at = HEADER_BYTES;
    return {
      order,
      head,
      records: 0,
      entries: [],
      directs: [],
      touched: new Set(),
      callbacks: [],
      point: WAL_START,
    };
  }

  /** The group that takes the next record. */
  gather(): WalGroup {
    const group = this.current;
    const data = group.entries.length * BLOCK_SIZE + group.head.at;
    const limit = Math.min(GROUP_DATA_BYTES_MAX, this.geometry.segmentBytes / 4);
    if (data >= limit) this.seal();
    return this.current;
  }

  /** The record has been put into `gather()`'s group. */
  added(done: Durable): void {
    this.current.records++;
    this.current.callbacks.push(done);
    this.kick();
  }

  /** Closes the gathering group, if it has records. */
  private seal(): void {
    if (this.current.records > 0) {
      this.sealed.push(this.current);
      this.lastSealed = this.current;
      this.current = this.newGroup(this.nextOrder++);
    }
  }

  /** Starts the next group soon; `defer` lets the events at hand join it. */
  kick(): void {
    if (this.inFlight || this.kicked || this.dead) return;
    this.kicked = true;
    this.clock.defer(() => {
      this.kicked = false;
      this.startNext();
    });
  }

  /** Resolves when group `order` is declared, writing an empty group if nothing else comes. */
  declare(order: number): Promise<void> {
    if (this.declared >= order) return Promise.resolve();
    if (this.dead) return Promise.reject(new DssError("Disk", "the WAL has failed"));
    return new Promise((resolve, reject) => {
      this.declareWaiters.push({ order, resolve, reject });
      this.declareWanted = true;
      this.kick();
    });
  }

  private startNext(): void {
    if (this.inFlight || this.dead) return;
    if (this.sealed.length === 0) this.seal();
    const next = this.sealed[0];
    // A checkpoint that waits for a group frees the room which the group may be waiting for.
    const awaited = next !== undefined && this.declareWaiters.some((w) => w.order >= next.order);
    if (next && this.unlogged.length === 0 && (awaited || this.host.mayWrite())) {
      const bytes = pages(next.head.at) + next.entries.length * BLOCK_SIZE;
      const position = this.place(bytes, BLOCK_SIZE);
      if (position >= 0) {
        this.sealed.shift();
        this.write(next, position, bytes);
        return;
      }
      this.counters.walStalls++;
      this.host.onFull();
    }
    if (this.declareWanted && this.declared < this.durable) {
      const position = this.place(BLOCK_SIZE, 0);
      if (position < 0) return this.host.onFull();
      // It carries no record: what it declares is all that counts.
      const empty = this.newGroup(this.durable);
      this.counters.walEmptyGroups++;
      this.write(empty, position, BLOCK_SIZE);
    }
  }

  /**
   * Where a group of `bytes` goes, leaving `spare` bytes in its segment; -1 when the ring is full.
   */
  private place(bytes: number, spare: number, from = this.end.position): number {
    const { segmentBytes, segments } = this.geometry;
    assert(bytes + spare <= segmentBytes, () => `a WAL group of ${bytes} bytes is too long`);
    let position = from;
    if ((position % segmentBytes) + bytes + spare > segmentBytes) {
      position = (Math.floor(position / segmentBytes) + 1) * segmentBytes;
    }
    const oldest = Math.floor(this.tail.position / segmentBytes);
    return Math.floor(position / segmentBytes) < oldest + segments ? position : -1;
  }

  /** All sealed groups have room in the ring as it is. */
  private fits(): boolean {
    let position = (this.inFlight?.point ?? this.end).position;
    for (const group of this.sealed) {
      const bytes = pages(group.head.at) + group.entries.length * BLOCK_SIZE;
      position = this.place(bytes, BLOCK_SIZE, position);
      if (position < 0) return false;
      position += bytes;
    }
    return true;
  }

  /**
   * For a checkpoint, which stands for every record gathered so far and therefore needs them
   * durable, while the ring may need the checkpoint to have room for them: when they do not fit,
   * they are handed out, to become durable with the checkpoint's index commit and nothing else.
   */
  sealAll(): { last: SealedPoint; unlogged: readonly WalGroup[] } {
    this.seal();
    if (this.fits()) return { last: this.lastSealed, unlogged: [] };
    this.unlogged = this.sealed;
    this.sealed = [];
    return {
      last: this.inFlight ?? { order: this.durable, point: this.end },
      unlogged: this.unlogged,
    };
  }

  /** The index contains the groups that were handed out. */
  settleUnlogged(): void {
    const groups = this.unlogged;
    this.unlogged = [];
    for (const group of groups) {
      this.counters.walUnlogged++;
      this.durable = this.declared = group.order;
      this.recycle(group);
    }
    this.afterDurable(groups);
  }

  private write(group: WalGroup, position: number, bytes: number): void {
    this.inFlight = group;
    const { segmentBytes, segments } = this.geometry;
    const number = this.end.number + 1;
    group.point = { number, position: position + bytes };
    const head = this.encodeHead(group, number, position);
    const chunks: Buffer[] = [head];
    this.overlay.gather(group.entries, chunks);
    const file = this.files[Math.floor(position / segmentBytes) % segments]!;
    this.counters.walGroups++;
    this.counters.walRecords += group.records;
    this.counters.walBytes += bytes;
    const at = position % segmentBytes;
    const isSmall = bytes <= SYNC_WRITE_BYTES_MAX;
    let isSynced = false;
    try {
      if (isSmall) file.writeSync(chunks, at);
      if (isSmall && group.directs.length === 0) isSynced = file.trySync();
    } catch (error) {
      return this.host.onError(error);
    }
    if (isSynced) return this.onWritten(group);
    const logged = isSmall ? file.sync() : file.write(chunks, at).then(() => file.sync());
    const data = Promise.all(group.directs).then(() => this.host.syncData(group.touched));
    this.flight = Promise.all([logged, data]).then(
      () => this.onWritten(group),
      (error: unknown) => this.host.onError(error),
    );
  }

  private encodeHead(group: WalGroup, number: number, position: number): Buffer {
    const head = group.head;
    const headBytes = head.at;
    const padded = pages(headBytes);
    head.ensure(padded - headBytes);
    head.buffer.fill(0, headBytes, padded);
    const recordsCrc = crc32(head.buffer.subarray(HEADER_BYTES, headBytes));
    head.at = 0;
    head.u32(WAL_MAGIC);
    head.u16(WAL_VERSION);
    head.u16(0);
    head.bytes(this.geometry.salt);
    head.u53(number);
    head.u53(position);
    head.u53(this.end.position);
    head.u53(this.end.number);
    head.u32(headBytes);
    head.u32(group.entries.length);
    head.u32(group.records);
    head.u32(recordsCrc);
    head.u32(crc32(head.buffer.subarray(0, head.at)));
    head.u32(0);
    assert(head.at === HEADER_BYTES, "the WAL group header is frozen");
    return head.buffer.subarray(0, padded);
  }

  private onWritten(group: WalGroup): void {
    if (this.dead) return;
    this.inFlight = undefined;
    this.end = group.point;
    this.declared = this.durable;
    this.durable = group.order;
    this.recycle(group);
    this.declareWanted = false;
    if (this.declareWaiters.length > 0) {
      const waiters = this.declareWaiters;
      this.declareWaiters = waiters.filter((waiter) => waiter.order > this.declared);
      this.declareWanted = this.declareWaiters.length > 0;
      for (const waiter of waiters) if (waiter.order <= this.declared) waiter.resolve();
    }
    this.afterDurable([group]);
  }

  private recycle(group: WalGroup): void {
    if (group.head.buffer.length <= HEAD_CAPACITY * 4 && this.heads.length < 4) {
      this.heads.push(group.head);
    }
    for (const entry of group.entries) this.overlay.drop(entry);
  }

  private afterDurable(groups: readonly WalGroup[]): void {
    this.host.onDurable();
    for (const group of groups) for (const done of group.callbacks) done();
    if (this.dead) return;
    if (this.idle) for (const resolve of this.drainWaiters.splice(0)) resolve();
    // Not at once: answers to this group leave before the next one is written.
    this.kick();
  }

  /**
   * Where the log stands after a durable sealed group: empty groups behind it count as part of it.
   */
  pointOf(sealed: SealedPoint): WalPoint {
    return this.durable === sealed.order ? this.end : sealed.point;
  }

  /** The index contains everything up to `point`: segments wholly below it may be used again. */
  release(point: WalPoint): void {
    this.tail = point;
    this.kick();
  }

  /** Ends the log; returns the callbacks of everything that was not durable. */
  kill(): Durable[] {
    this.dead = true;
    const flying = this.inFlight ? [this.inFlight] : [];
    const groups = [...flying, ...this.unlogged, ...this.sealed, this.current];
    for (const resolve of this.drainWaiters) resolve();
    for (const waiter of this.declareWaiters)
      waiter.reject(new DssError("Disk", "the WAL has failed"));
    return groups.flatMap((group) => group.callbacks);
  }

  private get idle(): boolean {
    return (
      !this.inFlight &&
      this.unlogged.length === 0 &&
      this.sealed.length === 0 &&
      this.current.records === 0
    );
  }

  /** Resolves when every record is durable, or the log is dead. */
  async drain(): Promise<void> {
    if (!this.dead && !this.idle)
      await new Promise<void>((resolve) => this.drainWaiters.push(resolve));
  }

  async close(): Promise<void> {
    this.dead = true;
    await this.flight;
    for (const file of this.files) await file.close();
  }
}

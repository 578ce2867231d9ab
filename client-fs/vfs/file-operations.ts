/**
 * What open files do: reads, writes, sizes, syncs. Chooses the capability that each needs and when
 * to wait for what: buffered writes for nothing but memory, direct and synchronous ones until they
 * are durable.
 */
import { constants } from "node:os";
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import { FILE_SIZE_MAX, type Actor } from "../../mds/proto.js";
import type { FilePosition, OpenReply } from "../file-system.js";
import { copyRange, type CopyFiles } from "./file-copy.js";
import type { FileData } from "./file-data.js";
import { EarlierAppends } from "./earlier-appends.js";
import { FileHandle, O_APPEND, O_DIRECT, O_DSYNC, O_TRUNC } from "./handle.js";
import { type Node, type PageRange, S_ISGID, S_ISUID, S_IXGRP, writeBackError } from "./node.js";
import type { NodeTable } from "./node-table.js";
import { FAILED, KEPT, type RecordedHandle, type WorkerRecord } from "./worker-record.js";
import { LINGER_BYTES, type WriteBudget } from "./writer.js";

const FALLOC_KEEP_SIZE = 1;
const FALLOC_PUNCH_HOLE = 2;
const FALLOC_ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** Ask for more when the writer is half-way there, and this much before the end at the latest. */
const EXTEND_AHEAD = 64 * 1024 * 1024;
const WRITTEN_SYNC = O_DSYNC;
/** Of the kernel. */
const PAGE = 4096;
/** A file in more pieces is not kept for the next worker. */
const KEPT_PIECES_MAX = 64;

/** ENXIO has no row in the table of errors. */
class NoDataBeyond extends DssError {
  constructor() {
    super("InvalidArgument", "no data after this offset");
  }
  override get errno(): number {
    return constants.errno.ENXIO;
  }
}

export interface WriteOptions {
  flags: number;
  killPrivileges: boolean;
  fromPageCache: boolean;
  /** The kernel's number of the request. */
  cause?: number;
}

export interface FileOperationsOptions {
  mds: MdsClient;
  table: NodeTable;
  budget: WriteBudget;
  clock: Clock;
  logger: Logger;
  record?: WorkerRecord | undefined;
  /** Somebody reads the beginning of a file through the cache. */
  onBegun?: (node: Node) => void;
}

export class FileOperations {
  private readonly handles = new Map<number, FileHandle>();
  private readonly mds: MdsClient;
  private readonly table: NodeTable;
  private readonly budget: WriteBudget;
  private readonly clock: Clock;
  private readonly logger: Logger;
  private readonly extending = new Set<Ino>();
  private readonly record: WorkerRecord | undefined;
  private readonly onBegun: ((node: Node) => void) | undefined;
  /** Handles of an earlier worker of which the kernel may not have heard, by what opened them. */
  private readonly unheard = new Map<number, FileHandle>();
  readonly earlierAppends = new EarlierAppends();

  constructor(options: FileOperationsOptions) {
    this.mds = options.mds;
    this.table = options.table;
    this.budget = options.budget;
    this.clock = options.clock;
    this.logger = options.logger;
    this.record = options.record;
    this.onBegun = options.onBegun;
  }

  /** An earlier worker had it open for the kernel. */
  restore({ id, ino, flags, cause }: RecordedHandle): void {
    const node = this.table.get(ino);
    this.register(node, id, flags, cause);
    node.toldOpen = true; // As the session says that takes over.
    node.sizeUnsure = true;
    const handle = this.handles.get(id)!;
    if (cause !== 0) this.unheard.set(cause, handle);
  }
  /** Data of the file were lost with an earlier worker: whoever writes or syncs it hears so. */
  loseData(node: Node, error: DssError): void {
    this.table.failNode(node, error);
    node.errorUnseen = true;
    // Those who could write; and until one has heard, whoever syncs it or closes it after writing:
    // a database syncs what others have written.
    for (const handle of this.handles.values()) {
      if (handle.ino === node.ino && handle.writable) handle.seenError = node.errorSeq - 1;
    }
  }
  private forgetUnheard(cause: number): void {
    const handle = this.unheard.get(cause);
    if (handle === undefined) return;
    this.unheard.delete(cause);
    if (this.handles.get(handle.id) !== handle) return;
    this.handles.delete(handle.id);
    this.record?.closed(handle.id);
    const node = this.table.get(handle.ino);
    node.opens--;
    if (handle.writable) node.writers--;
  }

  private handle(id: number, ino: Ino): FileHandle {
    const handle = this.handles.get(id);
    if (handle === undefined || handle.ino !== ino) {
      throw new DssError("BadHandle", `file handle ${id} is not open`);
    }
    return handle;
  }

  /** Fails unless the file is open under this handle and no lock of it was lost. */
  checkLockable(id: number, ino: Ino): void {
    checkAlive(this.table.get(ino), this.handle(id, ino));
  }
  loseLock(id: number): void {
    const handle = this.handles.get(id);
    if (handle !== undefined) handle.lostLock = true;
  }

  // ---- Open and close --------------------------------------------------------------------------

  /** Counts the open and makes the handle; the caller has checked that the inode lives. */
  register(node: Node, id: number, flags: number, cause = 0): OpenReply {
    const handle = new FileHandle(id, node.ino, flags, node.errorSeq);
    this.handles.set(id, handle);
    node.opens++;
    if (node.blindDrops > 0) node.sizeUnsure = true;
    if (this.unheard.size > 0 && cause !== 0) this.forgetUnheard(cause);
    this.record?.opened({ id, ino: node.ino, flags, cause, isDirectory: false });
    if (handle.writable) node.writers++;
    this.table.noteUsed(node);
    const keepCache = !node.kernelMayBeStale && this.table.kernel.canInvalidate;
    node.kernelMayBeStale = false;
    // Appends go past the kernel's cache: only the holder of the size knows where they end up.
    const directIo = handle.direct || (handle.writable && (flags & O_APPEND) !== 0);
    handle.keptCache = keepCache && !directIo;
    return { handle: id, directIo, keepCache };
  }

  async open(
    ino: Ino,
    id: number,
    flags: number,
    actor: Actor,
    { killPrivileges, cause }: { killPrivileges: boolean; cause: number | undefined },
  ): Promise<OpenReply> {
    const node = this.table.get(ino);
    // Counted first, so that an unlink that begins now keeps the file.
    const reply = this.register(node, id, flags, cause);
    try {
      while (node.removing !== undefined) await node.removing;
      if (node.stale || (node.inode?.nlink === 0 && !node.orphan && !node.toldOpen)) {
        throw new DssError("StaleHandle", "the file is gone");
      }
      if (!this.table.valid(node)) await this.table.acquire(node, "shared");
      if ((flags & O_TRUNC) !== 0) await this.resize(node, 0, actor, { clearSuid: killPrivileges });
      return reply;
    } catch (error) {
      await this.release(ino, id);
      throw error;
    }
  }

  async release(ino: Ino, id: number): Promise<void> {
    const handle = this.handle(id, ino);
    this.handles.delete(id);
    this.record?.closed(id);
    const node = this.table.get(ino);
    node.opens--;
    this.table.accessTimes.closed(node, handle);
    if (handle.writable && --node.writers === 0 && !node.orphan) {
      const writer = node.data?.writer;
      // What takes the place of something older should not be missing after a crash of the machine.
      const mayLinger = this.table.marks.mayLinger(node) && !node.replacing;
      node.replacing = false;
      if (writer !== undefined && !writer.clean) this.budget.writeBackClosed(writer, mayLinger);
      else if (node.unpublished) this.table.publishSoon(node);
    }
    if (node.opens > 0) return;
    if (node.orphan || node.toldOpen) await this.lastClose(node);
    this.table.noteIdle(node);
  }

  /**
   * Before it takes the name of another file: after a crash of the machine one of the two is there
   * whole, also if nobody syncs.
   */
  async settled(node: Node | undefined): Promise<void> {
    if (node?.data === undefined) return;
    await node.data.flush();
    if ((node.marks & FAILED) === 0) return;
    this.table.marks.reported(node);
    throw writeBackError(node.error);
  }

  /** Nobody here has the file open any more, and its last name is gone or may be. */
  async lastClose(node: Node): Promise<void> {
    const { orphan } = node;
    if (node.toldOpen) {
      node.toldOpen = false;
      this.mds.release({ ino: node.ino, mode: node.mode, seq: node.seq, open: false });
    }
    if (node.stale) {
      this.table.gone(node);
      return;
    }
    const writer = node.data?.writer;
    try {
      if (orphan) {
        await this.table.leaveToOthers(node);
        writer?.discard();
        await writer?.hold();
      }
      await this.mds.call({ op: "orphanRelease", ino: node.ino });
      if (orphan) this.table.gone(node);
    } catch (error) {
      if (!isDssError(error)) throw error;
      // The leader drops it with the session at the latest.
      this.logger.warn({ ino: node.ino, error: describeError(error) }, "orphan not released");
    } finally {
      if (orphan) writer?.resume();
    }
  }

  /** A failed write-back that this handle has not reported yet. */
  private errorOf(node: Node, handle: FileHandle): DssError | undefined {
    if (handle.seenError === node.errorSeq) return undefined;
    handle.seenError = node.errorSeq;
    node.errorUnseen = false;
    this.table.marks.reported(node);
    return writeBackError(node.error);
  }

  /** What was lost is not wanted any more, and nobody has it open who had written it. */
  private forgive(node: Node): void {
    const { errorSeq } = node;
    for (const { ino, seenError } of this.handles.values()) {
      if (ino === node.ino && seenError !== errorSeq) return;
    }
    node.errorUnseen = false;
    this.table.marks.reported(node);
  }

  flush(ino: Ino, id: number): Promise<void> {
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    if (node.errorUnseen && handle.writable) handle.seenError = node.errorSeq - 1;
    const error = this.errorOf(node, handle);
    if (error !== undefined) return Promise.reject(error);
    if (handle.writable) this.keep(node);
    return DONE;
  }
  /** Small files outlive this worker once they are closed. */
  private keep(node: Node): void {
    const pieces = node.data?.writer.unwritten(LINGER_BYTES);
    if (pieces === undefined || pieces.length === 0 || pieces.length > KEPT_PIECES_MAX) return;
    this.table.marks.keep(node, pieces);
  }
  /** Its time was set: the next worker would write it back with that one. */
  keepAgain(node: Node): void {
    if ((node.marks & KEPT) === 0) return;
    this.table.marks.changing(node);
    this.keep(node);
  }

  async fsync(ino: Ino, id: number): Promise<void> {
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    if (node.data !== undefined) await node.data.flush();
    if (node.errorUnseen) handle.seenError = node.errorSeq - 1; // Also who only reads.
    const error = this.errorOf(node, handle);
    if (error !== undefined) throw error;
    await this.mds.waitSafe();
  }

  // ---- Read ------------------------------------------------------------------------------------

  read(ino: Ino, id: number, offset: number, length: number): Promise<Buffer[]> {
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    checkAlive(node, handle);
    this.table.accessTimes.read(node, handle);
    const isSure = this.mds.trusted || offset + length <= node.size;
    const isReady = node.barrier === undefined && isSure && !node.sizeUnsure;
    if (isReady && this.table.tryPin(node, "shared")) {
      return this.readPinned(node, handle, offset, length);
    }
    return this.readLater(node, handle, offset, length);
  }
  private async readLater(
    node: Node,
    handle: FileHandle,
    offset: number,
    length: number,
  ): Promise<Buffer[]> {
    // Where the file ends the leader alone can tell: OSDs know of bytes, not of their absence.
    if (offset + length > node.size) await this.table.acquire(node, "shared");
    await this.table.pin(node, "shared", false);
    if (node.sizeUnsure) await this.lookAtSize(node);
    return this.readPinned(node, handle, offset, length);
  }
  /** Pinned: it stays what the kernel is shown. */
  private async lookAtSize(node: Node): Promise<void> {
    await this.table.kernel.makeSure(node);
    const isSure = !this.table.kernel.canLook || node.kernelSize === node.size;
    if (isSure && this.table.valid(node)) node.sizeUnsure = false;
  }
  /** Before a size is answered that the kernel may throw away. */
  async makeSureOfSize(node: Node): Promise<void> {
    if (node.opens === 0 || !node.isRegular) {
      node.sizeUnsure = false;
      return;
    }
    await this.table.pin(node, "shared", false);
    try {
      await this.lookAtSize(node);
    } finally {
      this.table.unpin(node);
    }
  }
  private readPinned(
    node: Node,
    handle: FileHandle,
    offset: number,
    length: number,
  ): Promise<Buffer[]> {
    const data = this.table.dataOf(node);
    // Without trust only what the OSDs answer now is right; the kernel must not keep it either.
    const { trusted } = this.mds;
    const stream = handle.direct || !trusted ? undefined : handle.stream;
    const reading = data.read(offset, length, stream);
    // After its own request.
    if (offset === 0 && stream !== undefined) this.onBegun?.(node);
    return reading.then(
      (pieces) => {
        this.table.unpin(node);
        if (!trusted && !handle.direct) this.table.invalidateLater(node.ino, offset, length);
        return pieces;
      },
      (error: unknown) => {
        this.table.unpin(node);
        throw error;
      },
    );
  }

  // ---- Write -----------------------------------------------------------------------------------

  write(
    ino: Ino,
    id: number,
    offset: number,
    data: Buffer,
    options: WriteOptions,
  ): Promise<number> {
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    checkAlive(node, handle);
    if (handle.seenError !== node.errorSeq && !options.fromPageCache) {
      return Promise.reject(this.errorOf(node, handle)!);
    }
    const plain =
      node.barrier === undefined &&
      !(options.killPrivileges && hasSetId(node)) &&
      (options.flags & (WRITTEN_SYNC | O_DIRECT)) === 0;
    const { length } = data;
    if (this.earlierAppends.any && appends(options)) {
      const place = this.earlierAppends.place(options.cause ?? 0, ino, node.size);
      const there = { ...options, flags: options.flags & ~O_APPEND };
      if (place !== undefined) return this.write(ino, id, place, data, there);
    }
    if (plain && this.ready(node, offset, length, options) && this.budget.tryReserve(length)) {
      // The usual buffered write: nothing to wait for, so not even a pin is needed.
      this.put(node, this.position(node, offset, length, options), data);
      return Promise.resolve(length);
    }
    return this.writeLater(node, handle, offset, data, options);
  }

  /** The capability is held and reaches far enough. */
  private ready(node: Node, offset: number, length: number, options: WriteOptions): boolean {
    if (node.recall !== undefined || node.mode !== "exclusive" || !this.mds.usable) return false;
    const start = appends(options) ? node.size : offset;
    if (start + length > node.maxSize) return false;
    if (start + length > Math.max(node.maxSize / 2, node.maxSize - EXTEND_AHEAD)) {
      this.extendSoon(node);
    }
    return true;
  }
  /** Where the bytes go: O_APPEND is decided here, under the capability. */
  private position(node: Node, offset: number, length: number, options: WriteOptions): number {
    if (!appends(options)) return offset;
    const { size } = node;
    // Another mount had appended: this kernel's idea of the offset was old, and so are its pages
    // there.
    if (size !== offset) {
      node.kernelSize = undefined;
      this.table.invalidateLater(node.ino, Math.min(size, offset), length);
    }
    return size;
  }
  private put(node: Node, offset: number, data: Buffer): void {
    this.wrote(node, offset + data.length);
    const file = this.table.dataOf(node);
    this.table.marks.written(node);
    file.noteWritten(offset, data.length);
    file.writer.put(offset, data);
    this.table.noteUsed(node);
  }
  private wrote(node: Node, end: number): void {
    const inode = node.inode!;
    const now = this.clock.wallNs();
    node.writtenByKernel(end);
    if (end > inode.size) inode.size = end;
    inode.mtimeNs = now;
    inode.ctimeNs = now;
    this.table.marks.untold(node);
  }
  /** Whoever repeats this append after our end must know where it had its place. */
  private noteAppend(node: Node, position: number, length: number, cause: number): void {
    this.table.marks.untold(node);
    if (cause !== 0) this.record?.append({ cause, ino: node.ino, position, length });
  }

  private async writeLater(
    node: Node,
    handle: FileHandle,
    offset: number,
    data: Buffer,
    options: WriteOptions,
  ): Promise<number> {
    if (data.length === 0) return 0;
    const isDirect = (options.flags & O_DIRECT) !== 0 && !options.fromPageCache;
    const pages = isDirect ? undefined : lockedPages(offset, data.length, options.fromPageCache);
    if (pages !== undefined) node.locked.add(pages);
    try {
      return await this.writeUnder(node, handle, offset, data, { ...options, isDirect });
    } catch (error) {
      node.kernelSize = undefined; // The kernel does not count what failed.
      throw error;
    } finally {
      if (pages !== undefined) node.locked.delete(pages);
    }
  }
  /** Waits for the capability, for room in the grant and for room in memory. */
  private async writeUnder(
    node: Node,
    handle: FileHandle,
    offset: number,
    data: Buffer,
    options: WriteOptions & { isDirect: boolean },
  ): Promise<number> {
    const { table } = this;
    if (options.killPrivileges && hasSetId(node)) await this.clearSetId(node);
    for (;;) {
      while (node.barrier !== undefined) await node.barrier;
      await table.pin(node, "exclusive", options.fromPageCache);
      const start = appends(options) ? node.size : offset;
      const end = start + data.length;
      if (end > FILE_SIZE_MAX) {
        table.unpin(node);
        throw new DssError("FileTooLarge", `write up to byte ${end}`);
      }
      if (node.barrier !== undefined || node.mode !== "exclusive") {
        table.unpin(node);
        continue;
      }
      if (end > node.maxSize) {
        // Not under the pin: a recall must not wait for an answer of the leader.
        table.unpin(node);
        await this.extend(node, end);
        continue;
      }
      try {
        if (options.isDirect) {
          await this.writeDirect(node, offset, data, options);
          return data.length;
        }
        if (!this.budget.tryReserve(data.length)) {
          await this.budget.wait(data.length);
          if (node.mode !== "exclusive" || node.barrier !== undefined) {
            this.budget.free(data.length); // Evicted, or about to be truncated.
            continue;
          }
        }
        const position = this.position(node, offset, data.length, options);
        if (position + data.length > node.maxSize) {
          this.budget.free(data.length); // Somebody else appended during the wait.
          continue;
        }
        const isSync = (options.flags & WRITTEN_SYNC) !== 0;
        if (isSync && appends(options)) {
          this.noteAppend(node, position, data.length, options.cause ?? 0);
        }
        this.put(node, position, data);
        if (!isSync) return data.length;
        await node.data!.writer.flush({ start: position, end: position + data.length });
      } finally {
        table.unpin(node);
      }
      const error = this.errorOf(node, handle);
      if (error !== undefined) throw error;
      // O_SYNC also means that the file can be found.
      await this.mds.waitSafe();
      return data.length;
    }
  }

  private async writeDirect(
    node: Node,
    offset: number,
    data: Buffer,
    options: WriteOptions,
  ): Promise<void> {
    const position = this.position(node, offset, data.length, options);
    const end = position + data.length;
    const file = this.table.dataOf(node);
    this.table.marks.untold(node);
    file.noteWritten(position, data.length);
    if (appends(options)) {
      this.noteAppend(node, position, data.length, options.cause ?? 0);
      // The next append must not land on the same bytes.
      this.wrote(node, end);
      await file.writeDirect(position, data);
    } else {
      const inode = node.inode!;
      const now = this.clock.wallNs();
      inode.mtimeNs = now;
      inode.ctimeNs = now;
      await file.writeDirect(position, data);
      const current = node.inode!;
      node.writtenByKernel(end);
      if (end > current.size) current.size = end;
    }
    this.table.noteUsed(node);
    if ((options.flags & WRITTEN_SYNC) !== 0) await this.mds.waitSafe();
  }

  private extendSoon(node: Node): void {
    const { maxSize } = node;
    if (this.extending.has(node.ino) || node.refusedBeyond === maxSize) return;
    this.extending.add(node.ino);
    const size = maxSize + 1;
    this.mds
      .call({ op: "extend", ino: node.ino, size })
      .catch((error: unknown) => {
        // Whoever writes beyond asks again and reports it.
        if (!isDssError(error)) throw error;
        if (error.code === "QuotaExceeded") node.refusedBeyond = maxSize;
      })
      .finally(() => this.extending.delete(node.ino));
  }
  private async extend(node: Node, size: number): Promise<void> {
    const { seq } = node;
    try {
      await this.mds.call({ op: "extend", ino: node.ino, size });
    } catch (error) {
      // The capability went meanwhile: the caller acquires it again.
      if (!isDssError(error, "Conflict")) throw error;
      if (node.seq === seq) this.table.disown(node);
    }
  }

  private async clearSetId(node: Node): Promise<void> {
    const actor = { uid: 0, gid: 0, timeNs: this.clock.wallNs() };
    const request = { op: "setattr", ino: node.ino, clearSuid: true, actor } as const;
    await this.table.local.during(request, [], this.mds.call(request));
  }

  // ---- Sizes -----------------------------------------------------------------------------------

  /** Runs alone on the file: writes wait until it has ended. */
  async alone<T>(node: Node, work: () => Promise<T>): Promise<T> {
    while (node.barrier !== undefined) await node.barrier;
    let open = (): void => undefined;
    node.barrier = new Promise<void>((resolve) => (open = resolve));
    try {
      return await work();
    } finally {
      node.barrier = undefined;
      open();
      this.table.noteIdle(node);
    }
  }

  /**
   * truncate(2). Shrinking: dirty data beyond are dropped; the leader journals the size and what
   * objects must trim. Growing within the grant is the holder's own affair, told at once because
   * no object proves it.
   */
  resize(
    node: Node,
    size: number,
    actor: Actor,
    others: { clearSuid?: boolean; mtimeNs?: bigint } = {},
  ): Promise<void> {
    return this.alone(node, async () => {
      const clearSuid = others.clearSuid === true && hasSetId(node);
      const mtimeNs = others.mtimeNs ?? actor.timeNs;
      if (size > 0 && (await this.growWithin(node, size, mtimeNs))) {
        if (clearSuid) await this.clearSetId(node);
        return;
      }
      node.resizing++; // From here on the old size is not told: what it covers is being dropped.
      try {
        // Writes of before the barrier end before the new size counts.
        if (node.data !== undefined) {
          await node.data.cutOff(size);
          // What stays is written under the old truncation: after the new one it would be refused.
          if (size > 0) await node.data.flush();
        }
        const before = node.size;
        if (size === 0 && before > 0) node.replacing = true;
        if (node.mode === "exclusive" && node.isRegular) this.table.dataOf(node).space();
        await this.mds.call({
          op: "setattr",
          ino: node.ino,
          size,
          mtimeNs,
          ...(clearSuid ? { clearSuid } : {}),
          actor,
        });
        const inode = node.inode;
        if (inode !== undefined) {
          inode.size = size;
          inode.mtimeNs = mtimeNs;
          node.kernelSize = size;
          node.publishedSize = size;
          node.publishedMtimeNs = mtimeNs;
        }
        await node.data?.afterResize(size, before);
        if (size === 0 && node.errorUnseen) this.forgive(node);
      } finally {
        node.resizing--;
      }
      if (node.unpublished && node.writers === 0) this.table.publishSoon(node);
    });
  }
  /** False when it is not about growing, or goes beyond the grant: then it is the leader's. */
  private async growWithin(node: Node, size: number, mtimeNs: bigint): Promise<boolean> {
    await this.table.pin(node, "exclusive", false);
    try {
      if (size <= node.size || size > node.maxSize) return false;
      // A length is told only when what lies below it is durable.
      if (node.data !== undefined) await node.data.flush();
      const inode = node.inode!;
      inode.size = size;
      inode.mtimeNs = mtimeNs;
      inode.ctimeNs = this.clock.wallNs();
      await node.data?.afterResize(size, size);
      await this.table.publish(node, "safe");
      node.kernelSize = size;
      return true;
    } finally {
      this.table.unpin(node);
    }
  }

  async fallocate(
    ino: Ino,
    id: number,
    how: { offset: number; length: number; mode: number; killPrivileges: boolean },
  ): Promise<void> {
    const { offset, length, mode } = how;
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    checkAlive(node, handle);
    const end = offset + length;
    const keepSize = (mode & FALLOC_KEEP_SIZE) !== 0;
    const zeroes = (mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)) !== 0;
    if ((mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)) !== 0) {
      throw new DssError("NotSupported", `fallocate mode ${mode}`);
    }
    if (length === 0) throw new DssError("InvalidArgument", "fallocate of nothing");
    if (end > FILE_SIZE_MAX) throw new DssError("FileTooLarge", `fallocate up to byte ${end}`);
    if (how.killPrivileges && hasSetId(node)) await this.clearSetId(node);
    if (zeroes) await this.zero(node, offset, end);
    // Space is never reserved: holes cost nothing, and a write may find the cluster full.
    await this.table.pin(node, "exclusive", false);
    const grows = !keepSize && end > node.size;
    // It is a modification in any case.
    if (!grows && !zeroes) this.wrote(node, 0);
    this.table.unpin(node);
    if (grows) await this.lengthen(node, end);
  }
  /** The kernel takes the longer one of that and what it knows. */
  private async lengthen(node: Node, end: number): Promise<void> {
    await this.resize(node, end, { uid: 0, gid: 0, timeNs: this.clock.wallNs() });
    node.kernelSize = undefined;
  }
  /** copy_file_range(2); see file-copy.ts. */
  copy(
    source: FilePosition,
    target: FilePosition,
    length: number,
    how: { killPrivileges: boolean; done: (pieces: readonly Buffer[]) => void },
  ): Promise<number> {
    const node = ({ ino, handle }: FilePosition): Node => {
      const found = this.table.get(ino);
      checkAlive(found, this.handle(handle, ino));
      return found;
    };
    const { flags } = this.handle(target.handle, target.ino);
    const options = { flags, killPrivileges: how.killPrivileges, fromPageCache: false };
    const files: CopyFiles = {
      node,
      done: how.done,
      reading: (file, work) => this.reading(file, work),
      mayCache: (file) => this.table.valid(file),
      write: ({ ino, handle, offset }, data) => this.write(ino, handle, offset, data, options),
      clear: async (file, offset, end) => {
        if (how.killPrivileges && hasSetId(file)) await this.clearSetId(file);
        await this.clear(file, offset, end);
      },
      reach: (file, end) => this.reach(file, end),
    };
    const read = this.handle(source.handle, source.ino);
    this.table.accessTimes.read(node(source), read);
    return copyRange(files, source, target, length);
  }
  private async reading<T>(node: Node, work: (data: FileData) => Promise<T>): Promise<T> {
    // Where it ends the leader alone can tell.
    await this.table.acquire(node, "shared");
    await this.table.pin(node, "shared", false);
    try {
      return await work(this.table.dataOf(node));
    } finally {
      this.table.unpin(node);
    }
  }
  private async clear(node: Node, offset: number, end: number): Promise<void> {
    await this.table.pin(node, "exclusive", false);
    const { size } = node;
    this.table.unpin(node);
    if (offset < size) await this.zero(node, offset, end);
  }
  private async reach(node: Node, end: number): Promise<void> {
    await this.table.pin(node, "exclusive", false);
    const { size } = node;
    this.table.unpin(node);
    if (end > size) await this.lengthen(node, end);
  }
  private async zero(node: Node, offset: number, end: number): Promise<void> {
    await this.alone(node, async () => {
      await this.table.pin(node, "exclusive", false);
      try {
        const until = Math.min(end, node.size);
        if (until <= offset) return;
        await this.table.announceHoles(node);
        await this.table.dataOf(node).zero(offset, until - offset);
        this.wrote(node, 0);
      } finally {
        this.table.unpin(node);
      }
    });
  }

  async lseek(ino: Ino, id: number, offset: number, whence: number): Promise<number> {
    const handle = this.handle(id, ino);
    const node = this.table.get(ino);
    checkAlive(node, handle);
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) {
      throw new DssError("InvalidArgument", `lseek whence ${whence}`);
    }
    await this.table.pin(node, "shared", false);
    try {
      if (offset >= node.size) throw new NoDataBeyond();
      const data = this.table.dataOf(node);
      await data.flush();
      const found = await data.seek(offset, whence === SEEK_DATA);
      if (found < 0) throw new NoDataBeyond();
      return found;
    } finally {
      this.table.unpin(node);
    }
  }
}

const DONE: Promise<void> = Promise.resolve();

function appends(options: WriteOptions): boolean {
  return (options.flags & O_APPEND) !== 0 && !options.fromPageCache;
}
/**
 * What the kernel keeps locked until a write is answered: the page in which a system call's bytes
 * end when it was not cached, or the mapped pages that are written back.
 */
function lockedPages(offset: number, length: number, isWriteBack: boolean): PageRange | undefined {
  const end = offset + length;
  const last = end - 1 - ((end - 1) % PAGE);
  const isWhole = end === last + PAGE && offset <= last;
  if (!isWriteBack && isWhole) return undefined;
  return { start: isWriteBack ? offset - (offset % PAGE) : last, end: last + PAGE };
}
function hasSetId(node: Node): boolean {
  const mode = node.inode?.mode ?? 0;
  return (mode & S_ISUID) !== 0 || (mode & (S_ISGID | S_IXGRP)) === (S_ISGID | S_IXGRP);
}
function checkAlive(node: Node, handle: FileHandle): void {
  if (node.stale) {
    throw new DssError("StaleHandle", "the unlinked file went with an earlier metadata session");
  }
  if (handle.lostLock) {
    throw new DssError("Disk", "a lock of this open file was lost with the metadata session");
  }
}
/** A full cluster stays "no space" for the caller; everything else is an I/O error. */

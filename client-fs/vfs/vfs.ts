/**
 * The file system that a mount shows (design §7): POSIX semantics over the metadata session and
 * the objects. Implements the contract of the FUSE drivers; names and attributes are here, what
 * open files do is in file-operations.ts.
 *
 * What the kernel may keep: names while the directory's shared capability is held, attributes
 * while the inode's is, both for `attributeValidMs` at most, no longer than the session's lease,
 * and only when the kernel can be told to drop them. Listings: kernel-listings.ts.
 *
 * Owns: the tables of inodes and handles. One instance serves one mount.
 */
import { DssError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, RandomSource, Timer } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { InheritedOutcome } from "../../mds/client/request-log.js";
import {
  ACL_ACCESS,
  ACL_DEFAULT,
  XATTR_NAME_MAX,
  XATTR_VALUE_MAX,
  type Actor,
  type Grant,
  type Inode,
  type MdsReply,
  type Request,
} from "../../mds/proto.js";
import type { ObjectAccess } from "../../osd/client/object-access.js";
import { OWN_FOLDER } from "../file-system.js";
import type {
  Caller,
  DirEntry,
  Entry,
  FileLock,
  FilePosition,
  FileSystem,
  KernelNotifier,
  OpenDirReply,
  OpenReply,
  RenameFlags,
  SetAttributes,
  StatFs,
} from "../file-system.js";
import type { AccessTimeMode } from "./access-times.js";
import { alter, outlives } from "./afterlife.js";
import { attributesOf } from "./attributes.js";
import { getDirectoryXattr, isDirectoryXattr, setDirectoryXattr } from "./directory-xattrs.js";
import { ExtentCache } from "./extent-cache.js";
import { FileLocks } from "./file-locks.js";
import { FilesAhead } from "./files-ahead.js";
import { FileOperations, type WriteOptions } from "./file-operations.js";
import { DirectoryHandle, O_EXCL, O_SYNC, O_TRUNC } from "./handle.js";
import { KernelListings } from "./kernel-listings.js";
import { ListingAhead } from "./listing-ahead.js";
import { type Node, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, writeBackError } from "./node.js";
import { nameKey } from "./names.js";
import { NodeTable } from "./node-table.js";
import {
  endTakeover,
  forgetInKernel,
  restoreHandles,
  writeKept,
  type RestoreParts,
} from "./restore.js";
import type { Recorded, WorkerRecord } from "./worker-record.js";
import { mountReport } from "./report.js";
import { WriteBudget } from "./writer.js";

export interface VfsOptions {
  mds: MdsClient;
  objects: ObjectAccess;
  clock: Clock;
  random: RandomSource;
  logger: Logger;
  cacheBytes: number;
  writeBackBytesMax: number;
  writeBackAgeMs: number;
  readAheadBytes: number;
  /** How long the kernel may keep names and attributes without asking. */
  attributeValidMs: number;
  /** Inodes that are kept, used by the kernel or not (node-table.ts). */
  inodesMax: number;
  /** -o noatime and the like; relatime when left out. */
  atime?: { mode: AccessTimeMode; directories: boolean };
  /** Whose every file is shown to be (-o uid, gid). */
  owner?: { uid?: number; gid?: number };
  /** -o sync: every change waits until it is in the journal. */
  sync?: boolean;
  /** For the worker that follows this one; the session's requests are logged in it too. */
  record?: WorkerRecord;
}

/** Handles of each worker of a mount are above those of its predecessors. */
const HANDLES_PER_WORKER = 2 ** 36;

const BLOCK = 4096;
const STATFS_VALID_MS = 1_000;
/**
 * A new worker has the kernel forget names and what is open, and does not know which directories
 * programs work in: their attributes outlive a worker only for so long.
 */
const DIRECTORY_VALID_MS = 1_000;
/** Entries asked for at a time. */
const LISTING_PAGE = 1_024;
/** Attempts to have a page in which no change is missing. */
const PAGE_ROUNDS = 3;
const FIRST_NAMES = 64;
/** "." and ".." come before the leader's cookies. */
const COOKIE_DOT = 1;
const COOKIE_DOTDOT = 2;
const DOT = Buffer.from(".");
const DOTDOT = Buffer.from("..");
/** One instance: looking for names that do not exist is common, and a stack trace is not free. */
const NOT_FOUND = new DssError("NotFound", "no such name");
NOT_FOUND.stack = "";
const NO_ATTRIBUTE = new DssError("NoAttribute", "no such attribute");
NO_ATTRIBUTE.stack = "";
const LABEL = "security.selinux";
const NO_LABELS = new DssError("NotSupported", "files have no SELinux labels");
NO_LABELS.stack = "";
const DONE: Promise<void> = Promise.resolve();
/** The kernel does not ask again within one look. What it took is dropped right afterwards. */
const LOOK_VALID_MS = 1_000;

export class Vfs implements FileSystem {
  readonly table: NodeTable;
  private readonly files: FileOperations;
  private readonly locks: FileLocks;
  private readonly listingAhead: ListingAhead;
  private readonly kernelListings: KernelListings;
  private readonly mds: MdsClient;
  private readonly clock: Clock;
  private readonly budget: WriteBudget;
  private readonly cache: ExtentCache;
  private readonly directories = new Map<number, DirectoryHandle>();
  private nextHandle: number;
  private usage: { at: number; stat: StatFs } | undefined;
  private ageTimer: Timer | undefined;
  private destroying: Promise<void> | undefined;

  constructor(private readonly options: VfsOptions) {
    const { mds, clock, logger, objects } = options;
    this.mds = mds;
    this.clock = clock;
    const cache = new ExtentCache(options.cacheBytes);
    this.cache = cache;
    this.budget = new WriteBudget(options.writeBackBytesMax, clock, objects, cache, logger);
    this.table = new NodeTable({
      mds,
      clock,
      random: options.random,
      logger,
      data: { objects, cache, budget: this.budget, readAheadBytes: options.readAheadBytes },
      inodesMax: options.inodesMax,
      ...(options.sync === true ? { sync: true } : {}),
      ...(options.atime === undefined ? {} : { atime: options.atime }),
      ...(options.record === undefined ? {} : { record: options.record }),
    });
    const { record } = options;
    const { budget, table } = this;
    this.nextHandle = 1 + (record?.generation ?? 0) * HANDLES_PER_WORKER;
    const ahead = new FilesAhead(table, cache.enabled && options.readAheadBytes > 0);
    const onBegun = (node: Node): void => ahead.read(node);
    this.files = new FileOperations({ mds, table, budget, clock, logger, record, onBegun });
    this.locks = new FileLocks({
      ...{ mds, logger, record },
      lost: (handle) => this.files.loseLock(handle),
    });
    this.listingAhead = new ListingAhead(mds, this.table, logger);
    const { attributeValidMs: namesValidMs } = options;
    this.kernelListings = new KernelListings(this.table, this.clock, namesValidMs);
    mds.setCache(this.table);
    mds.setLocks(this.locks);
    this.watchAge();
  }

  private watchAge(): void {
    const ageMs = this.options.writeBackAgeMs;
    this.ageTimer = this.clock.setTimer(Math.max(ageMs / 4, 50), () => {
      this.budget.writeBackOlder(ageMs);
      this.watchAge();
    });
  }

  /** For people. */
  report(): Record<string, unknown> {
    const memory = { cacheBytes: this.cache.bytes, dirtyBytes: this.budget.dirtyBytes };
    return { ...memory, ...mountReport(this.table) };
  }

  init(notifier: KernelNotifier, kernel: { canInvalidateAllEntries: boolean }): void {
    this.table.kernel.set(notifier, kernel.canInvalidateAllEntries);
  }

  // ---- Other workers of the same mount ---------------------------------------------------------

  private get restoring(): RestoreParts {
    const { mds, table, files, locks, directories, kernelListings, clock } = this;
    const { objects, logger } = this.options;
    return { mds, table, files, locks, directories, kernelListings, objects, clock, logger };
  }
  /** Goes on where another worker has ended; opens the session. Then requests may be read. */
  async takeOver(recorded: Recorded, openWithinMs: number): Promise<void> {
    restoreHandles(this.restoring, recorded);
    await forgetInKernel(this.restoring, recorded);
    await this.mds.open(openWithinMs);
    await writeKept(this.restoring, recorded);
    await endTakeover(this.restoring, recorded);
  }
  /** Leaves to the next worker nothing that it could not go on with: all data is durable. */
  async handOver(): Promise<void> {
    await this.settle();
    await this.mds.waitSafe();
    this.options.record?.commit();
  }
  private async settle(): Promise<void> {
    await this.table.flushAll();
    await this.table.publishAll();
    await this.table.accessTimes.tell();
  }

  /** What is buffered becomes durable; then nothing that can be asked for again is kept. */
  async dropCaches(): Promise<void> {
    await this.settle();
    await this.mds.waitSafe();
    await this.table.giveAllBack();
  }

  /**
   * Flushes everything, publishes sizes and closes the session; fails when data could not be saved.
   */
  destroy(): Promise<void> {
    this.destroying ??= this.shutDown();
    return this.destroying;
  }
  private async shutDown(): Promise<void> {
    this.ageTimer?.cancel();
    this.locks.stop();
    let failure: Error | undefined;
    try {
      await this.settle();
      this.table.releaseAll();
    } catch (error) {
      failure = error as Error;
    }
    this.table.stop();
    try {
      await this.mds.close({ force: failure !== undefined });
    } catch (error) {
      failure ??= error as Error;
    }
    failure ??= this.table.unseenFailure();
    if (failure !== undefined) throw failure;
  }

  // ---- Entries ---------------------------------------------------------------------------------

  private entryOf(node: Node, parent: Node | undefined): Entry {
    const { table } = this;
    const { canInvalidate, canInvalidateNames } = table.kernel;
    table.kernel.answering(node);
    // Should this process stop, others may change what it has told as soon as its lease is over.
    const valid = Math.min(this.options.attributeValidMs, this.mds.trustedMs);
    const attributesValid = node.isDirectory ? Math.min(valid, DIRECTORY_VALID_MS) : valid;
    const lastsName = canInvalidateNames && parent !== undefined && table.lasting(parent);
    return {
      attributes: attributesOf(node, this.options.owner),
      generation: 0,
      entryValidMs: lastsName ? valid : 0,
      attributesValidMs: canInvalidate && table.lasting(node) ? attributesValid : 0,
    };
  }
  /** An entry that the kernel counts as a look-up. */
  private lookedUp(ino: Ino, parent: Node): Entry {
    const node = this.table.get(ino);
    const isNew = node.lookups === 0 && !this.table.isHeir;
    this.table.addLookup(node);
    if (isNew) node.kernelSize = node.size; // The kernel makes it with the size that it is told.
    return this.entryOf(node, parent);
  }
  private actor(caller: Caller): Actor {
    return { uid: caller.uid, gid: caller.gid, timeNs: this.clock.wallNs() };
  }
  /**
   * A new inode has its number under that name, and only it; a name that was to go is not there.
   */
  private async isDone(
    { unsure, request }: InheritedOutcome,
    parent: Ino,
    name: Buffer,
  ): Promise<boolean> {
    if (!unsure) return true;
    const { answer } = await this.mds.call({ op: "lookup", parent, name });
    const found = answer.inode?.ino ?? 0;
    return found === inoOf(request);
  }
  /**
   * A change: answered as soon as the leader has executed it, or when it is durable with -o sync.
   */
  private change(
    request: Request,
    { cause }: Caller,
    others: readonly Ino[] = [],
  ): ReturnType<MdsClient["call"]> {
    const wait = this.options.sync === true ? "safe" : "unsafe";
    return this.table.local.during(request, others, this.mds.call(request, { wait, cause }));
  }
  /** An earlier worker of this mount has done that already: what came of it. */
  private earlier(op: Request["op"], { cause = 0 }: Caller): ReturnType<InheritedTake> {
    return this.mds.inherited.take(cause, op);
  }
  /** Attributes that may be believed, asked for when need be. */
  private async known(ino: Ino): Promise<Node> {
    const node = this.table.get(ino);
    if (this.table.valid(node)) return node;
    try {
      await this.mds.call({ op: "getattr", ino });
    } catch (error) {
      if (!outlives(this.table.get(ino), error)) throw error;
    }
    return this.table.get(ino);
  }

  lookup(parent: Ino, name: Buffer, caller?: Caller): Promise<Entry> {
    if (parent === OWN_FOLDER) return this.lookupOwn(name, caller);
    const directory = this.table.get(parent);
    directory.looks++;
    if (name.length <= 2 && name[0] === 0x2e) {
      if (name.length === 1) return this.lookupKnown(parent, directory);
      // NFS export asks for "..".
      if (name[1] === 0x2e) return this.lookupKnown(directory.parent, directory);
    }
    const ino = this.table.names.find(directory, name);
    if (ino === 0) return Promise.reject(NOT_FOUND);
    if (ino !== undefined && this.table.valid(this.table.get(ino))) {
      return Promise.resolve(this.lookedUp(ino, directory));
    }
    const listed = this.listingAhead.missed(directory);
    return listed === undefined
      ? this.lookupAsk(directory, name)
      : this.lookupListed(listed, directory, name);
  }
  /** A look of the mount itself: the entry that it is about, whatever is being given back. */
  private lookupOwn(name: Buffer, caller?: Caller): Promise<Entry> {
    const { kernel } = this.table;
    const node = kernel.lookedFor(name.toString(), caller?.pid);
    if (node === undefined) return Promise.reject(NOT_FOUND);
    this.table.addLookup(node);
    return Promise.resolve({
      ...this.entryOf(node, undefined),
      attributesValidMs: LOOK_VALID_MS,
    });
  }
  private async lookupListed(listed: Promise<void>, directory: Node, name: Buffer): Promise<Entry> {
    await listed;
    const ino = this.table.names.find(directory, name);
    if (ino === 0) throw NOT_FOUND;
    if (ino !== undefined && this.table.valid(this.table.get(ino))) {
      return this.lookedUp(ino, directory);
    }
    return this.lookupAsk(directory, name);
  }
  private async lookupKnown(ino: Ino, parent: Node): Promise<Entry> {
    await this.known(ino);
    return this.lookedUp(ino, parent);
  }
  private async lookupAsk(directory: Node, name: Buffer): Promise<Entry> {
    const reply = await this.mds.call({ op: "lookup", parent: directory.ino, name });
    const inode = reply.answer.inode;
    if (reply.notFound || inode === undefined) throw NOT_FOUND;
    return this.lookedUp(inode.ino, directory);
  }

  forget(ino: Ino, count: number): void {
    this.table.forget(ino, count);
  }

  getattr(ino: Ino, _handle?: number, caller?: Caller): Promise<Entry> {
    const node = this.table.get(ino);
    if (caller !== undefined && caller.pid === node.look?.pid) node.look.wasLost = true;
    const counting = node.space?.pending;
    if (counting === undefined && this.table.valid(node) && !node.sizeUnsure) {
      return Promise.resolve(this.entryOf(node, undefined));
    }
    const known = (): Promise<Node> => this.known(ino);
    const asked = counting === undefined ? known() : counting.then(known);
    return asked.then(async (found) => {
      const isLook = caller !== undefined && caller.pid === found.look?.pid;
      if (found.sizeUnsure && !isLook) await this.files.makeSureOfSize(found);
      return this.entryOf(found, undefined);
    });
  }

  async setattr(ino: Ino, changes: SetAttributes, caller: Caller): Promise<Entry> {
    const actor = this.actor(caller);
    const { size } = changes;
    const rest = {
      ...(changes.mode === undefined ? {} : { mode: changes.mode & 0o7777 }),
      ...(changes.uid === undefined ? {} : { uid: changes.uid }),
      ...(changes.gid === undefined ? {} : { gid: changes.gid }),
      ...timeOf("atimeNs", changes.atimeNs, actor),
      ...(size === undefined ? timeOf("mtimeNs", changes.mtimeNs, actor) : {}),
    };
    if (size !== undefined) {
      const node = await this.known(ino);
      if ((node.inode!.mode & S_IFMT) === S_IFDIR) {
        throw new DssError("IsDirectory", "truncate of a directory");
      }
      if ((node.inode!.mode & S_IFMT) !== S_IFREG) {
        throw new DssError("InvalidArgument", "truncate of what is no regular file");
      }
      await this.files.resize(node, size, actor, {
        clearSuid: changes.killPrivileges === true,
        ...timeOf("mtimeNs", changes.mtimeNs, actor),
      });
    }
    const clearSuid = changes.killPrivileges === true && size === undefined;
    if (Object.keys(rest).length > 0 || clearSuid) {
      const node = this.table.get(ino);
      const { mtimeNs, atimeNs } = rest as { mtimeNs?: bigint; atimeNs?: bigint };
      if (atimeNs !== undefined) this.table.accessTimes.forget(ino);
      // Ours to say while exclusive, and said before the answer, so that a recall in between
      // repeats it.
      if (mtimeNs !== undefined && node.mode === "exclusive") node.inode!.mtimeNs = mtimeNs;
      const request = {
        ...{ op: "setattr" as const, ino, ...rest, actor },
        ...(clearSuid ? { clearSuid } : {}),
      };
      if (!this.table.local.setattr(request)) {
        await this.change(request, caller).catch((error: unknown) => {
          if (!outlives(node, error)) throw error;
          alter(node, request);
        });
      }
      if (mtimeNs !== undefined) this.files.keepAgain(node);
      // An access control list follows the mode.
      if (rest.mode !== undefined) this.table.get(ino).xattrs = undefined;
    }
    const node = await this.known(ino);
    return this.entryOf(node, undefined);
  }

  async readlink(ino: Ino): Promise<Buffer> {
    const node = await this.known(ino);
    const { inode } = node;
    this.table.accessTimes.note(node);
    if (inode?.target === undefined) {
      throw new DssError("InvalidArgument", "readlink of what is no symbolic link");
    }
    return inode.target;
  }

  // ---- Names -----------------------------------------------------------------------------------

  private async make(
    parent: Ino,
    name: Buffer,
    mode: number,
    caller: Caller,
    options: { rdev?: number; target?: Buffer; exclusive?: boolean } = {},
  ): Promise<{ inode: Inode; created: boolean }> {
    const { rdev = 0, target, exclusive = true } = options;
    const earlier = await this.earlier("create", caller);
    if (earlier !== undefined && (await this.isDone(earlier, parent, name))) {
      const { inode } = await this.known(earlier.ino || inoOf(earlier.request));
      return { inode: inode!, created: inode!.ino === inoOf(earlier.request) };
    }
    const masked = target === undefined ? mode & ~caller.umask : mode;
    const making = {
      ...{ parent, name, mode: masked, rdev, exclusive, actor: this.actor(caller) },
      ...(masked === mode ? {} : { unmasked: mode }),
      ...(target === undefined ? {} : { target }),
    };
    const made = this.table.local.make(making, caller.cause);
    if (made !== undefined) return { inode: made, created: true };
    const ino = await this.mds.inos.next();
    const reply = await this.change({ op: "create", ...making, ino }, caller);
    const { inode } = reply.answer;
    if (inode === undefined) throw new DssError("Malformed", "create brought no inode");
    return { inode, created: inode.ino === ino };
  }

  async symlink(parent: Ino, name: Buffer, target: Buffer, caller: Caller): Promise<Entry> {
    const { inode } = await this.make(parent, name, S_IFLNK | 0o777, caller, { target });
    return this.lookedUp(inode.ino, this.table.get(parent));
  }
  async mknod(
    parent: Ino,
    name: Buffer,
    mode: number,
    rdev: number,
    caller: Caller,
  ): Promise<Entry> {
    const { inode } = await this.make(parent, name, mode, caller, { rdev });
    return this.lookedUp(inode.ino, this.table.get(parent));
  }
  async mkdir(parent: Ino, name: Buffer, mode: number, caller: Caller): Promise<Entry> {
    const { inode } = await this.make(parent, name, S_IFDIR | (mode & 0o7777), caller);
    return this.lookedUp(inode.ino, this.table.get(parent));
  }

  async create(
    parent: Ino,
    name: Buffer,
    mode: number,
    flags: number,
    caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<Entry & OpenReply> {
    const exclusive = (flags & O_EXCL) !== 0;
    const type = (mode & S_IFMT) === 0 ? S_IFREG : 0;
    const { inode, created } = await this.make(parent, name, mode | type, caller, { exclusive });
    const node = this.table.get(inode.ino);
    const id = this.nextHandle++;
    const open = this.files.register(node, id, flags, caller.cause);
    try {
      while (node.removing !== undefined) await node.removing;
      // Somebody else had made it since the kernel looked.
      if ((flags & O_TRUNC) !== 0 && !created) {
        const clearSuid = options?.killPrivileges === true;
        await this.files.resize(node, 0, this.actor(caller), { clearSuid });
      }
      return { ...this.lookedUp(inode.ino, this.table.get(parent)), ...open };
    } catch (error) {
      await this.files.release(inode.ino, id);
      throw error;
    }
  }

  async tmpfile(
    parent: Ino,
    mode: number,
    flags: number,
    caller: Caller,
  ): Promise<Entry & OpenReply> {
    const found = await this.earlier("tmpfile", caller);
    const earlier = found?.unsure === true ? undefined : found;
    const ino = earlier === undefined ? await this.mds.inos.next() : inoOf(earlier.request);
    const unmasked = S_IFREG | (mode & 0o7777);
    const masked = unmasked & ~caller.umask;
    const node = this.table.get(ino);
    const id = this.nextHandle++;
    // Open before it exists, so that it is known as ours from the first answer on.
    const open = this.files.register(node, id, flags, caller.cause);
    const making: Request = {
      ...{ op: "tmpfile", parent, ino, mode: masked, actor: this.actor(caller) },
      ...(masked === unmasked ? {} : { unmasked }),
    };
    try {
      if (earlier === undefined) await this.change(making, caller);
      else await this.known(ino);
      node.orphan = true;
      return { ...this.lookedUp(ino, this.table.get(parent)), ...open };
    } catch (error) {
      await this.files.release(ino, id);
      throw error;
    }
  }

  /** What a name stands for now, for the operations that take it away. */
  private async childOf(parent: Ino, name: Buffer): Promise<Node | undefined> {
    const directory = this.table.get(parent);
    let ino = this.table.names.find(directory, name);
    if (ino === undefined) {
      const reply = await this.mds.call({ op: "lookup", parent, name });
      ino = reply.answer.inode?.ino ?? 0;
    }
    return ino === 0 ? undefined : this.table.get(ino);
  }

  /** Runs a removal of one of the node's names; opens that come meanwhile wait for its outcome. */
  private async removing(
    node: Node | undefined,
    run: (stillOpen: boolean) => Promise<Inode | undefined>,
  ): Promise<void> {
    if (node === undefined) {
      const removed = await run(false);
      if (removed?.nlink === 0) this.table.gone(this.table.get(removed.ino));
      return;
    }
    while (node.removing !== undefined) await node.removing;
    let end = (): void => undefined;
    node.removing = new Promise<void>((resolve) => (end = resolve));
    this.table.noteUsed(node);
    const stillOpen = node.opens > 0;
    const writer = stillOpen ? undefined : node.data?.writer;
    try {
      if (!stillOpen && node.inode?.nlink === 1) await this.table.leaveToOthers(node);
      await writer?.hold();
      const removed = await run(stillOpen);
      if (removed === undefined || removed.nlink > 0) return;
      if (removed.ino !== node.ino) this.table.gone(this.table.get(removed.ino));
      else if (stillOpen) await this.orphaned(node);
      else this.table.gone(node);
    } finally {
      writer?.resume();
      node.removing = undefined;
      end();
      this.table.noteIdle(node);
    }
  }
  private async orphaned(node: Node): Promise<void> {
    node.orphan = true;
    if (node.opens > 0) return;
    // The last close came while the leader was asked.
    await this.files.lastClose(node);
  }

  async unlink(parent: Ino, name: Buffer, caller: Caller): Promise<void> {
    const earlier = await this.earlier("unlink", caller);
    if (earlier !== undefined && (await this.isDone(earlier, parent, name))) return;
    const node = await this.childOf(parent, name);
    if (node === undefined) throw NOT_FOUND;
    const actor = this.actor(caller);
    const { local } = this.table;
    this.listingAhead.noteRemoval(parent);
    if (local.unlink(parent, name, node, actor, caller.cause)) return;
    const adopted =
      this.adopted(parent) ??
      (local.lacksChild(parent, node) ? this.adoptedChildren(parent) : undefined);
    if (adopted !== undefined) {
      await adopted;
      if (local.unlink(parent, name, node, actor, caller.cause)) return;
    }
    await this.removing(node, async (stillOpen) => {
      const reply = await this.change({ op: "unlink", parent, name, stillOpen, actor }, caller);
      return reply.answer.removed;
    });
  }
  /** Whoever removes one name of a directory often removes the others, too. */
  private adopted(parent: Ino): Promise<void> | undefined {
    if (!this.table.local.lacksDirectory(parent)) return undefined;
    return this.listingAhead.adopt(this.table.get(parent));
  }
  private adoptedChildren(parent: Ino): Promise<void> | undefined {
    const directory = this.table.get(parent);
    return this.listingAhead.adopt(directory) ?? this.listingAhead.missed(directory);
  }
  async rmdir(parent: Ino, name: Buffer, caller: Caller): Promise<void> {
    const earlier = await this.earlier("rmdir", caller);
    if (earlier !== undefined && (await this.isDone(earlier, parent, name))) return;
    const actor = this.actor(caller);
    const { local } = this.table;
    if (local.rmdir(parent, name, actor, caller.cause)) return;
    const adopted = this.adopted(parent);
    if (adopted !== undefined) {
      await adopted;
      if (local.rmdir(parent, name, actor, caller.cause)) return;
    }
    const reply = await this.change({ op: "rmdir", parent, name, actor }, caller);
    const { removed } = reply.answer;
    if (removed !== undefined) this.table.gone(this.table.get(removed.ino));
  }
  async rename(
    parent: Ino,
    name: Buffer,
    newParent: Ino,
    newName: Buffer,
    flags: RenameFlags,
    caller: Caller,
  ): Promise<void> {
    const earlier = await this.earlier("rename", caller);
    if (earlier !== undefined && (await this.isDone(earlier, parent, name))) return;
    const { noReplace, exchange } = flags;
    const replaced = exchange || noReplace ? undefined : await this.childOf(newParent, newName);
    const moved = this.table.names.find(this.table.get(parent), name) ?? 0;
    const actor = this.actor(caller);
    if (replaced !== undefined) await this.files.settled(await this.childOf(parent, name));
    await this.removing(replaced, async (stillOpen) => {
      const reply = await this.change(
        {
          op: "rename",
          parent,
          name,
          newParent,
          newName,
          noReplace,
          exchange,
          stillOpen,
          actor,
        },
        caller,
        moved === 0 ? [] : [moved],
      );
      return reply.answer.removed;
    });
  }
  async link(ino: Ino, newParent: Ino, newName: Buffer, caller: Caller): Promise<Entry> {
    const actor = this.actor(caller);
    const earlier = await this.earlier("link", caller);
    if (earlier === undefined || !(await this.isDone(earlier, newParent, newName))) {
      await this.change({ op: "link", ino, parent: newParent, name: newName, actor }, caller);
    }
    const node = await this.known(ino);
    if (node.inode!.nlink > 0) node.orphan = false; // It was made without a name.
    return this.lookedUp(ino, this.table.get(newParent));
  }

  // ---- Files -----------------------------------------------------------------------------------

  open(
    ino: Ino,
    flags: number,
    caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<OpenReply> {
    const killPrivileges = options?.killPrivileges === true;
    const how = { killPrivileges, cause: caller.cause };
    return this.files.open(ino, this.nextHandle++, flags, this.actor(caller), how);
  }
  read(ino: Ino, handle: number, offset: number, length: number): Promise<Buffer[]> {
    return this.files.read(ino, handle, offset, length);
  }
  readDone(answer: readonly Buffer[]): void {
    this.cache.done(answer);
  }
  write(
    ino: Ino,
    handle: number,
    offset: number,
    data: Buffer,
    options: WriteOptions,
  ): Promise<number> {
    if (this.options.sync !== true) return this.files.write(ino, handle, offset, data, options);
    return this.files.write(ino, handle, offset, data, {
      ...options,
      flags: options.flags | O_SYNC,
    });
  }
  flush(ino: Ino, handle: number, lockOwner: bigint): Promise<void> {
    const unlocked = this.locks.closed(ino, lockOwner);
    const flush = (): Promise<void> => this.files.flush(ino, handle);
    return unlocked === undefined ? flush() : unlocked.then(flush);
  }
  release(ino: Ino, handle: number): Promise<void> {
    const unlocked = this.locks.released(handle);
    const release = (): Promise<void> => this.files.release(ino, handle);
    return unlocked === undefined ? release() : unlocked.then(release);
  }
  getlk(ino: Ino, handle: number, lock: FileLock): Promise<FileLock> {
    this.files.checkLockable(handle, ino);
    return this.locks.test(ino, lock);
  }
  setlk(
    ino: Ino,
    handle: number,
    lock: FileLock,
    { wait }: { wait: boolean },
    caller: Caller,
  ): Promise<void> {
    if (lock.mode !== "unlocked") this.files.checkLockable(handle, ino);
    return this.locks.set(ino, handle, lock, { wait, caller });
  }
  fsync(ino: Ino, handle: number): Promise<void> {
    return this.files.fsync(ino, handle);
  }
  fallocate(
    ino: Ino,
    handle: number,
    offset: number,
    length: number,
    mode: number,
    caller: Caller,
  ): Promise<void> {
    // The request does not say, as a write's does, whether set-id bits have to go.
    const killPrivileges = caller.uid !== 0;
    return this.files.fallocate(ino, handle, { offset, length, mode, killPrivileges });
  }
  copyFileRange(
    source: FilePosition,
    target: FilePosition,
    length: number,
    caller: Caller,
  ): Promise<number> {
    // As for fallocate.
    const killPrivileges = caller.uid !== 0;
    const done = (pieces: readonly Buffer[]): void => this.cache.done(pieces);
    return this.files.copy(source, target, length, { killPrivileges, done });
  }
  lseek(ino: Ino, handle: number, offset: number, whence: number): Promise<number> {
    return this.files.lseek(ino, handle, offset, whence);
  }
  /** sync(2): all data and all changes. */
  async syncfs(): Promise<void> {
    await this.table.flushAll();
    await this.mds.waitSafe();
    const failure = this.table.takeFailure();
    if (failure !== undefined) throw writeBackError(failure);
  }

  // ---- Directories -----------------------------------------------------------------------------

  opendir(ino: Ino): Promise<OpenDirReply> {
    const node = this.table.get(ino);
    const id = this.nextHandle++;
    this.options.record?.opened({ id, ino, flags: 0, cause: 0, isDirectory: true });
    const handle = new DirectoryHandle(id, ino);
    this.directories.set(id, handle);
    node.opens++;
    this.table.noteUsed(node);
    return Promise.resolve({ handle: id, ...this.kernelListings.opened(node, handle) });
  }
  releasedir(ino: Ino, handle: number): Promise<void> {
    const listing = this.directories.get(handle);
    if (listing !== undefined) {
      this.directories.delete(handle);
      this.options.record?.closed(handle);
      const node = this.table.get(ino);
      this.kernelListings.closed(node, listing);
      node.opens--;
      this.table.noteIdle(node);
    }
    return DONE;
  }
  fsyncdir(): Promise<void> {
    return this.mds.waitSafe();
  }
  entriesTaken(inos: readonly Ino[]): void {
    for (const ino of inos) this.table.addLookup(this.table.get(ino));
  }

  async readdir(
    ino: Ino,
    handle: number,
    cookie: number,
    options: { maxEntries: number; plus: boolean },
  ): Promise<Iterable<DirEntry>> {
    const listing = this.directories.get(handle);
    if (listing === undefined || listing.ino !== ino) {
      throw new DssError("BadHandle", `directory handle ${handle} is not open`);
    }
    const after = cookie <= COOKIE_DOTDOT ? 0 : cookie - COOKIE_DOTDOT;
    if (cookie === 0) this.table.accessTimes.listed(this.table.get(ino));
    if (after === 0) listing.rewind();
    const start = this.positionIn(listing, after);
    const plus = options.plus && listing.wantsAttributes(this.table.get(ino), cookie);
    this.kernelListings.asked(this.table.get(ino), listing);
    // The first page brings them to this mount in any case: its look-ups are answered here.
    if (start < 0) await this.fetchListing(listing, after, plus || after === 0);
    else if (start > 0) this.listAhead(listing, plus);
    const dropped = this.kernelListings.before(this.table.get(ino), listing);
    if (dropped !== undefined) await dropped;
    // Of a large directory a few names first: what their reader does with them says the rest.
    const isFirst = options.plus && !plus && after === 0;
    const most = isFirst ? FIRST_NAMES : Infinity;
    if (!plus && !isFirst) listing.hadAttributes = false;
    if (listing.end && Math.max(start, 0) === listing.entries.length) {
      this.kernelListings.ended(this.table.get(ino), listing);
    } else if (plus) this.kernelListings.given(this.table.get(ino), listing);
    return this.entries(listing, cookie, Math.max(start, 0), { plus, most });
  }

  /**
   * Index of the first entry after `cookie` in the page in hand; -1: another page is needed. The
   * kernel shares what it is given with other readers, who may have begun after the last change.
   */
  private positionIn(listing: DirectoryHandle, cookie: number): number {
    const { entries, from } = listing;
    if (from < 0 || cookie < from) return -1;
    let low = 0;
    let high = entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (entries[middle]!.cookie > cookie) high = middle;
      else low = middle + 1;
    }
    if (listing.pageEpoch !== this.table.get(listing.ino).listingEpoch) listing.discardFrom(low);
    return low === listing.entries.length && !listing.end ? -1 : low;
  }

  private async fetchListing(
    listing: DirectoryHandle,
    after: number,
    plus: boolean,
  ): Promise<void> {
    const { ino } = listing;
    if (after === 0) await this.listingAhead.listed(this.table.get(ino));
    const own = this.table.names.list(this.table.get(ino), after, plus);
    if (own !== undefined) {
      listing.entries = own;
      listing.from = after;
      listing.end = true;
      listing.pageEpoch = this.table.get(ino).listingEpoch;
      return;
    }
    const continues = listing.continuesAt(after);
    const reply = await this.pageSince(listing, after, plus);
    const node = this.table.get(ino);
    if (after === 0) listing.whole = node.mode === "none" ? -1 : node.namesEpoch;
    else if (!continues || listing.whole !== node.namesEpoch) listing.whole = -1;
    listing.entries = reply.answer.entries ?? [];
    listing.from = after;
    listing.end = reply.answer.end === true || listing.entries.length === 0;
    if (listing.end && listing.whole === node.namesEpoch) this.table.names.noteComplete(node);
  }

  /** Asked for again when names came or went meanwhile, unless they do so all the time. */
  private async pageSince(
    listing: DirectoryHandle,
    after: number,
    plus: boolean,
  ): Promise<MdsReply> {
    const { ino } = listing;
    for (let round = 1; ; round++) {
      const { listingEpoch, mode } = this.table.get(ino);
      const ahead = await listing.takeAhead(after, plus, listingEpoch);
      const reply = ahead ?? (await this.askPage(ino, after, plus));
      const node = this.table.get(ino);
      // The answer that brings the capability is as new as that.
      const isNew = mode === "none" && reply.grants.some((grant) => isHeld(node, grant));
      listing.pageEpoch = isNew ? node.listingEpoch : listingEpoch;
      if (listing.pageEpoch === node.listingEpoch || round === PAGE_ROUNDS) return reply;
    }
  }
  private askPage(ino: Ino, cookie: number, plus: boolean): Promise<MdsReply> {
    return this.mds.call({ op: "readdir", ino, cookie, limit: LISTING_PAGE, plus });
  }
  /** Who comes back for more of a page wants the next one, too: the leader works meanwhile. */
  private listAhead(listing: DirectoryHandle, plus: boolean): void {
    const last = listing.entries[listing.entries.length - 1];
    const { ahead } = listing;
    if (listing.end || last === undefined) return;
    if (ahead?.cookie === last.cookie && (ahead.plus || !plus)) return;
    const epoch = this.table.get(listing.ino).listingEpoch;
    const reply = this.askPage(listing.ino, last.cookie, plus).catch((error: unknown) => {
      if (!isDssError(error)) throw error;
      return undefined; // Whoever needs it asks again, and hears what is wrong.
    });
    listing.ahead = { epoch, cookie: last.cookie, plus, reply };
  }

  private *entries(
    listing: DirectoryHandle,
    cookie: number,
    start: number,
    { plus, most }: { plus: boolean; most: number },
  ): Iterable<DirEntry> {
    const directory = this.table.get(listing.ino);
    const { names } = directory;
    const isPresent = listing.pageEpoch === directory.listingEpoch;
    if (cookie < COOKIE_DOT) {
      yield { name: DOT, ino: listing.ino, type: S_IFDIR, cookie: COOKIE_DOT };
    }
    if (cookie < COOKIE_DOTDOT) {
      yield { name: DOTDOT, ino: directory.parent, type: S_IFDIR, cookie: COOKIE_DOTDOT };
    }
    const end = Math.min(listing.entries.length, start + most);
    for (let at = start; at < end; at++) {
      const entry = listing.entries[at]!;
      const listed: DirEntry = {
        name: entry.name,
        ino: entry.ino,
        type: entry.type,
        cookie: entry.cookie + COOKIE_DOTDOT,
      };
      if (plus) {
        // Changed since the page came? Then the kernel asks for it by name.
        const node = this.table.peek(entry.ino);
        const same = names === undefined ? isPresent : names.get(nameKey(entry.name)) === entry.ino;
        if (node !== undefined && same && this.table.valid(node) && node.inode!.nlink > 0) {
          listed.entry = this.entryOf(node, directory);
        }
      }
      yield listed;
    }
  }

  async statfs(): Promise<StatFs> {
    const now = this.clock.now();
    if (this.usage !== undefined && now - this.usage.at < STATFS_VALID_MS) return this.usage.stat;
    const { usage } = (await this.mds.call({ op: "statfs" })).answer;
    if (usage === undefined) throw new DssError("Malformed", "statfs was answered without figures");
    const free = Math.floor(usage.available / BLOCK);
    // Inodes are bounded by the coordination service's memory only; a large round figure keeps
    // installers happy.
    const filesFree = 2 ** 32;
    const stat: StatFs = {
      blockSize: BLOCK,
      blocks: Math.floor(usage.total / BLOCK),
      blocksFree: free,
      blocksAvailable: free,
      files: usage.inodes + filesFree,
      filesFree,
      nameMax: 255,
    };
    this.usage = { at: now, stat };
    return stat;
  }

  // ---- Extended attributes ---------------------------------------------------------------------

  private async xattrs(ino: Ino): Promise<Map<string, Buffer>> {
    const node = await this.known(ino);
    if (this.table.valid(node)) {
      if (node.xattrs !== undefined) return node.xattrs;
      if (node.inode!.xattrCount === 0) return NO_XATTRS;
    }
    const { seq } = node;
    const reply = await this.mds.call({ op: "getxattrs", ino });
    const found = new Map<string, Buffer>();
    for (const { name, value } of reply.answer.xattrs ?? []) found.set(nameKey(name), value);
    // Kept only if the capability was there all the time.
    const current = this.table.get(ino);
    if (current.seq === seq && this.table.lasting(current)) current.xattrs = found;
    return found;
  }

  getxattr(ino: Ino, name: Buffer): Promise<Buffer> {
    // `ls -l` asks this of every file.
    const node = this.table.peek(ino);
    const hasNone = node?.inode?.xattrCount === 0 && this.table.valid(node);
    if (hasNone && nameKey(name) === ACL_ACCESS) return Promise.reject(NO_ATTRIBUTE);
    return this.getxattrOf(ino, name);
  }
  private async getxattrOf(ino: Ino, name: Buffer): Promise<Buffer> {
    if (isDirectoryXattr(name)) return getDirectoryXattr(this.mds, ino, name);
    checkXattrName(name);
    const value = (await this.xattrs(ino)).get(nameKey(name));
    if (value !== undefined) return value;
    // Programs that look for labels ask for no other file's then (where SELinux is in force the
    // kernel answers by itself).
    if (nameKey(name) === LABEL) throw NO_LABELS;
    throw NO_ATTRIBUTE;
  }
  async listxattr(ino: Ino, caller: Caller): Promise<Buffer> {
    const names: Buffer[] = [];
    for (const name of (await this.xattrs(ino)).keys()) {
      // The kernel hides their values from everybody else, but not their names.
      if (caller.uid !== 0 && name.startsWith("trusted.")) continue;
      names.push(Buffer.from(`${name}\0`, "latin1"));
    }
    return Buffer.concat(names);
  }
  async setxattr(
    ino: Ino,
    name: Buffer,
    value: Buffer,
    flags: { create: boolean; replace: boolean; clearSgid?: boolean },
    caller: Caller,
  ): Promise<void> {
    const { uid } = caller;
    if (isDirectoryXattr(name)) return setDirectoryXattr(this.mds, { ino, name, value, uid });
    checkXattrName(name);
    if (name.length > XATTR_NAME_MAX) throw new DssError("RangeTooLarge", "name too long");
    if (value.length > XATTR_VALUE_MAX) throw new DssError("TooBig", "value exceeds 64 KiB");
    const { create, replace } = flags;
    if ((await this.earlier("setxattr", caller)) !== undefined) return;
    const clearSgid = flags.clearSgid === true ? { clearSgid: true } : {};
    const actor = this.actor(caller);
    const how = { create, replace, ...clearSgid, actor };
    try {
      await this.change({ op: "setxattr", ino, name, value, ...how }, caller);
    } finally {
      this.table.get(ino).xattrs = undefined;
    }
  }
  async removexattr(ino: Ino, name: Buffer, caller: Caller): Promise<void> {
    if (isDirectoryXattr(name)) {
      return setDirectoryXattr(this.mds, { ino, name, value: Buffer.from("0"), uid: caller.uid });
    }
    checkXattrName(name);
    if ((await this.earlier("removexattr", caller)) !== undefined) return;
    try {
      await this.change({ op: "removexattr", ino, name, actor: this.actor(caller) }, caller);
    } finally {
      this.table.get(ino).xattrs = undefined;
    }
  }
}

const NO_XATTRS: Map<string, Buffer> = new Map();
const XATTR_NAMESPACES = ["user.", "trusted.", "security."].map((prefix) => Buffer.from(prefix));

/** As the local file systems: other namespaces do not exist, but for the access control lists. */
function checkXattrName(name: Buffer): void {
  const text = nameKey(name);
  if (text === ACL_ACCESS || text === ACL_DEFAULT) return;
  const prefix = XATTR_NAMESPACES.find((known) => name.subarray(0, known.length).equals(known));
  if (prefix === undefined) {
    throw new DssError("NotSupported", "only user., trusted. and security. attributes are kept");
  }
  if (name.length === prefix.length) {
    throw new DssError("InvalidArgument", "an attribute needs a name after its namespace");
  }
}

type InheritedTake = MdsClient["inherited"]["take"];
function inoOf(request: Request): Ino {
  return "ino" in request ? request.ino : 0;
}

function timeOf<Key extends "atimeNs" | "mtimeNs">(
  key: Key,
  value: bigint | "now" | undefined,
  actor: Actor,
): { [K in Key]?: bigint } {
  if (value === undefined) return {};
  return { [key]: value === "now" ? actor.timeNs : value } as { [K in Key]?: bigint };
}
function isHeld(node: Node, { ino, seq }: Grant): boolean {
  return ino === node.ino && node.mode !== "none" && seq === node.seq;
}

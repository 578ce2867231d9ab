/**
 * The contract between a FUSE driver (client-fs/fuse: the kernel protocol driver and the
 * fuse-native driver) and the file system behind it (client-fs/vfs). Types, and where
 * a mount shows itself.
 *
 * Shapes: offsets and sizes are bytes (u53). Times are nanoseconds since 1970 as bigint. Node ids
 * are inode numbers; the root is 1. A failed operation throws a `DssError`, whose `errno` goes to
 * the caller. A method that is missing answers ENOSYS (which tells the kernel not to ask again).
 */
import type { Ino } from "../cluster/base/ids.js";

export interface Caller {
  uid: number;
  gid: number;
  pid: number;
  /**
   * Not yet taken from the modes of new files: a default access control list of the directory
   * counts instead of it.
   */
  umask: number;
  /** The kernel's number of the request, the same when it is sent again; absent: 0. */
  cause?: number;
  /** Set while the request runs when the caller was interrupted by a signal; may be ignored. */
  interrupted?: boolean;
  /** Called at that moment, by who waits for long: the request should end with EINTR. */
  onInterrupt?: () => void;
}

/** flock(2) (the whole file, owned by an open file) or fcntl(2) (a range). */
export interface FileLock {
  kind: "flock" | "posix";
  /** Who holds it; the kernel's name, opaque. */
  owner: bigint;
  mode: "shared" | "exclusive" | "unlocked";
  /** First and last byte; 2^63 - 1 is the end of any file. */
  start: bigint;
  end: bigint;
  pid: number;
}

export interface Attributes {
  ino: Ino;
  /** File type and permission bits, as in st_mode. */
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  size: number;
  /** 512-byte units. */
  blocks: number;
  /** Preferred I/O size in bytes. */
  blksize: number;
  atimeNs: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
  /** When it was made. */
  btimeNs: bigint;
}

export interface Entry {
  attributes: Attributes;
  /** Differs when an inode number is reused; dss never reuses one, so always 0. */
  generation: number;
  /** How long the kernel may believe the name and the attributes, in milliseconds. */
  entryValidMs: number;
  attributesValidMs: number;
}

/** Flags of open(2) as the kernel passes them: O_ACCMODE, O_APPEND, O_TRUNC, O_DIRECT, O_SYNC… */
export type OpenFlags = number;

export interface OpenReply {
  handle: number;
  /** Bypass the kernel's page cache (FOPEN_DIRECT_IO, with FOPEN_PARALLEL_DIRECT_WRITES). */
  directIo: boolean;
  /** Pages cached at an earlier open are still good (FOPEN_KEEP_CACHE). */
  keepCache: boolean;
}

export interface OpenDirReply {
  handle: number;
  /** Let the kernel cache the listing (FOPEN_CACHE_DIR). */
  cacheListing: boolean;
  /** A listing cached at an earlier open is still good (FOPEN_KEEP_CACHE). */
  keepListing: boolean;
}

export interface DirEntry {
  name: Buffer;
  ino: Ino;
  /** File type bits of st_mode (S_IFMT). */
  type: number;
  /** Position after this entry, to continue from (u53 > 0). */
  cookie: number;
  /** Present when the listing asked for attributes (readdirplus); absent for "." and "..". */
  entry?: Entry;
}

/** Only the given members change. `"now"` is the server's time. */
export interface SetAttributes {
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  atimeNs?: bigint | "now";
  mtimeNs?: bigint | "now";
  ctimeNs?: bigint;
  /** Clear set-uid and set-gid bits as a write or chown by an unprivileged caller does. */
  killPrivileges?: boolean;
  /** The handle of ftruncate and friends. */
  handle?: number;
}

/** A place in an open file. */
export interface FilePosition {
  ino: Ino;
  handle: number;
  offset: number;
}

export interface StatFs {
  blockSize: number;
  blocks: number;
  blocksFree: number;
  blocksAvailable: number;
  files: number;
  filesFree: number;
  nameMax: number;
}

export interface RenameFlags {
  noReplace: boolean;
  exchange: boolean;
}

/**
 * What the file system asks of the driver, outside any request. Never on the event loop's stack.
 */
/** `.dss` in the root of a mount. Beyond every inode number that the metadata servers give. */
export const OWN_FOLDER: Ino = 2 ** 52;
export const OWN_FOLDER_NAME = ".dss";

export interface KernelNotifier {
  /** Drop cached attributes and the pages of [offset, offset + length); length 0 means to the end.
   * Resolves when the kernel has done it (it may write mapped pages back first). */
  invalidateInode(ino: Ino, offset: number, length: number): Promise<void>;
  /**
   * Looks for a name of `OWN_FOLDER`, as any program would with stat(2): the kernel asks for it
   * with `lookup`, and takes size and times from the entry. Rejects with ShuttingDown while no
   * requests are read, with Disk when the mount is not found under its mount point, or the name
   * in it.
   */
  lookForOwn?(name: string): Promise<void>;
  /** Drop one name. Can wait for the directory's lock: prefer `invalidateAllEntries`. */
  invalidateEntry(parent: Ino, name: Buffer): Promise<void>;
  /**
   * Make every cached name be looked up again (FUSE_NOTIFY_INC_EPOCH, lock-free); false when the
   * kernel lacks it.
   */
  invalidateAllEntries(): Promise<boolean>;
}

export interface FileSystem {
  /** Called once, before any request. `uniqueNames` says whether `invalidateAllEntries` works. */
  init(notifier: KernelNotifier, kernel: { canInvalidateAllEntries: boolean }): void;
  /** The kernel has unmounted: flush everything; the process ends after this resolves. */
  destroy(): Promise<void>;

  lookup(parent: Ino, name: Buffer, caller: Caller): Promise<Entry>;
  /** The kernel dropped `count` references to the inode. Never fails, never waits. */
  forget(ino: Ino, count: number): void;
  getattr(ino: Ino, handle: number | undefined, caller: Caller): Promise<Entry>;
  setattr(ino: Ino, changes: SetAttributes, caller: Caller): Promise<Entry>;
  readlink(ino: Ino): Promise<Buffer>;
  symlink(parent: Ino, name: Buffer, target: Buffer, caller: Caller): Promise<Entry>;
  mknod(parent: Ino, name: Buffer, mode: number, rdev: number, caller: Caller): Promise<Entry>;
  mkdir(parent: Ino, name: Buffer, mode: number, caller: Caller): Promise<Entry>;
  unlink(parent: Ino, name: Buffer, caller: Caller): Promise<void>;
  rmdir(parent: Ino, name: Buffer, caller: Caller): Promise<void>;
  rename(
    parent: Ino,
    name: Buffer,
    newParent: Ino,
    newName: Buffer,
    flags: RenameFlags,
    caller: Caller,
  ): Promise<void>;
  link(ino: Ino, newParent: Ino, newName: Buffer, caller: Caller): Promise<Entry>;

  /** `killPrivileges`: with O_TRUNC, clear set-uid and set-gid bits as in SetAttributes. */
  open(
    ino: Ino,
    flags: OpenFlags,
    caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<OpenReply>;
  create(
    parent: Ino,
    name: Buffer,
    mode: number,
    flags: OpenFlags,
    caller: Caller,
    options?: { killPrivileges: boolean },
  ): Promise<Entry & OpenReply>;
  /** O_TMPFILE: a regular file without a name, open; `link` may give it one. */
  tmpfile?(parent: Ino, mode: number, flags: OpenFlags, caller: Caller): Promise<Entry & OpenReply>;
  /**
   * Pieces whose lengths add up to the bytes read; fewer than `length` only at the end of the file.
   * They stay as they are until `readDone`. */
  read(ino: Ino, handle: number, offset: number, length: number): Promise<Buffer[]>;
  /** The driver has no more use for this answer of `read`. Called once for each. */
  readDone?(answer: readonly Buffer[]): void;
  /**
   * `data` is the driver's buffer and is reused when the promise settles: whoever keeps it copies
   * it.
   * Returns the bytes taken, which are all. `killPrivileges` as in SetAttributes. */
  write(
    ino: Ino,
    handle: number,
    offset: number,
    data: Buffer,
    options: { flags: OpenFlags; killPrivileges: boolean; fromPageCache: boolean; cause?: number },
  ): Promise<number>;
  /** close(2) of one descriptor: reports a failed write-back. */
  flush(ino: Ino, handle: number, lockOwner: bigint): Promise<void>;
  release(ino: Ino, handle: number, flags: OpenFlags): Promise<void>;
  fsync(ino: Ino, handle: number, dataOnly: boolean): Promise<void>;

  opendir(ino: Ino, flags: OpenFlags, caller: Caller): Promise<OpenDirReply>;
  /** Entries after `cookie` (0: from the start), "." and ".." first. The driver takes what fits its
   * reply, so the iterable may be lazy. */
  readdir(
    ino: Ino,
    handle: number,
    cookie: number,
    options: { maxEntries: number; plus: boolean },
  ): Promise<Iterable<DirEntry>>;
  /** The driver took these entries of a readdirplus: each counts as one lookup. */
  entriesTaken(inos: readonly Ino[]): void;
  releasedir(ino: Ino, handle: number): Promise<void>;
  fsyncdir(ino: Ino, handle: number, dataOnly: boolean): Promise<void>;

  statfs(ino: Ino): Promise<StatFs>;
  /** Without the four of them there are no extended attributes, and the kernel asks for none. */
  getxattr?(ino: Ino, name: Buffer, caller: Caller): Promise<Buffer>;
  setxattr?(
    ino: Ino,
    name: Buffer,
    value: Buffer,
    /** `clearSgid`: an access list set by someone who may not keep the set-group-id bit. */
    flags: { create: boolean; replace: boolean; clearSgid?: boolean },
    caller: Caller,
  ): Promise<void>;
  /** NUL-terminated names, one after the other. */
  listxattr?(ino: Ino, caller: Caller): Promise<Buffer>;
  removexattr?(ino: Ino, name: Buffer, caller: Caller): Promise<void>;

  fallocate?(
    ino: Ino,
    handle: number,
    offset: number,
    length: number,
    mode: number,
    caller: Caller,
  ): Promise<void>;
  /** The first lock in the way of `lock`, or one whose mode is "unlocked". */
  getlk?(ino: Ino, handle: number, lock: FileLock): Promise<FileLock>;
  /**
   * Fails with WouldBlock when it is not free; with `wait` until it is, or Interrupted or Deadlock.
   * Range locks of an owner end with the first `flush` of that owner, all others with `release`.
   */
  setlk?(
    ino: Ino,
    handle: number,
    lock: FileLock,
    options: { wait: boolean },
    caller: Caller,
  ): Promise<void>;
  /**
   * Copies up to `length` bytes, holes as holes; may copy fewer, and copies none only at the end of
   * the source. Ranges of one file do not overlap (the kernel sees to that).
   */
  copyFileRange?(
    source: FilePosition,
    target: FilePosition,
    length: number,
    caller: Caller,
  ): Promise<number>;
  lseek?(ino: Ino, handle: number, offset: number, whence: number): Promise<number>;
  syncfs?(): Promise<void>;
}

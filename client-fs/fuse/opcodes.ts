/**
 * The operations of the FUSE protocol, one row each: number, name, size of the fixed body, the
 * FileSystem method behind it, how the request is parsed for it and how its answer is encoded.
 * Every opcode up to Linux 6.18 has a row; one that dss does not serve says with which errno.
 *
 * `call` runs synchronously up to the file system's promise, and only WRITE's data may be looked at
 * after that: names and values are copied out (they are short), so the request's buffer is free
 * again at once. `encode` writes behind the header of the scratch message and returns the body's
 * length. Pure; owns no state.
 */
import { constants } from "node:os";
import { DssError } from "../../cluster/base/errors.js";
import type {
  Caller,
  DirEntry,
  Entry,
  FileLock,
  FileSystem,
  OpenReply,
  SetAttributes,
} from "../file-system.js";
import * as abi from "./abi.js";

const { ENOSYS, ENOTTY, EPROTO } = constants.errno;

/** One request while it is served. */
export class Request {
  /** The message; valid during `call` only. */
  message: Buffer;
  private view: DataView;
  readonly length: number;
  /** Identity of the request, the same when it is sent again. The kernel counts up from 2. */
  readonly key: number;
  readonly opcode: number;
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
  readonly caller: Caller;
  ino = 0;
  /** SETXATTR_EXT was negotiated. */
  extendedXattrs = false;
  /** Largest answer that the kernel takes, in bytes (listings, attributes, reads). */
  limit = 0;
  /** When it came, in milliseconds on the connection's clock; 0 when nobody measures. */
  startedMs = 0;

  constructor(message: Buffer, length: number) {
    const view = abi.viewOf(message);
    this.message = message;
    this.view = view;
    this.length = length;
    this.opcode = view.getUint32(abi.IN_OPCODE, true);
    this.uniqueLow = view.getUint32(abi.IN_UNIQUE, true);
    this.uniqueHigh = view.getUint32(abi.IN_UNIQUE + 4, true);
    this.key = requestKey(this.uniqueLow, this.uniqueHigh);
    this.caller = {
      uid: view.getUint32(abi.IN_UID, true),
      gid: view.getUint32(abi.IN_GID, true),
      pid: view.getUint32(abi.IN_PID, true),
      umask: 0,
      cause: this.key,
    };
  }

  nodeId(): number {
    return abi.viewedU53(this.view, abi.IN_NODE_ID, "StaleHandle");
  }
  /** Field of the body. */
  u32(offset: number): number {
    return this.view.getUint32(abi.IN_HEADER_SIZE + offset, true);
  }
  u53(offset: number): number {
    return abi.viewedU53(this.view, abi.IN_HEADER_SIZE + offset, "InvalidArgument");
  }
  /** A position in a file or a length of one: beyond 2^53 is EFBIG. */
  position(offset: number): number {
    return abi.viewedU53(this.view, abi.IN_HEADER_SIZE + offset, "FileTooLarge");
  }
  opaque(offset: number): bigint {
    return this.view.getBigUint64(abi.IN_HEADER_SIZE + offset, true);
  }
  /** Copy of the NUL-terminated string at `offset` of the body. */
  text(offset: number): Buffer {
    const start = abi.IN_HEADER_SIZE + offset;
    const end = this.message.indexOf(0, start);
    if (end < start || end >= this.length) {
      throw new DssError("Malformed", "FUSE request: a string has no end");
    }
    return Buffer.from(this.message.subarray(start, end));
  }
  /** As `text`, for a name in a directory. */
  name(offset: number): Buffer {
    const name = this.text(offset);
    if (name.length > abi.NAME_MAX) throw new DssError("NameTooLong", "name exceeds 255 bytes");
    return name;
  }
  /** `length` bytes of the request from `offset` of the body, not copied. */
  bytes(offset: number, length: number): Buffer {
    const start = abi.IN_HEADER_SIZE + offset;
    if (start + length > this.length) {
      throw new DssError("Malformed", "FUSE request: shorter than its data");
    }
    return this.message.subarray(start, start + length);
  }
  /** Its buffer goes back: a late look at it finds nothing. */
  forgetMessage(): void {
    this.message = NO_MESSAGE;
    this.view = NO_VIEW;
  }
  callerWith(umask: number): Caller {
    this.caller.umask = umask;
    return this.caller;
  }
}

const NO_MESSAGE = Buffer.alloc(0);
const NO_VIEW = abi.viewOf(NO_MESSAGE);

/** The kernel's request ids are far below 2^53; a re-sent request differs in the top bit only. */
export function requestKey(low: number, high: number): number {
  return (high & 0x7fff_ffff) * 2 ** 32 + low;
}

/** Where an answer goes. */
export interface Reply {
  /** Scratch message, big enough for every fixed-size answer; its header is written later. */
  readonly scratch: Buffer;
  /** Of the scratch message. */
  readonly view: DataView;
  /** Set by `encode` instead of using the scratch: sent as they are, behind the header. */
  pieces: readonly Buffer[] | undefined;
}

/** What must be undone when the kernel no longer wants the answer. */
export type Undo = (request: Request, fs: FileSystem, value: never) => void;

export interface Row {
  readonly opcode: number;
  readonly name: string;
  /** Least size of the body; a shorter request is malformed. */
  readonly bodySize: number;
  readonly method: keyof FileSystem | undefined;
  /** The message buffer is in use until the promise settles. */
  readonly keepsMessage: boolean;
  /** Answered with this errno when the row has no method. */
  readonly errno: number;
  readonly call: (request: Request, fs: FileSystem) => Promise<unknown>;
  readonly encode: (reply: Reply, value: unknown, request: Request, fs: FileSystem) => number;
  readonly undo: ((request: Request, fs: FileSystem, value: unknown) => void) | undefined;
  /** The answer has been handed to the kernel: its memory is free again. */
  readonly sent: ((fs: FileSystem, value: unknown) => void) | undefined;
}

interface Served<T> {
  bodySize: number;
  method: keyof FileSystem;
  call: (request: Request, fs: FileSystem) => Promise<T>;
  encode: (reply: Reply, value: T, request: Request, fs: FileSystem) => number;
  keepsMessage?: boolean;
  undo?: (request: Request, fs: FileSystem, value: T) => void;
  sent?: (fs: FileSystem, value: T) => void;
}

const rows: Row[] = [];

function served<T>(opcode: number, name: string, row: Served<T>): void {
  rows.push({
    opcode,
    name,
    bodySize: row.bodySize,
    method: row.method,
    keepsMessage: row.keepsMessage ?? false,
    errno: 0,
    call: row.call,
    encode: row.encode as Row["encode"],
    undo: row.undo as Row["undo"],
    sent: row.sent as Row["sent"],
  });
}

/** Opcodes that never reach the file system: answered with an errno, or by the connection. */
function notServed(opcode: number, name: string, errno: number, bodySize = 0): void {
  rows.push({
    opcode,
    name,
    bodySize,
    method: undefined,
    keepsMessage: false,
    errno,
    call: () => Promise.reject(new DssError("NotSupported", name)),
    encode: () => 0,
    undo: undefined,
    sent: undefined,
  });
}

const BODY = abi.OUT_HEADER_SIZE;
const nothing = (): number => 0;

function encodeEntry(reply: Reply, entry: Entry): number {
  abi.putEntry(reply.view, BODY, entry);
  return abi.ENTRY_OUT_SIZE;
}
function forgetEntry(_request: Request, fs: FileSystem, entry: Entry): void {
  fs.forget(entry.attributes.ino, 1);
}
function encodeAttributes(reply: Reply, entry: Entry): number {
  abi.putAttrOut(reply.view, BODY, entry);
  return abi.ATTR_OUT_SIZE;
}
function putOpen(scratch: Buffer, offset: number, handle: number, flags: number): void {
  abi.putU53(scratch, offset, handle);
  scratch.writeUInt32LE(flags, offset + 8);
  scratch.writeUInt32LE(0, offset + 12);
}
function openFlags(open: OpenReply): number {
  const cache = open.keepCache ? abi.FOPEN.KEEP_CACHE : 0;
  const direct = abi.FOPEN.DIRECT_IO | abi.FOPEN.PARALLEL_DIRECT_WRITES;
  return open.directIo ? cache | direct : cache;
}
function encodeCreated(reply: Reply, created: Entry & OpenReply): number {
  abi.putEntry(reply.view, BODY, created);
  putOpen(reply.scratch, BODY + abi.ENTRY_OUT_SIZE, created.handle, openFlags(created));
  return abi.ENTRY_OUT_SIZE + abi.OPEN_OUT_SIZE;
}
function forgetCreated(_request: Request, fs: FileSystem, created: Entry & OpenReply): void {
  const { ino } = created.attributes;
  void fs.release(ino, created.handle, 0).catch(nothing);
  fs.forget(ino, 1);
}
function encodePieces(reply: Reply, pieces: readonly Buffer[], request: Request): number {
  let length = 0;
  for (const piece of pieces) length += piece.length;
  if (length > request.limit) {
    throw new DssError("Malformed", `file system answered ${length} of ${request.limit} bytes`);
  }
  if (length > 0) reply.pieces = pieces;
  return length;
}
/** Extended attributes: size 0 asks for the length only. */
function encodeValue(reply: Reply, value: Buffer, request: Request): number {
  if (request.limit === 0) {
    reply.scratch.writeUInt32LE(value.length, BODY);
    reply.scratch.writeUInt32LE(0, BODY + 4);
    return 8;
  }
  if (value.length > request.limit) {
    throw new DssError("RangeTooLarge", "attribute exceeds the caller's buffer");
  }
  if (value.length > 0) reply.pieces = [value];
  return value.length;
}

function parseSetAttributes(request: Request): SetAttributes {
  const valid = request.u32(0);
  const message = request.message;
  const at = abi.IN_HEADER_SIZE;
  const changes: SetAttributes = {};
  if (valid & abi.FATTR.FH) changes.handle = request.u53(8);
  if (valid & abi.FATTR.SIZE) changes.size = request.position(16);
  if (valid & abi.FATTR.ATIME_NOW) changes.atimeNs = "now";
  else if (valid & abi.FATTR.ATIME) changes.atimeNs = abi.timeNs(message, at + 32, at + 56);
  if (valid & abi.FATTR.MTIME_NOW) changes.mtimeNs = "now";
  else if (valid & abi.FATTR.MTIME) changes.mtimeNs = abi.timeNs(message, at + 40, at + 60);
  if (valid & abi.FATTR.CTIME) changes.ctimeNs = abi.timeNs(message, at + 48, at + 64);
  if (valid & abi.FATTR.MODE) changes.mode = request.u32(68);
  if (valid & abi.FATTR.UID) changes.uid = request.u32(76);
  if (valid & abi.FATTR.GID) changes.gid = request.u32(80);
  if (valid & abi.FATTR.KILL_SUIDGID) changes.killPrivileges = true;
  return changes;
}

const DOT = 0x2e;
function isDotOrDotDot(name: Buffer): boolean {
  return name[0] === DOT && (name.length === 1 || (name.length === 2 && name[1] === DOT));
}

/**
 * Packs entries until the kernel's buffer is full. The file system learns which of them the
 * kernel took, because each of those counts as a lookup. An iterable that fails half-way keeps
 * what it gave: the kernel comes back at the next cookie and gets the error then.
 */
function encodeListing(
  reply: Reply,
  entries: Iterable<DirEntry>,
  request: Request,
  fs: FileSystem,
  plus: boolean,
): number {
  const page = Buffer.allocUnsafe(request.limit);
  const view = abi.viewOf(page);
  const fixed = plus ? abi.DIRENTPLUS_SIZE : abi.DIRENT_SIZE;
  const taken: number[] = [];
  let used = 0;
  try {
    for (const entry of entries) {
      const size = abi.direntSize(entry.name.length, plus);
      if (used + size > page.length) {
        if (used === 0) throw new DssError("InvalidArgument", "listing buffer below one entry");
        break;
      }
      let at = used;
      if (plus) {
        // Without a node id the kernel uses the name alone and counts no lookup.
        if (entry.entry && !isDotOrDotDot(entry.name)) {
          abi.putEntry(view, at, entry.entry);
          taken.push(entry.entry.attributes.ino);
        } else page.fill(0, at, at + abi.ENTRY_OUT_SIZE);
        at += abi.ENTRY_OUT_SIZE;
      }
      abi.putDirent(view, at, entry);
      page.set(entry.name, at + 24);
      for (let pad = used + fixed + entry.name.length; pad < used + size; pad++) page[pad] = 0;
      used += size;
    }
  } catch (error) {
    if (used === 0) throw error;
  }
  if (taken.length > 0) fs.entriesTaken(taken);
  if (used > 0) reply.pieces = [page.subarray(0, used)];
  return used;
}

function listing(opcode: number, name: string, plus: boolean): void {
  const smallest = plus ? abi.DIRENTPLUS_SIZE + 8 : abi.DIRENT_SIZE + 8;
  served<Iterable<DirEntry>>(opcode, name, {
    bodySize: abi.SIZE.read,
    method: "readdir",
    call: (r, fs) => {
      r.limit = Math.min(r.u32(16), LISTING_MAX);
      const maxEntries = Math.max(1, Math.floor(r.limit / smallest));
      return fs.readdir(r.ino, r.u53(0), r.u53(8), { maxEntries, plus });
    },
    encode: (reply, entries, r, fs) => encodeListing(reply, entries, r, fs, plus),
  });
}
/** Bound on what one listing allocates, whatever the request says. */
const LISTING_MAX = 1024 * 1024;
/** Longest value or list of extended attributes (Linux's XATTR_SIZE_MAX). */
const XATTR_SIZE_MAX = 65_536;

function parseLock(request: Request): FileLock {
  const mode = abi.LOCK_TYPES[request.u32(32)];
  if (mode === undefined) throw new DssError("InvalidArgument", "lock of an unknown type");
  const kind = request.u32(40) & abi.LOCK_FLOCK ? "flock" : "posix";
  const [start, end] = [request.opaque(16), request.opaque(24)];
  if (start > end || end > LOCK_OFFSET_MAX) {
    throw new DssError("InvalidArgument", `lock from ${start} to ${end}`);
  }
  return { kind, owner: request.opaque(8), mode, start, end, pid: request.u32(36) };
}
const LOCK_OFFSET_MAX = 2n ** 63n - 1n;

function setLock(opcode: number, name: string, wait: boolean): void {
  served<void>(opcode, name, {
    bodySize: abi.SIZE.lock,
    method: "setlk",
    call: (r, fs) =>
      fs.setlk === undefined
        ? missing("setlk")
        : fs.setlk(r.ino, r.u53(0), parseLock(r), { wait }, r.caller),
    encode: nothing,
  });
}

function missing(method: keyof FileSystem): Promise<never> {
  return Promise.reject(new MethodMissing(method));
}
/** The file system has no such method: ENOSYS tells the kernel not to ask again. */
export class MethodMissing extends Error {
  constructor(method: string) {
    super(`the file system has no ${method}`);
  }
}

const S = abi.SIZE;

served<Entry>(1, "LOOKUP", {
  bodySize: 1,
  method: "lookup",
  call: (r, fs) => fs.lookup(r.ino, r.name(0), r.caller),
  encode: encodeEntry,
  undo: forgetEntry,
});
notServed(2, "FORGET", 0, S.forget); // The connection's: it has no answer.
served<Entry>(3, "GETATTR", {
  bodySize: S.getattr,
  method: "getattr",
  call: (r, fs) => fs.getattr(r.ino, r.u32(0) & abi.GETATTR_FH ? r.u53(8) : undefined, r.caller),
  encode: encodeAttributes,
});
served<Entry>(4, "SETATTR", {
  bodySize: S.setattr,
  method: "setattr",
  call: (r, fs) => fs.setattr(r.ino, parseSetAttributes(r), r.caller),
  encode: encodeAttributes,
});
served<Buffer>(5, "READLINK", {
  bodySize: 0,
  method: "readlink",
  call: (r, fs) => {
    r.limit = abi.PAGE_SIZE;
    return fs.readlink(r.ino);
  },
  encode: (reply, target, r) => encodePieces(reply, [target], r),
});
served<Entry>(6, "SYMLINK", {
  bodySize: 2,
  method: "symlink",
  call: (r, fs) => {
    const name = r.name(0);
    return fs.symlink(r.ino, name, r.text(name.length + 1), r.caller);
  },
  encode: encodeEntry,
  undo: forgetEntry,
});
served<Entry>(8, "MKNOD", {
  bodySize: S.mknod + 1,
  method: "mknod",
  call: (r, fs) => fs.mknod(r.ino, r.name(S.mknod), r.u32(0), r.u32(4), r.callerWith(r.u32(8))),
  encode: encodeEntry,
  undo: forgetEntry,
});
served<Entry>(9, "MKDIR", {
  bodySize: S.mkdir + 1,
  method: "mkdir",
  call: (r, fs) => fs.mkdir(r.ino, r.name(S.mkdir), r.u32(0), r.callerWith(r.u32(4))),
  encode: encodeEntry,
  undo: forgetEntry,
});
served<void>(10, "UNLINK", {
  bodySize: 1,
  method: "unlink",
  call: (r, fs) => fs.unlink(r.ino, r.name(0), r.caller),
  encode: nothing,
});
served<void>(11, "RMDIR", {
  bodySize: 1,
  method: "rmdir",
  call: (r, fs) => fs.rmdir(r.ino, r.name(0), r.caller),
  encode: nothing,
});
served<void>(12, "RENAME", {
  bodySize: S.rename + 2,
  method: "rename",
  call: (r, fs) => rename(r, fs, S.rename, 0),
  encode: nothing,
});
served<Entry>(13, "LINK", {
  bodySize: S.link + 1,
  method: "link",
  call: (r, fs) => fs.link(r.u53(0), r.ino, r.name(S.link), r.caller),
  encode: encodeEntry,
  undo: forgetEntry,
});
served<OpenReply>(14, "OPEN", {
  bodySize: S.open,
  method: "open",
  call: (r, fs) => {
    const options = { killPrivileges: (r.u32(4) & abi.OPEN_KILL_SUIDGID) !== 0 };
    return fs.open(r.ino, r.u32(0), r.caller, options);
  },
  encode: (reply, open) => {
    putOpen(reply.scratch, BODY, open.handle, openFlags(open));
    return abi.OPEN_OUT_SIZE;
  },
  undo: (r, fs, open) => void fs.release(r.ino, open.handle, 0).catch(nothing),
});
served<Buffer[]>(15, "READ", {
  bodySize: S.read,
  method: "read",
  call: (r, fs) => {
    r.limit = r.u32(16);
    return fs.read(r.ino, r.u53(0), r.position(8), r.limit);
  },
  encode: encodePieces,
  sent: (fs, pieces) => fs.readDone?.(pieces),
});
served<number>(16, "WRITE", {
  bodySize: S.write,
  method: "write",
  keepsMessage: true,
  call: (r, fs) => {
    const writeFlags = r.u32(20);
    r.limit = r.u32(16);
    return fs.write(r.ino, r.u53(0), r.position(8), r.bytes(S.write, r.limit), {
      flags: r.u32(32),
      killPrivileges: (writeFlags & abi.WRITE_KILL_SUIDGID) !== 0,
      fromPageCache: (writeFlags & abi.WRITE_CACHE) !== 0,
      cause: r.key,
    });
  },
  encode: (reply, written) => {
    reply.scratch.writeUInt32LE(written, BODY);
    reply.scratch.writeUInt32LE(0, BODY + 4);
    return 8;
  },
});
served(17, "STATFS", {
  bodySize: 0,
  method: "statfs",
  call: (r, fs) => fs.statfs(r.ino),
  encode: (reply, stat) => {
    abi.putStatFs(reply.scratch, BODY, stat);
    return abi.STATFS_OUT_SIZE;
  },
});
served<void>(18, "RELEASE", {
  bodySize: S.release,
  method: "release",
  call: (r, fs) => fs.release(r.ino, r.u53(0), r.u32(8)),
  encode: nothing,
});
served<void>(20, "FSYNC", {
  bodySize: S.fsync,
  method: "fsync",
  call: (r, fs) => fs.fsync(r.ino, r.u53(0), (r.u32(8) & abi.FSYNC_DATA_ONLY) !== 0),
  encode: nothing,
});
served<void>(21, "SETXATTR", {
  bodySize: S.setxattr + 1,
  method: "setxattr",
  call: (r, fs) => {
    if (fs.setxattr === undefined) return missing("setxattr");
    const size = r.u32(0);
    const flags = r.u32(4);
    if (size > XATTR_SIZE_MAX) throw new DssError("TooBig", "attribute value exceeds 64 KiB");
    const fixed = r.extendedXattrs ? S.setxattrExtended : S.setxattr;
    const extra = r.extendedXattrs ? r.u32(8) : 0;
    const name = r.name(fixed);
    const value = Buffer.from(r.bytes(fixed + name.length + 1, size));
    const how = {
      create: (flags & abi.XATTR_CREATE) !== 0,
      replace: (flags & abi.XATTR_REPLACE) !== 0,
      clearSgid: (extra & abi.SETXATTR_ACL_KILL_SGID) !== 0,
    };
    return fs.setxattr(r.ino, name, value, how, r.caller);
  },
  encode: nothing,
});
served<Buffer>(22, "GETXATTR", {
  bodySize: S.getxattr + 1,
  method: "getxattr",
  call: (r, fs) => {
    if (fs.getxattr === undefined) return missing("getxattr");
    r.limit = r.u32(0);
    return fs.getxattr(r.ino, r.name(S.getxattr), r.caller);
  },
  encode: encodeValue,
});
served<Buffer>(23, "LISTXATTR", {
  bodySize: S.getxattr,
  method: "listxattr",
  call: (r, fs) => {
    if (fs.listxattr === undefined) return missing("listxattr");
    r.limit = r.u32(0);
    return fs.listxattr(r.ino, r.caller);
  },
  encode: encodeValue,
});
served<void>(24, "REMOVEXATTR", {
  bodySize: 1,
  method: "removexattr",
  call: (r, fs) =>
    fs.removexattr === undefined
      ? missing("removexattr")
      : fs.removexattr(r.ino, r.name(0), r.caller),
  encode: nothing,
});
served<void>(25, "FLUSH", {
  bodySize: S.flush,
  method: "flush",
  call: (r, fs) => fs.flush(r.ino, r.u53(0), r.opaque(16)),
  encode: nothing,
});
notServed(26, "INIT", 0, S.initMin); // The connection's.
served(27, "OPENDIR", {
  bodySize: S.open,
  method: "opendir",
  call: (r, fs) => fs.opendir(r.ino, r.u32(0), r.caller),
  encode: (reply, open) => {
    const cached = open.cacheListing ? abi.FOPEN.CACHE_DIR : 0;
    const kept = open.keepListing ? abi.FOPEN.KEEP_CACHE : 0;
    putOpen(reply.scratch, BODY, open.handle, cached | kept);
    return abi.OPEN_OUT_SIZE;
  },
  undo: (r, fs, open) => void fs.releasedir(r.ino, open.handle).catch(nothing),
});
listing(28, "READDIR", false);
served<void>(29, "RELEASEDIR", {
  bodySize: S.release,
  method: "releasedir",
  call: (r, fs) => fs.releasedir(r.ino, r.u53(0)),
  encode: nothing,
});
served<void>(30, "FSYNCDIR", {
  bodySize: S.fsync,
  method: "fsyncdir",
  call: (r, fs) => fs.fsyncdir(r.ino, r.u53(0), (r.u32(8) & abi.FSYNC_DATA_ONLY) !== 0),
  encode: nothing,
});
served<FileLock>(31, "GETLK", {
  bodySize: S.lock,
  method: "getlk",
  call: (r, fs) =>
    fs.getlk === undefined ? missing("getlk") : fs.getlk(r.ino, r.u53(0), parseLock(r)),
  encode: (reply, lock) => {
    reply.scratch.writeBigUInt64LE(lock.start, BODY);
    reply.scratch.writeBigUInt64LE(lock.end, BODY + 8);
    reply.scratch.writeUInt32LE(abi.LOCK_TYPES.indexOf(lock.mode), BODY + 16);
    reply.scratch.writeUInt32LE(lock.pid, BODY + 20);
    return abi.LOCK_OUT_SIZE;
  },
});
setLock(32, "SETLK", false);
setLock(33, "SETLKW", true);
// Mounts have default_permissions: the kernel checks access itself.
notServed(34, "ACCESS", ENOSYS);
served<Entry & OpenReply>(35, "CREATE", {
  bodySize: S.create + 1,
  method: "create",
  call: (r, fs) => {
    const options = { killPrivileges: (r.u32(12) & abi.OPEN_KILL_SUIDGID) !== 0 };
    const caller = r.callerWith(r.u32(8));
    return fs.create(r.ino, r.name(S.create), r.u32(4), r.u32(0), caller, options);
  },
  encode: encodeCreated,
  undo: forgetCreated,
});
notServed(36, "INTERRUPT", 0, S.interrupt); // The connection's.
notServed(37, "BMAP", ENOSYS);
notServed(38, "DESTROY", 0); // The connection's.
notServed(39, "IOCTL", ENOTTY);
notServed(40, "POLL", ENOSYS); // The kernel then says "always ready", which is right for files.
notServed(41, "NOTIFY_REPLY", 0); // Answers a RETRIEVE, which dss never sends.
notServed(42, "BATCH_FORGET", 0, S.batchForget); // The connection's: it has no answer.
served<void>(43, "FALLOCATE", {
  bodySize: S.fallocate,
  method: "fallocate",
  call: (r, fs) =>
    fs.fallocate === undefined
      ? missing("fallocate")
      : fs.fallocate(r.ino, r.u53(0), r.position(8), r.position(16), r.u32(24), r.caller),
  encode: nothing,
});
listing(44, "READDIRPLUS", true);
served<void>(45, "RENAME2", {
  bodySize: S.rename2 + 2,
  method: "rename",
  call: (r, fs) => rename(r, fs, S.rename2, r.u32(8)),
  encode: nothing,
});
served<number>(46, "LSEEK", {
  bodySize: S.lseek,
  method: "lseek",
  call: (r, fs) =>
    fs.lseek === undefined ? missing("lseek") : fs.lseek(r.ino, r.u53(0), r.position(8), r.u32(16)),
  encode: (reply, offset) => {
    abi.putU53(reply.scratch, BODY, offset);
    return 8;
  },
});
served<number>(47, "COPY_FILE_RANGE", {
  bodySize: S.copyFileRange,
  method: "copyFileRange",
  call: copyFileRange,
  encode: (reply, copied) => {
    reply.scratch.writeUInt32LE(copied, BODY);
    reply.scratch.writeUInt32LE(0, BODY + 4);
    return 8;
  },
});
notServed(48, "SETUPMAPPING", ENOSYS);
notServed(49, "REMOVEMAPPING", ENOSYS);
served<void>(50, "SYNCFS", {
  bodySize: 0,
  method: "syncfs",
  call: (_r, fs) => (fs.syncfs === undefined ? missing("syncfs") : fs.syncfs()),
  encode: nothing,
});
served<Entry & OpenReply>(51, "TMPFILE", {
  bodySize: S.create + 1, // The name that follows means nothing.
  method: "tmpfile",
  call: (r, fs) =>
    fs.tmpfile === undefined
      ? missing("tmpfile") // The kernel then answers EOPNOTSUPP without asking.
      : fs.tmpfile(r.ino, r.u32(4), r.u32(0), r.callerWith(r.u32(8))),
  encode: encodeCreated,
  undo: forgetCreated,
});
served<Entry>(52, "STATX", {
  bodySize: S.statx,
  method: "getattr",
  call: (r, fs) => fs.getattr(r.ino, r.u32(0) & abi.GETATTR_FH ? r.u53(8) : undefined, r.caller),
  encode: (reply, entry) => {
    abi.putStatxOut(reply.view, BODY, entry);
    return abi.STATX_OUT_SIZE;
  },
});
served<number>(53, "COPY_FILE_RANGE_64", {
  bodySize: S.copyFileRange,
  method: "copyFileRange",
  call: copyFileRange,
  encode: (reply, copied) => {
    abi.putU53(reply.scratch, BODY, copied);
    return 8;
  },
});
notServed(4096, "CUSE_INIT", EPROTO);

/** Bytes that one request copies: longer ones come again, and can be interrupted between. */
const COPY_MAX = 64 * 1024 * 1024;

function copyFileRange(r: Request, fs: FileSystem): Promise<number> {
  if (fs.copyFileRange === undefined) return missing("copyFileRange");
  const source = { ino: r.ino, handle: r.u53(0), offset: r.position(8) };
  const target = { ino: r.u53(16), handle: r.u53(24), offset: r.position(32) };
  const wanted = r.opaque(40);
  const length = wanted > BigInt(COPY_MAX) ? COPY_MAX : Number(wanted);
  return fs.copyFileRange(source, target, length, r.caller);
}

function rename(r: Request, fs: FileSystem, fixed: number, flags: number): Promise<void> {
  if (flags & ~(abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE)) {
    throw new DssError("InvalidArgument", `rename flags ${flags}`); // RENAME_WHITEOUT
  }
  const name = r.name(fixed);
  return fs.rename(
    r.ino,
    name,
    r.u53(0),
    r.name(fixed + name.length + 1),
    {
      noReplace: (flags & abi.RENAME_NOREPLACE) !== 0,
      exchange: (flags & abi.RENAME_EXCHANGE) !== 0,
    },
    r.caller,
  );
}

export const OPCODE = {
  FORGET: 2,
  WRITE: 16,
  INIT: 26,
  INTERRUPT: 36,
  DESTROY: 38,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
} as const;

export const OPCODES: readonly Row[] = rows;

const DENSE_MAX = 64;
const byNumber: (Row | undefined)[] = new Array<Row | undefined>(DENSE_MAX).fill(undefined);
for (const row of rows) if (row.opcode < DENSE_MAX) byNumber[row.opcode] = row;

/** The row of an opcode; `undefined` for one that a newer kernel invented. */
export function rowOf(opcode: number): Row | undefined {
  return opcode < DENSE_MAX ? byNumber[opcode] : rows.find((row) => row.opcode === opcode);
}

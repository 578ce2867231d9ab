/**
 * Layouts of the kernel's FUSE protocol (include/uapi/linux/fuse.h), version 7.45. The header
 * of Debian 12 ends at 7.38; what came later (STATX, COPY_FILE_RANGE_64, RESEND, INC_EPOCH, PRUNE,
 * the flags above bit 35) is declared here by hand.
 *
 * The protocol is in host byte order; dss runs on little-endian machines only (device.ts checks).
 * Requests are read in place: an offset constant per field and two readers, `u32` and `u53`, no
 * objects. Replies are written into a scratch message that its owner sends before it writes the
 * next one. Pure; owns no state.
 */
import { DssError, type ErrorCode } from "../../cluster/base/errors.js";
import type { Attributes, DirEntry, Entry, StatFs } from "../file-system.js";

export const FUSE_MAJOR = 7;
/** The newest minor version whose layouts this file knows. */
export const FUSE_MINOR = 45;
/** The oldest one served: older kernels lack MAX_PAGES, CACHE_SYMLINKS or WRITE_KILL_PRIV. */
export const FUSE_MINOR_MIN = 31;
/** The first minor version with FUSE_NOTIFY_INC_EPOCH. */
export const MINOR_INC_EPOCH = 44;

export const ROOT_ID = 1;
export const PAGE_SIZE = 4096;
/** Longest name of a directory entry, in bytes. */
export const NAME_MAX = 255;
/** The kernel refuses replies with an errno of 512 or above. */
export const ERRNO_MAX = 511;

// struct fuse_in_header
export const IN_LENGTH = 0;
export const IN_OPCODE = 4;
export const IN_UNIQUE = 8;
export const IN_NODE_ID = 16;
export const IN_UID = 24;
export const IN_GID = 28;
export const IN_PID = 32;
export const IN_HEADER_SIZE = 40;
// Bit 63 of `unique` says that the request was sent before (NOTIFY_RESEND); replies echo it.

export const OUT_HEADER_SIZE = 16;

/** Body sizes of requests: the fixed part that follows the header. */
export const SIZE = {
  initMin: 16, // Before INIT_EXT; 64 with it.
  initExtended: 64,
  forget: 8,
  batchForget: 8,
  forgetOne: 16,
  getattr: 16,
  setattr: 88,
  mknod: 16,
  mkdir: 8,
  rename: 8,
  rename2: 16,
  link: 8,
  open: 8,
  create: 16,
  release: 24,
  flush: 24,
  read: 40,
  write: 40,
  fsync: 16,
  setxattr: 8, // Before SETXATTR_EXT; 16 with it.
  setxattrExtended: 16,
  getxattr: 8,
  interrupt: 8,
  lock: 48,
  fallocate: 32,
  lseek: 24,
  copyFileRange: 56,
  statx: 24,
} as const;

/** Bytes before the data in a WRITE request. */
export const WRITE_DATA_OFFSET = IN_HEADER_SIZE + SIZE.write;

/** Sizes of replies. */
export const INIT_OUT_SIZE = 64;
export const ATTR_SIZE = 88;
export const ATTR_OUT_SIZE = 16 + ATTR_SIZE;
export const ENTRY_OUT_SIZE = 40 + ATTR_SIZE;
export const OPEN_OUT_SIZE = 16;
export const STATFS_OUT_SIZE = 80;
export const LOCK_OUT_SIZE = 24;
export const STATX_OUT_SIZE = 32 + 256;
export const DIRENT_SIZE = 24;
export const DIRENTPLUS_SIZE = ENTRY_OUT_SIZE + DIRENT_SIZE;

/** INIT flags, bits 0 to 31. */
export const INIT_FLAG = {
  ASYNC_READ: 1 << 0,
  POSIX_LOCKS: 1 << 1,
  ATOMIC_O_TRUNC: 1 << 3,
  EXPORT_SUPPORT: 1 << 4,
  BIG_WRITES: 1 << 5,
  DONT_MASK: 1 << 6,
  FLOCK_LOCKS: 1 << 10,
  AUTO_INVAL_DATA: 1 << 12,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  WRITEBACK_CACHE: 1 << 16,
  NO_OPEN_SUPPORT: 1 << 17,
  PARALLEL_DIROPS: 1 << 18,
  POSIX_ACL: 1 << 20,
  ABORT_ERROR: 1 << 21,
  MAX_PAGES: 1 << 22,
  CACHE_SYMLINKS: 1 << 23,
  NO_OPENDIR_SUPPORT: 1 << 24,
  EXPLICIT_INVAL_DATA: 1 << 25,
  HANDLE_KILLPRIV_V2: 1 << 28,
  SETXATTR_EXT: 1 << 29,
  INIT_EXT: 1 << 30,
} as const;

/** INIT flags, bits 32 to 63, which travel in `flags2`. */
export const INIT_FLAG2 = {
  SECURITY_CTX: 1 << 0,
  HAS_INODE_DAX: 1 << 1,
  CREATE_SUPP_GROUP: 1 << 2,
  HAS_EXPIRE_ONLY: 1 << 3,
  DIRECT_IO_ALLOW_MMAP: 1 << 4,
  PASSTHROUGH: 1 << 5,
  NO_EXPORT_SUPPORT: 1 << 6,
  HAS_RESEND: 1 << 7,
  ALLOW_IDMAP: 1 << 8,
  OVER_IO_URING: 1 << 9,
  REQUEST_TIMEOUT: 1 << 10,
} as const;

export const FATTR = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  FH: 1 << 6,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
  CTIME: 1 << 10,
  KILL_SUIDGID: 1 << 11,
} as const;

export const FOPEN = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PARALLEL_DIRECT_WRITES: 1 << 6,
} as const;

export const GETATTR_FH = 1 << 0;
export const WRITE_CACHE = 1 << 0;
export const WRITE_KILL_SUIDGID = 1 << 2;
export const OPEN_KILL_SUIDGID = 1 << 0;
export const FSYNC_DATA_ONLY = 1 << 0;
export const RENAME_NOREPLACE = 1 << 0;
export const RENAME_EXCHANGE = 1 << 1;
export const LOCK_FLOCK = 1 << 0;
/** Types of locks (F_RDLCK …), as on every machine that dss runs on. */
export const LOCK_TYPES = ["shared", "exclusive", "unlocked"] as const;
export const SETXATTR_ACL_KILL_SGID = 1 << 0;
export const XATTR_CREATE = 1;
export const XATTR_REPLACE = 2;

/** Codes of unsolicited messages to the kernel; they stand in the error field of the header. */
export const NOTIFY = {
  INVAL_INODE: 2,
  INVAL_ENTRY: 3,
  RESEND: 7,
  INC_EPOCH: 8,
} as const;

const TWO_32 = 2 ** 32;
/** High halves from here up do not fit a safe integer. */
const HIGH_LIMIT = 2 ** 21;

export function u32(message: Buffer, offset: number): number {
  return message.readUInt32LE(offset);
}

/** A u64 that counts or addresses. Throws `tooLarge` above 2^53. */
export function u53(
  message: Buffer,
  offset: number,
  tooLarge: ErrorCode = "InvalidArgument",
): number {
  const high = message.readUInt32LE(offset + 4);
  if (high >= HIGH_LIMIT) throw new DssError(tooLarge, `FUSE field at ${offset} exceeds 2^53`);
  return high * TWO_32 + message.readUInt32LE(offset);
}

export function putU53(message: Buffer, offset: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  message.writeUInt32LE(value - high * TWO_32, offset);
  message.writeUInt32LE(high, offset + 4);
}

/** Seconds as the kernel sends them (signed) and nanoseconds, to nanoseconds since 1970. */
export function timeNs(message: Buffer, secondsOffset: number, nanosOffset: number): bigint {
  return (
    message.readBigInt64LE(secondsOffset) * 1_000_000_000n +
    BigInt(message.readUInt32LE(nanosOffset))
  );
}

/**
 * What is written for every file goes through a view: in a process whose code is not compiled yet
 * each of Node's write methods costs several times as much.
 */
export function viewOf(message: Buffer): DataView {
  return new DataView(message.buffer, message.byteOffset, message.length);
}
/** As `u53`. */
export function viewedU53(view: DataView, offset: number, tooLarge: ErrorCode): number {
  const high = view.getUint32(offset + 4, true);
  if (high >= HIGH_LIMIT) throw new DssError(tooLarge, `FUSE field at ${offset} exceeds 2^53`);
  return high * TWO_32 + view.getUint32(offset, true);
}
function viewU53(view: DataView, offset: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  view.setUint32(offset, value - high * TWO_32, true);
  view.setUint32(offset + 4, high, true);
}

function putTime(view: DataView, secondsOffset: number, nanosOffset: number, ns: bigint): void {
  let seconds = ns / 1_000_000_000n;
  let nanos = Number(ns - seconds * 1_000_000_000n);
  if (nanos < 0) {
    seconds -= 1n; // Division truncates towards zero; before 1970 it must round down.
    nanos += 1_000_000_000;
  }
  view.setBigInt64(secondsOffset, seconds, true);
  view.setUint32(nanosOffset, nanos, true);
}

/** struct fuse_attr at `offset`; 88 bytes. */
export function putAttributes(view: DataView, offset: number, a: Attributes): void {
  viewU53(view, offset, a.ino);
  viewU53(view, offset + 8, a.size);
  viewU53(view, offset + 16, a.blocks);
  putTime(view, offset + 24, offset + 48, a.atimeNs);
  putTime(view, offset + 32, offset + 52, a.mtimeNs);
  putTime(view, offset + 40, offset + 56, a.ctimeNs);
  view.setUint32(offset + 60, a.mode, true);
  view.setUint32(offset + 64, a.nlink, true);
  view.setUint32(offset + 68, a.uid, true);
  view.setUint32(offset + 72, a.gid, true);
  view.setUint32(offset + 76, a.rdev, true);
  view.setUint32(offset + 80, a.blksize, true);
  view.setUint32(offset + 84, 0, true);
}

function putValidity(view: DataView, secondsOffset: number, nanosOffset: number, ms: number): void {
  const seconds = Math.floor(ms / 1000);
  viewU53(view, secondsOffset, seconds);
  view.setUint32(nanosOffset, Math.floor((ms - seconds * 1000) * 1_000_000), true);
}

/** struct fuse_attr_out at `offset`; 104 bytes. */
export function putAttrOut(view: DataView, offset: number, entry: Entry): void {
  putValidity(view, offset, offset + 8, entry.attributesValidMs);
  view.setUint32(offset + 12, 0, true);
  putAttributes(view, offset + 16, entry.attributes);
}

/** struct fuse_entry_out at `offset`; 128 bytes. */
export function putEntry(view: DataView, offset: number, entry: Entry): void {
  viewU53(view, offset, entry.attributes.ino);
  viewU53(view, offset + 8, entry.generation);
  putValidity(view, offset + 16, offset + 32, entry.entryValidMs);
  putValidity(view, offset + 24, offset + 36, entry.attributesValidMs);
  putAttributes(view, offset + 40, entry.attributes);
}

/** STATX_BASIC_STATS and STATX_BTIME: everything that is answered. */
const STATX_ANSWERED = 0x7ff | 0x800;

/** struct fuse_statx_out at `offset`; 288 bytes. */
export function putStatxOut(view: DataView, offset: number, entry: Entry): void {
  const a = entry.attributes;
  new Uint8Array(view.buffer, view.byteOffset + offset, STATX_OUT_SIZE).fill(0);
  putValidity(view, offset, offset + 8, entry.attributesValidMs);
  const at = offset + 32;
  view.setUint32(at, STATX_ANSWERED, true);
  view.setUint32(at + 4, a.blksize, true);
  view.setUint32(at + 16, a.nlink, true);
  view.setUint32(at + 20, a.uid, true);
  view.setUint32(at + 24, a.gid, true);
  view.setUint16(at + 28, a.mode, true);
  viewU53(view, at + 32, a.ino);
  viewU53(view, at + 40, a.size);
  viewU53(view, at + 48, a.blocks);
  putTime(view, at + 64, at + 72, a.atimeNs);
  putTime(view, at + 80, at + 88, a.btimeNs);
  putTime(view, at + 96, at + 104, a.ctimeNs);
  putTime(view, at + 112, at + 120, a.mtimeNs);
  // The kernel's own packing of device numbers, taken apart.
  view.setUint32(at + 128, (a.rdev >>> 8) & 0xfff, true);
  view.setUint32(at + 132, (a.rdev & 0xff) | ((a.rdev >>> 12) & 0xfff00), true);
}

/** struct fuse_kstatfs at `offset`; 80 bytes. */
export function putStatFs(message: Buffer, offset: number, s: StatFs): void {
  putU53(message, offset, s.blocks);
  putU53(message, offset + 8, s.blocksFree);
  putU53(message, offset + 16, s.blocksAvailable);
  putU53(message, offset + 24, s.files);
  putU53(message, offset + 32, s.filesFree);
  message.writeUInt32LE(s.blockSize, offset + 40);
  message.writeUInt32LE(s.nameMax, offset + 44);
  message.writeUInt32LE(s.blockSize, offset + 48);
  message.fill(0, offset + 52, offset + STATFS_OUT_SIZE);
}

/** struct fuse_dirent at `offset`; 24 bytes, the name and its padding follow. */
export function putDirent(view: DataView, offset: number, entry: DirEntry): void {
  viewU53(view, offset, entry.ino);
  viewU53(view, offset + 8, entry.cookie);
  view.setUint32(offset + 16, entry.name.length, true);
  view.setUint32(offset + 20, (entry.type >>> 12) & 0xf, true);
}

/** Bytes that a directory entry takes, padded to 8. */
export function direntSize(nameLength: number, plus: boolean): number {
  return ((plus ? DIRENTPLUS_SIZE : DIRENT_SIZE) + nameLength + 7) & ~7;
}

/** A notification: the header has unique 0 and the code where replies have the error. */
function notification(code: number, bodySize: number): Buffer {
  const message = Buffer.alloc(OUT_HEADER_SIZE + bodySize);
  message.writeUInt32LE(message.length, 0);
  message.writeInt32LE(code, 4);
  return message;
}

/** Drop attributes and the pages of [offset, offset + length); length 0 means to the end. */
export function invalidateInodeMessage(ino: number, offset: number, length: number): Buffer {
  const message = notification(NOTIFY.INVAL_INODE, 24);
  putU53(message, OUT_HEADER_SIZE, ino);
  putU53(message, OUT_HEADER_SIZE + 8, offset);
  putU53(message, OUT_HEADER_SIZE + 16, length);
  return message;
}

export function invalidateEntryMessage(parent: number, name: Buffer): Buffer {
  const message = notification(NOTIFY.INVAL_ENTRY, 16 + name.length + 1);
  putU53(message, OUT_HEADER_SIZE, parent);
  message.writeUInt32LE(name.length, OUT_HEADER_SIZE + 8);
  name.copy(message, OUT_HEADER_SIZE + 16);
  return message;
}

export function incrementEpochMessage(): Buffer {
  return notification(NOTIFY.INC_EPOCH, 0);
}

/** Makes the kernel send every request again that has no answer (bit 63 of `unique` set). */
export function resendMessage(): Buffer {
  return notification(NOTIFY.RESEND, 0);
}

/**
 * Inode records as the MDS keeps them: what clients see (proto.Inode) and what only the MDS needs.
 * Pure. Records are immutable; a change makes a new one.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { DssError } from "../../cluster/base/errors.js";
import type { Inode, Layout, MadeAttributes } from "../proto.js";
import { denseBytes, isDense } from "./space.js";
import type { Reader, Writer } from "./binary.js";

export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFLNK = 0o120000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;
export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_ISVTX = 0o1000;
export const S_IXGRP = 0o010;
export const PERMISSION_BITS = 0o7777;

export interface InodeRecord extends Inode {
  /**
   * The directory that holds its name, or of several (links.ts) the one that counts it; the root is
   * its own. 0: it has none.
   */
  parent: Ino;
  /**
   * Objects may hold data of this file below this offset only (bytes); grants of write access raise
   * it further while they last.
   */
  dataMax: number;
  /** Bytes of all names and values of extended attributes. */
  xattrBytes: number;
  /**
   * Below a quota: its writer was let go on up to here and has not said since how far it came. 0:
   * nothing beyond the size is held for it.
   */
  reservedTo: number;
}

export function isDirectory(inode: Inode): boolean {
  return (inode.mode & S_IFMT) === S_IFDIR;
}
export function isRegular(inode: Inode): boolean {
  return (inode.mode & S_IFMT) === S_IFREG;
}

/** What clients get. */
export function publicInode(record: InodeRecord): Inode {
  // Written out: one by one they are copied several times faster than as "all but these".
  const inode: Inode = {
    ino: record.ino,
    mode: record.mode,
    nlink: record.nlink,
    uid: record.uid,
    gid: record.gid,
    rdev: record.rdev,
    size: record.size,
    atimeNs: record.atimeNs,
    mtimeNs: record.mtimeNs,
    ctimeNs: record.ctimeNs,
    btimeNs: record.btimeNs,
    truncateSeq: record.truncateSeq,
    truncateSize: record.truncateSize,
    allocated: record.allocated,
    recount: record.recount,
    xattrCount: record.xattrCount,
  };
  if (record.layout !== undefined) inode.layout = record.layout;
  if (record.target !== undefined) inode.target = record.target;
  return inode;
}

/** What its maker has done to a new regular file before it told of it. Throws InvalidArgument. */
export function setMade(inode: InodeRecord, made: MadeAttributes): void {
  if (!isRegular(inode) || (made.mode & S_IFMT) !== S_IFREG) {
    throw new DssError("InvalidArgument", "only regular files are made with attributes");
  }
  const { size, allocated, recount, mode, uid, gid, atimeNs, mtimeNs, ctimeNs } = made;
  Object.assign(inode, { size, allocated, recount, mode, uid, gid, atimeNs, mtimeNs, ctimeNs });
}

/** The mode after a change of owner or a write by someone without privilege: set-id bits go. */
export function withoutSetId(mode: number): number {
  if ((mode & S_IFMT) === S_IFDIR) return mode;
  const cleared = mode & ~S_ISUID;
  return (cleared & S_IXGRP) !== 0 ? cleared & ~S_ISGID : cleared;
}

export function writeLayout(out: Writer, layout: Layout): void {
  out.uint(layout.pool);
  out.uint(layout.objectSize);
  out.uint(layout.stripeUnit);
  out.uint(layout.stripeCount);
}
export function readLayout(from: Reader): Layout {
  return {
    pool: from.uint(),
    objectSize: from.uint(),
    stripeUnit: from.uint(),
    stripeCount: from.uint(),
  };
}

const HAS_LAYOUT = 1;
const HAS_TARGET = 2;
const HAS_TRUNCATION = 4;
const HAS_XATTRS = 8;
/** Less (or more) is allocated than a file of this size without holes has. */
const IS_SPARSE = 16;
const IS_RECOUNT = 32;
const IS_RESERVED = 64;

export function writeInode(out: Writer, inode: InodeRecord): void {
  out.uint(inode.ino);
  out.u8(
    (inode.layout === undefined ? 0 : HAS_LAYOUT) |
      (inode.target === undefined ? 0 : HAS_TARGET) |
      (inode.truncateSeq === 0 ? 0 : HAS_TRUNCATION) |
      (inode.xattrCount === 0 ? 0 : HAS_XATTRS) |
      (isDense(inode) ? 0 : IS_SPARSE) |
      (inode.recount ? IS_RECOUNT : 0) |
      (inode.reservedTo === 0 ? 0 : IS_RESERVED),
  );
  out.uint(inode.mode);
  out.uint(inode.nlink);
  out.uint(inode.uid);
  out.uint(inode.gid);
  out.uint(inode.rdev);
  out.uint(inode.size);
  out.time(inode.atimeNs);
  out.time(inode.mtimeNs);
  out.time(inode.ctimeNs);
  out.time(inode.btimeNs);
  out.uint(inode.parent);
  out.uint(inode.dataMax);
  if (inode.truncateSeq !== 0) {
    out.uint(inode.truncateSeq);
    out.uint(inode.truncateSize);
  }
  if (inode.xattrCount !== 0) {
    out.uint(inode.xattrCount);
    out.uint(inode.xattrBytes);
  }
  if (!isDense(inode)) out.uint(inode.allocated);
  if (inode.reservedTo !== 0) out.uint(inode.reservedTo);
  if (inode.layout !== undefined) writeLayout(out, inode.layout);
  if (inode.target !== undefined) out.bytes(inode.target);
}

export function readInode(from: Reader): InodeRecord {
  const ino = from.uint();
  const flags = from.u8();
  const inode: InodeRecord = {
    ino,
    mode: from.uint(),
    nlink: from.uint(),
    uid: from.uint(),
    gid: from.uint(),
    rdev: from.uint(),
    size: from.uint(),
    atimeNs: from.time(),
    mtimeNs: from.time(),
    ctimeNs: from.time(),
    btimeNs: from.time(),
    parent: from.uint(),
    dataMax: from.uint(),
    truncateSeq: 0,
    truncateSize: 0,
    allocated: 0,
    recount: (flags & IS_RECOUNT) !== 0,
    xattrCount: 0,
    xattrBytes: 0,
    reservedTo: 0,
  };
  if ((flags & HAS_TRUNCATION) !== 0) {
    inode.truncateSeq = from.uint();
    inode.truncateSize = from.uint();
  }
  if ((flags & HAS_XATTRS) !== 0) {
    inode.xattrCount = from.uint();
    inode.xattrBytes = from.uint();
  }
  inode.allocated = (flags & IS_SPARSE) === 0 ? denseBytes(inode) : from.uint();
  if ((flags & IS_RESERVED) !== 0) inode.reservedTo = from.uint();
  if ((flags & HAS_LAYOUT) !== 0) inode.layout = readLayout(from);
  if ((flags & HAS_TARGET) !== 0) inode.target = from.bytes();
  return inode;
}

/**
 * Listings on the wire. A thousand entries with attributes and capabilities are most of what a
 * mount reads of the leader, so they travel as rows of fixed fields (little-endian) instead of
 * msgpack: half the bytes, and a fraction of the time in a process whose code is not compiled yet.
 * Everything else of an answer stays msgpack; an answer whose entries do not fit is msgpack whole.
 *
 * `listing`: u32 entries, u32 grants, f64 epoch of the grants; the grants; the entries, each with
 * its name and, of a symlink, its target behind it. Pure.
 */
import { DssError } from "../cluster/base/errors.js";
import type { Codec } from "../cluster/wire/struct.js";
import type { DirectoryEntry, Grant, Inode, Layout, MdsReply } from "./proto.js";

const HEAD_SIZE = 16;
/** Inode number, sequence number, mode. */
const GRANT_SIZE = 17;
/** Cookie, inode number, type, flags, layout, lengths of name and target. */
const ENTRY_SIZE = 25;
const INODE_SIZE = 88;

const HAS_INODE = 1;
const HAS_TARGET = 2;
const IS_RECOUNT = 4;
/** No layout; and so the number of layouts that one listing can name. */
const NO_LAYOUT = 255;
const MODES = ["none", "shared", "sole", "exclusive"] as const;
const U32_MAX = 2 ** 32 - 1;

interface Packed {
  listing: Buffer;
  layouts: Layout[];
}
type PackedReply = Omit<MdsReply, "answer"> & { answer: MdsReply["answer"] & Partial<Packed> };

export function withListings(plain: Codec<MdsReply>): Codec<MdsReply> {
  return {
    encode(reply) {
      const { entries, ...answer } = reply.answer;
      const packed = entries === undefined ? undefined : pack(entries, reply.grants);
      if (packed === undefined) return plain.encode(reply);
      const { listing, layouts, grants } = packed;
      const wire: PackedReply = { ...reply, grants, answer: { ...answer, listing, layouts } };
      return plain.encode(wire);
    },
    decode(buffer) {
      const reply: PackedReply = plain.decode(buffer);
      if (!Buffer.isBuffer(reply?.answer?.listing)) return reply;
      const { listing, layouts = [], ...answer } = reply.answer;
      try {
        const { entries, grants } = unpack(listing, layouts);
        return { ...reply, grants: [...grants, ...reply.grants], answer: { ...answer, entries } };
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        throw new DssError("Malformed", "a listing is shorter than it says", { cause: error });
      }
    },
  };
}

/** Grants that do not fit the rows are left; undefined: the whole answer does not fit. */
function pack(
  entries: readonly DirectoryEntry[],
  all: readonly Grant[],
): (Packed & { grants: Grant[] }) | undefined {
  const minEpoch = all[0]?.minEpoch ?? 0;
  const grants: Grant[] = [];
  const rows: Grant[] = [];
  for (const grant of all) {
    if (grant.maxSize === 0 && grant.minEpoch === minEpoch) rows.push(grant);
    else grants.push(grant);
  }
  let size = HEAD_SIZE + rows.length * GRANT_SIZE;
  for (const { name, inode } of entries) {
    size += ENTRY_SIZE + name.length;
    if (inode !== undefined) size += INODE_SIZE + (inode.target?.length ?? 0);
  }
  const listing = Buffer.allocUnsafe(size);
  const view = new DataView(listing.buffer, listing.byteOffset, size);
  view.setUint32(0, entries.length, true);
  view.setUint32(4, rows.length, true);
  view.setFloat64(8, minEpoch, true);
  let at = HEAD_SIZE;
  for (const { ino, seq, mode } of rows) {
    view.setFloat64(at, ino, true);
    view.setFloat64(at + 8, seq, true);
    view.setUint8(at + 16, MODES.indexOf(mode));
    at += GRANT_SIZE;
  }
  const layouts: Layout[] = [];
  for (const entry of entries) {
    const next = putEntry(view, listing, at, entry, layouts);
    if (next === 0) return undefined;
    at = next;
  }
  return { listing, layouts, grants };
}

/** Where the next entry begins; 0: this one does not fit. */
function putEntry(
  view: DataView,
  listing: Buffer,
  start: number,
  { cookie, ino, type, name, inode }: DirectoryEntry,
  layouts: Layout[],
): number {
  let flags = 0;
  let layout = NO_LAYOUT;
  let targetLength = 0;
  if (inode !== undefined) {
    flags = HAS_INODE;
    if (inode.recount) flags |= IS_RECOUNT;
    if (inode.layout !== undefined) layout = numberOf(inode.layout, layouts);
    if (layout < 0 || inode.ino !== ino || !fits(inode)) return 0;
    if (inode.target !== undefined) {
      flags |= HAS_TARGET;
      targetLength = inode.target.length;
    }
  }
  view.setFloat64(start, cookie, true);
  view.setFloat64(start + 8, ino, true);
  view.setUint32(start + 16, type, true);
  view.setUint8(start + 20, flags);
  view.setUint8(start + 21, layout);
  view.setUint8(start + 22, name.length);
  view.setUint16(start + 23, targetLength, true);
  let at = start + ENTRY_SIZE;
  if (inode !== undefined) {
    putInode(view, at, inode);
    at += INODE_SIZE;
  }
  listing.set(name, at);
  at += name.length;
  if (targetLength > 0) listing.set(inode!.target!, at);
  return at + targetLength;
}
function fits({ rdev, nlink, uid, gid, xattrCount, truncateSeq, target }: Inode): boolean {
  const small = nlink <= U32_MAX && rdev <= U32_MAX && uid <= U32_MAX && gid <= U32_MAX;
  return small && xattrCount <= U32_MAX && truncateSeq <= U32_MAX && (target?.length ?? 0) < 65_536;
}
/** -1: there are too many of them. */
function numberOf(layout: Layout, layouts: Layout[]): number {
  for (let at = layouts.length - 1; at >= 0; at--) {
    const known = layouts[at]!;
    if (known === layout) return at;
    if (
      known.pool === layout.pool &&
      known.objectSize === layout.objectSize &&
      known.stripeUnit === layout.stripeUnit &&
      known.stripeCount === layout.stripeCount
    ) {
      return at;
    }
  }
  return layouts.length === NO_LAYOUT ? -1 : layouts.push(layout) - 1;
}
function putInode(view: DataView, at: number, inode: Inode): void {
  view.setUint32(at, inode.mode, true);
  view.setUint32(at + 4, inode.nlink, true);
  view.setUint32(at + 8, inode.uid, true);
  view.setUint32(at + 12, inode.gid, true);
  view.setUint32(at + 16, inode.rdev, true);
  view.setUint32(at + 20, inode.truncateSeq, true);
  view.setFloat64(at + 24, inode.size, true);
  view.setFloat64(at + 32, inode.truncateSize, true);
  view.setFloat64(at + 40, inode.allocated, true);
  view.setBigInt64(at + 48, inode.atimeNs, true);
  view.setBigInt64(at + 56, inode.mtimeNs, true);
  view.setBigInt64(at + 64, inode.ctimeNs, true);
  view.setBigInt64(at + 72, inode.btimeNs, true);
  view.setUint32(at + 80, inode.xattrCount, true);
  view.setUint32(at + 84, 0, true);
}

function unpack(
  listing: Buffer,
  layouts: readonly Layout[],
): { entries: DirectoryEntry[]; grants: Grant[] } {
  const view = new DataView(listing.buffer, listing.byteOffset, listing.length);
  const entryCount = view.getUint32(0, true);
  const grantCount = view.getUint32(4, true);
  const minEpoch = view.getFloat64(8, true);
  if (HEAD_SIZE + grantCount * GRANT_SIZE + entryCount * ENTRY_SIZE > listing.length) {
    throw new RangeError(`${listing.length} bytes for ${entryCount} entries`);
  }
  const grants: Grant[] = [];
  let at = HEAD_SIZE;
  for (let i = 0; i < grantCount; i++) {
    const mode = MODES[view.getUint8(at + 16)];
    if (mode === undefined) throw new RangeError("a grant of an unknown mode");
    const ino = view.getFloat64(at, true);
    grants.push({ ino, mode, seq: view.getFloat64(at + 8, true), maxSize: 0, minEpoch });
    at += GRANT_SIZE;
  }
  const entries: DirectoryEntry[] = [];
  for (let i = 0; i < entryCount; i++) {
    const ino = view.getFloat64(at + 8, true);
    const flags = view.getUint8(at + 20);
    const layout = view.getUint8(at + 21);
    const nameLength = view.getUint8(at + 22);
    const targetLength = view.getUint16(at + 23, true);
    const inodeAt = at + ENTRY_SIZE;
    const nameAt = (flags & HAS_INODE) === 0 ? inodeAt : inodeAt + INODE_SIZE;
    const end = nameAt + nameLength + targetLength;
    if (end > listing.length) throw new RangeError(`entry ${i} of ${entryCount} is cut`);
    const entry: DirectoryEntry = {
      name: listing.subarray(nameAt, nameAt + nameLength),
      ino,
      type: view.getUint32(at + 16, true),
      cookie: view.getFloat64(at, true),
    };
    if ((flags & HAS_INODE) !== 0) {
      const inode = getInode(view, inodeAt, ino, (flags & IS_RECOUNT) !== 0);
      if (layout !== NO_LAYOUT) {
        const known = layouts[layout];
        if (known === undefined) throw new RangeError(`there is no layout ${layout}`);
        inode.layout = known;
      }
      // A copy: it is kept for as long as the inode is known.
      const target = listing.subarray(nameAt + nameLength, end);
      if ((flags & HAS_TARGET) !== 0) inode.target = Buffer.from(target);
      entry.inode = inode;
    }
    entries.push(entry);
    at = end;
  }
  return { entries, grants };
}
function getInode(view: DataView, at: number, ino: number, recount: boolean): Inode {
  return {
    ino,
    mode: view.getUint32(at, true),
    nlink: view.getUint32(at + 4, true),
    uid: view.getUint32(at + 8, true),
    gid: view.getUint32(at + 12, true),
    rdev: view.getUint32(at + 16, true),
    size: view.getFloat64(at + 24, true),
    atimeNs: view.getBigInt64(at + 48, true),
    mtimeNs: view.getBigInt64(at + 56, true),
    ctimeNs: view.getBigInt64(at + 64, true),
    btimeNs: view.getBigInt64(at + 72, true),
    truncateSeq: view.getUint32(at + 20, true),
    truncateSize: view.getFloat64(at + 32, true),
    allocated: view.getFloat64(at + 40, true),
    recount,
    xattrCount: view.getUint32(at + 80, true),
  };
}

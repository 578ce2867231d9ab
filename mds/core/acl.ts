/**
 * POSIX access control lists as Linux keeps them in extended attributes (uapi/linux/posix_acl.h,
 * posix_acl_xattr.h) and what the file system owes them: the mode that follows from a list, the
 * list that follows from a mode, what a new file inherits. The kernel checks access by them (it
 * asks for FUSE_POSIX_ACL); here they are only kept right. Pure.
 *
 * Attribute: u32 version 2, then entries of u16 tag, u16 permissions, u32 id, in the order of tags
 * and ids.
 */
import { DssError } from "../../cluster/base/errors.js";

const VERSION = 2;
const HEADER = 4;
const ENTRY = 8;
const TAG = { userObj: 1, user: 2, groupObj: 4, group: 8, mask: 16, other: 32 } as const;
/** Owner, owning group and others; with named entries also a mask. */
const REQUIRED = TAG.userObj | TAG.groupObj | TAG.other;
const RWX = 0o7;
const S_IRWXUGO = 0o777;

interface AclEntry {
  tag: number;
  permissions: number;
  id: number;
}

/** InvalidArgument unless it is a whole list: the entries that must be there, in order, once. */
export function parseAcl(value: Buffer): AclEntry[] {
  const wrong = (what: string): DssError =>
    new DssError("InvalidArgument", `access control list: ${what}`);
  if (value.length < HEADER || (value.length - HEADER) % ENTRY !== 0) {
    throw wrong(`${value.length} bytes`);
  }
  const version = value.readUInt32LE(0);
  if (version !== VERSION) throw new DssError("NotSupported", `ACL version ${version}`);
  const entries: AclEntry[] = [];
  let seen = 0;
  for (let at = HEADER; at < value.length; at += ENTRY) {
    const entry = {
      tag: value.readUInt16LE(at),
      permissions: value.readUInt16LE(at + 2),
      id: value.readUInt32LE(at + 4),
    };
    const before = entries.at(-1);
    const named = entry.tag === TAG.user || entry.tag === TAG.group;
    if (!(Object.values(TAG) as number[]).includes(entry.tag)) throw wrong(`tag ${entry.tag}`);
    if ((entry.permissions & ~RWX) !== 0) throw wrong(`permissions ${entry.permissions}`);
    if (before !== undefined && before.tag > entry.tag) throw wrong("entries out of order");
    if (!named && (seen & entry.tag) !== 0) throw wrong(`tag ${entry.tag} twice`);
    if (named && before?.tag === entry.tag && before.id === entry.id) {
      throw wrong(`id ${entry.id} twice`);
    }
    seen |= entry.tag;
    entries.push(entry);
  }
  const needed = (seen & (TAG.user | TAG.group)) !== 0 ? REQUIRED | TAG.mask : REQUIRED;
  if ((seen & needed) !== needed) throw wrong("an entry is missing");
  return entries;
}

function encodeAcl(entries: readonly AclEntry[]): Buffer {
  const value = Buffer.alloc(HEADER + entries.length * ENTRY);
  value.writeUInt32LE(VERSION, 0);
  entries.forEach(({ tag, permissions, id }, index) => {
    const at = HEADER + index * ENTRY;
    value.writeUInt16LE(tag, at);
    value.writeUInt16LE(permissions, at + 2);
    value.writeUInt32LE(id, at + 4);
  });
  return value;
}

const isMinimal = (entries: readonly AclEntry[]): boolean =>
  entries.every(({ tag }) => (tag & REQUIRED) !== 0);

/**
 * Owner's, group's (the mask, where there is one) and others' permissions as bits of a mode, and
 * whether they say everything that the list says.
 */
export function modeOfAcl(entries: readonly AclEntry[]): { bits: number; minimal: boolean } {
  const find = (tag: number): number =>
    entries.find((entry) => entry.tag === tag)?.permissions ?? 0;
  const masked = entries.some(({ tag }) => tag === TAG.mask);
  const group = find(masked ? TAG.mask : TAG.groupObj);
  const bits = (find(TAG.userObj) << 6) | (group << 3) | find(TAG.other);
  return { bits, minimal: isMinimal(entries) };
}

/** The entries that the bits of a mode stand for, changed by `change`. */
function mapMode(
  entries: readonly AclEntry[],
  change: (permissions: number, shift: number) => number,
): AclEntry[] {
  const masked = entries.some(({ tag }) => tag === TAG.mask);
  const shifts = new Map<number, number>([
    [TAG.userObj, 6],
    [masked ? TAG.mask : TAG.groupObj, 3],
    [TAG.other, 0],
  ]);
  return entries.map((entry) => {
    const shift = shifts.get(entry.tag);
    if (shift === undefined) return entry;
    return { ...entry, permissions: change(entry.permissions, shift) };
  });
}

/** The access list after chmod(2). */
export function chmodAcl(value: Buffer, mode: number): Buffer {
  return encodeAcl(mapMode(parseAcl(value), (_, shift) => (mode >> shift) & RWX));
}

/** What a new file in a directory with a default list gets instead of the umask's doing. */
export interface Inherited {
  mode: number;
  /** Absent when the mode says everything. */
  access?: Buffer;
}
export function inheritAcl(value: Buffer, mode: number): Inherited {
  const entries = mapMode(parseAcl(value), (permissions, shift) => permissions & (mode >> shift));
  const { bits, minimal } = modeOfAcl(entries);
  const inherited: Inherited = { mode: (mode & ~S_IRWXUGO) | bits };
  if (!minimal) inherited.access = encodeAcl(entries);
  return inherited;
}

/** The mode after its access list was set. */
export function modeUnderAcl(mode: number, bits: number): number {
  return (mode & ~S_IRWXUGO) | bits;
}

/**
 * Names of a volume's objects, and of what they were. Pure.
 *
 * `v2.3` is object 3 of volume 2. What it was at a snapshot is an object of its own,
 * `v2.3#00000007`. Of volume 5, which was cloned from volume 2 or from a clone of it, the object is
 * `v2.3$00000005`, and at a snapshot it was `v2.3$00000005#00000001`. All of these are one
 * *family*: they are in the PG of the first, and follow each other in name order, so that they can
 * share blocks.
 */
const MARK = "#";
const CLONE_MARK = "$";
const ID_DIGITS = 8;

/** Snapshot ids are u32: they begin with 1 and are never used again. */
export const SNAP_ID_MAX = 0xffff_fffe;
/** The context of whoever removes an object for good, whatever snapshots it has seen. */
export const ANY_SNAP_CONTEXT = 0xffff_ffff;

export function cloneName(head: string, snap: number): string {
  return `${head}${MARK}${snap.toString(16).padStart(ID_DIGITS, "0")}`;
}
/** The object itself, or the one whose state at a snapshot it is. */
export function headOf(object: string): string {
  const at = object.indexOf(MARK);
  return at < 0 ? object : object.slice(0, at);
}
/** The snapshot that a clone was made for; undefined: it is no clone. */
export function cloneIdOf(object: string): number | undefined {
  const at = object.indexOf(MARK);
  if (at < 0) return undefined;
  const id = Number.parseInt(object.slice(at + 1), 16);
  return Number.isSafeInteger(id) ? id : undefined;
}
/** The first of the objects that may share blocks with it and are placed with it. */
export function familyOf(object: string): string {
  const head = headOf(object);
  const at = head.indexOf(CLONE_MARK);
  return at < 0 ? head : head.slice(0, at);
}

/** How many volumes stand behind one that was cloned at most: clones of clones. */
export const ANCESTORS_MAX = 16;

// ---- The objects of a volume -------------------------------------------------------------------

/** Of a volume that is cloned from one with `parentPrefix`. */
export function clonePrefix(parentPrefix: string, volume: number): string {
  return `${familyPrefix(parentPrefix)}${CLONE_MARK}${volume.toString(16).padStart(ID_DIGITS, "0")}`;
}
/** It was made as a clone of a volume, which may be its own by now. */
export function isClonePrefix(prefix: string): boolean {
  return prefix.includes(CLONE_MARK);
}
function familyPrefix(prefix: string): string {
  const at = prefix.indexOf(CLONE_MARK);
  return at < 0 ? prefix : prefix.slice(0, at);
}
/** `<inode hex>.<index hex>` for files; volumes give their own prefix. */
export function objectName(prefix: string, index: number): string {
  const at = prefix.indexOf(CLONE_MARK);
  if (at < 0) return `${prefix}.${index.toString(16)}`;
  return `${prefix.slice(0, at)}.${index.toString(16)}${prefix.slice(at)}`;
}
/** What the names of all objects of its family begin with. */
export function listedFrom(prefix: string): string {
  return `${familyPrefix(prefix)}.`;
}
/** The volume's objects among those that `listedFrom` finds; what they were at snapshots too. */
export function isObjectOf(prefix: string, object: string): boolean {
  const head = headOf(object);
  const from = listedFrom(prefix);
  if (!head.startsWith(from)) return false;
  const at = head.indexOf(CLONE_MARK);
  return (at < 0 ? "" : head.slice(at)) === prefix.slice(from.length - 1);
}
/** The index in a name that `objectName` has made, or in that of a clone of it. */
export function objectIndex(object: string): number {
  return Number.parseInt(object.slice(object.indexOf(".") + 1), 16);
}

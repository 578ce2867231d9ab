/**
 * Names of an object's snapshot clones. What an object was at a snapshot is kept as an object of
 * its own, `<object>#<snapshot id>`: it is in the PG of its head, and follows its head and precedes
 * every other object in name order. Pure.
 */
const MARK = "#";
const ID_DIGITS = 8;

/** Snapshot ids are u32: they begin with 1 and are never used again. */
export const SNAP_ID_MAX = 0xffff_fffe;
/** The context of whoever removes an object for good, whatever snapshots it has seen. */
export const ANY_SNAP_CONTEXT = 0xffff_ffff;

export function cloneName(head: string, snap: number): string {
  return `${head}${MARK}${snap.toString(16).padStart(ID_DIGITS, "0")}`;
}
/** The object itself, or the one whose clone it is. */
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

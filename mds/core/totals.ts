/**
 * Recursive totals of directories: how many files and directories are below each, and how large
 * they are. Pure.
 *
 * An inode that is no directory counts once, in the directory `InodeRecord.parent` says, however
 * many names it has (links.ts), and in every directory above; without a name it counts nowhere. A
 * directory counts in those above it, not in itself. Every draft finds out for itself what its
 * changes of inodes mean for the totals (totals-changes.ts), so no operation can forget it; a
 * directory that moves takes its totals along.
 */
import type { Reader, Writer } from "./binary.js";

export interface Totals {
  /** Inodes that are no directories. */
  files: number;
  directories: number;
  /** Sizes of files and symbolic links; sparse files of all sizes, so they may pass 2^53. */
  bytes: bigint;
  /** Bytes of the blocks that hold data. */
  allocated: bigint;
  /** Bytes beyond their sizes that writers below a quota may have written (`reservedTo`). */
  reserved: bigint;
}
export const NO_TOTALS: Readonly<Totals> = Object.freeze({
  files: 0,
  directories: 0,
  bytes: 0n,
  allocated: 0n,
  reserved: 0n,
});

export function addTotals(to: Totals, by: Readonly<Totals>): void {
  to.files += by.files;
  to.directories += by.directories;
  if (by.bytes !== 0n) to.bytes += by.bytes;
  if (by.allocated !== 0n) to.allocated += by.allocated;
  if (by.reserved !== 0n) to.reserved += by.reserved;
}
export function isZero(totals: Readonly<Totals>): boolean {
  const { files, directories, bytes, allocated, reserved } = totals;
  return files === 0 && directories === 0 && bytes === 0n && allocated === 0n && reserved === 0n;
}
export function negated(totals: Readonly<Totals>): Totals {
  const { files, directories, bytes, allocated, reserved } = totals;
  return {
    files: -files,
    directories: -directories,
    bytes: -bytes,
    allocated: -allocated,
    reserved: -reserved,
  };
}
export function difference(a: Readonly<Totals>, b: Readonly<Totals>): Totals {
  const sum = { ...a };
  addTotals(sum, negated(b));
  return sum;
}

export function writeTotals(out: Writer, totals: Readonly<Totals>): void {
  out.int(totals.files);
  out.int(totals.directories);
  out.big(totals.bytes);
  out.big(totals.allocated);
  out.big(totals.reserved);
}
export function readTotals(from: Reader): Totals {
  const [files, directories] = [from.int(), from.int()];
  return { files, directories, bytes: from.big(), allocated: from.big(), reserved: from.big() };
}

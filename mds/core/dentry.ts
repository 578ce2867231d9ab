/**
 * Directory entries and the order in which they are listed. Pure.
 *
 * An entry's cookie is a 48-bit hash of its name and a 5-bit number that tells names of equal hash
 * apart; it is stored with the entry, so it never changes while the name exists. Pages of a
 * directory are cut by the first hexadecimal digits of the hash, so that listing page after page is
 * listing in cookie order, whatever splits happen meanwhile.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { COLLISIONS_MAX, firstCookie, HASH_BITS, nameHash } from "../proto-order.js";
import type { Reader, Writer } from "./binary.js";

export interface Dentry {
  name: Buffer;
  ino: Ino;
  /** S_IFMT bits. */
  type: number;
  /** hash * 32 + number among equal hashes; 1 … 2^53 - 1. */
  cookie: number;
}

/** Hexadecimal digits of a hash: how deep a directory can be split. */
export const HASH_DIGITS = HASH_BITS / 4;
/** A directory page is split beyond either of these. */
export const DIRECTORY_PAGE_ENTRIES = 2048;
export const DIRECTORY_PAGE_BYTES = 128 * 1024;

/** The hash as 12 hexadecimal digits; pages are named by prefixes of it. */
export function hashDigits(hash: number): string {
  return hash.toString(16).padStart(HASH_DIGITS, "0");
}
/** The prefix that follows `prefix` among those of its length; undefined after the last. */
export function nextPrefix(prefix: string): string | undefined {
  if (prefix === "") return undefined;
  const next = Number.parseInt(prefix, 16) + 1;
  return next >= 16 ** prefix.length ? undefined : next.toString(16).padStart(prefix.length, "0");
}
/** Names as keys of a Map: one character a byte. */
export function nameKey(name: Buffer): string {
  return name.toString("latin1");
}
export function dentryBytes(name: Buffer): number {
  return name.length + 14;
}

export function writeDentry(out: Writer, entry: Dentry): void {
  out.bytes(entry.name);
  out.uint(entry.ino);
  out.uint((entry.type >>> 12) * COLLISIONS_MAX + (entry.cookie % COLLISIONS_MAX));
}
export function readDentry(from: Reader): Dentry {
  const name = from.bytes();
  const ino = from.uint();
  const packed = from.uint();
  const type = Math.floor(packed / COLLISIONS_MAX) * 4096;
  return { name, ino, type, cookie: firstCookie(nameHash(name)) + (packed % COLLISIONS_MAX) };
}

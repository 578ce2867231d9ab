/**
 * Directory entries and the order in which they are listed. Pure.
 *
 * An entry's cookie is a 48-bit hash of its name and a 5-bit number that tells names of equal hash
 * apart; it is stored with the entry, so it never changes while the name exists. Pages of a
 * directory are cut by the first hexadecimal digits of the hash, so that listing page after page is
 * listing in cookie order, whatever splits happen meanwhile.
 */
import type { Ino } from "../../cluster/base/ids.js";
import type { Reader, Writer } from "./binary.js";

export interface Dentry {
  name: Buffer;
  ino: Ino;
  /** S_IFMT bits. */
  type: number;
  /** hash * 32 + number among equal hashes; 1 … 2^53 - 1. */
  cookie: number;
}

const HASH_BITS = 48;
const COLLISION_BITS = 5;
export const COLLISIONS_MAX = 2 ** COLLISION_BITS;
/** Hexadecimal digits of a hash: how deep a directory can be split. */
export const HASH_DIGITS = HASH_BITS / 4;
/** A directory page is split beyond either of these. */
export const DIRECTORY_PAGE_ENTRIES = 2048;
export const DIRECTORY_PAGE_BYTES = 128 * 1024;

/**
 * Two lanes of multiply-and-rotate (the finaliser is MurmurHash3's); published with the page
 * format: never change it.
 */
export function nameHash(name: Buffer): number {
  let a = 0x9747b28c ^ name.length;
  let b = 0x1b873593;
  for (const byte of name) {
    a = Math.imul(a ^ byte, 0x85ebca6b);
    a = (a << 13) | (a >>> 19);
    b = Math.imul(b ^ byte, 0xc2b2ae35);
    b = (b << 15) | (b >>> 17);
  }
  const high = mix(a ^ (b >>> 7));
  const low = mix(b ^ Math.imul(high, 5)) & 0xffff;
  const hash = high * 2 ** 16 + low;
  return hash === 0 ? 1 : hash; // Cookie 0 means the start of a listing.
}
function mix(word: number): number {
  let x = word;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

export function firstCookie(hash: number): number {
  return hash * COLLISIONS_MAX;
}
export function hashOfCookie(cookie: number): number {
  return Math.floor(cookie / COLLISIONS_MAX);
}
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

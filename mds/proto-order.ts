/**
 * The order in which a directory is listed, for the leader and for mounts that list what they hold:
 * by cookie, a 48-bit hash of the name and a 5-bit number that tells names of equal hash apart.
 * Pure.
 */
export const HASH_BITS = 48;
const COLLISION_BITS = 5;
export const COLLISIONS_MAX = 2 ** COLLISION_BITS;

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

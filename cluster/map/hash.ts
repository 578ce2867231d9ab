/**
 * MurmurHash3 x86 32-bit (Austin Appleby, public domain): the stable hash behind placement. Its
 * results are part of the on-disk format: changing them moves every object.
 */
const C1 = 0xcc9e2d51;
const C2 = 0x1b873593;

function scramble(k: number): number {
  const m = Math.imul(k, C1);
  return Math.imul((m << 15) | (m >>> 17), C2);
}
function mix(h: number, k: number): number {
  const x = h ^ scramble(k);
  return (Math.imul((x << 13) | (x >>> 19), 5) + 0xe6546b64) | 0;
}
function finish(h: number, length: number): number {
  let x = h ^ length;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** 32-bit hash of `bytes`. */
export function murmur3(bytes: Uint8Array, seed = 0): number {
  const length = bytes.length;
  const whole = length & ~3;
  let h = seed | 0;
  for (let i = 0; i < whole; i += 4) {
    h = mix(h, bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24));
  }
  let tail = 0;
  for (let i = length - 1; i >= whole; i--) tail = (tail << 8) | bytes[i]!;
  return finish(h ^ scramble(tail), length);
}

/** `murmur3` of the UTF-8 bytes of `text`; object names are ASCII and need no copy. */
export function murmur3Text(text: string, seed = 0): number {
  const length = text.length;
  const whole = length & ~3;
  let h = seed | 0;
  let seen = 0;
  let i = 0;
  for (; i < whole; i += 4) {
    const a = text.charCodeAt(i);
    const b = text.charCodeAt(i + 1);
    const c = text.charCodeAt(i + 2);
    const d = text.charCodeAt(i + 3);
    seen |= a | b | c | d;
    h = mix(h, a | (b << 8) | (c << 16) | (d << 24));
  }
  let tail = 0;
  for (let j = length - 1; j >= whole; j--) {
    const code = text.charCodeAt(j);
    seen |= code;
    tail = (tail << 8) | code;
  }
  if (seen > 0x7f) return murmur3(Buffer.from(text, "utf8"), seed);
  return finish(h ^ scramble(tail), length);
}

/** `murmur3` of two little-endian u32 words. */
export function murmur3Words(first: number, second: number, seed: number): number {
  return finish(mix(mix(seed | 0, first), second), 8);
}

/**
 * crc32 (the zlib polynomial, `zlib.crc32`) of every 4 KiB block, on the wire and on disk.
 * A frame's checksum is derived from its blocks' checksums with `crc32Combine`, so each side
 * reads the bytes once.
 */
import { crc32 as zlibCrc32 } from "node:zlib";
import { crc32 as vectorCrc32 } from "@node-rs/crc32";
import { assert } from "./assert.js";

/** Bytes under one checksum, the unit of verification and of atomic writes. */
export const BLOCK_SIZE = 4096;

/** Below it the way to the faster implementation costs more than it saves. */
const SMALL_BYTES = 64;

/** crc32 of `data`, continuing from `seed` (the crc32 of what precedes it). */
export function crc32(data: Uint8Array, seed = 0): number {
  return data.length < SMALL_BYTES ? zlibCrc32(data, seed) : vectorCrc32(data, seed);
}

/** Checksum of each 4 KiB block of `data`; a last partial block is summed as it is. */
export function blockChecksums(data: Uint8Array): Uint32Array {
  const count = Math.ceil(data.length / BLOCK_SIZE);
  const sums = new Uint32Array(count);
  if (count === 1) {
    sums[0] = crc32(data);
    return sums;
  }
  for (let i = 0; i < count; i++) {
    sums[i] = crc32(data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE));
  }
  return sums;
}

/** Checksum of 4 KiB of zeros. */
export const ZERO_BLOCK_CRC = crc32(Buffer.alloc(BLOCK_SIZE));

type Matrix = Uint32Array; // 32 columns of a linear map over GF(2)³²

function times(matrix: Matrix, vector: number): number {
  let sum = 0;
  for (let i = 0, v = vector >>> 0; v !== 0; i++, v >>>= 1) if (v & 1) sum ^= matrix[i]!;
  return sum >>> 0;
}
function square(matrix: Matrix): Matrix {
  return matrix.map((column) => times(matrix, column));
}

/** The linear map "append 2^k zero bytes" for k = 0 … 31. */
const APPEND_ZEROS: Matrix[] = (() => {
  let oneBit: Matrix = new Uint32Array(32);
  oneBit[0] = 0xedb88320;
  for (let i = 1; i < 32; i++) oneBit[i] = 1 << (i - 1);
  for (let i = 0; i < 3; i++) oneBit = square(oneBit); // 1 bit -> 8 bits
  const maps = [oneBit];
  for (let k = 1; k < 32; k++) maps.push(square(maps[k - 1]!));
  return maps;
})();

/** crc32 of A‖B from crc32(A), crc32(B) and the length of B in bytes (zlib's crc32_combine). */
export function crc32Combine(crcA: number, crcB: number, lengthB: number): number {
  assert(lengthB >= 0 && lengthB < 2 ** 32, `crc32Combine: length ${lengthB}`);
  let crc = crcA;
  for (let k = 0, n = lengthB; n !== 0; k++, n >>>= 1) {
    if (n & 1) crc = times(APPEND_ZEROS[k]!, crc);
  }
  return (crc ^ crcB) >>> 0;
}

/** crc32 of the whole of `length` bytes from the checksums of its 4 KiB blocks. */
export function crc32OfBlocks(sums: ArrayLike<number>, length: number): number {
  let crc = 0;
  for (let i = 0; i < sums.length; i++) {
    const size = Math.min(BLOCK_SIZE, length - i * BLOCK_SIZE);
    crc = i === 0 ? sums[0]! >>> 0 : appendBlock(crc, sums[i]!, size);
  }
  return crc;
}

/**
 * `crc32Combine` for a whole block is by far the commonest: four table look-ups instead of a loop.
 */
const BLOCK_TABLE: readonly Uint32Array[] = [0, 8, 16, 24].map((shift) =>
  Uint32Array.from({ length: 256 }, (_, byte) => times(APPEND_ZEROS[12]!, (byte << shift) >>> 0)),
);
function appendBlock(crc: number, sum: number, size: number): number {
  if (size !== BLOCK_SIZE) return crc32Combine(crc, sum, size);
  const moved =
    BLOCK_TABLE[0]![crc & 0xff]! ^
    BLOCK_TABLE[1]![(crc >>> 8) & 0xff]! ^
    BLOCK_TABLE[2]![(crc >>> 16) & 0xff]! ^
    BLOCK_TABLE[3]![crc >>> 24]!;
  return (moved ^ sum) >>> 0;
}

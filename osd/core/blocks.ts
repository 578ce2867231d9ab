/**
 * Whole blocks out of a client's byte range (design §5 Replication). Pure: the caller reads the two
 * edge blocks.
 */
import { BLOCK_SIZE, blockChecksums } from "../../cluster/base/checksum.js";
import { assert } from "../../cluster/base/assert.js";

export const blockFloor = (offset: number): number => offset - (offset % BLOCK_SIZE);
export const blockCeil = (offset: number): number => blockFloor(offset + BLOCK_SIZE - 1);

/**
 * Which edge blocks must be read before [offset, offset + length) can be written over an object of
 * `size` bytes.
 */
export function edgesToRead(
  offset: number,
  length: number,
  size: number,
): { head: number | undefined; tail: number | undefined } {
  const start = blockFloor(offset);
  const end = offset + length;
  const lastBlock = blockFloor(end - 1);
  const head = start < offset && start < size ? start : undefined;
  // The tail's old bytes matter only when the object goes on behind the write.
  const tail = end % BLOCK_SIZE !== 0 && end < size && lastBlock !== head ? lastBlock : undefined;
  return { head, tail };
}

export interface MergedWrite {
  /** Multiple of 4,096. */
  offset: number;
  data: Buffer[];
  sums: Uint32Array;
}

/**
 * `edge(blockOffset)` is the old block there (4,096 bytes), or undefined when it reads as zeros.
 * `sums` are the checksums of 4 KiB blocks of `data` counted from its beginning.
 */
export function mergeBlocks(
  offset: number,
  data: Buffer,
  sums: Uint32Array,
  edge: (blockOffset: number) => Buffer | undefined,
): MergedWrite {
  assert(data.length > 0, "a write has bytes");
  if (offset % BLOCK_SIZE === 0 && data.length % BLOCK_SIZE === 0) {
    return { offset, data: [data], sums };
  }
  const start = blockFloor(offset);
  const end = offset + data.length;
  const pieces: Buffer[] = [];
  const total = (blockCeil(end) - start) / BLOCK_SIZE;
  const merged = new Uint32Array(total);
  let at = 0; // in data
  let block = 0;

  const mergeOne = (blockOffset: number, from: number, take: number): void => {
    const buffer = Buffer.alloc(BLOCK_SIZE);
    edge(blockOffset)?.copy(buffer);
    data.copy(buffer, from, at, at + take);
    at += take;
    pieces.push(buffer);
    merged[block++] = blockChecksums(buffer)[0]!;
  };

  if (start < offset) {
    mergeOne(start, offset - start, Math.min(BLOCK_SIZE - (offset - start), data.length));
  }
  const whole = data.length - at - ((data.length - at) % BLOCK_SIZE);
  if (whole > 0) {
    const middle = data.subarray(at, at + whole);
    pieces.push(middle);
    if (at === 0) merged.set(sums.subarray(0, whole / BLOCK_SIZE), block);
    else merged.set(blockChecksums(middle), block);
    block += whole / BLOCK_SIZE;
    at += whole;
  }
  if (at < data.length) mergeOne(start + block * BLOCK_SIZE, 0, data.length - at);
  assert(block === total, "every block of the range is there");
  return { offset: start, data: pieces, sums: merged };
}

/** The block at `blockOffset` with everything from `from` (byte in the block) to `to` zeroed. */
export function zeroedBlock(
  old: Buffer,
  from: number,
  to: number,
): { data: Buffer; sums: Uint32Array } {
  const data = Buffer.from(old);
  data.fill(0, from, to);
  return { data, sums: blockChecksums(data) };
}

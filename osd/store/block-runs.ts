/** Runs of blocks as scrub and repair see them. Pure. */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE, crc32, ZERO_BLOCK_CRC } from "../../cluster/base/checksum.js";
import type { BlockRun, SpoiledBlock } from "./chunk-store.js";

/**
 * The parts of `runs` whose blocks should have just these checksums: `sumOf` tells what the object
 * says of a block now (undefined: it has none there).
 */
export function runsThatFit(
  runs: readonly BlockRun[],
  sumOf: (block: number) => number | undefined,
): BlockRun[] {
  const out: BlockRun[] = [];
  for (const { offset, data, sums } of runs) {
    assert(
      offset % BLOCK_SIZE === 0 && data.length === sums.length * BLOCK_SIZE,
      "a repair is not in whole blocks",
    );
    const first = offset / BLOCK_SIZE;
    for (let i = 0; i < sums.length;) {
      let count = 0;
      while (i + count < sums.length && sumOf(first + i + count) === sums[i + count]) count++;
      if (count > 0) {
        out.push({
          offset: offset + i * BLOCK_SIZE,
          data: data.subarray(i * BLOCK_SIZE, (i + count) * BLOCK_SIZE),
          sums: sums.slice(i, i + count),
        });
      }
      i += Math.max(count, 1);
    }
  }
  return out;
}

/** crc32 over (block number, block checksum), in the order given. */
export function digestOf(blocks: Iterable<{ at: number; sum: number }>): number {
  let digest = 0;
  const row = Buffer.alloc(8);
  for (const { at, sum } of blocks) {
    row.writeUInt32LE(at, 0);
    row.writeUInt32LE(sum, 4);
    digest = crc32(row, digest);
  }
  return digest;
}

/** Puts zeros for a run's damaged blocks (numbers in the object) and returns what they were. */
export function spoil(run: BlockRun, bad: readonly number[]): SpoiledBlock[] {
  const first = run.offset / BLOCK_SIZE;
  return bad
    .filter((at) => at >= first && at < first + run.sums.length)
    .map((at) => {
      const i = at - first;
      const sum = run.sums[i]!;
      run.data.fill(0, i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
      run.sums[i] = ZERO_BLOCK_CRC;
      return { offset: at * BLOCK_SIZE, sum };
    });
}

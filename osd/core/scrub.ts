/** Decisions of scrub (design §5 Scrub): which copies differ, and which one is right. Pure. */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";

/** Neighbouring blocks as runs, ascending. */
export function blockRuns(
  blocks: readonly { offset: number }[],
): { offset: number; length: number }[] {
  const runs: { offset: number; length: number }[] = [];
  for (const { offset } of blocks) {
    const last = runs.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += BLOCK_SIZE;
    else runs.push({ offset, length: BLOCK_SIZE });
  }
  return runs;
}

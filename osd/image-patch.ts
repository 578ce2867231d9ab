/**
 * Copying only what differs: an object of which the other side has an old copy travels as the
 * blocks that are not there yet. Pure.
 *
 * Blocks are compared by 128 bits of SHA-256, not by the checksums that are at hand: those would
 * take one changed block in four thousand million for the old one, and nobody would ever know.
 */
import { createHash } from "node:crypto";
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError } from "../cluster/base/errors.js";
import type { ObjectImage } from "./store/chunk-store.js";

/** Smaller objects are not worth the question. */
export const PATCH_BYTES_MIN = 64 * 1024;
/** With more than this part to be sent, the whole object is simpler. */
const PATCH_PART_MAX = 0.75;
const DIGEST_BYTES = 16;
/** A row is the block's number (u32) and its digest. */
const ROW_BYTES = 4 + DIGEST_BYTES;

type Runs = ObjectImage["extents"];

/** One row for every block that is not a hole. */
export function digestBlocks(runs: Runs): Buffer {
  const blocks = runs.reduce((count, { sums }) => count + sums.length, 0);
  const rows = Buffer.allocUnsafe(blocks * ROW_BYTES);
  let at = 0;
  for (const { offset, data } of runs) {
    for (let from = 0; from < data.length; from += BLOCK_SIZE) {
      rows.writeUInt32LE((offset + from) / BLOCK_SIZE, at);
      const digest = createHash("sha256").update(data.subarray(from, from + BLOCK_SIZE)).digest();
      digest.copy(rows, at + 4, 0, DIGEST_BYTES);
      at += ROW_BYTES;
    }
  }
  return rows;
}

/**
 * The blocks of `image` that the other side does not have, as runs; undefined when sending all of
 * it is better. Errors: Malformed.
 */
export function differingRuns(image: ObjectImage, theirs: Buffer): Runs | undefined {
  if (theirs.length % ROW_BYTES !== 0) {
    throw new DssError("Malformed", `${theirs.length} bytes are no digests of blocks`);
  }
  const known = new Map<number, string>();
  for (let at = 0; at < theirs.length; at += ROW_BYTES) {
    const digest = theirs.toString("latin1", at + 4, at + ROW_BYTES);
    known.set(theirs.readUInt32LE(at), digest);
  }
  const ours = digestBlocks(image.extents);
  const runs: Runs = [];
  let row = 0;
  let bytes = 0;
  for (const { offset, data, sums } of image.extents) {
    let begin = -1;
    const close = (end: number): void => {
      if (begin < 0) return;
      runs.push({
        offset: offset + begin * BLOCK_SIZE,
        data: data.subarray(begin * BLOCK_SIZE, end * BLOCK_SIZE),
        sums: sums.subarray(begin, end),
      });
      bytes += (end - begin) * BLOCK_SIZE;
      begin = -1;
    };
    for (let i = 0; i < sums.length; i++, row += ROW_BYTES) {
      const digest = ours.toString("latin1", row + 4, row + ROW_BYTES);
      if (known.get(ours.readUInt32LE(row)) === digest) close(i);
      else if (begin < 0) begin = i;
    }
    close(sums.length);
  }
  return bytes <= PATCH_PART_MAX * image.info.allocated ? runs : undefined;
}

/**
 * The whole image: the blocks that came, and all others of `extents` from the old copy. Errors:
 * NotActive when the old copy does not have one of them.
 */
export function patchedRuns(
  extents: readonly { offset: number; length: number }[],
  came: Runs,
  old: ObjectImage | undefined,
): Runs {
  return extents.map(({ offset, length }) => {
    const data = Buffer.allocUnsafe(length);
    const sums = new Uint32Array(length / BLOCK_SIZE);
    const filled = new Uint8Array(sums.length);
    // What came goes last: it replaces what the old copy has there.
    for (const run of [...(old?.extents ?? []), ...came]) {
      const from = Math.max(offset, run.offset);
      const to = Math.min(offset + length, run.offset + run.data.length);
      if (from >= to) continue;
      run.data.copy(data, from - offset, from - run.offset, to - run.offset);
      const first = (from - run.offset) / BLOCK_SIZE;
      const target = (from - offset) / BLOCK_SIZE;
      const count = (to - from) / BLOCK_SIZE;
      sums.set(run.sums.subarray(first, first + count), target);
      filled.fill(1, target, target + count);
    }
    if (filled.includes(0)) {
      throw new DssError("NotActive", `the old copy lacks blocks of ${offset}+${length}`);
    }
    return { offset, data, sums };
  });
}

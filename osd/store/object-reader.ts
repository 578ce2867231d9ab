/**
 * Reads blocks of an object and verifies each against its checksum, from the overlay too. An
 * in-place write of newer bytes may overtake an asynchronous read: a mismatch counts as damage
 * only when the object has not changed since and a second look says the same.
 */
import type { BufferPool } from "../../cluster/base/buffer-pool.js";
import { BLOCK_SIZE, crc32, crc32OfBlocks, ZERO_BLOCK_CRC } from "../../cluster/base/checksum.js";
import { faults } from "../../cluster/base/faults.js";
import { DssError } from "../../cluster/base/errors.js";
import { formatPg } from "../../cluster/base/ids.js";
import type { ObjectInfo } from "./chunk-store.js";
import type { DataFiles } from "./data-files.js";
import type { BlockUser, Quarantine } from "./extent-map.js";
import type { ObjectState } from "./object-state.js";
import type { OverlayEntry } from "./overlay.js";

/** Holes are read from here; pieces of it are handed out, nobody writes to it. */
const ZEROS = Buffer.alloc(256 * 1024);
/** Each needs a write to the very same blocks during the read before. */
const ATTEMPTS_MAX = 100;

export interface BlockRead {
  data: Buffer[];
  /** crc32 of each block, verified. */
  sums: Uint32Array;
  /** Block number in the object of the first one. */
  first: number;
  info: ObjectInfo;
  /** The parts of `data` that are not holes. */
  pieces: readonly Piece[];
  /** Buffers of the pool that hold `data`, for the last user to give back. */
  lent: readonly Buffer[];
  /** Blocks (numbers in the object) that fail their checksum; only for who tolerates them. */
  bad: readonly number[];
}

/** Looked up anew for every attempt: the cache may have replaced the state meanwhile. */
export type ObjectLookup = () => ObjectState | undefined;
/** The blocks wanted of the object as it is now. */
export type BlockRange = (object: ObjectState) => { first: number; count: number };

export interface ReadOptions {
  /** Where large buffers come from, if somebody gives them back. */
  pool?: BufferPool;
  /** Damaged blocks are named rather than an error. */
  tolerant?: boolean;
}

export interface Piece {
  /** Block number in the object. */
  first: number;
  count: number;
  /** Disk block of the first, or -1: already in `buffer`. */
  start: number;
  buffer: Buffer;
  /** Blocks that the overlay had when the read was planned: they go over what the disk says. */
  patches: readonly { at: number; bytes: Buffer }[];
}

const NONE: readonly number[] = [];
const NO_PATCHES: Piece["patches"] = [];

function patchesOf(
  overlay: Map<number, OverlayEntry>,
  first: number,
  count: number,
): Piece["patches"] {
  if (overlay.size === 0) return NO_PATCHES;
  const out: { at: number; bytes: Buffer }[] = [];
  for (let at = first; at < first + count; at++) {
    const entry = overlay.get(at);
    // A copy: the slot may be used again before the read ends.
    if (entry) out.push({ at, bytes: Buffer.from(entry.bytes) });
  }
  return out;
}

function applyPatches(piece: Piece): void {
  for (const { at, bytes } of piece.patches)
    bytes.copy(piece.buffer, (at - piece.first) * BLOCK_SIZE);
}

interface Plan extends BlockRead {
  diskBlocks: number;
}

function plan(object: ObjectState, range: BlockRange, pool: BufferPool | undefined): Plan {
  const { first, count } = range(object);
  const sums = new Uint32Array(count);
  const data: Buffer[] = [];
  const pieces: Piece[] = [];
  const lent: Buffer[] = [];
  let diskBlocks = 0;
  const { blocks, overlay } = object;
  for (let i = 0; i < count;) {
    const at = first + i;
    const block = at < object.extent ? blocks[at]! : 0;
    let length = 1;
    if (block === 0) {
      while (i + length < count && !(at + length < object.extent && blocks[at + length] !== 0))
        length++;
      sums.fill(ZERO_BLOCK_CRC, i, i + length);
      for (let left = length * BLOCK_SIZE; left > 0; left -= ZEROS.length) {
        data.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
      }
    } else {
      while (i + length < count && blocks[at + length] === block + length) length++;
      const bytes = length * BLOCK_SIZE;
      let buffer: Buffer;
      if (pool !== undefined) {
        const taken = pool.take(bytes);
        lent.push(taken);
        buffer = taken.length === bytes ? taken : taken.subarray(0, bytes);
      } else buffer = Buffer.allocUnsafeSlow(bytes);
      const patches = overlay ? patchesOf(overlay, at, length) : NO_PATCHES;
      // A run is read in one piece even where the overlay has newer bytes for some of its blocks.
      const onDisk = patches.length < length;
      if (onDisk) diskBlocks += length;
      const piece = { first: at, count: length, start: onDisk ? block - 1 : -1, buffer, patches };
      if (!onDisk) applyPatches(piece);
      sums.set(object.sums.subarray(at, at + length), i);
      pieces.push(piece);
      data.push(buffer);
    }
    i += length;
  }
  return { data, sums, first, info: object.info(), pieces, lent, bad: NONE, diskBlocks };
}

/** Blocks from which on checking them together is quicker. */
const LONG_RUN = 4;

/** The blocks (numbers in the object) whose bytes do not match: the first, or all of them. */
function mismatches(p: Plan, all: boolean): readonly number[] {
  if (faults.skipChecksum) return NONE;
  let bad: number[] | undefined;
  for (const piece of p.pieces) {
    const from = piece.first - p.first;
    // One pass over a long run; its blocks are looked at one by one only to find the bad ones.
    if (piece.count >= LONG_RUN) {
      const wanted = p.sums.subarray(from, from + piece.count);
      if (crc32(piece.buffer) === crc32OfBlocks(wanted, piece.buffer.length)) continue;
    }
    for (let i = 0; i < piece.count; i++) {
      const bytes =
        piece.count === 1
          ? piece.buffer
          : piece.buffer.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
      if (crc32(bytes) === p.sums[from + i]) continue;
      (bad ??= []).push(piece.first + i);
      if (!all) return bad;
    }
  }
  return bad ?? NONE;
}

function writesIn(object: ObjectState, range: BlockRange): Promise<void>[] {
  if (!object.writing) return [];
  const { first, count } = range(object);
  return object.writing
    .filter((write) => write.first < first + count && write.end > first)
    .map((write) => write.done);
}

const same = (a: Uint32Array, b: Uint32Array): boolean =>
  a.length === b.length && a.every((value, i) => value === b[i]);

export class ObjectReader {
  readonly counters = { reads: 0, syncReads: 0, readRetries: 0, corruptBlocks: 0 };

  constructor(
    private readonly files: DataFiles,
    private readonly quarantine: Quarantine,
    private readonly syncReadBytes: number,
    private readonly onUseEnd: () => void,
  ) {}

  private corrupt(object: ObjectState, block: number): DssError {
    this.counters.corruptBlocks++;
    return new DssError(
      "Corrupt",
      `PG ${formatPg(object.pg.id)} object ${object.name} block ${block} fails its checksum`,
    );
  }

  /**
   * Undefined when the object does not exist. Fails with Disk, and with Corrupt unless damage is
   * tolerated: then all blocks are looked at, and `bad` names those that are damaged.
   */
  async read(
    lookup: ObjectLookup,
    range: BlockRange,
    options: ReadOptions = {},
  ): Promise<BlockRead | undefined> {
    this.counters.reads++;
    const object = lookup();
    if (!object) return undefined;
    if (object.writing) return this.readAsync(lookup, range, options);
    const p = plan(object, range, options.pool);
    if (p.diskBlocks * BLOCK_SIZE > this.syncReadBytes) {
      return this.readAsync(lookup, range, options, p);
    }
    for (const piece of p.pieces) {
      if (piece.start < 0) continue;
      const run = { start: piece.start, count: piece.count };
      if (!this.files.readSync(run, piece.buffer)) return this.readAsync(lookup, range, options);
      applyPatches(piece);
    }
    this.counters.syncReads++;
    const tolerant = options.tolerant === true;
    return this.judged(object, p, mismatches(p, tolerant), tolerant);
  }

  private judged(
    object: ObjectState,
    p: Plan,
    bad: readonly number[],
    tolerant: boolean,
  ): BlockRead {
    if (bad.length === 0) return p;
    if (!tolerant) throw this.corrupt(object, bad[0]!);
    p.bad = bad;
    return p;
  }

  /** `planned`: made in this turn of the event loop, for the first attempt. */
  private async readAsync(
    lookup: ObjectLookup,
    range: BlockRange,
    options: ReadOptions,
    planned?: Plan,
  ): Promise<BlockRead | undefined> {
    const tolerant = options.tolerant === true;
    let ready = planned;
    let previous: Uint32Array | undefined;
    for (let attempt = 1; ;) {
      const object = lookup();
      if (!object) return undefined;
      const writes = writesIn(object, range);
      if (writes.length > 0) {
        await Promise.all(writes);
        continue;
      }
      const p = ready ?? plan(object, range, options.pool);
      ready = undefined;
      const user: BlockUser = this.quarantine.beginUse();
      try {
        await Promise.all(
          p.pieces
            .filter((piece) => piece.start >= 0)
            .map(async (piece) => {
              await this.files.read({ start: piece.start, count: piece.count }, piece.buffer);
              applyPatches(piece);
            }),
        );
      } finally {
        this.quarantine.endUse(user);
        this.onUseEnd();
      }
      const bad = mismatches(p, tolerant);
      if (bad.length === 0) return p;
      this.counters.readRetries++;
      if (attempt++ >= ATTEMPTS_MAX || (previous && same(previous, p.sums))) {
        return this.judged(object, p, bad, tolerant);
      }
      previous = p.sums;
    }
  }
}

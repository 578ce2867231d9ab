/**
 * One object in memory: where each block is, its checksum, and the blocks still in the overlay.
 * Owner: the file store, which pins states that the index does not have yet and caches the rest.
 */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import type { ByteReader, ByteWriter } from "./bytes.js";
import { VERSION_ZERO, type ObjectInfo, type SpoiledBlock, type Version } from "./chunk-store.js";
import type { OverlayEntry } from "./overlay.js";
import type { PgState } from "./pg-state.js";

/** Offsets above this are refused: the pools' objects are a few MiB. */
export const OBJECT_BLOCKS_MAX = (256 * 1024 * 1024) / BLOCK_SIZE;

const NONE = new Uint32Array(0);
const FORMAT = 2;

/** A write of the object's blocks [first, end); `done` never fails. */
export interface DirectWrite {
  first: number;
  end: number;
  done: Promise<void>;
}

export class ObjectState {
  exists = false;
  size = 0;
  version: Version = VERSION_ZERO;
  mtimeNs = 0n;
  truncateSeq = 0;
  snapSeq = 0;
  /** Per block of the object its disk block + 1, or 0 for a hole. */
  blocks: Uint32Array = NONE;
  sums: Uint32Array = NONE;
  /** No block at or after this one is allocated. */
  extent = 0;
  /** Blocks that are not holes. */
  allocated = 0;
  overlay: Map<number, OverlayEntry> | undefined;
  /** Direct writes on their way to the data files: a read of their blocks waits for them. */
  writing: DirectWrite[] | undefined;

  /** Changed since the last freeze. */
  dirty = false;
  /** Part of the checkpoint being written. */
  frozen = false;
  /** Part of it and not serialised yet: must be before it changes. */
  freezePending = false;

  constructor(
    readonly pg: PgState,
    readonly name: string,
  ) {}

  reserve(blocks: number): void {
    assert(blocks <= OBJECT_BLOCKS_MAX, () => `object ${this.name}: ${blocks} blocks`);
    if (blocks <= this.blocks.length) return;
    const capacity = Math.max(blocks, Math.min(this.blocks.length * 2, 1024), 4);
    const grown = new Uint32Array(capacity);
    grown.set(this.blocks);
    const sums = new Uint32Array(capacity);
    sums.set(this.sums);
    this.blocks = grown;
    this.sums = sums;
  }

  /** Bytes of memory, for the cache's limit. */
  get weight(): number {
    return 400 + this.name.length + this.blocks.length * 8;
  }

  /** Blocks that hold filler: their checksums say what the right bytes would be. */
  setSpoiled(blocks: readonly SpoiledBlock[]): void {
    for (const { offset, sum } of blocks) this.sums[offset / BLOCK_SIZE] = sum;
  }

  info(): ObjectInfo {
    return {
      size: this.size,
      version: this.version,
      mtimeNs: this.mtimeNs,
      truncateSeq: this.truncateSeq,
      snapSeq: this.snapSeq,
      allocated: this.allocated * BLOCK_SIZE,
    };
  }

  encode(out: ByteWriter): void {
    out.ensure(64);
    out.u8(FORMAT);
    out.u53(this.size);
    out.u53(this.version.interval);
    out.u53(this.version.seq);
    out.i64(this.mtimeNs);
    out.u53(this.truncateSeq);
    out.u53(this.snapSeq);
    const runsAt = out.at;
    let runs = 0;
    out.u32(0);
    for (let i = 0; i < this.extent;) {
      const start = this.blocks[i]!;
      if (start === 0) {
        i++;
        continue;
      }
      let count = 1;
      while (i + count < this.extent && this.blocks[i + count] === start + count) count++;
      out.ensure(12 + count * 4);
      out.u32(i);
      out.u32(count);
      out.u32(start - 1);
      out.u32s(this.sums, i, count);
      runs++;
      i += count;
    }
    out.buffer.writeUInt32LE(runs, runsAt);
  }

  decode(from: ByteReader): void {
    const format = from.u8();
    if (format !== FORMAT) {
      throw new DssError("IncompatibleVersion", `object ${this.name} has format ${format}`, {
        hint: "run a newer dss",
      });
    }
    this.exists = true;
    this.size = from.u53();
    this.version = { interval: from.u53(), seq: from.u53() };
    this.mtimeNs = from.i64();
    this.truncateSeq = from.u53();
    this.snapSeq = from.u53();
    const runs = from.u32();
    for (let r = 0; r < runs; r++) {
      const first = from.u32();
      const count = from.u32();
      const block = from.u32();
      this.reserve(first + count);
      for (let i = 0; i < count; i++) this.blocks[first + i] = block + 1 + i;
      this.sums.set(from.u32s(count), first);
      this.extent = first + count;
      this.allocated += count;
    }
  }
}

/**
 * Where blocks live: the allocator over the data files' blocks, the quarantine that keeps a freed
 * block from being used again too early, and runs of blocks.
 *
 * A block number counts 4 KiB blocks through all data files. The free map is never stored: it is
 * what the index does not name, rebuilt at open.
 */
import { assert } from "../../cluster/base/assert.js";
import { DssError } from "../../cluster/base/errors.js";

/** Consecutive blocks on disk. */
export interface Run {
  start: number;
  count: number;
}

/** Block numbers are kept in u32 arrays with 0 for "hole", which limits a store to 16 TiB. */
const BLOCKS_MAX = 2 ** 32 - 2;
const WORDS_PER_REGION = 64; // 2,048 blocks, 8 MiB: full regions are skipped at once.
const LARGE_BLOCKS = 16;
const BLOCKS_PER_REGION = WORDS_PER_REGION * 32;

/** Bitmap allocator, next-fit with a preference for a neighbour, growing without limit. */
export class BlockAllocator {
  private words = new Uint32Array(WORDS_PER_REGION);
  private regionFree = new Uint16Array([BLOCKS_PER_REGION]);
  private cursor = 0;
  /** The disk is nearly full: scattered free blocks before fresh space. */
  preferHoles = false;
  /** Blocks in use (quarantined ones included). */
  used = 0;
  /** One more than the highest block ever in use: below it the disk's space is mostly taken. */
  highWater = 0;

  private ensure(blocks: number): void {
    if (blocks > BLOCKS_MAX) throw new DssError("NoSpace", "the store has reached 16 TiB");
    const regions = Math.ceil(blocks / BLOCKS_PER_REGION);
    if (regions <= this.regionFree.length) return;
    const capacity = Math.max(regions, this.regionFree.length * 2);
    const words = new Uint32Array(capacity * WORDS_PER_REGION);
    words.set(this.words);
    const free = new Uint16Array(capacity).fill(BLOCKS_PER_REGION);
    free.set(this.regionFree);
    this.words = words;
    this.regionFree = free;
  }

  isUsed(block: number): boolean {
    const word = block >>> 5;
    return word < this.words.length && ((this.words[word]! >>> (block & 31)) & 1) === 1;
  }

  /** Marks a block as used; false when it already was (two owners: damage). */
  claim(block: number): boolean {
    this.ensure(block + 1);
    if (this.isUsed(block)) return false;
    this.take(block);
    return true;
  }

  private take(block: number): void {
    this.words[block >>> 5]! |= 1 << (block & 31);
    this.regionFree[Math.floor(block / BLOCKS_PER_REGION)]!--;
    this.used++;
    if (block >= this.highWater) this.highWater = block + 1;
  }

  release(block: number): void {
    assert(this.isUsed(block), () => `block ${block} is freed twice`);
    this.words[block >>> 5]! &= ~(1 << (block & 31));
    this.regionFree[Math.floor(block / BLOCKS_PER_REGION)]!++;
    this.used--;
  }

  /**
   * Takes `count` blocks, in as few runs as the space near the cursor allows; `near` is the block
   * that the first one should follow, or -1.
   */
  allocate(count: number, near: number): Run[] {
    const runs: Run[] = [];
    let left = count;
    if (near >= 0) left -= this.extend(near + 1, left, runs);
    // A large write looks for one free run first, so that reading it back is one access.
    if (left > LARGE_BLOCKS) {
      const start = this.findRun(left);
      if (start >= 0) this.cursor = start;
      else if (!this.preferHoles && this.highWater - this.used < this.highWater / 4) {
        left -= this.extend(this.highWater, left, runs);
      }
    }
    let wrapped = false;
    while (left > 0) {
      const start = this.nextFree(this.cursor);
      if (start < 0 || start >= this.highWater) {
        if (!wrapped && this.used < this.highWater) {
          wrapped = true;
          this.cursor = 0;
          continue;
        }
        this.ensure(this.highWater + left);
        const from = Math.max(this.highWater, 0);
        left -= this.extend(from, left, runs);
        this.cursor = this.highWater;
        continue;
      }
      const taken = this.extend(start, left, runs);
      left -= taken;
      this.cursor = start + taken;
    }
    return runs;
  }

  /** Takes free blocks from `start` on, at most `limit`, while they are free. */
  private extend(start: number, limit: number, runs: Run[]): number {
    this.ensure(start + 1);
    let count = 0;
    while (count < limit && start + count <= BLOCKS_MAX) {
      const block = start + count;
      if (block >= this.words.length * 32) this.ensure(block + 1);
      if (this.isUsed(block)) break;
      this.take(block);
      count++;
    }
    if (count > 0) {
      const last = runs.at(-1);
      if (last && last.start + last.count === start) last.count += count;
      else runs.push({ start, count });
    }
    return count;
  }

  /**
   * Takes free runs below the high-water mark from `from` on; `next` is where to go on, 0 after
   * the end.
   */
  takeFreeRuns(
    from: number,
    limits: { minBlocks: number; maxRuns: number; maxBlocks: number },
  ): { runs: Run[]; next: number } {
    const runs: Run[] = [];
    let left = limits.maxBlocks;
    let block = from;
    while (runs.length < limits.maxRuns && left > 0) {
      const start = this.nextFree(block);
      if (start < 0 || start >= this.highWater) return { runs, next: 0 };
      let end = start + 1;
      const limit = Math.min(this.highWater, start + left);
      while (end < limit && !this.isUsed(end)) end++;
      block = end;
      if (end - start < limits.minBlocks) continue;
      this.extend(start, end - start, runs);
      left -= end - start;
    }
    return { runs, next: block };
  }

  /** The first free block at or after `from`; -1 when the map ends first. */
  private nextFree(from: number): number {
    const total = this.words.length * 32;
    let block = from;
    while (block < total) {
      const region = Math.floor(block / BLOCKS_PER_REGION);
      if (this.regionFree[region] === 0) {
        block = (region + 1) * BLOCKS_PER_REGION;
        continue;
      }
      const free = ~this.words[block >>> 5]! >>> (block & 31);
      if (free !== 0) return block + (31 - Math.clz32(free & -free));
      block = (((block >>> 5) + 1) << 5) >>> 0;
    }
    return -1;
  }

  /**
   * The start of `count` free blocks below the high-water mark at or after the cursor; -1 when
   * there are none near.
   */
  private findRun(count: number): number {
    let start = this.nextFree(this.cursor);
    for (let tries = 0; tries < 64 && start >= 0; tries++) {
      if (start + count > this.highWater) return -1;
      let length = 1;
      while (length < count && !this.isUsed(start + length)) length++;
      if (length === count) return start;
      start = this.nextFree(start + length);
    }
    return -1;
  }
}

/** A read or an in-place write that may still be touching blocks which are freed meanwhile. */
export interface BlockUser {
  readonly since: number;
  active: boolean;
}

/**
 * Freed blocks wait here. One is free again when the WAL *declares* the record that freed it
 * synced (recovery then does not check the former owner's direct writes any more), and everybody
 * who began to use it before it was freed has finished.
 */
export class Quarantine {
  private tick = 0;
  private users: BlockUser[] = [];
  private queue: { start: number; count: number; order: number; since: number }[] = [];
  private head = 0;
  /** Blocks waiting. */
  blocks = 0;

  constructor(private readonly allocator: BlockAllocator) {}

  beginUse(): BlockUser {
    const user = { since: ++this.tick, active: true };
    this.users.push(user);
    return user;
  }

  endUse(user: BlockUser): void {
    user.active = false;
    let ended = 0;
    while (ended < this.users.length && !this.users[ended]!.active) ended++;
    if (ended > 0) this.users.splice(0, ended);
  }

  /** `order`: of the WAL group that holds the record which freed the block. */
  add(block: number, order: number): void {
    this.blocks++;
    const last = this.queue.length > this.head ? this.queue.at(-1)! : undefined;
    const since = ++this.tick;
    if (last && last.order === order && last.start + last.count === block) {
      last.count++;
      last.since = since;
      return;
    }
    this.queue.push({ start: block, count: 1, order, since });
  }

  /**
   * Frees what no longer needs to wait; `declared`: order of the last group known to be declared.
   */
  release(declared: number): void {
    const oldest = this.users[0]?.since ?? Infinity;
    while (this.head < this.queue.length) {
      const entry = this.queue[this.head]!;
      if (entry.order > declared || entry.since > oldest) break;
      for (let i = 0; i < entry.count; i++) this.allocator.release(entry.start + i);
      this.blocks -= entry.count;
      this.head++;
    }
    if (this.head > 1024 || this.head === this.queue.length) {
      this.queue.splice(0, this.head);
      this.head = 0;
    }
  }
}

/**
 * Which blocks of a file hold data, as far as its writer knows: keeps `Inode.allocated` right while
 * this mount holds the file exclusively, without asking for each write. A file that this mount
 * made, one without holes and an empty one are known by their size; of any other the OSDs are asked
 * once for each stripe unit that is written to, before the first write goes out (`before`).
 *
 * Blocks count from the moment they are written, as with delayed allocation. What cannot be known
 * (a write failed) is left to the leader to count (`recount`).
 *
 * Owns: bitmaps of the units written to, bounded; what is dropped is asked for again.
 */
import type { Inode, Layout } from "../../mds/proto.js";

export const SPACE_BLOCK = 4_096;
/** Units remembered of one file at most (16 GiB of it, 32 bytes of bitmap for each MiB). */
const UNITS_MAX = 4_096;

/** Runs of the file that hold data within [start, start + length). */
export type AskRuns = (
  start: number,
  length: number,
) => Promise<readonly { start: number; length: number }[]>;

interface Unit {
  bits: Uint32Array;
  count: number;
}
interface Learning {
  done: Promise<void>;
  /** Written meanwhile: block numbers in the unit. */
  added: { from: number; to: number }[];
}

export class FileSpace {
  /** Bytes. */
  allocated: number;
  recount: boolean;
  /**
   * Outside `units`, the blocks below this offset hold data and those at and above it do not.
   * -1: not known.
   */
  private dense: number;
  private units: Map<number, Unit> | undefined;
  private learning: Map<number, Learning> | undefined;
  private readonly unitBytes: number;
  /** Counts what makes earlier questions void. */
  private generation = 0;

  constructor(
    inode: Pick<Inode, "allocated" | "recount" | "size">,
    layout: Pick<Layout, "stripeUnit">,
    private readonly ask: AskRuns,
  ) {
    this.allocated = inode.allocated;
    this.recount = inode.recount;
    // Units of a few bytes share blocks of their objects: then nothing is known but the total.
    this.unitBytes = layout.stripeUnit % SPACE_BLOCK === 0 ? layout.stripeUnit : 0;
    const end = blockCeil(inode.size);
    const isSure = !inode.recount && this.unitBytes > 0;
    this.dense =
      isSure && (inode.allocated === 0 || inode.allocated === end) ? inode.allocated : -1;
    if (this.unitBytes === 0 && inode.size > 0) this.recount = true;
  }

  /** Bytes [start, end) are being written. */
  wrote(start: number, end: number): void {
    if (end <= start) return;
    if (this.unitBytes === 0) {
      this.recount = true;
      this.allocated = Math.max(this.allocated, blockCeil(end - start));
      return;
    }
    if (
      this.units === undefined &&
      this.learning === undefined &&
      this.dense >= blockFloor(start)
    ) {
      // The usual writer goes forward, or over what is there.
      const to = blockCeil(end);
      if (to > this.dense) this.allocated += to - this.dense;
      this.dense = Math.max(this.dense, to);
      return;
    }
    this.eachUnit(start, end, (unit, from, to) => this.add(unit, from, to));
  }
  /** Resolves when writes to [start, end) may go out; undefined: at once. */
  before(start: number, end: number): Promise<unknown> | undefined {
    if (this.learning === undefined) return undefined;
    const waits: Promise<void>[] = [];
    this.eachUnit(start, end, (unit) => {
      const learning = this.learning?.get(unit);
      if (learning !== undefined) waits.push(learning.done);
    });
    return waits.length === 0 ? undefined : Promise.all(waits);
  }
  /** Resolves when `allocated` is up to date with what was written; undefined: it is. */
  get pending(): Promise<unknown> | undefined {
    if (this.learning === undefined) return undefined;
    return Promise.all([...this.learning.values()].map(({ done }) => done));
  }

  /** What is in [start, end) must be known before it becomes a hole. */
  async beforeZero(start: number, end: number): Promise<void> {
    await this.pending;
    if (this.unitBytes === 0 || this.dense >= 0) return;
    if ((end - start) / this.unitBytes > UNITS_MAX) {
      this.recount = true;
      return;
    }
    this.eachUnit(start, end, (unit) => this.known(unit));
    await this.pending;
  }
  /** [start, end) has become a hole, but for blocks that it covers in part. */
  async zeroed(start: number, end: number): Promise<void> {
    if (this.unitBytes === 0) {
      this.recount = true;
      return;
    }
    const edges = new Set<number>();
    // Of a file that is empty there only units in hand matter.
    const known = this.dense >= 0 ? Math.max(this.dense, this.lastUnitEnd) : end;
    const until = Math.min(end, known);
    if ((until - start) / this.unitBytes > UNITS_MAX) {
      this.generation++;
      this.recount = true;
      this.units = undefined;
      this.dense = -1;
      return;
    }
    this.eachUnit(start, until, (unit, from, to) => {
      const base = unit * this.unitBytes;
      const whole = start <= base && until >= base + this.unitBytes;
      if (!whole) edges.add(unit);
      const bits = this.known(unit);
      if (bits === undefined) this.recount = true;
      else if (whole) this.count(-clear(bits, from, to));
    });
    for (const unit of edges) await this.again(unit);
  }

  /**
   * `unsure`: bytes of the block that `size` cuts were beyond it and did not go out, so that the
   * OSDs may have nothing of it.
   */
  truncated(size: number, unsure = false): void {
    this.cutTo(size);
    if (unsure && this.allocated > 0 && this.dense >= 0)
      this.recheck(Math.floor(size / SPACE_BLOCK));
  }
  private cutTo(size: number): void {
    this.generation++;
    if (size === 0 || this.allocated === 0) {
      this.allocated = 0;
      this.recount = size > 0 && this.recount;
      this.units = undefined;
      this.learning = undefined;
      this.dense = this.unitBytes > 0 ? 0 : -1;
      return;
    }
    if (this.learning !== undefined) {
      this.recount = true; // What was asked for is void.
      this.learning = undefined;
    }
    if (this.unitBytes === 0) return;
    const end = blockCeil(size);
    let inUnits = 0;
    let covered = 0;
    for (const [number, unit] of this.units ?? []) {
      const start = number * this.unitBytes;
      const keep = Math.min(Math.max(end - start, 0), this.unitBytes) / SPACE_BLOCK;
      const cut = clear(unit, keep, this.unitBlocks);
      if (this.dense < 0) this.count(-cut);
      if (keep === 0) this.units!.delete(number);
      else {
        inUnits += unit.count;
        covered += Math.min(Math.max(Math.min(this.dense, end) - start, 0), this.unitBytes);
      }
    }
    if (this.units?.size === 0) this.units = undefined;
    if (this.dense < 0) {
      this.recount = true; // How much was beyond nobody here knows.
      return;
    }
    this.dense = Math.min(this.dense, end);
    this.allocated = this.dense - covered + inUnits * SPACE_BLOCK;
  }

  /** A write failed: what of it is there nobody knows. */
  failed(): void {
    this.recount = true;
  }
  /** Nothing is dirty or in flight: memory may be given back. */
  settled(): void {
    if ((this.units?.size ?? 0) <= UNITS_MAX || this.learning !== undefined) return;
    this.units = undefined;
    this.dense = -1;
  }

  // ---- Units -----------------------------------------------------------------------------------

  private get unitBlocks(): number {
    return this.unitBytes / SPACE_BLOCK;
  }
  private get lastUnitEnd(): number {
    let last = -1;
    for (const unit of this.units?.keys() ?? []) if (unit > last) last = unit;
    return (last + 1) * this.unitBytes;
  }
  private eachUnit(
    start: number,
    end: number,
    visit: (unit: number, from: number, to: number) => void,
  ): void {
    const { unitBytes } = this;
    for (let unit = Math.floor(start / unitBytes); unit * unitBytes < end; unit++) {
      const base = unit * unitBytes;
      const from = Math.floor(Math.max(start - base, 0) / SPACE_BLOCK);
      const to = Math.ceil(Math.min(end - base, unitBytes) / SPACE_BLOCK);
      visit(unit, from, to);
    }
  }
  /** A total that was not sure (`recount`) may have been less than what is now gone. */
  private count(blocks: number): void {
    this.allocated += blocks * SPACE_BLOCK;
    if (this.allocated >= 0) return;
    this.allocated = 0;
    this.recount = true;
  }
  private add(unit: number, from: number, to: number): void {
    const known = this.known(unit);
    if (known !== undefined) this.count(set(known, from, to));
    else this.learning!.get(unit)!.added.push({ from, to });
  }
  /** Undefined: it is being asked for. */
  private known(number: number): Unit | undefined {
    const found = this.units?.get(number);
    if (found !== undefined) return found;
    if (this.learning?.has(number) === true) return undefined;
    if (this.dense < 0) {
      this.learn(number);
      return undefined;
    }
    const unit = this.emptyUnit();
    set(
      unit,
      0,
      Math.min(Math.max(this.dense - number * this.unitBytes, 0), this.unitBytes) / SPACE_BLOCK,
    );
    (this.units ??= new Map()).set(number, unit);
    return unit;
  }
  private emptyUnit(): Unit {
    return { bits: new Uint32Array(Math.ceil(this.unitBlocks / 32)), count: 0 };
  }
  private learn(number: number): void {
    const { generation } = this;
    const learning: Learning = { added: [], done: Promise.resolve() };
    const end = (): boolean => {
      if (generation !== this.generation || this.learning?.get(number) !== learning) return false;
      this.learning.delete(number);
      if (this.learning.size === 0) this.learning = undefined;
      return true;
    };
    learning.done = this.fetch(number).then(
      (unit) => {
        if (!end()) return;
        (this.units ??= new Map()).set(number, unit);
        for (const { from, to } of learning.added) this.add(number, from, to);
      },
      () => {
        // The write that follows tells the user; the leader counts.
        if (end()) this.recount = true;
      },
    );
    (this.learning ??= new Map()).set(number, learning);
  }
  /** Whether the block has data the OSDs are asked, before anything else of its unit goes out. */
  private recheck(block: number): void {
    const { generation, unitBlocks } = this;
    const number = Math.floor(block / unitBlocks);
    const unit = this.known(number);
    if (unit === undefined) return; // All of it is being asked for.
    const at = block % unitBlocks;
    if (clear(unit, at, at + 1) === 0) return;
    this.units!.delete(number);
    const learning: Learning = { added: [], done: Promise.resolve() };
    const end = (has: boolean): void => {
      if (generation !== this.generation || this.learning?.get(number) !== learning) return;
      this.learning.delete(number);
      if (this.learning.size === 0) this.learning = undefined;
      (this.units ??= new Map()).set(number, unit);
      if (has) set(unit, at, at + 1);
      else this.count(-1);
      for (const { from, to } of learning.added) this.add(number, from, to);
    };
    learning.done = this.ask(block * SPACE_BLOCK, SPACE_BLOCK).then(
      (runs) => end(runs.length > 0),
      () => {
        this.recount = true;
        end(true);
      },
    );
    (this.learning ??= new Map()).set(number, learning);
  }
  private async fetch(number: number): Promise<Unit> {
    const base = number * this.unitBytes;
    const unit = this.emptyUnit();
    for (const { start, length } of await this.ask(base, this.unitBytes)) {
      const from = Math.floor((start - base) / SPACE_BLOCK);
      set(unit, from, Math.ceil((start + length - base) / SPACE_BLOCK));
    }
    return unit;
  }
  /** What the unit has now. */
  private async again(number: number): Promise<void> {
    const { generation } = this;
    const before = this.units?.get(number);
    if (before === undefined) return;
    try {
      const now = await this.fetch(number);
      if (generation !== this.generation || this.units?.get(number) !== before) return;
      this.count(now.count - before.count);
      this.units.set(number, now);
    } catch {
      this.recount = true;
    }
  }
}

function blockFloor(offset: number): number {
  return Math.floor(offset / SPACE_BLOCK) * SPACE_BLOCK;
}
function blockCeil(offset: number): number {
  return Math.ceil(offset / SPACE_BLOCK) * SPACE_BLOCK;
}

/** Sets bits [from, to); returns how many were not set before. */
function set(unit: Unit, from: number, to: number): number {
  let added = 0;
  eachWord(from, to, (word, mask) => {
    const missing = mask & ~unit.bits[word]!;
    unit.bits[word]! |= missing;
    added += popCount(missing);
  });
  unit.count += added;
  return added;
}
function clear(unit: Unit, from: number, to: number): number {
  let cleared = 0;
  eachWord(from, to, (word, mask) => {
    const present = mask & unit.bits[word]!;
    unit.bits[word]! &= ~present;
    cleared += popCount(present);
  });
  unit.count -= cleared;
  return cleared;
}
function eachWord(from: number, to: number, visit: (word: number, mask: number) => void): void {
  for (let at = from; at < to;) {
    const word = at >>> 5;
    const last = Math.min(to, (word + 1) * 32);
    const bits = last - at;
    visit(word, (bits === 32 ? -1 : (1 << bits) - 1) << (at & 31));
    at = last;
  }
}
function popCount(word: number): number {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return (((n + (n >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

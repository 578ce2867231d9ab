/**
 * Gives the blocks of objects their place: in the overlay and its disk blocks for small writes, in
 * fresh disk blocks, written at once, for large ones. Owner of how many blocks objects use.
 */
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { DssError } from "../../cluster/base/errors.js";
import { sliceChunks, type DataFiles } from "./data-files.js";
import type { BlockAllocator, Quarantine, Run } from "./extent-map.js";
import type { ObjectState } from "./object-state.js";
import type { Overlay, OverlayEntry } from "./overlay.js";
import type { Placement } from "./records.js";
import { shareBlocks, type SharedBlocks } from "./sharing.js";
import type { SpaceGauge } from "./space.js";
import type { WalGroup } from "./wal.js";

const noop = (): void => undefined;

export class BlockPlacer {
  /** Blocks that objects use; a shared one counts for each of them. */
  private total = 0;
  readonly counters = { smallBlocks: 0, directBlocks: 0 };

  constructor(
    private readonly overlay: Overlay,
    private readonly allocator: BlockAllocator,
    private readonly quarantine: Quarantine,
    private readonly files: DataFiles,
    private readonly space: SpaceGauge,
    private readonly shared: SharedBlocks,
  ) {}

  /** Blocks that objects use. */
  get used(): number {
    return this.total - this.shared.saved;
  }
  /** More (or fewer) blocks of objects than were known: what opening or verifying has counted. */
  recount(difference: number): void {
    this.total += difference;
  }

  private forgetOverlay(object: ObjectState, at: number): void {
    const entry = object.overlay?.get(at);
    if (entry) this.overlay.forget(object, entry);
  }

  /** An object does not have the block any more. `order`: of the group that says so. */
  private leave(block: number, order: number): void {
    if (!this.shared.leave(block)) this.quarantine.add(block, order);
  }

  /** The object has the blocks of `source` instead of its own. */
  copy(source: ObjectState, object: ObjectState, order: number): void {
    this.drop(object, 0, Infinity, order);
    object.overlay = undefined;
    object.writing = undefined;
    shareBlocks(source, object, this.shared);
    this.total += source.allocated;
  }

  /** The blocks [first, end) become holes. `order`: of the group that says so. */
  drop(object: ObjectState, first: number, end: number, order: number): void {
    const stop = Math.min(end, object.extent);
    for (let at = first; at < stop; at++) {
      const block = object.blocks[at]!;
      if (block === 0) continue;
      this.forgetOverlay(object, at);
      object.blocks[at] = 0;
      object.sums[at] = 0;
      object.allocated--;
      object.pg.blocks--;
      this.total--;
      this.leave(block - 1, order);
    }
    if (end >= object.extent && first < object.extent) object.extent = first;
  }

  private setBlock(object: ObjectState, at: number, block: number, order: number): void {
    const old = object.blocks[at]!;
    if (old === block + 1) return;
    if (old !== 0) {
      this.leave(old - 1, order);
    } else {
      object.allocated++;
      object.pg.blocks++;
      this.total++;
    }
    object.blocks[at] = block + 1;
  }

  /**
   * Chooses disk blocks for a write: fresh ones for a direct write, for holes and for what others
   * have too, the same otherwise.
   */
  private chooseBlocks(object: ObjectState, first: number, count: number, direct: boolean): Run[] {
    const before = first > 0 && first - 1 < object.extent ? object.blocks[first - 1]! - 1 : -1;
    if (direct) return this.allocator.allocate(count, before);
    const runs: Run[] = [];
    for (let i = 0; i < count;) {
      const at = first + i;
      if (this.isOwn(object, at)) {
        appendRun(runs, object.blocks[at]! - 1, 1);
        i++;
        continue;
      }
      let holes = 1;
      while (i + holes < count && !this.isOwn(object, at + holes)) holes++;
      const near = runs.at(-1);
      for (const run of this.allocator.allocate(
        holes,
        near ? near.start + near.count - 1 : before,
      )) {
        appendRun(runs, run.start, run.count);
      }
      i += holes;
    }
    return runs;
  }

  private isOwn(object: ObjectState, at: number): boolean {
    const block = at < object.extent ? object.blocks[at]! : 0;
    return block !== 0 && !this.shared.has(block - 1);
  }

  /**
   * Points the object at the placement's blocks; small data goes into the overlay, held for
   * `group`.
   */
  private setBlocks(
    object: ObjectState,
    placement: Placement,
    data: readonly Buffer[],
    group: { order: number; entries: WalGroup["entries"] },
  ): void {
    const { first, sums, runs, direct } = placement;
    object.reserve(first + sums.length);
    if (first + sums.length > object.extent) object.extent = first + sums.length;
    object.sums.set(sums, first);
    let at = first;
    let chunk = 0;
    let skip = 0;
    for (const run of runs) {
      for (let i = 0; i < run.count; i++, at++) {
        const block = run.start + i;
        this.forgetOverlay(object, at);
        this.setBlock(object, at, block, group.order);
        if (direct) continue;
        const entry = this.overlay.add(object, at, block, group.order);
        group.entries.push(entry);
        for (let filled = 0; filled < BLOCK_SIZE;) {
          const source = data[chunk]!;
          const take = Math.min(source.length - skip, BLOCK_SIZE - filled);
          source.copy(entry.bytes, filled, skip, skip + take);
          filled += take;
          skip += take;
          if (skip === source.length) {
            chunk++;
            skip = 0;
          }
        }
      }
    }
  }

  /** Gives an overlay entry a fresh block to be flushed to. */
  relocate(entry: OverlayEntry): void {
    const [run] = this.allocator.allocate(1, -1);
    const block = run!.start;
    entry.owners.forEach((owner, i) => {
      this.setBlock(owner, entry.at, block, entry.order);
      if (i > 0) this.shared.add(block);
    });
    entry.block = block;
  }

  /** Writes `data` to the object's blocks from `offset`, for a record that goes into `group`. */
  place(
    object: ObjectState,
    offset: number,
    data: readonly Buffer[],
    sums: Uint32Array,
    group: WalGroup,
    direct: boolean,
  ): Placement {
    const first = offset / BLOCK_SIZE;
    object.reserve(first + sums.length);
    const runs = this.chooseBlocks(object, first, sums.length, direct);
    const placement = { first, sums, runs, direct };
    this.setBlocks(object, placement, data, group);
    if (direct) {
      this.counters.directBlocks += sums.length;
      this.writeDirect(object, placement, data, group);
    } else {
      this.counters.smallBlocks += sums.length;
    }
    return placement;
  }

  private writeDirect(
    object: ObjectState,
    { first, sums, runs }: Placement,
    data: readonly Buffer[],
    group: WalGroup,
  ): void {
    let at = 0;
    const writes = runs.map((run) => {
      const bytes = run.count * BLOCK_SIZE;
      const part = runs.length === 1 ? data : sliceChunks(data, at, bytes);
      at += bytes;
      return this.space.whenSpace(() => this.files.write(run, part, group.touched, true));
    });
    const all = writes.length === 1 ? writes[0]! : Promise.all(writes).then(noop);
    group.directs.push(all);
    const ended = (): void => {
      object.writing = object.writing?.filter((other) => other !== write);
      if (object.writing?.length === 0) object.writing = undefined;
    };
    // The group reports a failure; those who only wait for the end do not.
    const write = { first, end: first + sums.length, done: all.then(ended, ended) };
    (object.writing ??= []).push(write);
  }

  /** Blocks that a record wrote: they are taken unless the object has them already. */
  private claim(object: ObjectState, placement: Placement): void {
    let at = placement.first;
    this.quarantine.release(Infinity);
    for (const run of placement.runs) {
      for (let i = 0; i < run.count; i++, at++) {
        const block = run.start + i;
        const kept = at < object.extent && object.blocks[at] === block + 1;
        if (!kept && !this.allocator.claim(block)) {
          throw new DssError(
            "Corrupt",
            `the write-ahead log gives block ${block} to object ${object.name}, but it is in use`,
            { hint: "format this OSD's folder anew and let recovery fill it" },
          );
        }
      }
    }
  }

  /** Repeats what a record of the log did. */
  replay(object: ObjectState, placement: Placement, data: Buffer): void {
    if (placement.sums.length === 0) return;
    const entries: WalGroup["entries"] = [];
    this.claim(object, placement);
    this.setBlocks(object, placement, [data], { order: 0, entries });
    for (const entry of entries) this.overlay.drop(entry); // No WAL write holds them.
  }
}

function appendRun(runs: Run[], start: number, count: number): void {
  const last = runs.at(-1);
  if (last && last.start + last.count === start) last.count += count;
  else runs.push({ start, count });
}

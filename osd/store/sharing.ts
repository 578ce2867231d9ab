/**
 * Disk blocks that several objects of one family have: an object, what it was at snapshots, and
 * those of volumes cloned from its (docs/decisions/0007, 0010). A shared block is never written in
 * place, and is free when the last one lets it go. Nothing of this is stored: it is what the index
 * names more than once, rebuilt at open.
 *
 * Owner of the counts; placement.ts asks before it writes in place and before it frees.
 */
import { assert } from "../../cluster/base/assert.js";
import { cloneIdOf, familyOf, headOf } from "../../cluster/base/object-name.js";
import type { BlockAllocator } from "./extent-map.js";
import type { ObjectState } from "./object-state.js";

export class SharedBlocks {
  /** Objects that have the block, for those that more than one has. */
  private readonly counts = new Map<number, number>();
  /** What sharing saves: the sum over all blocks of one less than their objects. */
  saved = 0;

  has(block: number): boolean {
    return this.counts.has(block);
  }
  add(block: number): void {
    this.counts.set(block, (this.counts.get(block) ?? 1) + 1);
    this.saved++;
  }
  /** One object less has the block. False: nobody else had it, so that it can be freed. */
  leave(block: number): boolean {
    const count = this.counts.get(block);
    if (count === undefined) return false;
    if (count === 2) this.counts.delete(block);
    else this.counts.set(block, count - 1);
    this.saved--;
    return true;
  }
}

/** Takes the blocks of all objects, in name order, for the free map and the counts. */
export class BlockClaims {
  private family = "";
  private pg = -1;
  private members: ObjectState[] = [];
  private blocks: Set<number> | undefined;

  constructor(
    private readonly allocator: BlockAllocator,
    private readonly shared: SharedBlocks,
  ) {}

  /** The first of its blocks that another family has: damage. */
  claim(object: ObjectState): number | undefined {
    const family = familyOf(object.name);
    if (family !== this.family || object.pg.id !== this.pg) {
      this.family = family;
      this.pg = object.pg.id;
      this.members = [];
      this.blocks = undefined;
    }
    for (let at = 0; at < object.extent; at++) {
      const block = object.blocks[at]! - 1;
      if (block < 0 || this.allocator.claim(block)) continue;
      if (!this.familyBlocks().has(block)) return block;
      this.shared.add(block);
    }
    this.members.push(object);
    if (this.blocks !== undefined) addBlocks(this.blocks, object);
    return undefined;
  }

  private familyBlocks(): Set<number> {
    if (this.blocks === undefined) {
      this.blocks = new Set();
      for (const member of this.members) addBlocks(this.blocks, member);
    }
    return this.blocks;
  }
}

function addBlocks(blocks: Set<number>, object: ObjectState): void {
  for (let at = 0; at < object.extent; at++) {
    if (object.blocks[at] !== 0) blocks.add(object.blocks[at]! - 1);
  }
}

/** The snapshot clones of a PG's objects, by their head's name. Derived from the names. */
export class CloneTable {
  private readonly byHead = new Map<string, number[]>();

  /** Ascending. */
  of(head: string): readonly number[] {
    return this.byHead.get(head) ?? NONE;
  }
  add(name: string): void {
    const id = cloneIdOf(name);
    if (id === undefined) return;
    const head = headOf(name);
    const ids = this.byHead.get(head);
    if (ids === undefined) {
      this.byHead.set(head, [id]);
      return;
    }
    if (ids.includes(id)) return;
    ids.push(id);
    ids.sort((a, b) => a - b);
  }
  delete(name: string): void {
    const id = cloneIdOf(name);
    if (id === undefined) return;
    const head = headOf(name);
    const ids = this.byHead.get(head)?.filter((each) => each !== id);
    if (ids === undefined || ids.length === 0) this.byHead.delete(head);
    else this.byHead.set(head, ids);
  }
  clear(): void {
    this.byHead.clear();
  }
}
const NONE: readonly number[] = [];

/**
 * `target`, which has no blocks, gets those of `source`: the ones that are on their way to the disk
 * too.
 */
export function shareBlocks(source: ObjectState, target: ObjectState, shared: SharedBlocks): void {
  assert(target.extent === 0 && target.overlay === undefined, `${target.name} has blocks`);
  target.reserve(source.extent);
  target.blocks.set(source.blocks.subarray(0, source.extent));
  target.sums.set(source.sums.subarray(0, source.extent));
  target.extent = source.extent;
  target.allocated = source.allocated;
  target.pg.blocks += source.allocated;
  for (let at = 0; at < source.extent; at++) {
    if (source.blocks[at] !== 0) shared.add(source.blocks[at]! - 1);
  }
  for (const entry of source.overlay?.values() ?? []) {
    entry.owners.push(target);
    (target.overlay ??= new Map()).set(entry.at, entry);
  }
  for (const write of source.writing ?? []) {
    (target.writing ??= []).push(write);
    void write.done.then(() => {
      target.writing = target.writing?.filter((other) => other !== write);
      if (target.writing?.length === 0) target.writing = undefined;
    });
  }
}

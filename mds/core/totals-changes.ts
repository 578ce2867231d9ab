/**
 * What a draft's changes of inodes mean for the totals of directories (totals.ts). Pure.
 *
 * What an operation adds is resolved to the directories it goes to (a `Chain`) before anything is
 * applied: replay, which skips what a page has, must not look at parents. The journal has one sum
 * for each directory of a batch.
 */
import type { Ino } from "../../cluster/base/ids.js";
import { ROOT_INO } from "../proto.js";
import { isDirectory, type InodeRecord } from "./inode.js";
import { inodePageKey } from "./page.js";
import { addTotals, isZero, negated, type Totals } from "./totals.js";

/** A directory and those above it up to the root, and the pages that hold them. */
export interface Chain {
  readonly inos: readonly Ino[];
  readonly pages: readonly { readonly key: string; readonly inos: readonly Ino[] }[];
}
export interface TotalsAdd {
  d: "totalsAdd";
  chain: Chain;
  by: Readonly<Totals>;
}

/** What a file counts in its directory. */
export function totalsOfFile({ size, allocated, reservedTo }: InodeRecord): Totals {
  return {
    files: 1,
    directories: 0,
    bytes: big(size),
    allocated: big(allocated),
    reserved: big(reservedBy({ size, reservedTo })),
  };
}
function reservedBy({ size, reservedTo }: Pick<InodeRecord, "size" | "reservedTo">): number {
  return Math.max(0, reservedTo - size);
}
/** Most are 0, which needs no new object. */
function big(value: number): bigint {
  return value === 0 ? 0n : BigInt(value);
}

/** What the changes of a draft are read from. */
export interface TotalsSource {
  inode(ino: Ino): InodeRecord | undefined;
  totals(ino: Ino): Readonly<Totals>;
  chain(directory: Ino): Chain;
}

/** What these new records (undefined: removed) mean for the directories above them. */
export function totalsChanges(
  source: TotalsSource,
  inodes: ReadonlyMap<Ino, InodeRecord | undefined>,
): TotalsAdd[] {
  let found: TotalsAdd[] = NONE;
  let byChain: Map<Chain, TotalsAdd> | undefined;
  const add = (directory: Ino, by: Readonly<Totals>): void => {
    const chain = chainIn(source, inodes, directory);
    const known =
      byChain === undefined ? found.find((each) => each.chain === chain) : byChain.get(chain);
    if (known === undefined) {
      if (found === NONE) found = [];
      const made: TotalsAdd = { d: "totalsAdd", chain, by };
      found.push(made);
      if (found.length > FEW) (byChain ??= indexed(found)).set(chain, made);
    } else {
      const sum = { ...known.by };
      addTotals(sum, by);
      known.by = sum;
    }
  };
  for (const [ino, after] of inodes) {
    const before = source.inode(ino);
    const from = before?.parent ?? 0;
    const to = after?.parent ?? 0;
    const any = after ?? before;
    if (any === undefined || ino === ROOT_INO) continue;
    if (isDirectory(any)) {
      if (from === to) continue;
      const { directories, ...rest } = source.totals(ino);
      const whole = { ...rest, directories: directories + 1 };
      if (from !== 0) add(from, negated(whole));
      if (to !== 0) add(to, whole);
    } else if (from !== to) {
      if (from !== 0) add(from, negated(totalsOfFile(before!)));
      if (to !== 0) add(to, totalsOfFile(after!));
    } else if (to !== 0 && before !== undefined && after !== undefined) {
      const same = after.size === before.size && after.allocated === before.allocated;
      if (same && after.reservedTo === before.reservedTo) continue;
      add(to, {
        files: 0,
        directories: 0,
        bytes: big(after.size - before.size),
        allocated: big(after.allocated - before.allocated),
        reserved: big(reservedBy(after) - reservedBy(before)),
      });
    }
  }
  return found.some(({ by }) => isZero(by)) ? found.filter(({ by }) => !isZero(by)) : found;
}
const NONE: TotalsAdd[] = [];
/** Up to so many are quicker looked through than indexed; the end of a session has thousands. */
const FEW = 8;
function indexed(changes: readonly TotalsAdd[]): Map<Chain, TotalsAdd> {
  return new Map(changes.map((each) => [each.chain, each]));
}

/** Of a directory that may have been made by the very draft. */
function chainIn(
  source: TotalsSource,
  inodes: ReadonlyMap<Ino, InodeRecord | undefined>,
  directory: Ino,
): Chain {
  const changed = inodes.get(directory);
  if (changed === undefined || source.inode(directory) !== undefined) {
    return source.chain(directory);
  }
  const above = source.chain(changed.parent);
  return makeChain([directory, ...above.inos]);
}

export function makeChain(inos: readonly Ino[]): Chain {
  const pages = new Map<string, Ino[]>();
  for (const ino of inos) {
    const key = inodePageKey(ino);
    const known = pages.get(key);
    if (known === undefined) pages.set(key, [ino]);
    else known.push(ino);
  }
  return { inos, pages: [...pages].map(([key, list]) => ({ key, inos: list })) };
}

/** The sums of a journal batch. */
export class BatchTotals {
  /** What goes to the same directories is added up first: mostly all of a batch. */
  private readonly byChain = new Map<Chain, Totals>();
  private directories = 0;

  add({ chain, by }: TotalsAdd): void {
    const known = this.byChain.get(chain);
    if (known !== undefined) addTotals(known, by);
    else {
      this.byChain.set(chain, { ...by });
      this.directories += chain.inos.length;
    }
  }
  /** Directories so far, at most. */
  get size(): number {
    return this.directories;
  }
  /** For the journal: one fact a directory. */
  record(): TotalsAdd[] {
    const sums = new Map<Ino, Totals>();
    for (const [{ inos }, by] of this.byChain) {
      for (const ino of inos) {
        const known = sums.get(ino);
        if (known === undefined) sums.set(ino, { ...by });
        else addTotals(known, by);
      }
    }
    const record: TotalsAdd[] = [];
    for (const [ino, by] of sums) {
      if (!isZero(by)) record.push({ d: "totalsAdd", chain: makeChain([ino]), by });
    }
    return record;
  }
}

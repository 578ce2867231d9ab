/**
 * Verifies the index of one PG entry by entry against what memory knows. What memory still knows is
 * written anew; what is gone is dropped and the PG's counts are corrected: the caller then declares
 * the PG damaged, so that every object is compared with the other copies.
 */
import type { OrderedStore } from "../../cluster/platform/ports.js";
import { cloneIdOf } from "../../cluster/base/object-name.js";
import { isDssError } from "../../cluster/base/errors.js";
import { formatPg } from "../../cluster/base/ids.js";
import type { Checkpointer } from "./checkpoint.js";
import type { IndexCheck } from "./chunk-store.js";
import { nameOfKey, objectsOf, openValue, pgKey, retriesOf } from "./index-format.js";
import { ObjectState } from "./object-state.js";
import { PgState } from "./pg-state.js";

export interface IndexGuardHost {
  /** Has the object, which is in memory, written with the next checkpoint. */
  pin(pg: PgState, name: string): void;
  touchPg(pg: PgState): void;
  /** The PG has so many objects and blocks. */
  recount(pg: PgState, objects: number, blocks: number): void;
}

interface Tally extends IndexCheck {
  objects: number;
  blocks: number;
  names: Set<number>;
  clones: string[];
}

export class IndexGuard {
  constructor(
    private readonly index: OrderedStore,
    private readonly checkpointer: Checkpointer,
    private readonly host: IndexGuardHost,
  ) {}

  verify(pg: PgState): IndexCheck {
    const names = new Set<number>();
    const counts = { entries: 0, damaged: 0, objects: 0, blocks: 0 };
    const tally: Tally = { ...counts, lost: false, names, clones: [] };
    if (!pg.removed && !pg.fresh) {
      this.verifyObjects(pg, tally);
      if (tally.objects !== pg.objectCount || !isSubset(pg.names, names)) {
        if (!tally.lost) tally.damaged++; // A key has changed, and what it was is unknown.
        tally.lost = true;
      }
      pg.names.clear();
      for (const hash of names) pg.names.add(hash);
      pg.clones.clear();
      for (const name of tally.clones) pg.clones.add(name);
      this.host.recount(pg, tally.objects, tally.blocks);
      this.verifyRest(pg, tally);
    }
    const { entries, damaged, lost } = tally;
    return { entries, damaged, lost };
  }

  private verifyObjects(pg: PgState, tally: Tally): void {
    const count = (object: ObjectState): void => {
      tally.objects++;
      tally.blocks += object.allocated;
      tally.names.add(PgState.hashOf(object.name));
      if (cloneIdOf(object.name) !== undefined) tally.clones.push(object.name);
    };
    const seen = new Set<string>();
    for (const { key, value } of this.index.range(objectsOf(pg.id))) {
      tally.entries++;
      const name = nameOfKey(key);
      const known = pg.objects.get(name);
      const isPinned = known !== undefined && (known.dirty || known.frozen);
      const stored = isSound(key, value) ? new ObjectState(pg, name) : undefined;
      if (pg.voided.has(name) && !isPinned) continue; // Known, and on its way out.
      if (stored !== undefined) {
        stored.decode(openValue(key, value, () => name));
        seen.add(name);
        if (!isPinned) count(stored);
        continue;
      }
      tally.damaged++;
      if (known === undefined || (!isPinned && !known.exists)) {
        this.checkpointer.addDelete(Buffer.from(key));
        pg.voided.add(name);
        tally.lost = true;
      } else if (!isPinned) this.host.pin(pg, name);
    }
    for (const object of [...pg.objects.values()]) {
      if (!object.exists) continue;
      if (!object.dirty && !object.frozen) {
        if (seen.has(object.name)) continue;
        tally.damaged++; // The index has lost what memory knows.
        this.host.pin(pg, object.name);
      }
      count(object);
    }
  }

  /** All of it is in memory. */
  private verifyRest(pg: PgState, tally: Tally): void {
    const own = pgKey(pg.id);
    const value = this.index.get(own);
    tally.entries++;
    if (value === undefined || !isSound(own, value)) {
      tally.damaged++;
      this.host.touchPg(pg);
    }
    for (const { key, value: answers } of this.index.range(retriesOf(pg.id))) {
      tally.entries++;
      if (isSound(key, answers)) continue;
      tally.damaged++;
      this.checkpointer.addDelete(Buffer.from(key));
      pg.retries.writeAll();
      this.host.touchPg(pg);
    }
    const log = pg.verifyLog();
    tally.entries += log.entries;
    tally.damaged += log.damaged;
    if (log.damaged > 0) this.host.touchPg(pg);
  }
}

function isSound(key: Buffer, value: Buffer): boolean {
  try {
    openValue(key, value, () => formatPg(0));
    return true;
  } catch (error) {
    if (isDssError(error, "Corrupt")) return false;
    throw error;
  }
}

function isSubset(part: ReadonlySet<number>, whole: ReadonlySet<number>): boolean {
  for (const each of part) if (!whole.has(each)) return false;
  return true;
}

/**
 * Counts the blocks of files whose figure is not certain (`Inode.recount`): their writer died, or
 * one of its writes failed. Only of files that somebody looks at, one at a time, in the background;
 * until then stat(2) shows the last figure. Nobody holds the file exclusively while it is counted,
 * and a count that was overtaken by a change is thrown away.
 */
import { describeError } from "../cluster/base/errors.js";
import { pgId, type Epoch, type Ino } from "../cluster/base/ids.js";
import { inParallel } from "../cluster/base/parallel.js";
import type { Logger } from "../cluster/base/log.js";
import { objectName } from "../cluster/base/object-name.js";
import type { Clock } from "../cluster/platform/ports.js";
import type { ObjectAccess } from "../osd/client/object-access.js";
import { filePrefix, objectCount, objectSizeWithin } from "../osd/client/striper.js";
import { Draft } from "./core/draft.js";
import type { InodeRecord } from "./core/inode.js";
import type { Metadata } from "./core/metadata.js";
import { emptyPlan } from "./core/plan.js";
import type { Operations } from "./operations.js";
import type { Answer } from "./proto.js";
import type { PurgeLister } from "./purger.js";

/** Many answers name the same file, and its writer may be about to say it. */
const DELAY_MS = 500;
const QUEUED_MAX = 4_096;
const PARALLEL = 8;
/** With more possible objects than that, placement groups are asked for them. */
const LISTED_FROM = 4_096;
const LIST_STEP = 1_024;

export interface RecounterParts {
  metadata: Metadata;
  operations: Operations;
  objects: Pick<ObjectAccess, "stat">;
  lister: PurgeLister;
  clock: Clock;
  logger: Logger;
  minEpoch(): Epoch;
  stopped(): boolean;
}

export class Recounter {
  private readonly queue = new Set<Ino>();
  private working = false;

  constructor(private readonly parts: RecounterParts) {}

  /** What a client was told; it may be worth counting. */
  see({ inode, entries }: Answer): void {
    if (inode?.recount === true) this.add(inode.ino);
    for (const entry of entries ?? []) if (entry.inode?.recount === true) this.add(entry.ino);
  }
  private add(ino: Ino): void {
    if (this.queue.size >= QUEUED_MAX) return;
    this.queue.add(ino);
    if (this.working) return;
    this.working = true;
    this.parts.clock.setTimer(DELAY_MS, () => void this.work());
  }
  private async work(): Promise<void> {
    for (const ino of this.queue) {
      if (this.parts.stopped()) return;
      this.queue.delete(ino);
      try {
        await this.recount(ino);
      } catch (error) {
        if (this.parts.stopped()) return;
        // Whoever looks at it next asks for it again.
        const err = describeError(error);
        this.parts.logger.warn({ ino, err }, "the blocks of a file were not counted");
      }
    }
    this.working = false;
  }

  private async recount(ino: Ino): Promise<void> {
    const before = await this.alone(ino);
    if (before?.recount !== true || before.layout === undefined) return;
    const allocated = await this.count(before);
    await this.alone(ino, (now) => {
      const { size, mtimeNs, truncateSeq } = before;
      const same = now.size === size && now.mtimeNs === mtimeNs && now.truncateSeq === truncateSeq;
      return same && now.recount ? { ...now, allocated, recount: false } : undefined;
    });
  }

  /** The inode at a moment at which nobody writes to it; `change` may replace it then. */
  private alone(
    ino: Ino,
    change?: (inode: InodeRecord) => InodeRecord | undefined,
  ): Promise<InodeRecord | undefined> {
    let found: InodeRecord | undefined;
    return new Promise((resolve, reject) => {
      this.parts.operations.submit({
        session: 0,
        plan: (access) => {
          found = this.parts.metadata.inode(ino);
          const plan = emptyPlan();
          // Its writer may have said it meanwhile: then nobody is disturbed.
          if (found?.recount !== true) return plan;
          // Who holds it shared is not disturbed, except for another figure.
          access.attributes(ino);
          const changed = change?.(found);
          if (changed === undefined) return plan;
          if (changed.allocated !== found.allocated) access.change(ino);
          const draft = new Draft(this.parts.metadata);
          draft.put(changed);
          return { ...plan, record: draft.finish(), hides: [ino] };
        },
        done: () => resolve(found),
        fail: reject,
      });
    });
  }

  private async count(inode: InodeRecord): Promise<number> {
    const layout = inode.layout!;
    const count = objectCount(layout, Math.min(inode.size, inode.dataMax));
    if (count > LISTED_FROM) return this.countListed(inode);
    let bytes = 0;
    await inParallel(
      Array.from({ length: count }, (_, index) => index),
      PARALLEL,
      async (index) => {
        const allocated = await this.allocatedOf(inode, index);
        bytes += allocated;
      },
    );
    return bytes;
  }
  private async allocatedOf(inode: InodeRecord, index: number): Promise<number> {
    if (this.parts.stopped()) throw new Error("stopped");
    const layout = inode.layout!;
    const { truncateSeq: seq, truncateSize } = inode;
    const size = seq === 0 ? 0 : objectSizeWithin(layout, index, truncateSize);
    const address = { pool: layout.pool, object: objectName(filePrefix(inode.ino), index) };
    const options = { truncation: { seq, size }, minEpoch: this.parts.minEpoch() };
    return (await this.parts.objects.stat(address, options)).allocated;
  }
  /** Mostly holes: the placement groups say which objects there are. */
  private async countListed(inode: InodeRecord): Promise<number> {
    const layout = inode.layout!;
    const { lister, minEpoch } = this.parts;
    const prefix = `${filePrefix(inode.ino)}.`;
    const pool = lister.pools().find(({ id }) => id === layout.pool);
    let bytes = 0;
    for (let group = 0; group < (pool?.pgCount ?? 0); group++) {
      for (let after = prefix; ;) {
        const options = { limit: LIST_STEP, minEpoch: minEpoch() };
        const listed = await lister.listActive(pgId(layout.pool, group), after, options);
        const own = listed.filter(({ object }) => object.startsWith(prefix));
        await inParallel(own, PARALLEL, async ({ object }) => {
          const index = Number.parseInt(object.slice(prefix.length), 16);
          if (objectSizeWithin(layout, index, inode.size) === 0) return;
          const allocated = await this.allocatedOf(inode, index);
          bytes += allocated;
        });
        const last = listed.at(-1);
        if (last === undefined || own.length < listed.length || listed.length < LIST_STEP) break;
        after = last.object;
      }
    }
    return bytes;
  }
}

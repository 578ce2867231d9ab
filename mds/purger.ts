/**
 * Works off the purge queue in the background: objects of deleted files and volumes, ends of
 * truncated files, pages of removed directories. The queue is journaled and an entry goes only when
 * its work is done, so nothing is forgotten; doing a part twice is harmless. Bounded parallelism
 * leaves the OSDs to clients.
 */
import { describeError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Clock } from "../cluster/platform/ports.js";
import type { ObjectAccess } from "../osd/client/object-access.js";
import { objectCount, objectName, objectSizeWithin } from "../osd/client/striper.js";
import { directoryPageKey, purgePageNumber, type PurgeEntry } from "./core/page.js";
import type { Delta } from "./core/delta.js";
import type { Metadata } from "./core/metadata.js";

const PARALLEL = 8;
/** Files of so few objects have all of them, most likely. */
const SURE_MAX = 16;
/** Progress is journaled after this many objects. */
const STEP = 1024;
const RETRY_MS = 1_000;
/** Facts of one journal record about dropped directory pages. */
const DROPS = 64;

export interface PurgerParts {
  metadata: Metadata;
  objects: Pick<ObjectAccess, "stat" | "remove" | "trim">;
  clock: Clock;
  logger: Logger;
  /** Runs `work` with its pages in memory, journals and applies the record it returns. */
  change(work: () => Delta[]): Promise<void>;
  /** Runs `read` with its pages in memory. */
  read<T>(read: () => T): Promise<T>;
  stopped(): boolean;
  /**
   * The entry is in the journal for good: until then its file may yet come back with the next
   * leader.
   */
  isSafe(id: number): boolean;
}

export class Purger {
  private readonly active = new Set<number>();
  private scheduled = false;

  constructor(private readonly parts: PurgerParts) {}

  /** There may be work. */
  wake(): void {
    if (this.scheduled || this.parts.stopped()) return;
    this.scheduled = true;
    this.parts.clock.defer(() => {
      this.scheduled = false;
      this.fill();
    });
  }
  private fill(): void {
    if (this.parts.stopped()) return;
    for (const entry of this.parts.metadata.purges()) {
      if (this.active.size >= PARALLEL) return;
      if (this.active.has(entry.id) || !this.parts.isSafe(entry.id)) continue;
      this.active.add(entry.id);
      void this.work(entry).finally(() => {
        this.active.delete(entry.id);
        this.wake();
      });
    }
  }

  private async work(entry: PurgeEntry): Promise<void> {
    try {
      if (entry.what === "objects") await this.removeObjects(entry);
      else await this.dropPages(entry);
      await this.parts.change(() => this.done(entry.id));
    } catch (error) {
      if (this.parts.stopped()) return;
      this.parts.logger.warn(
        { purge: entry.id, prefix: entry.prefix, err: describeError(error) },
        "deleted data could not be freed yet; trying again",
      );
      await new Promise<void>((resolve) => void this.parts.clock.setTimer(RETRY_MS, resolve));
    }
  }
  private done(id: number): Delta[] {
    const { metadata } = this.parts;
    if (metadata.purge(id) === undefined) return [];
    const page = purgePageNumber(id);
    const record: Delta[] = [{ d: "purgeRemove", id }];
    if (metadata.purgeNeighbours(id) === 1) record.push({ d: "purgePage", page, used: false });
    return record;
  }

  private async removeObjects(entry: PurgeEntry): Promise<void> {
    const count = objectCount(entry.layout, entry.bound);
    // Of a large file many may be holes, which are cheaper to ask about than to remove.
    const likely = count > SURE_MAX ? 0 : objectCount(entry.layout, entry.likely);
    for (let start = entry.next; start < count; start += STEP) {
      const end = Math.min(count, start + STEP);
      let next = start;
      const worker = async (): Promise<void> => {
        while (next < end && !this.parts.stopped()) {
          const index = next++;
          const keep = objectSizeWithin(entry.layout, index, entry.from);
          if (keep === 0) await this.removeObject(entry, index, index < likely);
          else if (keep < entry.layout.objectSize) await this.trimObject(entry, index, keep);
        }
      };
      await Promise.all(Array.from({ length: PARALLEL }, worker));
      if (this.parts.stopped()) throw new Error("stopped");
      if (end < count) {
        await this.parts.change(() => [{ d: "purgeProgress", id: entry.id, next: end }]);
      }
    }
  }
  private async removeObject(entry: PurgeEntry, index: number, likely: boolean): Promise<void> {
    const { objects } = this.parts;
    const address = { pool: entry.layout.pool, object: objectName(entry.prefix, index) };
    const options = { truncation: { seq: entry.truncateSeq, size: 0 }, minEpoch: 0 };
    if (!likely && !(await objects.stat(address, { ...options, truncation: NONE })).exists) return;
    await objects.remove(address, { ...options, unconditional: entry.unconditional });
  }

  /** The file keeps the first bytes of this object. */
  private async trimObject(entry: PurgeEntry, index: number, keep: number): Promise<void> {
    const address = { pool: entry.layout.pool, object: objectName(entry.prefix, index) };
    const truncation = { seq: entry.truncateSeq, size: keep };
    await this.parts.objects.trim(address, { truncation, minEpoch: 0 });
  }

  /** Takes down the tree of a removed directory's pages, leaves first. */
  private async dropPages({ ino }: PurgeEntry): Promise<void> {
    const { metadata } = this.parts;
    const prefixes: string[] = [];
    const walk = async (prefix: string): Promise<void> => {
      const split = await this.parts.read(() => {
        const page = metadata.cache.get(directoryPageKey(ino, prefix));
        return page.body.kind === "d" && page.body.split;
      });
      if (split) for (const digit of "0123456789abcdef") await walk(prefix + digit);
      prefixes.push(prefix);
    };
    await walk("");
    for (let at = 0; at < prefixes.length; at += DROPS) {
      const part = prefixes.slice(at, at + DROPS);
      await this.parts.change(() =>
        part.map((prefix) => ({ d: "directoryDrop", directory: ino, prefix })),
      );
    }
  }
}
const NONE = Object.freeze({ seq: 0, size: 0 });

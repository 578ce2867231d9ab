/**
 * Repair of damaged blocks (design §5: a bad block is never returned). Whoever meets one, a read,
 * a write that merges, a copy for another OSD or scrub, has this OSD's copy of the object healed
 * from the other members first.
 *
 * What makes it safe without a lock: the index says which checksum the right bytes have, and only
 * bytes with that checksum are taken, so that a repair can never make a block older or newer.
 *
 * Owner of: which objects are being healed.
 */
import { BLOCK_SIZE } from "../cluster/base/checksum.js";
import { DssError, describeError } from "../cluster/base/errors.js";
import { formatPg, type OsdId } from "../cluster/base/ids.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import { blockRuns } from "./core/scrub.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import { CopyRead, OBJECT_SIZE_MAX, type OsdCopyRead, type OsdCopyReply } from "./proto.js";
import {
  StructureDamage,
  type BlockRun,
  type Durable,
  type ObjectImage,
  type ObjectRead,
  type SpoiledBlock,
} from "./store/chunk-store.js";

/** What became of an object's damage on this OSD. */
export interface Healed {
  /** Damaged blocks, and how many of them are right again. */
  found: number;
  repaired: number;
  /** Blocks that are still damaged. */
  left: readonly SpoiledBlock[];
  /** Members that could not be asked: they may have the right bytes. */
  waitsFor: readonly OsdId[];
  /** Bytes read and verified. */
  bytes: number;
}

/** A member may not have applied yet, or no longer have, what this copy has: it is asked again. */
const ATTEMPTS = 4;
const PAUSE_MS = 50;

/** Damaged blocks; damage of the index is not repaired here. */
const isCorrupt = (error: unknown): error is DssError =>
  error instanceof DssError && error.code === "Corrupt" && !(error instanceof StructureDamage);

export class Repairer {
  private readonly healing = new Map<string, Promise<Healed>>();

  constructor(private readonly host: PgHost) {}

  // ——— For whoever met damage ———

  /** The same read again, once the object is healed. Errors: Corrupt, NotActive (try later). */
  async readAfter(
    error: unknown,
    pg: PlacementGroup,
    range: { object: string; offset: number; length: number },
  ): Promise<ObjectRead | undefined> {
    if (!isCorrupt(error)) throw error;
    const { object, offset, length } = range;
    const healed = await this.heal(pg, object);
    try {
      return await this.host.store.read(pg.id, object, offset, length);
    } catch (again) {
      if (!isCorrupt(again) || healed.waitsFor.length === 0) throw again;
      throw this.mustWait(pg, object, healed, again);
    }
  }

  /** Reads, and heals when that meets damage. */
  async read(
    pg: PlacementGroup,
    object: string,
    offset: number,
    length: number,
  ): Promise<ObjectRead | undefined> {
    try {
      return await this.host.store.read(pg.id, object, offset, length);
    } catch (error) {
      return this.readAfter(error, pg, { object, offset, length });
    }
  }

  /**
   * The object for another OSD. Blocks that are damaged wherever they are travel as damaged ones:
   * the rest of the object is worth having.
   */
  async image(pg: PlacementGroup, object: string): Promise<ObjectImage | undefined> {
    try {
      return await this.host.store.image(pg.id, object);
    } catch (error) {
      if (!isCorrupt(error)) throw error;
      const healed = await this.heal(pg, object);
      if (healed.waitsFor.length > 0) throw this.mustWait(pg, object, healed, error);
      return await this.host.store.image(pg.id, object, healed.left.length > 0);
    }
  }

  private mustWait(
    pg: PlacementGroup,
    object: string,
    { waitsFor }: Healed,
    cause: unknown,
  ): DssError {
    const members = waitsFor.map((osd) => `osd.${osd}`).join(", ");
    const text = `pg ${formatPg(pg.id)}: the repair of ${object} waits for ${members}`;
    return new DssError("NotActive", text, { cause });
  }

  // ——— Healing this OSD's copy ———

  /** Checks the whole object, fetches what is damaged. Whoever asks meanwhile shares the work. */
  heal(pg: PlacementGroup, object: string): Promise<Healed> {
    const key = `${pg.id} ${object}`;
    const known = this.healing.get(key);
    if (known !== undefined) return known;
    const work = this.work(pg, object).finally(() => this.healing.delete(key));
    this.healing.set(key, work);
    return work;
  }

  private async work(pg: PlacementGroup, object: string): Promise<Healed> {
    const { store, logger, clock } = this.host;
    let found = 0;
    let repaired = 0;
    let left: readonly SpoiledBlock[] = [];
    let waitsFor: OsdId[] = [];
    let bytes = 0;
    for (let attempt = 1; ; attempt++) {
      const copy = await store.check(pg.id, object, 0, OBJECT_SIZE_MAX);
      left = copy?.bad ?? [];
      bytes = copy?.bytes ?? 0;
      found = Math.max(found, repaired + left.length);
      if (left.length === 0 || attempt > ATTEMPTS) break;
      if (attempt > 1) await new Promise<void>((go) => void clock.setTimer(PAUSE_MS, go));
      const before = left.length;
      const result = await this.fetchAll(pg, object, left);
      repaired += result.repaired;
      waitsFor = result.unreachable;
      // Every member was asked and has it damaged or not at all: asking again changes nothing.
      if (result.repaired < before && result.hopeless) {
        left = (await store.check(pg.id, object, 0, OBJECT_SIZE_MAX))?.bad ?? [];
        break;
      }
    }
    if (left.length === 0) waitsFor = [];
    // What is known and could not be repaired until now was counted and logged then.
    const known = pg.damage.blocksOf(object);
    this.host.count("damagedBlocks", Math.max(0, found - known));
    this.host.count("repairedBlocks", repaired);
    const about = { pg: formatPg(pg.id), object, damaged: found, repaired };
    if (left.length > 0) {
      const blocks = left.slice(0, 8).map(({ offset }) => offset / BLOCK_SIZE);
      const text = "damaged blocks could not be repaired";
      if (left.length !== known) logger.error({ ...about, blocks, waitsFor }, text);
      pg.damage.note(object, { blocks: left.length, waitsFor });
    } else {
      if (found > 0) logger.warn(about, "damaged blocks were repaired from another member");
      pg.damage.forget(object);
    }
    if (found > known || repaired > 0) pg.damage.seen(clock.now());
    return { found, repaired, left, waitsFor, bytes };
  }

  private async fetchAll(
    pg: PlacementGroup,
    object: string,
    bad: readonly SpoiledBlock[],
  ): Promise<{ repaired: number; unreachable: OsdId[]; hopeless: boolean }> {
    const sources = this.sources(pg);
    const unreachable = new Set<OsdId>();
    let repaired = 0;
    let hopeless = true;
    for (const run of blockRuns(bad)) {
      // A run that is damaged there, too, is asked for block by block.
      const queue = [run];
      for (let part = queue.shift(); part !== undefined; part = queue.shift()) {
        let isDone = false;
        let isDamagedThere = false;
        for (const source of sources) {
          if (unreachable.has(source)) continue;
          const copy = await this.fetch(pg, source, object, part);
          if (copy === "unreachable") unreachable.add(source);
          else if (copy === "damaged") isDamagedThere = true;
          else if (copy !== undefined) {
            const wrote = await this.write(pg, object, copy);
            repaired += wrote;
            isDone = wrote === part.length / BLOCK_SIZE;
            if (isDone) break;
            hopeless = false; // Its bytes are of another moment.
          }
        }
        if (!isDone && isDamagedThere && part.length > BLOCK_SIZE) queue.push(...split(part));
      }
    }
    return { repaired, unreachable: [...unreachable], hopeless };
  }

  /**
   * In-sync members, the primary first: it surely has what this copy should have. Then who belongs
   * there and is not in sync now: an old copy may have the very bytes.
   */
  private sources(pg: PlacementGroup): OsdId[] {
    const { primary, inSync } = pg.entry;
    const all = new Set([primary, ...inSync, ...this.host.upSet(pg.id)]);
    return [...all].filter((osd) => osd !== this.host.id && osd >= 0);
  }

  private async fetch(
    pg: PlacementGroup,
    source: OsdId,
    object: string,
    { offset, length }: { offset: number; length: number },
  ): Promise<BlockRun | "unreachable" | "damaged" | undefined> {
    const peer = this.host.peer(source);
    if (peer === undefined) return "unreachable";
    const request = { pg: pg.id, interval: pg.entry.interval, object, offset, length };
    try {
      const answer = await peer.call(CopyRead, request, {
        deadlineMs: this.host.replicaTimeoutMs,
      });
      if (!answer.message.exists || answer.data.length === 0) return undefined;
      const { data, sums } = answer;
      if (answer.message.dataOffset !== offset || data.length % BLOCK_SIZE !== 0) {
        throw new DssError("Malformed", `osd.${source} sent a copy that was not asked for`);
      }
      return { offset, data, sums };
    } catch (error) {
      if (!(error instanceof DssError)) throw error;
      if (error.code === "Corrupt") return "damaged";
      const about = { pg: formatPg(pg.id), object, osd: source, error: describeError(error) };
      this.host.logger.debug(about, "a member could not be asked for right bytes");
      return "unreachable";
    }
  }

  /** Writes what fits; returns how many blocks that were. */
  private async write(pg: PlacementGroup, object: string, run: BlockRun): Promise<number> {
    const { store } = this.host;
    const before = (await store.check(pg.id, object, run.offset, run.data.length))?.bad.length ?? 0;
    await this.durably((done) => void store.repair(pg.id, object, [run], done));
    const after = (await store.check(pg.id, object, run.offset, run.data.length))?.bad.length ?? 0;
    return Math.max(0, before - after);
  }

  private durably(work: (done: Durable) => void): Promise<void> {
    return new Promise((resolve) =>
      work((error) => {
        if (error === undefined) resolve();
        else this.host.fatal(error); // Never resolves: the OSD stops.
      }),
    );
  }

  // ——— For another member that repairs itself ———

  copyRead(request: Incoming<OsdCopyRead, OsdCopyReply>): void {
    const { pg, object, offset, length } = request.message;
    this.host.store.read(pg, object, offset, length).then(
      (read) => {
        const version = read?.info.version;
        const reply = {
          exists: read !== undefined,
          versionInterval: version?.interval ?? 0,
          versionSeq: version?.seq ?? 0,
          dataOffset: offset,
        };
        request.reply(reply, read?.data ?? [], read?.sums);
      },
      (error: unknown) => request.fail(error),
    );
  }
}

function split(run: { offset: number; length: number }): { offset: number; length: number }[] {
  return Array.from({ length: run.length / BLOCK_SIZE }, (_, i) => ({
    offset: run.offset + i * BLOCK_SIZE,
    length: BLOCK_SIZE,
  }));
}

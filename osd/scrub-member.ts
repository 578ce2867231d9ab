/**
 * A member's part in scrub: it tells what its index says of objects, and, for a deep scrub, reads
 * them through and repairs what is damaged. The daemon has checked map and interval. Both take
 * their turn in the work queue; what is done under an object's lock does not, because client writes
 * wait for it.
 */
import { DssError } from "../cluster/base/errors.js";
import { formatPg } from "../cluster/base/ids.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { CopyRow } from "./core/scrub.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import type { Healed } from "./repair.js";
import type { IndexCheck } from "./store/chunk-store.js";
import type {
  ScrubEndedRequest,
  ScrubListReply,
  ScrubListRequest,
  ScrubObjectReply,
  ScrubObjectRequest,
} from "./proto.js";

/** Objects in one answer at most. */
const LIST_MAX = 1_000;
/** What looking up one object costs, in bytes read. */
const ROW_COST_BYTES = 1_024;

export class ScrubMember {
  constructor(private readonly host: PgHost) {}

  // ——— Requests of the primary ———

  listed(pg: PlacementGroup, request: Incoming<ScrubListRequest, ScrubListReply>): void {
    const { after, limit } = request.message;
    this.list(pg, after, Math.min(limit, LIST_MAX)).then(
      (reply) => request.reply(reply),
      (error: unknown) => request.fail(error),
    );
  }

  examined(pg: PlacementGroup, request: Incoming<ScrubObjectRequest, ScrubObjectReply>): void {
    const { object, deep } = request.message;
    this.examine(pg, object, deep).then(
      (reply) => request.reply(reply),
      (error: unknown) => request.fail(error),
    );
  }

  indexed(
    pg: PlacementGroup,
    request: Incoming<{ pg: number; interval: number }, IndexCheck>,
  ): void {
    this.verifyIndex(pg).then(
      (reply) => request.reply(reply),
      (error: unknown) => request.fail(error),
    );
  }

  ended(pg: PlacementGroup, request: Incoming<ScrubEndedRequest, Record<string, never>>): void {
    const { stamps } = request.message;
    this.mustBeWhole(pg);
    pg.record.noteScrub({ stamps }, (error) => {
      if (error === undefined) request.reply({});
      else this.host.fatal(error);
    });
  }

  // ——— The same on the own store, for the primary itself ———

  async list(pg: PlacementGroup, after: string, limit: number): Promise<ScrubListReply> {
    const turn = await this.host.work.turn("scrub", limit * ROW_COST_BYTES);
    try {
      this.mustBeWhole(pg);
      const listed = this.host.store.list(pg.id, after, limit);
      const rows = listed.map(({ object }) => this.row(pg, object)!);
      return { rows, complete: listed.length < limit };
    } finally {
      turn.end();
    }
  }

  async verifyIndex(pg: PlacementGroup): Promise<IndexCheck> {
    const entries = this.host.store.pgInfo(pg.id)?.objects ?? 0;
    const turn = await this.host.work.turn("scrub", entries * ROW_COST_BYTES);
    try {
      this.mustBeWhole(pg);
      const verified = this.host.store.verifyIndex(pg.id);
      turn.end(); // What it waits for is the disk's work.
      const found = await verified;
      if (found.damaged > 0) pg.damage.seen(this.host.clock.now());
      return found;
    } finally {
      turn.end();
    }
  }

  async examine(pg: PlacementGroup, object: string, deep: boolean): Promise<ScrubObjectReply> {
    this.mustBeWhole(pg);
    const healed = deep ? await this.readThrough(pg, object) : undefined;
    const row = this.row(pg, object);
    return {
      ...(row !== undefined && { row }),
      bytes: healed?.bytes ?? 0,
      found: healed?.found ?? 0,
      left: healed?.left.length ?? 0,
    };
  }

  private async readThrough(pg: PlacementGroup, object: string): Promise<Healed> {
    const bytes = this.host.store.stat(pg.id, object)?.allocated ?? 0;
    const turn = await this.host.work.turn("scrub", bytes);
    try {
      this.mustBeWhole(pg); // The PG may have gone while it waited.
      return await this.host.repairer.heal(pg, object);
    } finally {
      turn.end();
    }
  }

  private row(pg: PlacementGroup, object: string): CopyRow | undefined {
    const { store } = this.host;
    const info = store.stat(pg.id, object);
    if (info === undefined) return undefined;
    const { size, version, truncateSeq, snapSeq } = info;
    const digest = store.digest(pg.id, object)!;
    return { object, size, version, truncateSeq, snapSeq, digest };
  }

  /** What is missing here is recovery's to bring, and no finding of scrub. */
  private mustBeWhole(pg: PlacementGroup): void {
    if (pg.record.whole && this.host.store.hasPg(pg.id)) return;
    const text = `osd.${this.host.id} has not all of pg ${formatPg(pg.id)} yet`;
    throw new DssError("NotActive", text);
  }
}

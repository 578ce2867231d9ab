/**
 * A member's part in scrub: it tells what its index says of objects, and, for a deep scrub, reads
 * them through and repairs what is damaged. The daemon has checked map and interval.
 */
import { DssError } from "../cluster/base/errors.js";
import { formatPg } from "../cluster/base/ids.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { CopyRow } from "./core/scrub.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import type {
  ScrubEndedRequest,
  ScrubListReply,
  ScrubListRequest,
  ScrubObjectReply,
  ScrubObjectRequest,
} from "./proto.js";

/** Objects in one answer at most. */
const LIST_MAX = 1_000;

export class ScrubMember {
  constructor(private readonly host: PgHost) {}

  // ——— Requests of the primary ———

  listed(pg: PlacementGroup, request: Incoming<ScrubListRequest, ScrubListReply>): void {
    const { after, limit } = request.message;
    request.reply(this.list(pg, after, Math.min(limit, LIST_MAX)));
  }

  examined(pg: PlacementGroup, request: Incoming<ScrubObjectRequest, ScrubObjectReply>): void {
    const { object, deep } = request.message;
    this.examine(pg, object, deep).then(
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

  list(pg: PlacementGroup, after: string, limit: number): ScrubListReply {
    this.mustBeWhole(pg);
    const listed = this.host.store.list(pg.id, after, limit);
    const rows = listed.map(({ object }) => this.row(pg, object)!);
    return { rows, complete: listed.length < limit };
  }

  async examine(pg: PlacementGroup, object: string, deep: boolean): Promise<ScrubObjectReply> {
    this.mustBeWhole(pg);
    const healed = deep ? await this.host.repairer.heal(pg, object) : undefined;
    const row = this.row(pg, object);
    return {
      ...(row !== undefined && { row }),
      bytes: healed?.bytes ?? 0,
      found: healed?.found ?? 0,
      left: healed?.left.length ?? 0,
    };
  }

  private row(pg: PlacementGroup, object: string): CopyRow | undefined {
    const { store } = this.host;
    const info = store.stat(pg.id, object);
    if (info === undefined) return undefined;
    const { size, version, truncateSeq } = info;
    return { object, size, version, truncateSeq, digest: store.digest(pg.id, object)! };
  }

  /** What is missing here is recovery's to bring, and no finding of scrub. */
  private mustBeWhole(pg: PlacementGroup): void {
    if (pg.record.whole && this.host.store.hasPg(pg.id)) return;
    const text = `osd.${this.host.id} has not all of pg ${formatPg(pg.id)} yet`;
    throw new DssError("NotActive", text);
  }
}

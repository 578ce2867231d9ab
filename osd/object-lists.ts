/**
 * Lists of a placement group's objects, and what they take: for the purge of whole volumes, for
 * fsck and for `dss volume du`. Long ones are read from the index in portions, so that no client
 * waits for a whole one.
 */
import type { PgId } from "../cluster/base/ids.js";
import { isObjectOf, listedFrom } from "../cluster/base/object-name.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { Infer } from "../cluster/wire/struct.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import type { OsdActiveList, OsdListReply, OsdMeasure, OsdMeasured } from "./proto.js";
import type { ChunkStore } from "./store/chunk-store.js";

const LIST_MAX = 10_000;
const PORTION = 1_000;

export function listed(
  store: ChunkStore,
  pg: PgId,
  after: string,
  limit: number,
): Infer<typeof OsdListReply> {
  const objects = store.list(pg, after, Math.min(limit, LIST_MAX)).map(({ object, info }) => ({
    object,
    size: info.size,
    versionInterval: info.version.interval,
    versionSeq: info.version.seq,
    snapSeq: info.snapSeq,
    allocated: info.allocated,
  }));
  return { objects };
}

/** The caller has checked map and interval. */
export function listActive(
  pg: PlacementGroup,
  host: PgHost,
  request: Incoming<Infer<typeof OsdActiveList>, Infer<typeof OsdListReply>>,
): void {
  pg.refuseUnlessActive();
  const { after, limit } = request.message;
  // What is not on the list counts as absent: a deposed primary must not say so.
  pg.whenGranted(request, () => {
    try {
      request.reply(listed(host.store, pg.id, after, limit));
    } catch (error) {
      request.fail(error);
    }
  });
}

/** The caller has checked map and interval. */
export function measure(
  pg: PlacementGroup,
  host: PgHost,
  request: Incoming<Infer<typeof OsdMeasure>, OsdMeasured>,
): void {
  const { prefix } = request.message;
  const { store, clock } = host;
  const from = listedFrom(prefix);
  const sum = { objects: 0, bytes: 0, allocated: 0 };
  const portion = (after: string): void => {
    try {
      pg.refuseUnlessActive();
      const found = store.list(pg.id, after, PORTION);
      for (const { object, info } of found) {
        // Names come in order: the first one of another prefix ends the list.
        if (!object.startsWith(from)) return request.reply(sum);
        if (!isObjectOf(prefix, object)) continue;
        sum.objects++;
        sum.bytes += info.size;
        sum.allocated += info.allocated;
      }
      const last = found.at(-1);
      if (last === undefined || found.length < PORTION) return request.reply(sum);
      clock.defer(() => portion(last.object));
    } catch (error) {
      request.fail(error);
    }
  };
  portion(from);
}

/** Lists objects at the primaries of their placement groups, for `dss fsck` and for purges. */
import { DssError } from "../cluster/base/errors.js";
import { formatPg, type PgId } from "../cluster/base/ids.js";
import { osdOf, pgOf, type MapSource } from "../cluster/map/cluster-map.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import { ListActive, ListObjects } from "../osd/proto.js";
import type { ObjectLister } from "./fsck.js";
import type { PurgeLister } from "./purger.js";

const DEADLINE_MS = 10_000;

export function objectLister(parts: {
  messenger: Messenger;
  maps: MapSource;
}): ObjectLister & PurgeLister {
  const { messenger, maps } = parts;
  /** Undefined for a group that was never used. */
  const primaryOf = (pg: PgId) => {
    const map = maps.current();
    const entry = pgOf(map, pg);
    if (entry?.inSync.length === 0) return undefined;
    const osd = entry === undefined ? undefined : osdOf(map, entry.primary);
    if (entry === undefined || osd?.up !== true) {
      throw new DssError("NotActive", `pg ${formatPg(pg)} has no primary`);
    }
    return { peer: messenger.peer(osd.address), interval: entry.interval };
  };
  return {
    pools: () => maps.current().pools,
    async list(pg, after, limit) {
      const primary = primaryOf(pg);
      if (primary === undefined) return [];
      const request = { pg, after, limit };
      const { message } = await primary.peer.call(ListObjects, request, {
        deadlineMs: DEADLINE_MS,
      });
      return message.objects;
    },
    async listActive(pg, after, { limit, minEpoch }) {
      const primary = primaryOf(pg);
      if (primary === undefined) return [];
      const request = { pg, after, limit, minEpoch, interval: primary.interval };
      const { message } = await primary.peer.call(ListActive, request, { deadlineMs: DEADLINE_MS });
      return message.objects;
    },
  };
}

/** Lists objects at the primaries of their placement groups, for `dss fsck`. */
import { DssError } from "../cluster/base/errors.js";
import { formatPg } from "../cluster/base/ids.js";
import { osdOf, pgOf, type MapSource } from "../cluster/map/cluster-map.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import { ListObjects } from "../osd/proto.js";
import type { ObjectLister } from "./fsck.js";

const DEADLINE_MS = 10_000;

export function objectLister(parts: { messenger: Messenger; maps: MapSource }): ObjectLister {
  const { messenger, maps } = parts;
  return {
    pools: () => maps.current().pools,
    async list(pg, after, limit) {
      const map = maps.current();
      const entry = pgOf(map, pg);
      if (entry?.inSync.length === 0) return []; // Never used.
      const osd = entry === undefined ? undefined : osdOf(map, entry.primary);
      if (osd?.up !== true) throw new DssError("NotActive", `pg ${formatPg(pg)} has no primary`);
      const peer = messenger.peer(osd.address);
      const request = { pg, after, limit };
      return (await peer.call(ListObjects, request, { deadlineMs: DEADLINE_MS })).message.objects;
    },
  };
}

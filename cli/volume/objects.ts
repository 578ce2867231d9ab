/** The objects of a volume that exist, as the primaries of its placement groups list them. */
import { DssError } from "../../cluster/base/errors.js";
import { formatPg, pgId } from "../../cluster/base/ids.js";
import { isObjectOf, listedFrom, objectIndex } from "../../cluster/base/object-name.js";
import { osdOf, poolOf } from "../../cluster/map/cluster-map.js";
import type { Volume } from "../../mds/proto.js";
import type { ClusterClient } from "../context.js";

const LIST_LIMIT = 10_000;

export interface ObjectRow {
  object: string;
  index: number;
  /** Where its first byte is in a volume without striping. */
  offset: number;
  pg: string;
  size: number;
  allocated: number;
  osds: readonly number[];
}

/** The volume's objects that exist, by asking the primary of every PG of its pool. */
export async function objectsOf(client: ClusterClient, volume: Volume): Promise<ObjectRow[]> {
  const map = client.needMap();
  const pool = poolOf(map, volume.layout.pool);
  if (pool === undefined) throw new DssError("NotFound", `pool ${volume.layout.pool} is not there`);
  const prefix = listedFrom(volume.objectPrefix);
  const found: ObjectRow[] = [];
  const entries = map.pgs[pool.id] ?? [];
  const list = async (index: number): Promise<void> => {
    const pg = pgId(pool.id, index);
    const entry = entries[index]!;
    const primary = osdOf(map, entry.primary);
    if (primary === undefined) {
      if (entry.inSync.length === 0) return; // Never created: it holds nothing.
      throw new DssError("NotActive", `placement group ${formatPg(pg)} has no primary`, {
        hint: "see dss health detail",
      });
    }
    for (let after = prefix; ;) {
      const objects = await client.listObjects(primary, { pg, after, limit: LIST_LIMIT });
      const own = objects.filter((each) => each.object.startsWith(prefix));
      for (const { object, size, allocated } of own) {
        if (!isObjectOf(volume.objectPrefix, object)) continue;
        const at = objectIndex(object);
        found.push({
          ...{ object, index: at, offset: at * volume.layout.objectSize },
          ...{ pg: formatPg(pg), size, allocated, osds: entry.inSync },
        });
      }
      // Names come in order: the first one of another prefix ends the list.
      const last = objects.at(-1);
      if (last === undefined || own.length < objects.length) return;
      if (objects.length < LIST_LIMIT) return;
      after = last.object;
    }
  };
  await Promise.all(entries.map((_, index) => list(index)));
  return found.sort((a, b) => a.index - b.index);
}

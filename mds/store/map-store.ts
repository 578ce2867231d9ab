/**
 * The cluster map in ZooKeeper, as the leader writes it: compare-and-set on the node, in one
 * transaction with the check of the term. After a lost connection the outcome is read back before
 * anything else.
 */
import { DssError, isDssError } from "../../cluster/base/errors.js";
import type { ClusterMap } from "../../cluster/map/cluster-map.js";
import { decodeMap, encodeMap } from "../../cluster/map/map-codec.js";
import type { Coordination, CoordinationOp } from "../../cluster/zk/coordination.js";
import { multiUnder, type Term } from "../../cluster/zk/election.js";
import { MAP_PATH } from "../../cluster/zk/schema.js";

/** Version of a map that is not there yet. */
export const NO_MAP = -1;
const ATTEMPTS_MAX = 10;

export interface StoredMap {
  map: ClusterMap;
  version: number;
}

/**
 * undefined before the cluster has a map. Errors: Corrupt, IncompatibleVersion, those of a request.
 */
export async function loadMap(coordination: Coordination): Promise<StoredMap | undefined> {
  await coordination.sync(); // A new leader must see its predecessor's last map.
  const node = await coordination.get(MAP_PATH);
  return node && { map: decodeMap(node.data), version: node.version };
}

/**
 * Replaces the map of `version` (NO_MAP: creates it); resolves to the new version. When it resolves
 * the map is committed. Errors: Fenced (another leads), Conflict (the map is not of that version),
 * Unreachable (unknown outcome: load the map again).
 */
export async function saveMap(
  coordination: Coordination,
  term: Term,
  stored: StoredMap,
): Promise<number> {
  const data = encodeMap(stored.map);
  const op: CoordinationOp =
    stored.version === NO_MAP
      ? { op: "create", path: MAP_PATH, data }
      : { op: "set", path: MAP_PATH, data, version: stored.version };
  const next = stored.version + 1;
  for (let attempt = 1; ; attempt++) {
    try {
      await multiUnder(coordination, term, [op]);
      return next;
    } catch (error) {
      if (isDssError(error, "Exists")) {
        throw new DssError("Conflict", "there is a cluster map already", { cause: error });
      }
      if (!isDssError(error, "ConnectionLost") || attempt >= ATTEMPTS_MAX) throw error;
    }
    if (await wasSaved(coordination, data, next)) return next;
  }
}

async function wasSaved(
  coordination: Coordination,
  data: Buffer,
  version: number,
): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    try {
      // Orders the read behind whatever the lost connection still carried.
      await coordination.sync();
      const node = await coordination.get(MAP_PATH);
      return node?.version === version && node.data.equals(data);
    } catch (error) {
      if (!isDssError(error, "ConnectionLost") || attempt >= ATTEMPTS_MAX) throw error;
    }
  }
}

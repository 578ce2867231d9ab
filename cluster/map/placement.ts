/**
 * object -> PG -> up set (design §3). Pure functions of the map; tables are computed once per
 * ring and pool and kept with the ring.
 *
 * PG points are evenly spaced (the index, bit-reversed, as a fraction of the circle), turned by a
 * hash of the pool: that spreads PGs better than random points, two pools do not share their
 * imbalance, and when a pool's PG count doubles every PG keeps its point.
 */
import { assert } from "../base/assert.js";
import { pgId, pgIndex, poolOfPg, type OsdId, type PgId, type PoolId } from "../base/ids.js";
import { familyOf } from "../base/object-name.js";
import { allPgs, poolOf, type ClusterMap, type PoolEntry } from "./cluster-map.js";
import { murmur3Text, murmur3Words } from "./hash.js";
import { ringOf, walk, type Ring } from "./ring.js";

/** Frozen with the ring's seed. */
const POOL_SEED = 0x706f6f6c;

/** The PG of an object, which is that of its whole family; the pool must be in the map. */
export function objectToPg(map: ClusterMap, pool: PoolId, objectName: string): PgId {
  const entry = poolOf(map, pool);
  assert(entry, `pool ${pool} is not in map ${map.epoch}`);
  return pgId(pool, murmur3Text(familyOf(objectName)) & (entry.pgCount - 1));
}

function reverseBits(word: number): number {
  let x = word;
  x = ((x & 0x55555555) << 1) | ((x >>> 1) & 0x55555555);
  x = ((x & 0x33333333) << 2) | ((x >>> 2) & 0x33333333);
  x = ((x & 0x0f0f0f0f) << 4) | ((x >>> 4) & 0x0f0f0f0f);
  x = ((x & 0x00ff00ff) << 8) | ((x >>> 8) & 0x00ff00ff);
  return ((x << 16) | (x >>> 16)) >>> 0;
}

/** Position of a PG on the ring. */
export function pgPoint(pool: PoolId, index: number): number {
  return (reverseBits(index) + murmur3Words(pool, 0, POOL_SEED)) >>> 0;
}

type Table = readonly (readonly OsdId[])[];
const tables = new WeakMap<Ring, Map<string, Table>>();

/** The up sets of all PGs of a pool, by index. Each begins with the preferred primary. */
export function upSets(map: ClusterMap, pool: PoolEntry): Table {
  const ring = ringOf(map);
  let ofRing = tables.get(ring);
  if (!ofRing) {
    ofRing = new Map<string, Table>();
    tables.set(ring, ofRing);
  }
  const key = `${pool.id}/${pool.pgCount}/${pool.replicas}`;
  let table = ofRing.get(key);
  if (!table) {
    table = Array.from({ length: pool.pgCount }, (_, index) =>
      walk(ring, pgPoint(pool.id, index), pool.replicas),
    );
    ofRing.set(key, table);
  }
  return table;
}

/**
 * The OSDs that watch this one, and that it watches: those that it shares a PG with, as members or
 * by placement. Ascending; walks all PGs.
 */
export function heartbeatPeers(map: ClusterMap, id: OsdId): OsdId[] {
  const peers = new Set<OsdId>();
  for (const { pg, entry } of allPgs(map)) {
    const wanted = upSet(map, pg);
    if (!entry.inSync.includes(id) && !wanted.includes(id)) continue;
    for (const osd of entry.inSync) peers.add(osd);
    for (const osd of wanted) peers.add(osd);
  }
  peers.delete(id);
  return [...peers].sort((a, b) => a - b);
}

/** Where the PG's replicas belong; shorter than `replicas` when there are too few OSDs. */
export function upSet(map: ClusterMap, pg: PgId): readonly OsdId[] {
  const pool = poolOf(map, poolOfPg(pg));
  const set = pool && upSets(map, pool)[pgIndex(pg)];
  assert(set, `PG ${pg} is not in map ${map.epoch}`);
  return set;
}

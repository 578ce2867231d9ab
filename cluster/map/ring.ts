/**
 * The consistent hash ring (design §3): every OSD that is in has `virtualNodes × weight` points on
 * a circle of 2³². A pure function of ids, weights, hosts and `virtualNodes`: every program
 * computes the same ring, and up/down changes leave it as it is.
 *
 * An OSD's points do not depend on other OSDs, and a higher weight only adds points: so a change
 * moves no more than the OSD's own share.
 */
import { assert } from "../base/assert.js";
import type { OsdId } from "../base/ids.js";
import type { ClusterMap } from "./cluster-map.js";
import { murmur3Words } from "./hash.js";

export const VIRTUAL_NODES_DEFAULT = 1000;
export const VIRTUAL_NODES_MAX = 10_000;
export const WEIGHT_MAX = 100;

/**
 * Any seed will do; this one was searched for an even spread of OSDs 0 … 9
 * (test/unit/cluster/map/ring.test.ts). Frozen: another value would move every object.
 */
const POINT_SEED = 2478;

const OSD_BITS = 14; // OSD_ID_MAX < 2^14
const OSD_SPAN = 2 ** OSD_BITS;
const CIRCLE = 2 ** 32;

export interface Ring {
  /** Ascending positions of the points. */
  readonly points: Uint32Array;
  /** The OSD of each point. */
  readonly owners: Uint16Array;
  /** Host number of each OSD id that has points. */
  readonly hosts: ReadonlyMap<OsdId, number>;
  readonly hostCount: number;
}

const pointsOfOsd = new Map<string, Float64Array>();
const POINT_LISTS_MAX = 4096;

/** position × 2^14 + id, ascending: sortable as plain doubles, ties broken by id. */
function sortedPoints(id: OsdId, count: number): Float64Array {
  const key = `${id}/${count}`;
  const known = pointsOfOsd.get(key);
  if (known) return known;
  const list = new Float64Array(count);
  for (let index = 0; index < count; index++) {
    list[index] = murmur3Words(id, index, POINT_SEED) * OSD_SPAN + id;
  }
  list.sort();
  if (pointsOfOsd.size >= POINT_LISTS_MAX) pointsOfOsd.clear();
  pointsOfOsd.set(key, list);
  return list;
}

/** Points of an OSD of this weight; an OSD of any weight above 0 has at least one. */
export function pointCount(weight: number, virtualNodes: number): number {
  return weight > 0 ? Math.max(1, Math.round(weight * virtualNodes)) : 0;
}

const byMap = new WeakMap<ClusterMap, Ring>();
/** Most map changes do not touch placement: they find their ring here. */
const bySignature = new Map<string, Ring>();
const SIGNATURES_MAX = 8;

export function ringOf(map: ClusterMap): Ring {
  const known = byMap.get(map);
  if (known) return known;
  const members = map.osds.filter((osd) => osd.in && osd.weight > 0);
  const signature = JSON.stringify([
    map.virtualNodes,
    members.map((osd) => [osd.id, osd.weight, osd.host]),
  ]);
  let ring = bySignature.get(signature);
  if (!ring) {
    ring = buildRing(members, map.virtualNodes);
    const oldest = bySignature.keys().next();
    if (bySignature.size >= SIGNATURES_MAX && !oldest.done) bySignature.delete(oldest.value);
    bySignature.set(signature, ring);
  }
  byMap.set(map, ring);
  return ring;
}

function buildRing(
  members: readonly { id: OsdId; weight: number; host: string }[],
  virtualNodes: number,
): Ring {
  const lists = members.map((osd) => sortedPoints(osd.id, pointCount(osd.weight, virtualNodes)));
  const merged = new Float64Array(lists.reduce((sum, list) => sum + list.length, 0));
  let offset = 0;
  for (const list of lists) {
    merged.set(list, offset);
    offset += list.length;
  }
  merged.sort();
  const points = new Uint32Array(merged.length);
  const owners = new Uint16Array(merged.length);
  for (let i = 0; i < merged.length; i++) {
    points[i] = Math.floor(merged[i]! / OSD_SPAN);
    owners[i] = merged[i]! % OSD_SPAN;
  }
  const hostNumbers = new Map<string, number>();
  const hosts = new Map<OsdId, number>();
  for (const { id, host } of members) {
    if (!hostNumbers.has(host)) hostNumbers.set(host, hostNumbers.size);
    hosts.set(id, hostNumbers.get(host)!);
  }
  return { points, owners, hosts, hostCount: hostNumbers.size };
}

/**
 * The first `count` OSDs in distinct failure domains clockwise from `position`: hosts, or OSDs when
 * there are fewer hosts than `count`. Fewer only when the ring has fewer OSDs.
 */
export function walk(ring: Ring, position: number, count: number): OsdId[] {
  assert(position >= 0 && position < CIRCLE, `ring position ${position}`);
  const { points, owners } = ring;
  const size = points.length;
  const byHost = ring.hostCount >= count;
  const wanted = Math.min(count, byHost ? ring.hostCount : ring.hosts.size);
  let low = 0;
  let high = size;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (points[middle]! < position) low = middle + 1;
    else high = middle;
  }
  const chosen: OsdId[] = [];
  const domains: number[] = [];
  for (let step = 0; step < size && chosen.length < wanted; step++) {
    const osd = owners[(low + step) % size]!;
    const domain = byHost ? ring.hosts.get(osd)! : osd;
    if (domains.includes(domain)) continue;
    domains.push(domain);
    chosen.push(osd);
  }
  return chosen;
}

/**
 * The cluster map (design §4): which OSDs, pools and placement groups there are, and who is in
 * charge of each. It lives in one znode; only the coordinator (in the MDS leader) changes it, by
 * compare-and-set under its term. Values are immutable: a change makes a new map with the next
 * epoch.
 */
import {
  pgId,
  pgIndex,
  poolOfPg,
  type ClientId,
  type Epoch,
  type Interval,
  type OsdId,
  type PgId,
  type PoolId,
} from "../base/ids.js";

/**
 * What people may switch on for the whole cluster: noout (nobody who is down becomes out),
 * norebalance (copies that are merely in the wrong place stay; lost ones are made again), pause
 * (clients' requests wait).
 */
export const CLUSTER_FLAGS = ["noout", "norebalance", "pause"] as const;
export type ClusterFlag = (typeof CLUSTER_FLAGS)[number];
/** How an OSD divides itself among clients, recovery and scrub (osd/core/work-shares.ts). */
export const WORK_PROFILES = ["client", "balanced", "recovery"] as const;
export type WorkProfile = (typeof WORK_PROFILES)[number];

/** `state` is what people see (design §4); `up` is liveness, `in` is placement. */
export type OsdState = "init" | "joining" | "active" | "leaving" | "failed";

export interface OsdEntry {
  id: OsdId;
  /** Identity of its store: another disk under this id is a stranger. */
  uuid: string;
  host: string;
  address: { host: string; port: number };
  weight: number;
  up: boolean;
  in: boolean;
  /** It is out only because it was down for downOutInterval: it is put in again when it returns. */
  autoOut?: boolean;
  state: OsdState;
  /** Differs for every start of the daemon; every PG it holds gets a new interval with it. */
  incarnation: string;
  /** Epoch in which it was last marked up. */
  upFrom: Epoch;
  /**
   * Wall-clock ms since 1970 when it was marked down; 0 while up. For people and for
   * downOutInterval.
   */
  downSinceMs: number;
}

export interface PoolEntry {
  id: PoolId;
  name: string;
  replicas: number;
  minimum: number;
  /** A power of two, at most 65,536. */
  pgCount: number;
  objectSize: number;
  stripeUnit: number;
  stripeCount: number;
}

export interface PgEntry {
  /**
   * Members that have every acknowledged write; the primary is one of them. Empty: never created.
   */
  inSync: readonly OsdId[];
  /** -1: none (no in-sync member is up). */
  primary: OsdId;
  interval: Interval;
}

/** Refuses every later request of this client (design §4 Fences). */
export interface Fence {
  client: ClientId;
  epoch: Epoch;
}

export interface ClusterMap {
  clusterId: string;
  epoch: Epoch;
  osds: readonly OsdEntry[];
  pools: readonly PoolEntry[];
  /** By pool id (a PoolId), then PG index. */
  pgs: Readonly<Record<number, readonly PgEntry[]>>;
  /** Of CLUSTER_FLAGS, and at most one `profile=NAME` of WORK_PROFILES; others are ignored. */
  flags: readonly string[];
  fences: readonly Fence[];
  /** Virtual nodes of an OSD of weight 1. */
  virtualNodes: number;
  /** Fractions of a disk: warn, refuse writes, refuse copies of recovery. */
  nearFullRatio: number;
  fullRatio: number;
  backfillFullRatio: number;
}

export function osdOf(map: ClusterMap, id: OsdId): OsdEntry | undefined {
  return map.osds.find((osd) => osd.id === id);
}
export function poolOf(map: ClusterMap, id: PoolId): PoolEntry | undefined {
  return map.pools.find((pool) => pool.id === id);
}
export function poolNamed(map: ClusterMap, name: string): PoolEntry | undefined {
  return map.pools.find((pool) => pool.name === name);
}
export function pgOf(map: ClusterMap, pg: PgId): PgEntry | undefined {
  return map.pgs[poolOfPg(pg)]?.[pgIndex(pg)];
}
export function hasFlag(map: ClusterMap, flag: ClusterFlag): boolean {
  return map.flags.includes(flag);
}
/** The profile set for the whole cluster; undefined: each OSD's own option. */
export function workProfileOf(map: ClusterMap): WorkProfile | undefined {
  return WORK_PROFILES.find((profile) => map.flags.includes(profileFlag(profile)));
}
export const profileFlag = (profile: WorkProfile): string => `profile=${profile}`;
export function isFenced(map: ClusterMap, client: ClientId): boolean {
  return map.fences.some((fence) => fence.client === client);
}
/** Every PG of the map with its id. */
export function* allPgs(map: ClusterMap): Iterable<{ pg: PgId; entry: PgEntry; pool: PoolEntry }> {
  for (const pool of map.pools) {
    const entries = map.pgs[pool.id] ?? [];
    for (let index = 0; index < entries.length; index++) {
      yield { pg: pgId(pool.id, index), entry: entries[index]!, pool };
    }
  }
}

/** Where a program learns the map. The real one watches ZooKeeper (cluster/zk/map-watch.ts). */
export interface MapSource {
  /** The newest map known. */
  current(): ClusterMap;
  /** Called for every newer map, in order of epochs (some may be skipped). */
  onChange(listener: (map: ClusterMap) => void): () => void;
  /**
   * Resolves when `current().epoch >= epoch`, asking for it if need be; TimedOut after the
   * deadline.
   */
  atLeast(epoch: Epoch, deadlineMs: number): Promise<ClusterMap>;
}

/**
 * The state of a cluster as `dss status`, `dss health` and `dss topology` show it, from one look.
 */
import { isDssError } from "../cluster/base/errors.js";
import {
  CLUSTER_FLAGS,
  allPgs,
  hasFlag,
  pgOf,
  workProfileOf,
  type ClusterMap,
} from "../cluster/map/cluster-map.js";
import {
  healthOf,
  pgSummary,
  type Health,
  type HealthCheck,
  type OsdDamage,
} from "../cluster/map/health.js";
import type { MdsStatus } from "../mds/proto.js";
import type { ClusterClient, OsdReport } from "./context.js";
import { describePurge, percentOf } from "./volume/purges.js";

/** A daemon that does not answer within this is shown as not answering. */
export const FIGURES_MS = 500;

export interface Rates {
  readBytesPerSecond: number;
  writeBytesPerSecond: number;
  readOps: number;
  writeOps: number;
  recoveryBytesPerSecond: number;
}

export interface OsdView {
  id: number;
  up: boolean;
  in: boolean;
  state: string;
  address: string;
  host: string;
  weight: number;
  /** Bytes; null when it does not answer. */
  used: number | null;
  total: number | null;
  objects: number | null;
  pgs: number;
}

export interface StatusView {
  clusterId: string;
  health: Health;
  epoch: number;
  osds: OsdView[];
  mds: { leader: number | null; standbys: number[]; term: number | null };
  pools: number;
  pgs: {
    total: number;
    clean: number;
    degraded: number;
    /** Members are brought up to date, or wait for that. `backfilling` among them. */
    recovering: number;
    backfilling: number;
    misplaced: number;
    /** Serves nobody. `down` among them. */
    inactive: number;
    down: number;
    /** With objects that are damaged, and being scrubbed now. */
    inconsistent: number;
    scrubbing: number;
  };
  /** What is still to be copied, as far as the primaries know. */
  recovery: {
    objectsLeft: number;
    bytesLeft: number;
    /** Of the last seconds. */
    bytesPerSecond: number;
    objectsPerSecond: number;
    /** null when nothing moves. */
    secondsLeft: number | null;
  };
  /** Work on deleted files and on volumes that goes on in the background. */
  purges: {
    entries: number;
    /** Of deleted files, at most. */
    bytes: number;
    volumes: { name: string; about: string; percent: number }[];
  };
  /** noout, norebalance, pause. */
  flags: string[];
  /** Set for the whole cluster; null: each OSD goes by its own setting. */
  workProfile: string | null;
  /** Bytes of all copies on all OSDs that answer. */
  usage: { used: number; available: number; total: number };
  clients: { id: number; type: string; address: string; mount: string; pid: number }[];
  /** Rates of the last `intervalMs`, summed over the OSDs. */
  io: Rates & { intervalMs: number };
}

export interface Sample {
  atMs: number;
  reports: OsdReport[];
}

export async function sample(client: ClusterClient): Promise<Sample> {
  const atMs = performance.now();
  return { atMs, reports: await client.osdReports() };
}

function purgesOf(leader: MdsStatus | undefined): StatusView["purges"] {
  const { entries, bytes, volumes } = leader?.purgeQueue ?? { entries: 0, bytes: 0, volumes: [] };
  const about = volumes.map((purge) => ({
    ...{ name: purge.name, about: describePurge(purge), percent: percentOf(purge) },
  }));
  return { entries, bytes, volumes: about };
}

/** Figures of the leader; undefined when none answers. */
export async function leaderStatus(client: ClusterClient): Promise<MdsStatus | undefined> {
  if (client.leader === undefined) return undefined;
  try {
    return (await client.admin({ op: "status" }, FIGURES_MS)).status;
  } catch (error) {
    if (isDssError(error)) return undefined;
    throw error;
  }
}

export function viewOf(
  client: ClusterClient,
  map: ClusterMap,
  leader: MdsStatus | undefined,
  before: Sample,
  now: Sample,
): StatusView {
  const counts = pgCounts(map);
  const answering = now.reports.filter(({ status }) => status !== undefined);
  const used = sum(answering, ({ status }) => status?.used ?? 0);
  const total = sum(answering, ({ status }) => status?.total ?? 0);
  const standbys = client.mds.map(({ id }) => id).filter((id) => id !== client.leader?.id);
  return {
    clusterId: map.clusterId,
    health: healthFrom(client, map, leader, now.reports),
    epoch: map.epoch,
    osds: now.reports.map(({ osd, status }) => ({
      id: osd.id,
      up: osd.up,
      in: osd.in,
      state: osd.state,
      address: `${osd.address.host}:${osd.address.port}`,
      host: osd.host,
      weight: osd.weight,
      used: status?.used ?? null,
      total: status?.total ?? null,
      objects: status?.objects ?? null,
      pgs: counts.get(osd.id) ?? 0,
    })),
    mds: { leader: client.leader?.id ?? null, standbys, term: client.leader?.term ?? null },
    purges: purgesOf(leader),
    pools: map.pools.length,
    pgs: {
      ...pgSummary(map),
      ...workOnPgs(map, now.reports),
      ...scrubCounts(now.reports),
    },
    recovery: recoveryOf(map, now.reports),
    flags: CLUSTER_FLAGS.filter((flag) => hasFlag(map, flag)),
    workProfile: workProfileOf(map) ?? null,
    usage: { used, available: Math.max(0, total - used), total },
    clients: (leader?.sessions ?? []).map((session) => ({
      id: session.id,
      type: session.type,
      address: session.host,
      mount: session.detail,
      pid: session.pid,
    })),
    io: ratesBetween(before, now),
  };
}

export function healthFrom(
  client: ClusterClient,
  map: ClusterMap,
  leader: MdsStatus | undefined,
  reports: readonly OsdReport[],
): Health {
  const standbys = client.mds.map(({ id }) => id).filter((id) => id !== client.leader?.id);
  const usage = new Map<number, { used: number; total: number }>();
  for (const { osd, status } of reports) {
    if (status !== undefined) usage.set(osd.id, { used: status.used, total: status.total });
  }
  return healthOf(map, {
    mds: { leader: client.leader?.id, standbys },
    usage,
    refusing: new Set(reports.flatMap(({ status }) => status?.refusing ?? [])),
    tooFull: tooFullFor(reports),
    damage: reports.flatMap(damageOf),
    checks: [...(leader?.warnings ?? []), ...silentDaemons(client, leader, reports)],
  });
}

/** Primaries say which OSDs have no room for the copies that they wait to make there. */
function tooFullFor(reports: readonly OsdReport[]): Map<number, number> {
  const pgs = new Map<number, number>();
  for (const { status } of reports) {
    for (const { osd, tooFull } of status?.pgs.flatMap((pg) => pg.learners) ?? []) {
      if (tooFull) pgs.set(osd, (pgs.get(osd) ?? 0) + 1);
    }
  }
  return pgs;
}

function damageOf({ osd, status }: OsdReport): OsdDamage[] {
  if (status === undefined) return [];
  const { counters, damageSeenMs: seenMs } = status;
  const objects = status.pgs.flatMap(({ pg, damagedObjects }) =>
    damagedObjects.map((each) => ({ pg, ...each })),
  );
  const found = (counters["damagedBlocks"] ?? 0) + (counters["damagedIndexEntries"] ?? 0);
  const repaired = (counters["repairedBlocks"] ?? 0) + (counters["repairedIndexEntries"] ?? 0);
  return [{ osd: osd.id, objects, seenMs, found, repaired }];
}

/** Daemons that the map or ZooKeeper calls alive and that do not answer. */
function silentDaemons(
  client: ClusterClient,
  leader: MdsStatus | undefined,
  reports: readonly OsdReport[],
): HealthCheck[] {
  const checks: HealthCheck[] = [];
  const silent = reports.filter(({ osd, status }) => osd.up && status === undefined);
  if (silent.length > 0) {
    checks.push({
      code: "OSD_NOT_ANSWERING",
      severity: "HEALTH_WARN",
      summary: `${silent.length} of ${reports.length} OSDs up, but not answering`,
      detail: silent.map(({ osd }) => `osd.${osd.id} at ${osd.address.host}:${osd.address.port}`),
    });
  }
  const { fault } = client;
  if (fault !== undefined) {
    checks.push({
      code: "MDS_METADATA_DAMAGED",
      severity: "HEALTH_ERR",
      summary: "metadata is damaged or missing: metadata servers refuse to serve",
      detail: [`mds.${fault.mds} at ${new Date(fault.atMs).toISOString()}: ${fault.message}`],
    });
  }
  if (client.leader !== undefined && leader === undefined) {
    const { id, address } = client.leader;
    checks.push({
      code: "MDS_NOT_ANSWERING",
      severity: "HEALTH_WARN",
      summary: "the leading metadata server does not answer",
      detail: [`mds.${id} at ${address.host}:${address.port}`],
    });
  }
  return checks;
}

/** Primaries report what a PG does; one that is not active, or has members to add, recovers. */
function workOnPgs(
  map: ClusterMap,
  reports: readonly OsdReport[],
): { recovering: number; backfilling: number } {
  const peering = new Set<number>();
  const backfilling = new Set<number>();
  for (const { status } of reports) {
    for (const pg of status?.pgs ?? []) {
      if (pg.state === "peering" || pg.learners.length > 0) peering.add(pg.pg);
      if (pg.learners.some((learner) => learner.backfill)) backfilling.add(pg.pg);
    }
  }
  const isUp = (id: number): boolean => map.osds.some((osd) => osd.id === id && osd.up && osd.in);
  const candidates = map.osds.filter((osd) => isUp(osd.id)).length;
  let recovering = 0;
  for (const { pg, entry, pool } of allPgs(map)) {
    if (entry.inSync.length === 0) continue;
    const canGrow = entry.inSync.length < Math.min(pool.replicas, candidates);
    if (peering.has(pg) || (entry.primary >= 0 && canGrow)) recovering++;
  }
  return { recovering, backfilling: backfilling.size };
}

export function recoveryOf(map: ClusterMap, reports: readonly OsdReport[]): StatusView["recovery"] {
  const learners = reports.flatMap(({ osd, status }) =>
    (status?.pgs ?? [])
      .filter(({ pg }) => pgOf(map, pg)?.primary === osd.id)
      .flatMap((pg) => pg.learners),
  );
  const objectsLeft = sum(learners, (learner) => learner.objectsLeft);
  const bytesLeft = sum(learners, (learner) => learner.bytesLeft);
  const bytesPerSecond = sum(reports, ({ status }) => status?.recovery.bytesPerSecond ?? 0);
  const objectsPerSecond = sum(reports, ({ status }) => status?.recovery.objectsPerSecond ?? 0);
  return {
    ...{ objectsLeft, bytesLeft, bytesPerSecond, objectsPerSecond },
    secondsLeft: secondsFor({ objectsLeft, bytesLeft, bytesPerSecond, objectsPerSecond }),
  };
}

/** By bytes or by objects, whichever takes longer: small objects cost their number. */
function secondsFor(work: {
  objectsLeft: number;
  bytesLeft: number;
  bytesPerSecond: number;
  objectsPerSecond: number;
}): number | null {
  const { objectsLeft, bytesLeft, bytesPerSecond, objectsPerSecond } = work;
  if (objectsLeft === 0) return 0;
  if (objectsPerSecond === 0) return null;
  const byBytes = bytesPerSecond === 0 ? 0 : bytesLeft / bytesPerSecond;
  return Math.ceil(Math.max(byBytes, objectsLeft / objectsPerSecond));
}

function scrubCounts(reports: readonly OsdReport[]): { inconsistent: number; scrubbing: number } {
  const damaged = new Set<number>();
  const scrubbing = new Set<number>();
  for (const { status } of reports) {
    for (const { pg, damaged: count, scrub } of status?.pgs ?? []) {
      if (count > 0) damaged.add(pg);
      if (scrub?.state === "running") scrubbing.add(pg);
    }
  }
  return { inconsistent: damaged.size, scrubbing: scrubbing.size };
}

function pgCounts(map: ClusterMap): Map<number, number> {
  const counts = new Map<number, number>();
  for (const { entry } of allPgs(map)) {
    for (const osd of entry.inSync) counts.set(osd, (counts.get(osd) ?? 0) + 1);
  }
  return counts;
}

/** Only daemons that ran through the whole interval count: a restart sets counters to zero. */
export function ratesBetween(before: Sample, now: Sample): Rates & { intervalMs: number } {
  const seconds = (now.atMs - before.atMs) / 1000;
  const rate = (counter: string): number => {
    if (seconds <= 0) return 0;
    const amount = sum(now.reports, ({ osd, status }) => {
      const earlier = before.reports.find((each) => each.osd.id === osd.id)?.status;
      if (status === undefined || earlier?.startedMs !== status.startedMs) return 0;
      return (status.counters[counter] ?? 0) - (earlier.counters[counter] ?? 0);
    });
    return Math.round(amount / seconds);
  };
  return {
    readBytesPerSecond: rate("readBytes"),
    writeBytesPerSecond: rate("writeBytes"),
    readOps: rate("readOps"),
    writeOps: rate("writeOps"),
    recoveryBytesPerSecond: rate("recoveryBytes"),
    intervalMs: Math.round(seconds * 1000),
  };
}

function sum<T>(list: readonly T[], amount: (each: T) => number): number {
  return list.reduce((total, each) => total + amount(each), 0);
}

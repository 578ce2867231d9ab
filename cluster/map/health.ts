/**
 * Named health codes derived from the map (design §4, cli.md `dss health`): a pure function, so
 * that the CLI, the MDS and tests say the same.
 */
import { formatPg } from "../base/ids.js";
import {
  CLUSTER_FLAGS,
  allPgs,
  hasFlag,
  type ClusterFlag,
  type ClusterMap,
  type PgEntry,
  type PoolEntry,
} from "./cluster-map.js";
import { upSets } from "./placement.js";

export type Severity = "HEALTH_WARN" | "HEALTH_ERR";
export interface HealthCheck {
  code: string;
  severity: Severity;
  summary: string;
  detail: string[];
}
export interface Health {
  status: "HEALTH_OK" | Severity;
  checks: HealthCheck[];
}

/** What the map does not know. Absent members are not judged. */
export interface HealthExtra {
  mds?: { leader: number | undefined; standbys: readonly number[] };
  /** Bytes per OSD. */
  usage?: ReadonlyMap<number, { used: number; total: number }>;
  /** OSDs for whose sake primaries refuse writes. */
  refusing?: ReadonlySet<number>;
  /** OSDs that are too full to take copies, and for how many PGs. */
  tooFull?: ReadonlyMap<number, number>;
  /** What the OSDs say of damage in their copies. Absent: nobody was asked. */
  damage?: readonly OsdDamage[];
  /** Found elsewhere (MDS). */
  checks?: readonly HealthCheck[];
}

/** Damage on one OSD. */
export interface OsdDamage {
  osd: number;
  /** Objects with blocks that could not be repaired. `waitsFor`: who may have the right bytes. */
  objects: readonly { pg: number; object: string; blocks: number; waitsFor: readonly number[] }[];
  /** Milliseconds since it met damage last, when that is recent. */
  seenMs: number | undefined;
  /** Since it was started. */
  found: number;
  repaired: number;
}

/** Longest list under one check. */
const DETAIL_MAX = 50;

/**
 * creating: waits for OSDs before its first use. down: nobody of its in-sync set is up. inactive:
 * takes no writes. degraded: fewer good copies than wanted. misplaced: enough of them, but not
 * where they belong.
 */
export type PgCondition = "creating" | "down" | "inactive" | "degraded" | "misplaced" | "clean";

export function pgCondition(
  map: ClusterMap,
  pg: { entry: PgEntry; pool: PoolEntry; index: number },
): PgCondition {
  const { entry, pool, index } = pg;
  if (entry.inSync.length === 0) return "creating";
  const isUp = (id: number): boolean => map.osds.some((osd) => osd.id === id && osd.up);
  const up = entry.inSync.filter(isUp).length;
  if (up === 0) return "down";
  if (entry.primary === -1 || up < pool.minimum) return "inactive";
  if (up < pool.replicas) return "degraded";
  const wanted = upSets(map, pool)[index]!;
  return wanted.every((osd) => entry.inSync.includes(osd)) ? "clean" : "misplaced";
}

/** Takes neither reads nor writes. */
export const isInactive = (condition: PgCondition): boolean =>
  condition === "creating" || condition === "down" || condition === "inactive";

/** Counts for `dss status`: `pgs`. `recovering` and the like are known to the OSDs only. */
export function pgSummary(map: ClusterMap): {
  total: number;
  clean: number;
  degraded: number;
  misplaced: number;
  /** `down` among them. */
  inactive: number;
  down: number;
} {
  const summary = { total: 0, clean: 0, degraded: 0, misplaced: 0, inactive: 0, down: 0 };
  for (const { condition } of conditions(map)) {
    summary.total++;
    if (isInactive(condition)) summary.inactive++;
    if (condition !== "creating" && condition !== "inactive") summary[condition]++;
  }
  return summary;
}

function conditions(map: ClusterMap): { name: string; pool: PoolEntry; condition: PgCondition }[] {
  return [...allPgs(map)].map(({ pg, entry, pool }) => ({
    name: formatPg(pg),
    pool,
    condition: pgCondition(map, { entry, pool, index: pg % 65_536 }),
  }));
}

const plural = (count: number, noun: string, many = `${noun}s`): string =>
  `${count} ${count === 1 ? noun : many}`;

function check(code: string, severity: Severity, summary: string, detail: string[]): HealthCheck {
  const more = detail.length - DETAIL_MAX;
  const shown = more > 0 ? [...detail.slice(0, DETAIL_MAX), `and ${more} more`] : detail;
  return { code, severity, summary, detail: shown };
}

export function healthOf(map: ClusterMap, extra: HealthExtra = {}): Health {
  const checks = [
    ...flagChecks(map),
    ...osdChecks(map),
    ...poolChecks(map),
    ...pgChecks(map),
    ...usageChecks(map, extra),
    ...damageChecks(extra),
    ...mdsChecks(extra),
    ...(extra.checks ?? []),
  ];
  const isError = checks.some((c) => c.severity === "HEALTH_ERR");
  const status = isError ? "HEALTH_ERR" : checks.length > 0 ? "HEALTH_WARN" : "HEALTH_OK";
  return { status, checks };
}

const FLAG_MEANINGS: Readonly<Record<ClusterFlag, string>> = {
  noout: "OSDs that are down do not become out: lost copies are not made again elsewhere",
  norebalance: "copies that are not where they belong stay there",
  pause: "reads and writes of all clients wait",
};
function flagChecks(map: ClusterMap): HealthCheck[] {
  const flags = CLUSTER_FLAGS.filter((flag) => hasFlag(map, flag));
  if (flags.length === 0) return [];
  const detail = flags.map(
    (flag) => `${flag}: ${FLAG_MEANINGS[flag]}; end it with "dss cluster unset ${flag}"`,
  );
  const summary = `${flags.join(", ")} ${flags.length === 1 ? "is" : "are"} set`;
  return [check("CLUSTER_FLAGS", "HEALTH_WARN", summary, detail)];
}

function osdChecks(map: ClusterMap): HealthCheck[] {
  if (map.osds.length === 0) {
    const detail = ['start storage daemons with "dss osd start ID"'];
    return [check("NO_OSDS", "HEALTH_ERR", "no OSD has joined yet", detail)];
  }
  const checks: HealthCheck[] = [];
  const down = map.osds.filter((osd) => !osd.up);
  if (down.length > 0) {
    const detail = down.map(
      (osd) => `osd.${osd.id} on ${osd.host} is down${osd.in ? "" : " and out"}`,
    );
    const summary = `${plural(down.length, "OSD")} down of ${map.osds.length}`;
    checks.push(check("OSD_DOWN", "HEALTH_WARN", summary, detail));
  }
  const wanted = Math.max(0, ...map.pools.map((pool) => pool.replicas));
  const placeable = map.osds.filter((osd) => osd.in && osd.weight > 0).length;
  if (placeable < wanted) {
    const summary = `${plural(placeable, "OSD")} in, but pools want ${wanted} replicas`;
    checks.push(check("TOO_FEW_OSDS", "HEALTH_WARN", summary, []));
  }
  return checks;
}

function poolChecks(map: ClusterMap): HealthCheck[] {
  const isNew = (pg: PgEntry): boolean => pg.inSync.length === 0;
  const waiting = map.pools.filter((pool) => map.pgs[pool.id]?.some(isNew));
  if (waiting.length === 0) return [];
  const up = map.osds.filter((osd) => osd.up && osd.in && osd.weight > 0).length;
  const detail = waiting.map(
    ({ name, replicas, minimum }) =>
      `pool ${name}: ${up} of ${replicas} OSDs (at least ${minimum}) are there`,
  );
  const summary = `${plural(waiting.length, "pool")} waiting for OSDs before first use`;
  return [check("POOL_WAITING", "HEALTH_WARN", summary, detail)];
}

function pgChecks(map: ClusterMap): HealthCheck[] {
  const all = conditions(map);
  const named = (condition: PgCondition): string[] =>
    all.filter((pg) => pg.condition === condition).map((pg) => `PG ${pg.name} (${pg.pool.name})`);
  const checks: HealthCheck[] = [];
  const inactive = [...named("down"), ...named("inactive")];
  if (inactive.length > 0) {
    const summary = `${plural(inactive.length, "PG")} without enough replicas to serve`;
    checks.push(check("PG_INACTIVE", "HEALTH_ERR", summary, inactive));
  }
  const degraded = named("degraded");
  if (degraded.length > 0) {
    const summary = `${plural(degraded.length, "PG")} with fewer replicas than wanted`;
    checks.push(check("PG_DEGRADED", "HEALTH_WARN", summary, degraded));
  }
  return checks;
}

function usageChecks(map: ClusterMap, extra: HealthExtra): HealthCheck[] {
  const full: string[] = [];
  const nearFull: string[] = [];
  for (const [id, { used, total }] of extra.usage ?? []) {
    const ratio = total > 0 ? used / total : 1; // The disk has room for nothing at all.
    const line = `osd.${id} is ${Math.round(ratio * 100)} % full`;
    if (ratio >= map.fullRatio || extra.refusing?.has(id) === true) full.push(line);
    else if (ratio >= map.nearFullRatio) nearFull.push(line);
  }
  const checks: HealthCheck[] = [];
  if (full.length > 0) {
    const summary = `${plural(full.length, "OSD")} full: writes are refused`;
    checks.push(check("OSD_FULL", "HEALTH_ERR", summary, full));
  }
  if (nearFull.length > 0) {
    const summary = `${plural(nearFull.length, "OSD")} nearly full`;
    checks.push(check("OSD_NEAR_FULL", "HEALTH_WARN", summary, nearFull));
  }
  const waiting = [...(extra.tooFull ?? [])].sort(([a], [b]) => a - b);
  if (waiting.length > 0) {
    const detail = waiting.map(([id, pgs]) => `osd.${id}: copies of ${plural(pgs, "PG")} wait`);
    const summary = `${plural(waiting.length, "OSD")} too full to take copies: recovery waits`;
    checks.push(check("OSD_BACKFILL_FULL", "HEALTH_WARN", summary, detail));
  }
  return checks;
}

function damageChecks(extra: HealthExtra): HealthCheck[] {
  const checks: HealthCheck[] = [];
  const lost: string[] = [];
  const waiting: string[] = [];
  for (const { osd, objects } of extra.damage ?? []) {
    for (const { pg, object, blocks, waitsFor } of objects) {
      const where = `PG ${formatPg(pg)} object ${object}: ${plural(blocks, "damaged block")}`;
      const others = waitsFor.map((id) => `osd.${id}`).join(", ");
      if (waitsFor.length === 0) lost.push(`${where} on osd.${osd}`);
      else waiting.push(`${where} on osd.${osd}; ${others} may have the right bytes`);
    }
  }
  if (lost.length > 0) {
    const copies = plural(lost.length, "object copy", "object copies");
    const summary = `${copies} with blocks that no OSD has right`;
    checks.push(check("PG_INCONSISTENT", "HEALTH_ERR", summary, lost));
  }
  if (waiting.length > 0) {
    const copies = plural(waiting.length, "damaged object copy", "damaged object copies");
    const summary = `${copies} waiting for an OSD`;
    checks.push(check("PG_DAMAGED", "HEALTH_WARN", summary, waiting));
  }
  const recent = (extra.damage ?? []).filter(({ seenMs }) => seenMs !== undefined);
  if (recent.length > 0) {
    const detail = recent.map(({ osd, found, repaired, seenMs }) => {
      const ago = Math.round((seenMs ?? 0) / 1000);
      return `osd.${osd}: ${found} errors found, ${repaired} repaired; the last ${ago} s ago`;
    });
    const summary = `${plural(recent.length, "OSD")} met damaged data`;
    checks.push(check("OSD_DAMAGE_FOUND", "HEALTH_WARN", summary, detail));
  }
  return checks;
}

function mdsChecks(extra: HealthExtra): HealthCheck[] {
  if (!extra.mds) return [];
  if (extra.mds.leader === undefined) {
    const detail = ["metadata operations wait until one leads"];
    return [check("MDS_NO_LEADER", "HEALTH_ERR", "no metadata server leads", detail)];
  }
  if (extra.mds.standbys.length > 0) return [];
  const detail = ['start another with "dss mds start ID"'];
  const summary = "the leading metadata server has no standby";
  return [check("MDS_NO_STANDBY", "HEALTH_WARN", summary, detail)];
}

/** Health codes say what is wrong, and nothing when nothing is. */
import t from "tap";
import type { ClusterMap, OsdEntry } from "../../../../cluster/map/cluster-map.js";
import { healthOf, pgSummary, type HealthExtra } from "../../../../cluster/map/health.js";
import { upSets } from "../../../../cluster/map/placement.js";

function healthy(): ClusterMap {
  const osds: OsdEntry[] = [0, 1, 2, 3].map((id) => ({
    id,
    uuid: `u${id}`,
    host: `h${id}`,
    address: { host: "127.0.0.1", port: 9100 + id },
    weight: 1,
    up: true,
    in: true,
    state: "active",
    incarnation: "i",
    upFrom: 1,
    downSinceMs: 0,
  }));
  const pool = {
    id: 1,
    name: "data",
    replicas: 3,
    minimum: 2,
    pgCount: 64,
    objectSize: 4 << 20,
    stripeUnit: 4 << 20,
    stripeCount: 1,
  };
  const map: ClusterMap = {
    clusterId: "c",
    epoch: 5,
    osds,
    pools: [pool],
    pgs: {},
    flags: [],
    fences: [],
    virtualNodes: 100,
    nearFullRatio: 0.85,
    fullRatio: 0.95,
    backfillFullRatio: 0.97,
  };
  const pgs = upSets(map, pool).map((inSync) => ({ inSync, primary: inSync[0]!, interval: 2 }));
  return { ...map, pgs: { 1: pgs } };
}
const withDown = (map: ClusterMap, ...ids: number[]): ClusterMap => ({
  ...map,
  osds: map.osds.map((osd) => (ids.includes(osd.id) ? { ...osd, up: false } : osd)),
});
const codes = (map: ClusterMap, extra: HealthExtra = {}): string[] => [
  healthOf(map, extra).status,
  ...healthOf(map, extra).checks.map((check) => check.code),
];

t.test("from healthy to gone", (t) => {
  const map = healthy();
  t.same(codes(map), ["HEALTH_OK"]);
  t.same(pgSummary(map), { total: 64, clean: 64, degraded: 0, misplaced: 0, inactive: 0, down: 0 });
  t.same(codes(withDown(map, 1)), ["HEALTH_WARN", "OSD_DOWN", "PG_DEGRADED"]);
  t.same(codes(withDown(map, 1, 2)), ["HEALTH_ERR", "OSD_DOWN", "PG_INACTIVE", "PG_DEGRADED"]);
  t.same(codes(withDown(map, 0, 1, 2, 3)), ["HEALTH_ERR", "OSD_DOWN", "PG_INACTIVE"]);
  const inactive = healthOf(withDown(map, 0, 1, 2, 3)).checks[1]!;
  t.equal(inactive.detail.length, 51, "a long list is cut");
  t.equal(inactive.detail.at(-1), "and 14 more");
  t.end();
});

t.test("out, few and misplaced", (t) => {
  const map = healthy();
  const out = { ...map, osds: map.osds.map((o) => (o.id === 0 ? { ...o, in: false } : o)) };
  t.same(codes(out), ["HEALTH_OK"], "moving away is no fault");
  t.ok(pgSummary(out).misplaced > 0);
  const few = { ...map, osds: map.osds.map((o) => ({ ...o, in: o.id > 1 })) };
  t.same(codes(few), ["HEALTH_WARN", "TOO_FEW_OSDS"]);
  t.end();
});

t.test("what others know", (t) => {
  const map = healthy();
  const mds = (leader: number | undefined, ...standbys: number[]): HealthExtra => ({
    mds: { leader, standbys },
  });
  t.same(codes(map, mds(1, 2)), ["HEALTH_OK"]);
  t.same(codes(map, mds(1)), ["HEALTH_WARN", "MDS_NO_STANDBY"]);
  t.same(codes(map, mds(undefined, 2)), ["HEALTH_ERR", "MDS_NO_LEADER"]);
  const usage = new Map([
    [0, { used: 96, total: 100 }],
    [1, { used: 86, total: 100 }],
    [2, { used: 84, total: 100 }],
  ]);
  t.same(codes(map, { usage }), ["HEALTH_ERR", "OSD_FULL", "OSD_NEAR_FULL"]);
  const refusing = new Set([1]);
  t.same(codes(map, { usage: new Map([...usage].slice(1)), refusing }), [
    "HEALTH_ERR",
    "OSD_FULL",
  ]);
  const levels = new Map([[3, { used: 0, total: 0 }]]);
  t.same(codes(map, { usage: levels }), ["HEALTH_ERR", "OSD_FULL"], "no room for anything");
  const waits = healthOf(map, { tooFull: new Map([[2, 7]]) }).checks;
  t.match(waits, [{ code: "OSD_BACKFILL_FULL", detail: ["osd.2: copies of 7 PGs wait"] }]);
  t.equal(waits.length, 1);
  const objects = [{ pg: 65_537, object: "1.0", blocks: 2, waitsFor: [] }];
  const quiet = { osd: 1, objects: [], seenMs: undefined, found: 2, repaired: 0 };
  t.same(codes(map, { damage: [quiet] }), ["HEALTH_OK"], "what is long ago");
  const damage = [{ ...quiet, seenMs: 5_000 }];
  t.same(codes(map, { damage }), ["HEALTH_WARN", "OSD_DAMAGE_FOUND"]);
  const lost = codes(map, { damage: [{ ...quiet, objects }] });
  t.same(lost, ["HEALTH_ERR", "PG_INCONSISTENT"]);
  const waiting = [{ ...objects[0]!, waitsFor: [2] }];
  t.same(codes(map, { damage: [{ ...quiet, objects: waiting }] }), ["HEALTH_WARN", "PG_DAMAGED"]);
  const found = { code: "PURGE_SLOW", severity: "HEALTH_WARN" as const, summary: "x", detail: [] };
  t.same(codes(map, { checks: [found] }), ["HEALTH_WARN", "PURGE_SLOW"]);
  t.end();
});

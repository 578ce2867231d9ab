/** Which member has no room, with what is on its way; what df shows. */
import t from "tap";
import type { ClusterMap, OsdEntry } from "../../../cluster/map/cluster-map.js";
import { initialMap } from "../../../mds/core/coordinator.js";
import { usageOf } from "../../../mds/usage.js";
import { Fullness } from "../../../osd/fullness.js";
import type { StoreUsage } from "../../../osd/store/chunk-store.js";

function mapOf(count: number): ClusterMap {
  const pool = {
    name: "data",
    replicas: 3,
    minimum: 2,
    pgCount: 64,
    objectSize: 4 << 20,
    stripeUnit: 4 << 20,
    stripeCount: 1,
  };
  const osds = Array.from({ length: count }, (_, id): OsdEntry => {
    const address = { host: "127.0.0.1", port: 9100 + id };
    const alive = { up: true, in: true, state: "active" as const, upFrom: 1, downSinceMs: 0 };
    return { id, uuid: `u${id}`, host: `h${id}`, address, weight: 1, incarnation: "i", ...alive };
  });
  return { ...initialMap({ clusterId: "c", pool }), osds };
}

t.test("the fullest member decides, and bytes on their way count", (t) => {
  const map = mapOf(3);
  let used = 500;
  let now = 0;
  const usage = (): StoreUsage => ({ used, total: 1_000, objects: 1 });
  const fullness = new Fullness(0, usage, () => map, () => now);
  const members = [0, 1, 2];
  t.equal(fullness.memberWithoutRoom(members, 100), undefined, "of others nothing is known yet");
  t.same(fullness.own(), { used: 500, total: 1_000 });
  fullness.report(1, { used: 940, total: 1_000 });
  fullness.report(2, { used: 100, total: 1_000 });
  t.equal(fullness.memberWithoutRoom(members, 10), undefined, "just up to the mark");
  t.equal(fullness.memberWithoutRoom(members, 11), 1);
  t.equal(fullness.memberWithoutRoom([0, 2], 11), undefined, "it is not asked for");
  fullness.report(1, { used: 900, total: 1_000 });
  fullness.admitted(15);
  // The other two OSDs may have as much under way to the same disk.
  t.equal(fullness.memberWithoutRoom(members, 5), undefined);
  t.equal(fullness.memberWithoutRoom(members, 6), 1);
  fullness.finished(15);
  t.equal(fullness.memberWithoutRoom(members, 50), undefined);
  used = 951;
  t.equal(fullness.memberWithoutRoom(members, 1), 0, "the own disk");
  fullness.report(1, { used: 860, total: 1_000 });
  t.same(fullness.refusing(), [1, 0], "just below the mark, it still has no room for what came");
  fullness.report(1, { used: 840, total: 1_000 });
  t.same(fullness.refusing(), [0], "there is room again");
  now = 61_000;
  t.same(fullness.refusing(), []);
  fullness.report(1, { used: 0, total: 0 });
  t.equal(fullness.memberWithoutRoom([1, 2], 1), 1, "no room for anything");
  t.end();
});

t.test("copies have marks of their own", (t) => {
  const map = mapOf(3);
  const empty = { used: 0, total: 1, objects: 0 };
  const fullness = new Fullness(0, () => empty, () => map, () => 0);
  const may = (used: number, forSafety: boolean): boolean => {
    fullness.report(1, { used, total: 1_000 });
    return fullness.mayTakeCopy(1, 1, forSafety);
  };
  t.ok(fullness.mayTakeCopy(2, 9, false), "nothing is known");
  t.ok(may(949, false));
  t.notOk(may(950, false), "a copy that only moves never makes a full disk fuller");
  t.ok(may(969, true), "a missing copy may go beyond");
  t.notOk(may(970, true));
  const arrived = fullness.copies(1, 10);
  t.notOk(may(960, true), "each of three may have as much under way");
  t.ok(may(939, true));
  arrived();
  t.ok(may(960, true));
  t.end();
});

t.test("df: what can be written before the first disk is full", (t) => {
  const GiB = 2 ** 30;
  const levels = (...used: number[]): Map<number, { used: number; total: number }> =>
    new Map(used.map((each, id) => [id, { used: each, total: 100 * GiB }]));
  t.same(usageOf(mapOf(3), new Map()), { total: 0, available: 0 }, "nothing is known");
  const even = usageOf(mapOf(3), levels(0, 0, 0));
  t.equal(even.available, 95 * GiB, "each byte goes to all three");
  const one = usageOf(mapOf(3), levels(30 * GiB, 30 * GiB, 90 * GiB));
  t.equal(one.available, 5 * GiB, "the fullest ends it");
  t.equal(one.total - one.available, 50 * GiB, "what is used, as one copy counts");
  t.equal(usageOf(mapOf(3), levels(30 * GiB, 30 * GiB, 96 * GiB)).available, 0);
  const six = usageOf(mapOf(6), levels(0, 0, 0, 0, 0, 0)).available / GiB;
  t.ok(six > 140 && six <= 190, `six disks of 100 GiB: ${six} GiB`);
  t.end();
});

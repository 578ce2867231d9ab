/** The ring and placement keep the quality bar of the design (section 3) and their promises. */
import t from "tap";
import type { OsdId } from "../../../../cluster/base/ids.js";
import type { ClusterMap, OsdEntry, PoolEntry } from "../../../../cluster/map/cluster-map.js";
import { murmur3, murmur3Text, murmur3Words } from "../../../../cluster/map/hash.js";
import { objectToPg, pgPoint, upSet, upSets } from "../../../../cluster/map/placement.js";
import { ringOf } from "../../../../cluster/map/ring.js";

interface Shape {
  osds: { id: OsdId; weight?: number; host?: string; in?: boolean; up?: boolean }[];
  virtualNodes?: number;
  pgCount?: number;
  replicas?: number;
  pool?: number;
}

function mapOf(shape: Shape): ClusterMap {
  const osds: OsdEntry[] = shape.osds.map((osd) => ({
    id: osd.id,
    uuid: `u${osd.id}`,
    host: osd.host ?? `host${osd.id}`,
    address: { host: "127.0.0.1", port: 9100 + osd.id },
    weight: osd.weight ?? 1,
    up: osd.up ?? true,
    in: osd.in ?? true,
    state: "active",
    incarnation: "a",
    upFrom: 1,
    downSinceMs: 0,
  }));
  const pool: PoolEntry = {
    id: shape.pool ?? 1,
    name: "data",
    replicas: shape.replicas ?? 3,
    minimum: 2,
    pgCount: shape.pgCount ?? 1024,
    objectSize: 4 << 20,
    stripeUnit: 4 << 20,
    stripeCount: 1,
  };
  return {
    clusterId: "c",
    epoch: 1,
    osds,
    pools: [pool],
    pgs: {},
    flags: [],
    fences: [],
    virtualNodes: shape.virtualNodes ?? 1000,
    nearFullRatio: 0.85,
    fullRatio: 0.95,
    backfillFullRatio: 0.97,
  };
}
const ids = (count: number): { id: OsdId }[] => Array.from({ length: count }, (_, id) => ({ id }));

function loads(map: ClusterMap): Map<OsdId, number> {
  const counts = new Map<OsdId, number>();
  for (const set of upSets(map, map.pools[0]!)) {
    for (const osd of set) counts.set(osd, (counts.get(osd) ?? 0) + 1);
  }
  return counts;
}
/** Replicas that `after` wants where `before` did not. */
function moved(before: ClusterMap, after: ClusterMap): number {
  const old = upSets(before, before.pools[0]!);
  let count = 0;
  upSets(after, after.pools[0]!).forEach((set, index) => {
    for (const osd of set) if (!old[index]!.includes(osd)) count++;
  });
  return count;
}
const spread = (map: ClusterMap, osds: number): number => {
  const total = map.pools[0]!.pgCount * map.pools[0]!.replicas;
  return Math.max(...loads(map).values()) / (total / osds);
};
function growth(shape: Omit<Shape, "osds">): number {
  const before = mapOf({ ...shape, osds: ids(10) });
  const total = before.pools[0]!.pgCount * 3;
  return moved(before, mapOf({ ...shape, osds: ids(11) })) / (total / 11);
}

t.test("murmur3 agrees with published vectors", (t) => {
  const vectors: [string, number, number][] = [
    ["", 0, 0],
    ["", 1, 0x514e28b7],
    ["", 0xffffffff, 0x81f16f39],
    ["test", 0, 0xba6bd213],
    ["test", 0x9747b28c, 0x704b81dc],
    ["Hello, world!", 0, 0xc0363e43],
    ["Hello, world!", 0x9747b28c, 0x24884cba],
    ["The quick brown fox jumps over the lazy dog", 0, 0x2e4ff723],
    ["The quick brown fox jumps over the lazy dog", 0x9747b28c, 0x2fa826cd],
    ["aaa", 0x9747b28c, 0x283e0130],
    ["aa", 0x9747b28c, 0x5d211726],
    ["a", 0x9747b28c, 0x7fa09ea6],
    ["ππππππππ", 0x9747b28c, 0xd58063c1],
  ];
  for (const [text, seed, expected] of vectors) {
    t.equal(murmur3(Buffer.from(text), seed), expected, `bytes of "${text}"`);
    t.equal(murmur3Text(text, seed), expected, `text "${text}"`);
  }
  const words = Buffer.alloc(8);
  words.writeUInt32LE(0xdeadbeef, 0);
  words.writeUInt32LE(77, 4);
  t.equal(murmur3Words(0xdeadbeef, 77, 5), murmur3(words, 5));
  t.end();
});

t.test("ten equal OSDs and 1,024 PGs keep the bar", (t) => {
  for (const virtualNodes of [150, 1000]) {
    const balance = spread(mapOf({ osds: ids(10), virtualNodes }), 10);
    const share = growth({ virtualNodes });
    t.comment(
      `${virtualNodes} virtual nodes: max/mean ${balance.toFixed(3)}, ` +
        `adding an OSD moves ${share.toFixed(3)} x the ideal share`,
    );
    if (virtualNodes === 1000) t.ok(balance <= 1.1, `max/mean ${balance}`);
    t.ok(share <= 1.15, `moved ${share}`);
  }
  for (const pool of [2, 3, 4, 5, 6, 7, 8]) {
    const balance = spread(mapOf({ osds: ids(10), pool }), 10);
    t.ok(balance <= 1.1, `pool ${pool}: max/mean ${balance.toFixed(3)}`);
    const share = growth({ pool });
    t.ok(share <= 1.15, `pool ${pool}: moved ${share.toFixed(3)}`);
  }
  t.end();
});

t.test("a change moves only what it must", (t) => {
  const before = mapOf({ osds: ids(10) });
  const after = mapOf({ osds: ids(11) });
  upSets(after, after.pools[0]!).forEach((set, index) => {
    const old = upSet(before, 65_536 + index);
    const strangers = set.filter((osd) => !old.includes(osd));
    t.ok(strangers.every((osd) => osd === 10) || t.fail(`PG ${index}: ${old} -> ${set}`));
  });
  const heavier = mapOf({ osds: ids(10).map((o) => (o.id === 3 ? { ...o, weight: 1.2 } : o)) });
  const gained = (loads(heavier).get(3) ?? 0) - (loads(before).get(3) ?? 0);
  t.ok(gained > 0, `osd.3 gained ${gained} replicas`);
  t.equal(moved(before, heavier), gained, "more weight adds points and disturbs no others");
  t.end();
});

t.test("weights, in and out", (t) => {
  const map = mapOf({
    osds: [
      { id: 0, weight: 2 },
      { id: 1 },
      { id: 2 },
      { id: 3 },
      { id: 4, in: false },
      { id: 5, weight: 0 },
    ],
    replicas: 1,
    pgCount: 4096,
  });
  const counts = loads(map);
  t.notOk(counts.has(4), "an OSD that is out holds nothing");
  t.notOk(counts.has(5), "nor does one of weight 0");
  const share = counts.get(0)! / 4096;
  t.ok(Math.abs(share - 0.4) < 0.04, `weight 2 of 5 holds ${share.toFixed(3)}`);
  const down = mapOf({ osds: [{ id: 0, up: false }, { id: 1 }, { id: 2 }] });
  t.equal(ringOf(down), ringOf(mapOf({ osds: ids(3) })), "up and down leave the ring alone");
  t.end();
});

t.test("failure domains", (t) => {
  const spreadOut = mapOf({ osds: ids(9).map(({ id }) => ({ id, host: `h${id % 3}` })) });
  for (const set of upSets(spreadOut, spreadOut.pools[0]!)) {
    t.equal(new Set(set.map((id) => id % 3)).size, 3, "one replica a host");
  }
  const oneHost = mapOf({ osds: ids(5).map(({ id }) => ({ id, host: "only" })) });
  for (const set of upSets(oneHost, oneHost.pools[0]!)) t.equal(new Set(set).size, 3);
  const few = mapOf({ osds: ids(2) });
  for (const set of upSets(few, few.pools[0]!)) t.equal(new Set(set).size, 2, "all there are");
  const none = mapOf({ osds: [] });
  t.same(upSet(none, 65_536), []);
  t.end();
});

t.test("objects spread over PGs; points stay when PGs double", (t) => {
  const map = mapOf({ osds: ids(3), pgCount: 128 });
  const counts = new Uint32Array(128);
  for (let i = 0; i < 128_000; i++) {
    const pg = objectToPg(map, 1, `10000000${(i >> 8).toString(16)}.${(i & 255).toString(16)}`);
    if (pg < 65_536 || pg >= 65_536 + 128) t.fail(`PG ${pg}`);
    counts[pg - 65_536]!++;
  }
  t.ok(Math.max(...counts) < 1150 && Math.min(...counts) > 850, "1,000 objects a PG, +-15 %");
  const points = Array.from({ length: 128 }, (_, i) => pgPoint(1, i)).sort((a, b) => a - b);
  for (let i = 1; i < 128; i++) t.equal(points[i]! - points[i - 1]!, 2 ** 25, "even spacing");
  t.end();
});

t.test("a ring of 10 x 1,000 points is quick to build", (t) => {
  const start = performance.now();
  const map = mapOf({ osds: ids(10), virtualNodes: 1001 });
  upSets(map, map.pools[0]!);
  const ms = performance.now() - start;
  t.comment(`built with 1,024 up sets in ${ms.toFixed(1)} ms`);
  t.ok(ms < 250);
  t.end();
});

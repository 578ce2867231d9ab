/**
 * The map's bytes: exact round trips, and no garbage, damage or newer format ever becomes a map.
 */
import t from "tap";
import { crc32 } from "../../../../cluster/base/checksum.js";
import { isDssError, type ErrorCode } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import type { ClusterMap } from "../../../../cluster/map/cluster-map.js";
import { decodeOsdInfo, encodeInfo, type OsdInfo } from "../../../../cluster/map/daemon-info.js";
import { decodeMap, encodeMap } from "../../../../cluster/map/map-codec.js";

const MAP: ClusterMap = {
  clusterId: "0f3c",
  epoch: 70_000,
  osds: [0, 9999].map((id) => ({
    id,
    uuid: `uuid-${id}`,
    host: "größe",
    address: { host: "::1", port: 9100 },
    weight: 1.25,
    up: id === 0,
    in: true,
    state: "active" as const,
    incarnation: "i",
    upFrom: 3,
    downSinceMs: 1_753_000_000_123,
  })),
  pools: [
    {
      id: 3,
      name: "data",
      replicas: 2,
      minimum: 1,
      pgCount: 4,
      objectSize: 4 << 20,
      stripeUnit: 65_536,
      stripeCount: 4,
    },
  ],
  pgs: {
    3: [
      { inSync: [0, 9999], primary: 9999, interval: 70_000 },
      { inSync: [9999], primary: -1, interval: 5 },
      { inSync: [], primary: -1, interval: 1 },
      { inSync: [9999, 0], primary: 0, interval: 69_999 },
    ],
  },
  flags: ["noout"],
  fences: [{ client: 4_294_967_295, epoch: 12 }],
  virtualNodes: 1000,
  nearFullRatio: 0.85,
  fullRatio: 0.95,
  backfillFullRatio: 0.97,
};

function codeOf(action: () => unknown): ErrorCode | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    return isDssError(error) ? error.code : undefined;
  }
}
/** `map` may be invalid: encoding does not look. */
const decodes = (map: ClusterMap): ErrorCode | undefined => codeOf(() => decodeMap(encodeMap(map)));

t.test("round trip", (t) => {
  t.same(decodeMap(encodeMap(MAP)), MAP);
  t.end();
});

t.test("65,536 PGs of 3 fit one znode", (t) => {
  const pool = { ...MAP.pools[0]!, replicas: 3, pgCount: 65_536 };
  const pgs = Array.from({ length: 65_536 }, () => ({
    inSync: [0, 9999],
    primary: 0,
    interval: 7,
  }));
  const bytes = encodeMap({ ...MAP, pools: [pool], pgs: { 3: pgs } });
  t.ok(bytes.length + 2 * 65_536 < 1_000_000, `${bytes.length} bytes with 2 members`);
  t.equal(decodeMap(bytes).pgs[3]!.length, 65_536);
  t.end();
});

t.test("damage and newer formats", (t) => {
  const bytes = encodeMap(MAP);
  for (let i = 0; i < bytes.length; i++) {
    const damaged = Buffer.from(bytes);
    damaged[i]! ^= 0x10;
    const code = codeOf(() => decodeMap(damaged));
    const isReserved = i === 6 || i === 7;
    const isRefused = code === "Corrupt" || code === "IncompatibleVersion";
    if (!isReserved && !isRefused) t.fail(`byte ${i}: ${code}`);
  }
  for (let length = 0; length < bytes.length; length++) {
    t.equal(
      codeOf(() => decodeMap(bytes.subarray(0, length))),
      "Corrupt",
    );
  }
  const newer = Buffer.from(bytes);
  newer.writeUInt16LE(2, 4);
  t.equal(
    codeOf(() => decodeMap(newer)),
    "IncompatibleVersion",
  );
  t.end();
});

t.test("garbage with a right checksum", (t) => {
  const random = new Prng(7);
  for (let round = 0; round < 2000; round++) {
    const good = encodeMap(MAP);
    const body = round % 2 === 0 ? random.bytes(random.int(0, 80)) : Buffer.from(good.subarray(12));
    for (let n = 0; n < 3 && round % 2 === 1; n++) {
      body[random.int(0, body.length - 1)] = random.u32() & 255;
    }
    const bytes = Buffer.concat([good.subarray(0, 12), body]);
    bytes.writeUInt32LE(crc32(body), 8);
    const code = codeOf(() => encodeMap(decodeMap(bytes)));
    if (code !== undefined && code !== "Corrupt") t.fail(`round ${round}: ${code}`);
    try {
      decodeMap(bytes);
    } catch (error) {
      if (!isDssError(error)) t.fail(`round ${round}: ${String(error)}`);
    }
  }
  t.end();
});

t.test("invalid maps are refused", (t) => {
  const [osd] = MAP.osds;
  const [pool] = MAP.pools;
  const pgs = MAP.pgs[3]!;
  const withPg = (pg: object): ClusterMap => ({
    ...MAP,
    pgs: { 3: [{ ...pgs[0]!, ...pg }, ...pgs.slice(1)] },
  });
  t.equal(decodes(MAP), undefined);
  const wrong: Record<string, ClusterMap> = {
    "epoch 0": { ...MAP, epoch: 0 },
    "two OSDs of one id": { ...MAP, osds: [...MAP.osds, osd!] },
    "an OSD id too large": { ...MAP, osds: [...MAP.osds, { ...osd!, id: 10_000 }] },
    "a negative weight": { ...MAP, osds: [{ ...osd!, weight: -1 }, MAP.osds[1]!] },
    "an unknown member": withPg({ inSync: [0, 4] }),
    "a member twice": withPg({ inSync: [0, 0], primary: 0 }),
    "a primary that is not in sync": withPg({ inSync: [0], primary: 9999 }),
    "an interval of the future": withPg({ interval: 70_001 }),
    "a missing PG": { ...MAP, pgs: { 3: pgs.slice(1) } },
    "a PG count that is no power of two": { ...MAP, pools: [{ ...pool!, pgCount: 3 }] },
    "a minimum above the replicas": { ...MAP, pools: [{ ...pool!, minimum: 3 }] },
    "a stripe unit that does not fit": { ...MAP, pools: [{ ...pool!, stripeUnit: 12_288 }] },
    "two pools of one name": {
      ...MAP,
      pools: [pool!, { ...pool!, id: 4 }],
      pgs: { 3: pgs, 4: pgs },
    },
    "a fence of no client": { ...MAP, fences: [{ client: 5, epoch: 1 }] },
    "a fence of the future": { ...MAP, fences: [{ client: 70_000, epoch: 70_001 }] },
    "ratios the wrong way": { ...MAP, nearFullRatio: 0.99 },
    "no virtual nodes": { ...MAP, virtualNodes: 0 },
  };
  for (const [name, map] of Object.entries(wrong)) t.equal(decodes(map), "Corrupt", name);
  t.end();
});

t.test("what daemons say about themselves", (t) => {
  const info: OsdInfo = {
    id: 3,
    uuid: "u",
    address: { host: "127.0.0.1", port: 9103 },
    host: "h",
    weight: 1,
    incarnation: "i",
    capacity: 10,
    pid: 7,
  };
  t.same(decodeOsdInfo(encodeInfo(info), "x"), info);
  const bad: object[] = [
    { id: 10_000 },
    { id: 1.5 },
    { uuid: "" },
    { uuid: 7 },
    { address: null },
    { address: { host: "h", port: 70_000 } },
    { weight: "1" },
    { weight: 1000 },
    { host: "x".repeat(300) },
    { capacity: -1 },
  ];
  for (const change of bad) {
    const data = Buffer.from(JSON.stringify({ ...info, ...change }));
    t.equal(
      codeOf(() => decodeOsdInfo(data, "x")),
      "Malformed",
      JSON.stringify(change),
    );
  }
  for (const text of ["", "{", "null", "7"]) {
    t.equal(
      codeOf(() => decodeOsdInfo(Buffer.from(text), "x")),
      "Malformed",
      text,
    );
  }
  t.end();
});

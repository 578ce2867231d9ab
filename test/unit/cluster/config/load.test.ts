/** Loading settings: precedence, notations, refusals and relations. */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import {
  checkRelations,
  loadConfig,
  nearest,
  simulatedConfig,
} from "../../../../cluster/config/load.js";
import type { ConfigSources } from "../../../../cluster/config/load.js";

function refusal(sources: ConfigSources): DssError {
  try {
    loadConfig(sources);
  } catch (error) {
    if (error instanceof DssError && error.code === "Configuration") return error;
    throw error;
  }
  throw new Error(`accepted: ${JSON.stringify(sources)}`);
}
const file = (text: string) => ({ name: "dss.json", text });

t.test("without sources everything has its default, and nothing can be changed", (t) => {
  const config = loadConfig();
  t.equal(config.cluster.zkSessionMs, 6_000);
  t.equal(config.osd.directWriteBytes, 65_536);
  t.same(config.cluster.zookeeper, [{ host: "127.0.0.1", port: 2181 }]);
  t.equal(config.pool.replicas, 3);
  t.throws(() => Object.assign(config.osd, { walSegments: 1 }), TypeError);
  t.throws(() => Object.assign(config, { osd: {} }), TypeError);
  t.end();
});

t.test("flags win over the environment, which wins over the file", (t) => {
  const text = JSON.stringify({
    zookeeper: "file:1",
    osd: { walSegments: 5, cacheBytes: "1M" },
    "mds.journalBatchMs": 7,
  });
  const environment = { DSS_ZOOKEEPER: "env:2", DSS_OSD_WAL_SEGMENTS: "6", PATH: "x" };
  const config = loadConfig({ file: file(text), environment, flags: { zookeeper: "flag:3" } });
  t.same(config.cluster.zookeeper, [{ host: "flag", port: 3 }]);
  t.equal(config.osd.walSegments, 6);
  t.equal(config.osd.cacheBytes, 2 ** 20);
  t.equal(config.mds.journalBatchMs, 7);
  t.end();
});

t.test("flags may be spelt as commander gives them or as they are typed", (t) => {
  for (const name of ["osdWalSegments", "osd-wal-segments", "--osd-wal-segments"]) {
    t.equal(loadConfig({ flags: { [name]: "7" } }).osd.walSegments, 7, name);
  }
  t.equal(loadConfig({ flags: { osdWalSegments: undefined } }).osd.walSegments, 4);
  t.end();
});

t.test("units", (t) => {
  const osd = (osdCacheBytes: unknown) => loadConfig({ flags: { osdCacheBytes } }).osd.cacheBytes;
  t.equal(osd("64K"), 65_536);
  t.equal(osd("1.5M"), 1.5 * 2 ** 20);
  t.equal(osd("2GiB"), 2 ** 31);
  t.equal(osd(4_096), 4_096);
  const time = (zkSessionMs: unknown) => loadConfig({ flags: { zkSessionMs } }).cluster.zkSessionMs;
  t.equal(time("2s"), 2_000);
  t.equal(time("1500ms"), 1_500);
  t.equal(loadConfig({ flags: { "osd-near-full-ratio": "80%" } }).osd.nearFullRatio, 0.8);
  t.end();
});

t.test("a ZooKeeper list may hold names, addresses and default ports", (t) => {
  const list = (zookeeper: unknown) => loadConfig({ flags: { zookeeper } }).cluster.zookeeper;
  t.same(list("a, b:99,[::1]:7"), [
    { host: "a", port: 2181 },
    { host: "b", port: 99 },
    { host: "::1", port: 7 },
  ]);
  for (const bad of ["", "a:0", "a:65536", "a:b", "a,,b", "a b", "http://a:1", 5 * 10 ** 9, {}]) {
    t.match(refusal({ flags: { zookeeper: bad } }).message, /zookeeper takes host:port/);
  }
  t.end();
});

t.test("a value out of range names its source, the option and what is permitted", (t) => {
  t.equal(
    refusal({ environment: { DSS_OSD_WAL_SEGMENTS: "2" } }).message,
    'environment variable DSS_OSD_WAL_SEGMENTS: "2" is not permitted; ' +
      "osd.walSegments takes 3 to 64",
  );
  t.match(refusal({ flags: { osdWalSegmentBytes: "1T" } }).message, "--osd-wal-segment-bytes");
  t.match(refusal({ file: file('{"pool":{"pgs":100}}') }).message, "a power of two, 1 to 32768");
  for (const bad of ["-1", "1e3", "0x10", "64Q", "4.5", "", " ", "NaN", null, true, [], NaN]) {
    t.match(refusal({ flags: { osdWalSegments: bad } }).message, /osd\.walSegments takes/);
  }
  t.end();
});

t.test("unknown names are refused with the nearest one", (t) => {
  const flag = refusal({ flags: { "osd-wal-segmets": 4 } });
  t.match(flag, { message: /unknown flag --osd-wal-segmets/, hint: /--osd-wal-segments\?/ });
  const inFile = refusal({ file: file('{"osd":{"walSegment":4}}') });
  t.match(inFile, { message: /osd\.walSegment/, hint: "did you mean osd.walSegments?" });
  const slip = refusal({ environment: { DSS_ZOKEEPER: "a" } });
  t.match(slip.hint, "DSS_ZOOKEEPER");
  t.match(refusal({ environment: { DSS_OSD_COLOUR: "blue" } }).message, "DSS_OSD_COLOUR");
  t.match(refusal({ flags: { xyzzyplugh: 1 } }).hint, "see --help");
  t.ok(loadConfig({ environment: { DSS_TEST_RUN: "1", DSS_DATA: "x", DSS_ZOOKEEPER: "" } }));
  t.end();
});

t.test("a file that is no object of options is refused", (t) => {
  t.match(refusal({ file: file("{") }).message, "dss.json is not valid JSON");
  for (const text of ["[]", "1", "null"]) {
    t.match(refusal({ file: file(text) }).message, "must hold one JSON object");
  }
  t.match(refusal({ file: file('{"osd":5}') }).message, "osd must be an object");
  t.match(refusal({ file: file('{"__proto__x":5}') }).message, "unknown option");
  t.end();
});

t.test("relations between options are checked and explained", (t) => {
  const broken = refusal({ flags: { heartbeatMs: "2s", heartbeatGraceMs: "5s" } });
  t.match(broken.message, "heartbeatGraceMs >= 3 * heartbeatMs must hold");
  t.match(broken.message, "heartbeatMs is 2s");
  t.match(broken.message, "heartbeatGraceMs is 5s");
  t.match(refusal({ flags: { poolMinimum: 4 } }).message, "pool.replicas is 3");
  t.match(refusal({ flags: { osdNearFullRatio: 0.96 } }).message, "osd.fullRatio is 0.95");
  checkRelations(loadConfig());
  t.end();
});

t.test("the simulator's settings are valid, varied and repeatable", (t) => {
  const seen = new Set<number>();
  for (let seed = 0; seed < 100; seed++) {
    const config = simulatedConfig(new Prng(seed));
    checkRelations(config);
    t.ok(Object.isFrozen(config.osd));
    seen.add(config.osd.pgLogEntries);
  }
  t.ok(seen.size > 50, "values vary");
  t.same(simulatedConfig(new Prng(7)), simulatedConfig(new Prng(7)));
  t.equal(simulatedConfig(new Prng(7), { "pool.pgs": 32 }).pool.pgs, 32);
  t.end();
});

t.test("nearest", (t) => {
  t.equal(nearest("mnut", ["mount", "mds"]), "mount");
  t.equal(nearest("zzzzzz", ["mount", "mds"]), undefined);
  t.end();
});

/** The option table: every row is consistent with itself and can be written in every notation. */
import t from "tap";
import {
  ALL_OPTIONS,
  formatRange,
  formatValue,
  optionHelp,
} from "../../../../cluster/config/options.js";

t.test("every row has a default within its range and a simulation range within it", (t) => {
  for (const { name, option } of ALL_OPTIONS) {
    t.match(option.help, /^[a-z].{10,}[^.]$/i, `${name} has help in one clause`);
    if (option.kind === "choice") t.ok(option.values.includes(option.default), name);
    if (option.kind !== "number") continue;
    t.ok(option.min <= option.default && option.default <= option.max, `${name}: default`);
    const [low, high] = option.simulate;
    t.ok(option.min <= low && low <= high && high <= option.max, `${name}: simulation range`);
    if (option.powerOfTwo) t.ok(Number.isInteger(Math.log2(option.default)), `${name}: power`);
    if (option.unit === "bytes") t.match(name, /Bytes/, `${name} names its unit`);
    if (option.unit === "ms") t.match(name, /Ms$/, `${name} names its unit`);
    if (option.unit === "ratio") t.match(name, /Ratio$/, `${name} names its unit`);
  }
  t.end();
});

t.test("names are unique in every notation", (t) => {
  for (const of of ["name", "flag", "environment"] as const) {
    t.equal(new Set(ALL_OPTIONS.map((row) => row[of])).size, ALL_OPTIONS.length, of);
  }
  const row = ALL_OPTIONS.find((each) => each.name === "osd.walSegmentBytes");
  t.match(row, { flag: "--osd-wal-segment-bytes", environment: "DSS_OSD_WAL_SEGMENT_BYTES" });
  const shared = ALL_OPTIONS.find((each) => each.name === "zookeeper");
  t.match(shared, { flag: "--zookeeper", environment: "DSS_ZOOKEEPER" });
  t.end();
});

t.test("values and ranges are written as people write them", (t) => {
  const option = (name: string) => ALL_OPTIONS.find((row) => row.name === name)!.option;
  t.equal(formatValue(option("osd.walSegmentBytes"), 64 * 2 ** 20), "64M");
  t.equal(formatValue(option("osd.walSegmentBytes"), 1_000), "1000");
  t.equal(formatValue(option("osd.cacheBytes"), 0), "0");
  t.equal(formatValue(option("zkSessionMs"), 6_000), "6s");
  t.equal(formatValue(option("downOutMs"), 600_000), "10m");
  t.equal(formatValue(option("zkSessionMs"), 1_500), "1500ms");
  t.equal(formatValue(option("zookeeper"), [{ host: "::1", port: 1 }]), "[::1]:1");
  t.match(formatRange(option("pool.pgs")), "a power of two, 1 to 32768");
  t.match(formatRange(option("logLevel")), "one of debug, info, warn, error");
  t.end();
});

t.test("help lists the options of the sections that were asked for", (t) => {
  const help = optionHelp(["osd"]);
  const rows = ALL_OPTIONS.filter((row) => row.section === "osd");
  t.equal(help.split("\n").length, rows.length);
  t.match(help, /--osd-near-full-ratio +used part .* \(0\.85; 0\.01 to 0\.99\)/);
  t.notMatch(help, "--mds-");
  t.end();
});

/** Figures become verdicts: medians, ratios to the best peer, goals, costs, comparison, charts. */
import t from "tap";
import { renderChart } from "../../bench/chart.js";
import { median } from "../../bench/measure.js";
import { drawPeers } from "../../bench/peers/charts.js";
import { describePeers, judge, markdownOf, mergeMemory } from "../../bench/peers/report.js";
import type { PeersDocument, Sample, SystemReport } from "../../bench/peers/report.js";
import { alternate, chooseRows, ROWS } from "../../bench/peers/rows.js";
import type { RowId } from "../../bench/peers/rows.js";
import { summarizeRow } from "../../bench/peers/summary.js";
import { planTree } from "../../bench/peers/tree.js";
import { rowNamed, sizesOf } from "../../bench/peers/workload.js";
import { compareDocuments } from "../../bench/report.js";
import type { Document } from "../../bench/report.js";

const sample = (figure: number, more: Partial<Sample> = {}): Sample => ({
  figure,
  cpu: { servers: 2, client: 1, host: 4 },
  ...more,
});

type Figures = Partial<Record<RowId, readonly number[]>>;

function system(name: string, figures: Figures): SystemReport {
  const results = Object.entries(figures).map(([id, list]) => {
    return summarizeRow(
      rowNamed(id as RowId),
      list.map((figure) => sample(figure)),
    )!;
  });
  return { name, durability: `${name} promises`, syncs: [], results, memory: [], failures: [] };
}

function documentOf(systems: readonly SystemReport[], more: Partial<Document> = {}): PeersDocument {
  return {
    ...{ format: 1, kind: "peers", commit: "abcdef0123", date: "2026-01-01", seconds: 60 },
    machine: { processors: "2 x any", memoryBytes: 2 ** 30, kernel: "6", node: "v20" },
    idle: { processes: [], total: 0 },
    loaded: { processes: [], total: 0 },
    results: systems[0]?.results ?? [],
    systems,
    ...more,
  };
}

t.test("medians", (t) => {
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([4, 1, 2, 3]), 2.5);
  t.equal(median([7]), 7);
  t.end();
});

t.test("systems take turns", (t) => {
  const turns = alternate(["a", "b", "c"], 2).map(({ run, system }) => `${run}${system}`);
  t.same(turns, ["0a", "0b", "0c", "1a", "1b", "1c"]);
  t.end();
});

t.test("rows by a word of their name", (t) => {
  t.equal(chooseRows("").length, ROWS.length);
  t.same(
    chooseRows("CREATE").map(({ id }) => id),
    ["create-1", "create-4"],
  );
  t.same(chooseRows("no such row"), []);
  t.equal(new Set(ROWS.map(({ id }) => id)).size, ROWS.length, "ids differ");
  t.equal(new Set(ROWS.map(({ name }) => name)).size, ROWS.length, "names differ");
  t.end();
});

t.test("a rate is judged against the fastest peer's median", (t) => {
  const systems = [
    system("dss", { "rand-write": [7_000, 7_600, 9_000], stat: [1_000] }),
    system("a", { "rand-write": [5_000, 4_000, 6_000], stat: [900] }),
    system("b", { "rand-write": [100, 200, 90_000], stat: [100] }),
  ];
  const [write, stat] = judge(systems);
  t.same(write?.best, { system: "a", median: 5_000 });
  t.equal(write?.ratio, 7_600 / 5_000);
  t.equal(write?.verdict, "met", "1.52 against 1.5");
  t.equal(stat?.verdict, "MISSED", "1.11 against 1.2");
  t.end();
});

t.test("of a time, less is better", (t) => {
  const systems = [
    system("dss", { untar: [2], remove: [1.8] }),
    system("a", { untar: [9], remove: [1.7] }),
    system("b", { untar: [6], remove: [30] }),
  ];
  const [untar, remove] = judge(systems);
  t.same([untar?.best?.system, untar?.ratio, untar?.verdict], ["b", 3, "met"]);
  t.same([remove?.best?.system, remove?.verdict], ["a", "MISSED"]);
  t.end();
});

t.test("memory has a limit of its own; a missing side is said", (t) => {
  const judged = (systems: SystemReport[]): unknown[] =>
    judge(systems).map(({ verdict }) => verdict);
  const peer = system("a", { memory: [72], stat: [5] });
  t.same(judged([system("dss", { memory: [250] }), peer]), ["not measured", "met"]);
  t.same(judged([system("dss", { memory: [251], stat: [9] }), peer]), ["met", "MISSED"]);
  t.same(judged([system("dss", { memory: [100], stat: [9] })]), ["no peer", "met"]);
  t.same(judged([system("dss", {})]), [], "rows that nobody measured are left out");
  t.end();
});

t.test("dss in another setting is held against the peers when it is alone", (t) => {
  const peer = system("a", { stat: [5] });
  const plain = system("dss-plain-wakeups", { stat: [10] });
  t.match(judge([peer, plain]), [{ ratio: 2, best: { system: "a" }, verdict: "met" }]);
  t.match(judge([system("dss", { stat: [5] }), plain, peer]), [{ ratio: 1, verdict: "MISSED" }]);
  t.end();
});

t.test("costs are medians for a piece of work", (t) => {
  const cpu = (servers: number): Sample["cpu"] => ({ servers, client: 1, host: 10 });
  const rate = summarizeRow(rowNamed("seq-write"), [
    sample(100, { bytes: 2e9, operations: 7, cpu: cpu(4) }),
    sample(110, { bytes: 1e9, operations: 7, cpu: cpu(4) }),
    sample(120, { bytes: 0.5e9, operations: 7, cpu: cpu(4) }),
  ]);
  t.same(rate?.cost, { per: "GB", servers: 4, client: 1, host: 10 });
  const count = summarizeRow(rowNamed("create-1"), [sample(1, { operations: 500, cpu: cpu(3) })]);
  t.same(count?.cost, { per: "1,000 operations", servers: 6, client: 2, host: 20 });
  t.equal(summarizeRow(rowNamed("create-1"), [sample(1)])?.cost, undefined);
  t.equal(summarizeRow(rowNamed("create-1"), []), undefined);
  t.end();
});

t.test("memory of the last run, peak of all", (t) => {
  const of = (resident: number, peak: number): { name: string; resident: number; peak: number } => {
    return { name: "osd.1", resident, peak };
  };
  t.same(mergeMemory([[of(5, 9)], [of(4, 7)]]), [of(4, 9)]);
  t.end();
});

t.test("the report names figures, verdicts, promises and failures", (t) => {
  const failed = {
    ...system("a", { stat: [900] }),
    failures: [
      { run: 1, row: "dbench 4", message: "hung" },
      { run: 2, message: "stayed down" },
    ],
  };
  const document = documentOf([system("dss", { stat: [1_000] }), failed]);
  const text = describePeers(document);
  t.match(text, /stat, cold +\/s +1000 +900 +a +1\.11 × +≥ 1\.2 × +2 × +MISSED/);
  t.match(text, /dss: dss promises/);
  t.match(text, /FAILED: a, run 2, dbench 4: hung/);
  t.match(text, /FAILED: a, run 3: stayed down/);
  t.match(markdownOf(document), /\| stat, cold \| \/s \| 1000 \| 900 \| a \| 1\.11 × \|/);
  t.end();
});

t.test("two documents are compared in the right direction", (t) => {
  const one = documentOf([system("dss", { stat: [90, 100, 110], untar: [2, 2.1, 2.2] })]);
  const two = documentOf([system("dss", { stat: [190, 200, 210], untar: [4, 4.1, 4.2] })]);
  const text = compareDocuments(one, two);
  t.match(text, /stat, cold.*\+100\.0 % +better/);
  t.match(text, /untar.*\+95\.2 % +worse/);
  t.throws(() => compareDocuments(one, { ...two, profile: "subset" }), /sizes differ/);
  const other = documentOf([system("dss", { dbench: [5] })]);
  t.throws(() => compareDocuments(one, other), /no test in common/);
  t.end();
});

t.test("pictures", (t) => {
  const document = documentOf([
    system("dss", { stat: [1_000], untar: [2], memory: [100] }),
    system("a", { stat: [900], untar: [8], memory: [72] }),
  ]);
  const pictures = drawPeers(document);
  t.same([...pictures.keys()], ["peers-small-files.svg", "peers-memory.svg"]);
  const small = pictures.get("peers-small-files.svg") ?? "";
  t.match(small, /^<svg [^]*<\/svg>\n$/);
  t.equal(small.match(/stroke-dasharray/g)?.length, 2, "a goal for each row");
  // The bars of untar: dss took a quarter of the time, so its bar is four times as long.
  const bars = [...small.matchAll(/<rect x="300" y="\d+" width="([\d.]+)"/g)].map(([, w]) =>
    Number(w),
  );
  t.equal(bars.length, 4);
  t.ok(Math.abs(bars[2]! / bars[3]! - 4) < 0.02, `${bars[2]} and ${bars[3]}`);
  const odd = renderChart({ title: "a < b & c", groups: [], series: ["x"] });
  t.match(odd, /a &lt; b &amp; c/);
  t.end();
});

t.test("the tree is the same everywhere and like a source tree", (t) => {
  const tree = planTree(3_000);
  t.same(planTree(3_000), tree);
  t.equal(new Set(tree.map(({ path }) => path)).size, 3_000);
  const mean = tree.reduce((sum, { bytes }) => sum + bytes, 0) / tree.length;
  t.ok(mean > 9_000 && mean < 15_000, `${mean} bytes on average`);
  t.ok(tree.every(({ bytes }) => bytes >= 0 && bytes <= 400 * 1024));
  t.same(sizesOf(1), { fileMiB: 1024, scale: 1, smallFiles: 5_000, treeFiles: 3_000 });
  t.ok(sizesOf(0.001).fileMiB >= 16);
  t.end();
});

/** Figures at growing sizes become tables and a line that says whether the cost of one grows. */
import t from "tap";
import {
  describeRow,
  growthLine,
  growthOf,
  markdownOf,
  transpose,
  type Figure,
  type GrowthTable,
} from "../../bench/growth/table.js";

const tableOf = (...rows: readonly [number, ...Figure[]][]): GrowthTable => ({
  title: "Entries of a directory",
  what: "entries",
  columns: [
    { name: "create", unit: "/s" },
    { name: "ls -f", unit: "ms", whole: true },
    { name: "look-up", unit: "ms" },
  ],
  rows: rows.map(([size, ...figures]) => ({ size, figures })),
});

t.test("the cost of one unit, from the smallest size to the largest", (t) => {
  const table = tableOf([1_000, 800, 10, 2], [10_000, 1, 1, 1], [100_000, 400, 2_000, 3]);
  t.same(growthOf(table, 0), { perUnit: 2 }, "half the rate is twice the cost");
  t.same(growthOf(table, 1), { perUnit: 2, whole: 200 }, "of all: divided by the size, too");
  t.same(growthOf(table, 2), { perUnit: 1.5 }, "of one operation: as it is");
  t.equal(
    growthLine(table),
    "largest / smallest (100,000 / 1,000): cost per unit: " +
      "create × 2; ls -f × 2 (× 200 in all); look-up × 1.5",
  );
  t.end();
});

t.test("a size without a figure is left out of the growth", (t) => {
  const table = tableOf([0, 100, null, null], [1, 100, null, 4], [100, 100, 7, 6]);
  t.same(growthOf(table, 1), undefined, "one figure alone does not grow");
  t.same(growthOf(table, 2), { perUnit: 1.5 });
  t.match(growthLine(table), /\(100 \/ 0\): cost per unit: create × 1; look-up × 1\.5$/);
  t.end();
});

t.test("too few sizes say so", (t) => {
  for (const table of [tableOf(), tableOf([1_000, 800, 10, 2])]) {
    t.equal(growthLine(table), "largest / smallest: too few sizes were measured");
  }
  t.end();
});

t.test("sizes in bytes are shown as sizes", (t) => {
  const heading = { ...tableOf(), title: "File size", inBytes: true };
  const row = { size: 2 ** 31, figures: [12_345.6, 0.123, null] };
  t.equal(
    describeRow(heading, row),
    "File size: 2 GiB: create 12,346 /s; ls -f 0.12 ms; look-up – ms",
  );
  t.end();
});

t.test("the document has each table with its growth, and what failed", (t) => {
  const text = markdownOf({
    ...{ format: 1, kind: "growth", commit: "abcdef0123", date: "2026-01-01", seconds: 60 },
    machine: { processors: "2 x any", memoryBytes: 2 ** 30, kernel: "6", node: "v20" },
    profile: "small",
    tables: [tableOf([10, 800, 10, 2], [20, 800, 20, 2])],
    failures: [{ theme: "OSDs", message: "it did not start\nits log" }],
  });
  t.same(text.split("\n").slice(2), [
    "### Entries of a directory",
    "",
    "| entries | create (/s) | ls -f (ms) | look-up (ms) |",
    "| --- | --- | --- | --- |",
    "| 10 | 800 | 10.0 | 2.00 |",
    "| 20 | 800 | 20.0 | 2.00 |",
    "",
    "largest / smallest (20 / 10): cost per unit: create × 1; ls -f × 1 (× 2 in all); look-up × 1",
    "",
    "FAILED: OSDs: it did not start",
  ]);
  t.end();
});

t.test("figures that were measured together are told apart", (t) => {
  t.same(
    transpose([
      [1, 10],
      [2, 20],
      [3, 30],
    ]),
    [
      [1, 2, 3],
      [10, 20, 30],
    ],
  );
  t.same(transpose([]), []);
  t.end();
});

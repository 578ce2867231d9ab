/** The pictures of a comparison: one for each kind of rows, bars in speed (longer is better). */
import { renderChart } from "../chart.js";
import type { BarGroup } from "../chart.js";
import { lessIsBetter, shown } from "../report.js";
import { judge } from "./report.js";
import type { Judgement, PeersDocument } from "./report.js";
import type { Row } from "./rows.js";

const TITLES: Readonly<Record<Row["chart"], string>> = {
  files: "Large files, through the mount",
  "small-files": "Small files, trees and dbench, through the mount",
  block: "Block devices",
  memory: "Memory of the largest storage daemon (shorter is better)",
};

/** File name to SVG, for every kind of which a row was measured. */
export function drawPeers(document: PeersDocument): ReadonlyMap<string, string> {
  const judgements = judge(document.systems);
  const series = document.systems.map(({ name }) => name);
  const pictures = new Map<string, string>();
  for (const [kind, title] of Object.entries(TITLES)) {
    const groups = judgements
      .filter(({ row }) => row.chart === kind)
      .map((judgement) => groupOf(document, judgement));
    if (groups.length === 0) continue;
    const what = `${title}: commit ${document.commit.slice(0, 8)}`;
    pictures.set(`peers-${kind}.svg`, renderChart({ title: what, groups, series }));
  }
  return pictures;
}

function groupOf({ systems }: PeersDocument, { row, best }: Judgement): BarGroup {
  // Time is drawn as speed, so that a longer bar is better; memory as it is, against its limit.
  const invert = lessIsBetter(row.unit) && row.limit === undefined;
  const valueOf = (median: number): number => (invert ? 1 / median : median);
  const bars = systems.flatMap(({ name, results }) => {
    const median = results.find((result) => result.name === row.name)?.median;
    if (median === undefined || median <= 0) return [];
    return [{ series: name, value: valueOf(median), label: `${shown(median)} ${row.unit}` }];
  });
  const goal =
    row.limit ?? (best && row.goal !== undefined ? valueOf(best.median) * row.goal : undefined);
  return { name: row.name, bars, ...(goal !== undefined && { goal }) };
}

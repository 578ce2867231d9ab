/** What `npm run bench:parts` writes: a document, and its two tables. */
import { markdownTable, ROLES, shown } from "../report.js";
import type { Machine } from "../measure.js";
import type { Measured } from "./part.js";

export interface PartsDocument {
  readonly commit: string;
  readonly date: string;
  readonly seconds: number;
  readonly machine: Machine;
  readonly profile: string;
  /** Each of them alone. */
  readonly parts: readonly Measured[];
  /** Operations of a cluster. */
  readonly whole: readonly Measured[];
}

const HEAD = ["a second", "range", "MB/s", "P50 µs"];

/** A latency says something where nothing else is under way. */
const figures = ({ name, median, min, max, bytes, depth, latency }: Measured): string[] => [
  name,
  shown(median),
  `${shown(min)}–${shown(max)}`,
  bytes === undefined ? "–" : shown((median * bytes) / 1e6),
  depth === 1 && latency !== undefined ? shown(latency.p50) : "–",
];

const sum = (values: readonly number[]): number => values.reduce((total, each) => total + each, 0);

export function partsTable(results: readonly Measured[]): string {
  const rows = results.map((result) => [
    ...figures(result),
    shown(sum(Object.values(result.cpu))),
    Object.entries(result.cpu)
      .map(([role, micros]) => `${role} ${shown(micros)}`)
      .join(", "),
  ]);
  return markdownTable(["Part", ...HEAD, "processor µs", "of which"], rows);
}

export function wholeTable(results: readonly Measured[]): string {
  const roles = [...ROLES, "rest"];
  const rows = results.map((result) => [
    ...figures(result),
    ...roles.map((role) => (result.cpu[role] === undefined ? "–" : shown(result.cpu[role]))),
    shown(sum(Object.values(result.cpu))),
  ]);
  return markdownTable(
    ["Operation", ...HEAD, ...roles.map((role) => `${role} µs`), "all µs"],
    rows,
  );
}

export function markdownOf(document: PartsDocument): string {
  const { commit, date, seconds, machine, profile, parts, whole } = document;
  const about =
    `Commit ${commit}, ${date}, ${machine.processors}, Linux ${machine.kernel}, ` +
    `Node ${machine.node}; sizes: ${profile}; ${Math.round(seconds)} s in all.`;
  const tables = [
    ...(parts.length === 0 ? [] : [partsTable(parts)]),
    ...(whole.length === 0 ? [] : [wholeTable(whole)]),
  ];
  return [about, ...tables].join("\n\n");
}

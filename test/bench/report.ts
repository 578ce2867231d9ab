/** The document that a benchmark writes, its table, and the comparison of two of them. */
import { existsSync, readFileSync } from "node:fs";
import { table } from "../../cli/output.js";
import { median } from "./measure.js";
import type { Machine } from "./measure.js";
import { ReportError } from "../support/program.js";

export type Unit = "MB/s" | "/s" | "s" | "ms" | "MB" | "KB";

/** Of these, less is better. */
const LESS: readonly Unit[] = ["s", "ms", "MB", "KB"];
export const lessIsBetter = (unit: Unit): boolean => LESS.includes(unit);

/** Processor seconds for a piece of work, medians over the runs. */
export interface Cost {
  readonly per: "GB" | "1,000 operations";
  readonly servers: number;
  readonly client: number;
  /** Of the whole machine: the kernel and the program that measures included. */
  readonly host: number;
}

export interface Result {
  readonly name: string;
  readonly unit: Unit;
  readonly runs: readonly number[];
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** Processor seconds of one run by role, the median over the runs. */
  readonly cpu: Readonly<Record<string, number>>;
  /** Microseconds, median over the runs; where the program measures them. */
  readonly latency?: { readonly p50: number; readonly p99: number };
  readonly cost?: Cost;
}

export interface Memory {
  readonly processes: readonly { name: string; role: string; bytes: number }[];
  /** All but ZooKeeper's, which is a Java program of others. */
  readonly total: number;
}

export interface Document {
  readonly format: 1;
  readonly commit: string;
  readonly date: string;
  readonly seconds: number;
  readonly machine: Machine;
  /** Which sizes were measured; figures of different ones say nothing about each other. */
  readonly profile?: string;
  readonly idle: Memory;
  readonly loaded: Memory;
  readonly results: readonly Result[];
}

export interface Run {
  readonly figure: number;
  readonly cpu: Readonly<Record<string, number>>;
  readonly p50?: number;
  readonly p99?: number;
}

export function summarize(name: string, unit: Result["unit"], runs: readonly Run[]): Result {
  const figures = runs.map(({ figure }) => figure);
  const roles = [...new Set(runs.flatMap(({ cpu }) => Object.keys(cpu)))];
  const cpu = Object.fromEntries(
    roles.map((role) => [role, round(median(runs.map((run) => run.cpu[role] ?? 0)))]),
  );
  const p50 = runs.flatMap((run) => run.p50 ?? []);
  const p99 = runs.flatMap((run) => run.p99 ?? []);
  return {
    name,
    unit,
    runs: figures.map(round),
    median: round(median(figures)),
    min: round(Math.min(...figures)),
    max: round(Math.max(...figures)),
    cpu,
    ...(p50.length > 0 && { latency: { p50: round(median(p50)), p99: round(median(p99)) } }),
  };
}

export const round = (value: number): number => Number(value.toPrecision(4));
export const shown = (value: number): string =>
  value >= 100 ? String(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2);
/** A table for a page of the documentation. */
export function markdownTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}
const mebibytes = (bytes: number): string => `${Math.round(bytes / 2 ** 20)}`;

/** Of the programs of a cluster. */
export const ROLES = ["osd", "mds", "mount", "nbd", "zookeeper"];

export function describeDocument(document: Document): string {
  const rows = document.results.map((result) => [
    result.name,
    shown(result.median),
    result.unit,
    `${shown(result.min)} to ${shown(result.max)}`,
    result.latency === undefined ? "-" : shown(result.latency.p50),
    result.latency === undefined ? "-" : shown(result.latency.p99),
    ...ROLES.map((role) => (result.cpu[role] === undefined ? "-" : shown(result.cpu[role]))),
  ]);
  const head = ["TEST", "MEDIAN", "UNIT", "RANGE", "P50 µs", "P99 µs"].concat(
    ROLES.map((role) => `${role} s`),
  );
  const memory = (what: string, { processes, total }: Memory): string =>
    `${what}: ${mebibytes(total)} MiB without ZooKeeper (` +
    `${processes.map(({ name, bytes }) => `${name} ${mebibytes(bytes)}`).join(", ")})`;
  return [
    `commit ${document.commit}, ${document.date}, ${Math.round(document.seconds)} s in all`,
    `${document.machine.processors}, ${mebibytes(document.machine.memoryBytes)} MiB, ` +
      `Linux ${document.machine.kernel}, Node ${document.machine.node}`,
    "",
    table(head, rows),
    "",
    "The last columns are processor seconds of all daemons of a kind during one run.",
    memory("resident, idle", document.idle),
    memory("resident, after the load", document.loaded),
  ].join("\n");
}

export function readDocument(path: string): Document {
  if (!existsSync(path)) throw new ReportError(`there is no ${path}`);
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new ReportError(`${path} is no JSON`, { cause });
  }
  const { format, results } = (value ?? {}) as Partial<Document>;
  if (format !== 1 || !Array.isArray(results)) {
    throw new ReportError(`${path} was not written by npm run bench -- --json`);
  }
  return value as Document;
}

const profileOf = ({ profile }: Document): string => profile ?? "full";

/** Processor seconds of dss itself: the whole machine's have those in them. */
function cpuOf({ cpu }: Result): number {
  return Object.entries(cpu).reduce((sum, [role, each]) => sum + (role === "host" ? 0 : each), 0);
}

/** Figures side by side; a difference counts only where the ranges of the runs do not meet. */
export function compareDocuments(a: Document, b: Document): string {
  const rows = a.results.flatMap((old) => {
    const now = b.results.find(({ name }) => name === old.name);
    if (now === undefined) return [];
    const percent = (100 * (now.median - old.median)) / old.median;
    const apart = now.min > old.max || now.max < old.min;
    const better = percent > 0 !== lessIsBetter(now.unit);
    return [
      [
        old.name,
        old.unit,
        shown(old.median),
        shown(now.median),
        `${percent >= 0 ? "+" : ""}${percent.toFixed(1)} %`,
        apart ? (better ? "better" : "worse") : "within the spread",
        `${shown(cpuOf(old))} / ${shown(cpuOf(now))}`,
      ],
    ];
  });
  const lines = [`A: ${a.commit}, ${a.date}`, `B: ${b.commit}, ${b.date}`];
  if (JSON.stringify(a.machine) !== JSON.stringify(b.machine)) {
    lines.push("note: the machines differ");
  }
  if (profileOf(a) !== profileOf(b)) {
    throw new ReportError(
      `sizes differ: "${profileOf(a)}" was measured first and "${profileOf(b)}" later`,
    );
  }
  if (rows.length === 0) throw new ReportError("the two documents have no test in common");
  const memory = `resident, idle: ${mebibytes(a.idle.total)} and ${mebibytes(b.idle.total)} MiB`;
  const head = ["TEST", "UNIT", "A", "B", "CHANGE", "", "CPU s A / B"];
  return [...lines, "", table(head, rows), "", memory].join("\n");
}

/**
 * What `npm run bench:peers` writes: a document that `npm run bench -- --compare` reads (its
 * results are those of dss) with every system beside it, the judgement of each row, the text.
 */
import { table } from "../../../cli/output.js";
import { lessIsBetter, markdownTable, shown } from "../report.js";
import type { Document, Result } from "../report.js";
import { DSS_SYSTEMS } from "./dss-system.js";
import { ROWS } from "./rows.js";
import type { Row } from "./rows.js";

export interface ProcessMemory {
  readonly name: string;
  /** Bytes: after the last run's load, and the most of all runs. */
  readonly resident: number;
  readonly peak: number;
}

export interface Failure {
  readonly run: number;
  /** Name of the row; of the whole run when left out. */
  readonly row?: string;
  readonly message: string;
}

/** Syncs of one storage daemon while one client did that many operations. */
export interface SyncCount {
  readonly what: string;
  readonly operations: number;
  readonly daemons: Readonly<Record<string, number>>;
}

export interface SystemReport {
  readonly name: string;
  readonly durability: string;
  readonly syncs: readonly SyncCount[];
  readonly results: readonly Result[];
  readonly memory: readonly ProcessMemory[];
  readonly failures: readonly Failure[];
}

export interface PeersDocument extends Document {
  readonly kind: "peers";
  readonly systems: readonly SystemReport[];
}

export interface Judgement {
  readonly row: Row;
  readonly ours?: number;
  readonly best?: { readonly system: string; readonly median: number };
  /** How many times the best peer dss is. */
  readonly ratio?: number;
  readonly verdict: "met" | "MISSED" | "no peer" | "not measured";
}

const OWN: ReadonlySet<string> = new Set(DSS_SYSTEMS.map(({ name }) => name));

const medianOf = (system: SystemReport, row: Row): number | undefined =>
  system.results.find(({ name }) => name === row.name)?.median;

/** The dss that is held against the peers: the first, where there are several. */
export const oursOf = (systems: readonly SystemReport[]): SystemReport | undefined =>
  systems.find(({ name }) => OWN.has(name));

/** dss against the best peer of each row that any system has measured. */
export function judge(systems: readonly SystemReport[], rows: readonly Row[] = ROWS): Judgement[] {
  return rows
    .filter((row) => systems.some((system) => medianOf(system, row) !== undefined))
    .map((row) => judgeRow(systems, row));
}

function judgeRow(systems: readonly SystemReport[], row: Row): Judgement {
  const less = lessIsBetter(row.unit);
  const measured = systems.flatMap((system) => {
    const median = medianOf(system, row);
    return median === undefined ? [] : [{ system: system.name, median }];
  });
  const own = oursOf(systems);
  const ours = own && medianOf(own, row);
  const [best] = measured
    .filter(({ system }) => !OWN.has(system))
    .sort((a, b) => (less ? a.median - b.median : b.median - a.median));
  if (ours === undefined) return { row, ...(best && { best }), verdict: "not measured" };
  const ratio = best && (less ? best.median / ours : ours / best.median);
  const known = { row, ours, ...(best && { best }), ...(ratio !== undefined && { ratio }) };
  if (row.limit !== undefined) return { ...known, verdict: ours <= row.limit ? "met" : "MISSED" };
  if (ratio === undefined || row.goal === undefined) return { ...known, verdict: "no peer" };
  return { ...known, verdict: ratio >= row.goal ? "met" : "MISSED" };
}

const goalText = ({ goal, limit }: Row): string =>
  limit === undefined ? `≥ ${goal} ×` : `≤ ${limit} MB`;
const aimText = ({ aim, limitAim, limit }: Row): string =>
  limit === undefined ? `${aim} ×` : `${limitAim} MB`;

/** Columns of every table for people: row, unit, each system, best peer, ratio, goal, verdict. */
function judgementTable(document: PeersDocument): { head: string[]; rows: string[][] } {
  const head = ["ROW", "UNIT", ...document.systems.map(({ name }) => name)].concat([
    "BEST PEER",
    "RATIO",
    "GOAL",
    "AIM",
    "",
  ]);
  const rows = judge(document.systems).map(({ row, best, ratio, verdict }) => [
    row.name,
    row.unit,
    ...document.systems.map((system) => {
      const median = medianOf(system, row);
      return median === undefined ? "-" : shown(median);
    }),
    best?.system ?? "-",
    ratio === undefined ? "-" : `${ratio.toFixed(2)} ×`,
    goalText(row),
    aimText(row),
    verdict,
  ]);
  return { head, rows };
}

function spreadTable({ systems }: PeersDocument): string {
  const rows = judge(systems).map(({ row }) => [
    row.name,
    row.unit,
    ...systems.map((system) => {
      const found = system.results.find(({ name }) => name === row.name);
      return found === undefined ? "-" : `${shown(found.min)}–${shown(found.max)}`;
    }),
  ]);
  return table(["RANGE OF THE RUNS", "UNIT", ...systems.map(({ name }) => name)], rows);
}

function costTable({ systems }: PeersDocument): string {
  const rows = ROWS.flatMap((row) => {
    const costs = systems.map(
      (system) => system.results.find(({ name }) => name === row.name)?.cost,
    );
    const per = costs.find((cost) => cost !== undefined)?.per;
    if (per === undefined) return [];
    const cells = costs.map((cost) =>
      cost === undefined
        ? "-"
        : `${shown(cost.servers)} + ${shown(cost.client)} (${shown(cost.host)})`,
    );
    return [[row.name, per, ...cells]];
  });
  return rows.length === 0
    ? "no processor time was measured"
    : table(["PROCESSOR SECONDS", "PER", ...systems.map(({ name }) => name)], rows);
}

const megabytes = (bytes: number): string => String(Math.round(bytes / 1e6));

function memoryLines({ systems }: PeersDocument): string[] {
  return systems.map(({ name, memory }) => {
    const sum = memory.reduce((total, { resident }) => total + resident, 0);
    const each = memory.map(
      (process) => `${process.name} ${megabytes(process.resident)} (${megabytes(process.peak)})`,
    );
    return `${name}: ${megabytes(sum)} MB in all: ${each.join(", ") || "nothing was measured"}`;
  });
}

function durabilityLines({ systems }: PeersDocument): string[] {
  return systems.flatMap(({ name, durability, syncs }) => [
    `${name}: ${durability}`,
    ...syncs.map(({ what, operations, daemons }) => {
      const each = Object.entries(daemons).map(([daemon, count]) => `${daemon} ${count}`);
      return `  measured: syncs for ${operations} × ${what}: ${each.join(", ")}`;
    }),
  ]);
}

function failureLines({ systems }: PeersDocument): string[] {
  return systems.flatMap(({ name, failures }) =>
    failures.map(
      ({ run, row, message }) =>
        `FAILED: ${name}, run ${run + 1}${row === undefined ? "" : `, ${row}`}: ${head(message)}`,
    ),
  );
}

/** The whole message is in the JSON document. */
const head = (message: string): string => message.split("\n").slice(0, 4).join(" | ");

export function describePeers(document: PeersDocument): string {
  const { head: columns, rows } = judgementTable(document);
  const { machine } = document;
  return [
    `commit ${document.commit}, ${document.date}, ${Math.round(document.seconds)} s in all`,
    `${machine.processors}, ${Math.round(machine.memoryBytes / 2 ** 20)} MiB, Linux ` +
      `${machine.kernel}, Node ${machine.node}; sizes: ${document.profile ?? "full"}`,
    "",
    rows.length === 0 ? "no row was measured" : table(columns, rows),
    "",
    spreadTable(document),
    "",
    costTable(document),
    "Daemons + client process (whole machine: the kernel and the measuring program included).",
    "",
    "Resident after the load (peak), MB = 1,000,000 bytes:",
    ...memoryLines(document),
    "",
    "What an acknowledgement means:",
    ...durabilityLines(document),
    ...failureLines(document),
  ].join("\n");
}

/** The table of judgements for a page of the documentation. */
export function markdownOf(document: PeersDocument): string {
  const { head, rows } = judgementTable(document);
  return markdownTable(head, rows);
}

// ---- From the runs to a report ----------------------------------------------------------------

/** One row of one run. */
export interface Sample {
  readonly figure: number;
  /** What was done, for the cost of a piece of it. */
  readonly bytes?: number;
  readonly operations?: number;
  /** Processor seconds. */
  readonly cpu: { readonly servers: number; readonly client: number; readonly host: number };
  readonly p50?: number;
  readonly p99?: number;
}

/** Pieces of work for the cost: gigabytes where a rate of bytes is measured. */
export function workOf(
  unit: Result["unit"],
  { bytes, operations }: Pick<Sample, "bytes" | "operations">,
): { per: "GB" | "1,000 operations"; amount: number } | undefined {
  if (unit === "MB/s") {
    return bytes === undefined || bytes === 0 ? undefined : { per: "GB", amount: bytes / 1e9 };
  }
  return operations === undefined || operations === 0
    ? undefined
    : { per: "1,000 operations", amount: operations / 1000 };
}

/** Of each process the memory after the last run and the highest peak. */
export function mergeMemory(runs: readonly (readonly ProcessMemory[])[]): ProcessMemory[] {
  const merged = new Map<string, ProcessMemory>();
  for (const { name, resident, peak } of runs.flat()) {
    const before = merged.get(name)?.peak ?? 0;
    merged.set(name, { name, resident, peak: Math.max(before, peak) });
  }
  return [...merged.values()];
}

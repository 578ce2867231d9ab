/** What is measured: rows of a part of dss, or of a whole cluster, and how much of each. */
import { BUILD, succeed } from "../../support/process.js";
import type { Scope } from "../../support/scope.js";
import { runFio } from "../fio.js";
import { withCpu, withCpuAndRest } from "../measure.js";
import type { Watched } from "../measure.js";
import { round, summarize } from "../report.js";
import type { Result, Run } from "../report.js";

export const KiB = 1024;
export const MiB = 1024 * 1024;

/** An operation that is done over and over. */
export interface Row {
  readonly name: string;
  /** How many at a time; left out where the kernel decides. */
  readonly depth?: number;
  /** That one operation moves. */
  readonly bytes?: number;
}

export interface Sizes {
  readonly profile: "full" | "small";
  readonly runs: number;
  /** Of one run. */
  readonly seconds: number;
  /** Random reads and writes stay in this many bytes. */
  readonly area: number;
  /** Of a file that is written or read from its beginning to its end. */
  readonly sequential: number;
}

/** Operations a second with their spread; `cpu` is in microseconds an operation, by role. */
export type Measured = Result & Omit<Row, "name">;

export interface Part {
  readonly rows: readonly Row[];
  /** Of the rows those that are asked for; in a scope of its own. */
  measure(scope: Scope, rows: readonly Row[], sizes: Sizes): Promise<Measured[]>;
}

/** What a program that makes a load is told. */
export interface Order<Where> {
  readonly where: Where;
  readonly rows: readonly Row[];
  readonly sizes: Sizes;
  readonly watched: readonly Watched[];
  /** Of the load itself; left out: it counts to the rest of the machine, which is measured. */
  readonly role?: string;
}

const PROGRAM_MS = 180_000;

/** Runs a load of this folder to its end. */
export async function runLoad<Where>(
  scope: Scope,
  program: string,
  order: Order<Where>,
): Promise<Measured[]> {
  const { rows, sizes } = order;
  if (rows.length === 0) return [];
  const withinMs = PROGRAM_MS + rows.length * (sizes.runs + 1) * sizes.seconds * 2_000;
  const args = [...programOf(program), JSON.stringify(order)];
  return JSON.parse(await succeed(scope, process.execPath, args, { withinMs })) as Measured[];
}

/** Arguments that make Node run a program of this folder. */
export const programOf = (name: string): string[] => [
  "--enable-source-maps",
  `${BUILD}test/bench/parts/${name}.js`,
];

/** Does it once to warm up, and then as often as is wanted. */
export async function measureRow(
  { name, ...rest }: Row,
  runs: number,
  once: () => Promise<Run>,
): Promise<Measured> {
  const done: Run[] = [];
  for (let i = 0; i <= runs; i++) {
    const run = await once();
    if (i > 0) done.push(run);
  }
  return { ...summarize(name, "/s", done), ...rest };
}

/** Seconds by role as microseconds an operation. */
export function perOperation(
  cpu: Readonly<Record<string, number>>,
  operations: number,
): Record<string, number> {
  const micros = (seconds: number): number => round((seconds * 1e6) / operations);
  return Object.fromEntries(Object.entries(cpu).map(([role, seconds]) => [role, micros(seconds)]));
}

export interface FioRow extends Row {
  readonly direction: "read" | "write";
  readonly args: (sizes: Sizes) => readonly string[];
}

/** Of an area, for as long as a run takes. */
export const timed = ({ seconds, area }: Sizes): string[] => [
  "--time_based",
  `--runtime=${Math.round(seconds * 1000)}ms`,
  `--size=${area}`,
];

export interface FioLoad {
  /** fio's engine and where it works; an engine's own options come after it. */
  readonly place: readonly string[];
  readonly watched: readonly Watched[];
  /** Of fio itself; as in `Order`. */
  readonly role?: string;
  /** Before every run. */
  readonly before?: () => void;
}

export async function measureFio(
  scope: Scope,
  row: FioRow,
  sizes: Sizes,
  { place, watched, role, before }: FioLoad,
): Promise<Measured> {
  const { direction, args, ...plain } = row;
  const all = [...place, "--randrepeat=0", ...args(sizes)];
  const measure = role === undefined ? withCpuAndRest : withCpu;
  return await measureRow(plain, sizes.runs, async () => {
    before?.();
    const { value, cpu } = await measure(watched, () =>
      runFio(scope, all, { withinMs: PROGRAM_MS }),
    );
    const { operations, operationsPerSecond, p50 = 0, p99 = 0 } = value[direction];
    const total = role === undefined ? cpu : { ...cpu, [role]: value.cpuSeconds };
    return { figure: operationsPerSecond, cpu: perOperation(total, operations), p50, p99 };
  });
}

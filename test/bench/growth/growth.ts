/**
 * What the themes share: sizes by profile, tables that are measured row by row, medians, clusters,
 * and the operations on files that a child process does and times (file-operations.ts).
 */
import { BUILD, succeed } from "../../support/process.js";
import { startCluster, type Cluster, type ClusterOptions } from "../../support/cluster.js";
import type { Scope } from "../../support/scope.js";
import { median, residentBytes } from "../measure.js";
import type { FileOperation } from "./file-operations.js";
import { describeRow, transpose, type Figure, type GrowthTable } from "./table.js";
import type { Heading, Row } from "./table.js";

export type Profile = "small" | "usual" | "large";

/** What grows. */
export interface Theme {
  readonly name: string;
  measure(growth: Growth): Promise<void>;
}

const RUNS = 3;
/** What took longer once is not done again. */
const LONG_MS = 8_000;
const PROGRAM_MS = 900_000;

/** One theme's run: its tables have the rows that were measured, also after a failure. */
export class Growth {
  readonly tables: GrowthTable[] = [];

  constructor(
    readonly scope: Scope,
    private readonly profile: Profile,
  ) {}

  /** The value of the profile; `large` differs from `usual` only where it says so. */
  pick<T>(values: { small: T; usual: T; large?: T }): T {
    return values[this.profile] ?? values.usual;
  }

  /** Measures one table, the smallest size first. */
  async table(
    heading: Heading,
    sizes: readonly number[],
    measure: (size: number) => Promise<readonly Figure[]>,
  ): Promise<void> {
    const rows: Row[] = [];
    this.tables.push({ ...heading, rows });
    for (const size of sizes) {
      const row = { size, figures: await measure(size) };
      rows.push(row);
      process.stderr.write(`${describeRow(heading, row)}\n`);
    }
  }

  async cluster(options: ClusterOptions = {}): Promise<Cluster> {
    return await startCluster(this.scope, options);
  }

  /** Milliseconds; of a takeover two figures. */
  async files(operation: FileOperation): Promise<number[]> {
    const program = `${BUILD}test/bench/growth/file-operations.js`;
    const input = JSON.stringify(operation);
    const told = await this.scope.within((t) =>
      succeed(t, process.execPath, [program], { input, withinMs: PROGRAM_MS }),
    );
    return JSON.parse(told) as number[];
  }

  /** The same for operations with one figure. */
  async fileMs(operation: FileOperation): Promise<number> {
    return (await this.files(operation))[0]!;
  }
}

/** Medians of three runs, figure by figure. */
export async function medians(measure: () => Promise<readonly number[]>): Promise<number[]> {
  const runs: (readonly number[])[] = [];
  const start = performance.now();
  for (let run = 0; run < RUNS; run++) {
    runs.push(await measure());
    if (performance.now() - start > LONG_MS * runs.length) break;
  }
  return transpose(runs).map(median);
}

/** The same of one figure. */
export async function medianOf(measure: () => Promise<number>): Promise<number> {
  const [figure] = await medians(async () => [await measure()]);
  return figure!;
}

export async function msOf(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

export const residentMB = (...pids: readonly number[]): number =>
  median(pids.map(residentBytes)) / 1e6;

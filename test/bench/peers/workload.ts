/**
 * The one workload that every system runs: the rows of rows.ts in groups. The first step of a group
 * makes what the others use, so a group starts with it also when only a later row is asked for.
 * All access to a mount is by child processes with deadlines: a mount may hang, the program not.
 */
import { join } from "node:path";
import { run, succeed } from "../../support/process.js";
import { hostCpuSeconds, peakResidentBytes, residentBytes, withCpu } from "../measure.js";
import { runFio } from "../fio.js";
import type { FioResult } from "../fio.js";
import type { Scope } from "../../support/scope.js";
import { runSmallFiles } from "../run-small-files.js";
import type { ProcessMemory, Sample } from "./report.js";
import { ROWS } from "./rows.js";
import type { RowId } from "./rows.js";
import type { Running } from "./system.js";

export interface Sizes {
  readonly fileMiB: number;
  /** Multiplies the duration of every timed test. */
  readonly scale: number;
  readonly smallFiles: number;
  readonly treeFiles: number;
}

export function sizesOf(scale: number): Sizes {
  return {
    fileMiB: Math.max(16, Math.round(1024 * scale)),
    scale,
    smallFiles: Math.max(80, Math.round(5_000 * scale)),
    treeFiles: Math.max(50, Math.round(3_000 * scale)),
  };
}

const PROGRAM_MS = 240_000;
const SMALL_SECONDS = 60;
const DBENCH_LOADS = ["/usr/share/dbench/client.txt", "/usr/share/doc/dbench/loadfiles/client.txt"];

type Measured = Omit<Sample, "cpu">;

interface Step {
  readonly row: RowId;
  readonly cold?: boolean;
  /** Before the measurement; a system that fails it has no figure worth comparing. */
  readonly check?: () => Promise<unknown>;
  run(): Promise<Measured>;
}

interface Group {
  readonly before?: () => Promise<unknown>;
  readonly steps: readonly Step[];
  readonly after?: () => Promise<unknown>;
}

export interface Outcome {
  readonly samples: ReadonlyMap<RowId, Sample>;
  readonly failures: readonly { readonly row: RowId; readonly message: string }[];
  readonly memory: readonly ProcessMemory[];
}

export interface WorkloadOptions {
  readonly rows: ReadonlySet<RowId>;
  readonly sizes: Sizes;
  /** The same for all systems in one run, another in the next. */
  readonly seed: number;
  readonly tree: string;
  readonly progress: (row: RowId, figure: number) => void;
}

export class Workload {
  private readonly folder: string;
  private readonly samples = new Map<RowId, Sample>();
  private readonly failures: { row: RowId; message: string }[] = [];

  constructor(
    private readonly scope: Scope,
    private readonly system: Running,
    private readonly options: WorkloadOptions,
  ) {
    this.folder = join(system.mount, "bench");
  }

  async run(): Promise<Outcome> {
    await this.program("mkdir", [this.folder]);
    await this.group(this.files());
    await this.group(this.smallFiles(1));
    await this.group(this.smallFiles(4));
    await this.group(this.tree());
    await this.group(this.dbench());
    await this.group(this.block());
    return { samples: this.samples, failures: this.failures, memory: await this.memory() };
  }

  // ---- Groups ----------------------------------------------------------------------------------

  /** A row that fails is reported and the next one tried; without the first there is none. */
  private async group({ before, steps, after }: Group): Promise<void> {
    const { rows } = this.options;
    const last = steps.findLastIndex(({ row }) => rows.has(row));
    if (last < 0) return;
    let current = steps[0]!.row;
    try {
      await before?.();
      for (const [index, step] of steps.slice(0, last + 1).entries()) {
        current = step.row;
        if (index > 0 && !rows.has(step.row) && !this.leadsOn(step.row)) continue;
        try {
          await this.step(step);
        } catch (error) {
          if (index === 0) throw error;
          this.fail(step.row, error);
        }
      }
      await after?.();
    } catch (error) {
      this.fail(current, error);
    }
  }

  /** Steps whose result later steps of their group use, besides the first. */
  private leadsOn(row: RowId): boolean {
    return row === "copy";
  }

  private fail(row: RowId, error: unknown): void {
    // Whoever stops the benchmark makes every program fail: that says nothing about the system.
    if (this.scope.ended) throw error;
    const message = (error as Error).message.trim().split("\n").slice(0, 6).join(" | ");
    this.failures.push({ row, message: message.slice(0, 600) });
  }

  private async step({ row, cold, check, run: action }: Step): Promise<void> {
    if (cold === true) await this.system.cold();
    await check?.();
    const processes = await this.system.processes();
    const host = hostCpuSeconds();
    const { value, cpu } = await withCpu(processes, action);
    const busy = hostCpuSeconds() - host;
    if (!this.options.rows.has(row)) return;
    this.samples.set(row, {
      ...value,
      cpu: { servers: cpu["servers"] ?? 0, client: cpu["client"] ?? 0, host: busy },
    });
    this.options.progress(row, value.figure);
  }

  private async program(program: string, args: readonly string[]): Promise<string> {
    return await this.scope.within((t) => succeed(t, program, args, { withinMs: PROGRAM_MS }));
  }

  private async seconds(program: string, args: readonly string[]): Promise<number> {
    const start = performance.now();
    await this.program(program, args);
    return (performance.now() - start) / 1000;
  }

  // ---- Large files and block devices -----------------------------------------------------------

  private async fio(
    where: readonly string[],
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): Promise<FioResult> {
    const seed = ["--randrepeat=1", `--randseed=${this.options.seed}`];
    const options = { withinMs: PROGRAM_MS, env };
    return await this.scope.within((t) => runFio(t, [...where, ...seed, ...args], options));
  }

  private timed(seconds: number): string[] {
    const runtime = Math.max(1, Math.round(seconds * this.options.sizes.scale));
    return ["--time_based", `--runtime=${runtime}`, `--size=${this.options.sizes.fileMiB}M`];
  }

  private files(): Group {
    const path = join(this.folder, "big");
    const whole = `--size=${this.options.sizes.fileMiB}M`;
    const plain = ["--ioengine=psync", `--filename=${path}`];
    const direct = ["--direct=1", "--numjobs=4"];
    const deep = ["--ioengine=libaio", `--filename=${path}`, "--iodepth=4", ...direct];
    const fio = (where: readonly string[], ...args: string[]): Promise<FioResult> =>
      this.fio(where, args);
    return {
      steps: [
        {
          row: "seq-write",
          run: async () =>
            rate(await fio(plain, "--rw=write", "--bs=1M", whole, "--end_fsync=1"), "write"),
        },
        {
          row: "seq-read",
          cold: true,
          run: async () => rate(await fio(plain, "--rw=read", "--bs=1M", whole), "read"),
        },
        {
          row: "rand-write",
          run: async () =>
            count(await fio(deep, "--rw=randwrite", "--bs=4k", ...this.timed(20)), "write"),
        },
        {
          row: "rand-fsync",
          run: async () =>
            count(
              await fio(plain, "--rw=randwrite", "--bs=4k", "--fsync=1", ...this.timed(10)),
              "write",
            ),
        },
        {
          row: "rand-read",
          cold: true,
          run: async () =>
            count(
              await fio([...plain, ...direct], "--rw=randread", "--bs=4k", ...this.timed(15)),
              "read",
            ),
        },
        {
          row: "mixed",
          run: async () => {
            const args = ["--rw=randrw", "--rwmixread=70", "--bs=16k", ...this.timed(15)];
            const { read, write } = await this.fio(deep, args);
            return {
              figure: read.operationsPerSecond + write.operationsPerSecond,
              operations: read.operations + write.operations,
            };
          },
        },
      ],
      after: () => this.program("rm", ["-f", path]),
    };
  }

  private block(): Group {
    let device: Awaited<ReturnType<Running["block"]>> | undefined;
    const fio = (...args: string[]): Promise<FioResult> =>
      this.fio(device?.engine ?? [], args, device?.env);
    const whole = `--size=${this.options.sizes.fileMiB}M`;
    const deep = "--iodepth=16";
    return {
      before: async () => (device = await this.system.block()),
      steps: [
        {
          row: "block-write",
          run: async () =>
            rate(
              await fio("--rw=write", "--bs=1M", "--iodepth=8", whole, "--end_fsync=1"),
              "write",
            ),
        },
        {
          row: "block-read",
          cold: true,
          run: async () => rate(await fio("--rw=read", "--bs=1M", "--iodepth=8", whole), "read"),
        },
        {
          row: "block-rand-write",
          run: async () =>
            count(await fio("--rw=randwrite", "--bs=4k", deep, ...this.timed(15)), "write"),
        },
        {
          row: "block-flush",
          run: async () => {
            const args = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"];
            return count(await fio(...args, ...this.timed(10)), "write");
          },
        },
        {
          row: "block-rand-read",
          cold: true,
          run: async () =>
            count(await fio("--rw=randread", "--bs=4k", deep, ...this.timed(10)), "read"),
        },
      ],
    };
  }

  // ---- Small files -----------------------------------------------------------------------------

  private smallFiles(workers: 1 | 4): Group {
    const folder = join(this.folder, `small-${workers}`);
    const { smallFiles } = this.options.sizes;
    const phase = async (name: string): Promise<Measured> => {
      const share = { folder, phase: name, count: smallFiles, workers };
      const { operations, seconds } = await this.scope.within((t) =>
        runSmallFiles(t, { ...share, seconds: SMALL_SECONDS }, PROGRAM_MS),
      );
      return { figure: operations / seconds, operations };
    };
    const before = (): Promise<string> => this.program("mkdir", [folder]);
    const after = (): Promise<string> => this.program("rm", ["-rf", folder]);
    if (workers === 4) {
      return { before, steps: [{ row: "create-4", run: () => phase("create") }], after };
    }
    return {
      before,
      steps: [
        { row: "create-1", run: () => phase("create") },
        { row: "stat", cold: true, run: () => phase("stat") },
        { row: "list", cold: true, run: () => phase("list") },
        { row: "read-small", run: () => phase("read") },
        { row: "delete", run: () => phase("delete") },
      ],
      after,
    };
  }

  private tree(): Group {
    const [unpacked, copied] = [join(this.folder, "t1"), join(this.folder, "t2")];
    const { treeFiles } = this.options.sizes;
    const timed = async (
      operations: number,
      program: string,
      ...args: string[]
    ): Promise<Measured> => ({ figure: await this.seconds(program, args), operations });
    return {
      before: () => this.program("mkdir", [unpacked]),
      steps: [
        {
          row: "untar",
          run: () => timed(treeFiles, "tar", "-C", unpacked, "-xf", this.options.tree),
        },
        {
          row: "copy",
          run: () => timed(treeFiles, "cp", "-r", unpacked, copied),
        },
        {
          row: "remove",
          cold: true,
          check: () => this.program("diff", ["-r", unpacked, copied]),
          run: () => timed(2 * treeFiles, "rm", "-r", unpacked, copied),
        },
      ],
      after: () => this.program("rm", ["-rf", unpacked, copied]),
    };
  }

  private dbench(): Group {
    const folder = join(this.folder, "dbench");
    const seconds = Math.max(2, Math.round(15 * this.options.sizes.scale));
    return {
      before: () => this.program("mkdir", [folder]),
      steps: [
        {
          row: "dbench",
          run: async () => {
            const load = await this.firstFile(DBENCH_LOADS);
            const args = ["-c", load, "-D", folder, "-t", String(seconds), "4"];
            const figure = parseDbench(await this.program("dbench", args));
            return { figure, bytes: figure * 1e6 * seconds };
          },
        },
      ],
      after: () => this.program("rm", ["-rf", folder]),
    };
  }

  private async firstFile(paths: readonly string[]): Promise<string> {
    for (const path of paths) {
      const { code } = await this.scope.within((t) => run(t, "test", ["-f", path]));
      if (code === 0) return path;
    }
    throw new Error(`dbench's load is in none of ${paths.join(", ")}: install the package dbench`);
  }

  // ---- Memory ----------------------------------------------------------------------------------

  private async memory(): Promise<ProcessMemory[]> {
    const processes = await this.system.processes();
    const all = processes.map(({ name, pid, storage }) => {
      return { name, storage, resident: residentBytes(pid), peak: peakResidentBytes(pid) };
    });
    const peaks = all.filter(({ storage }) => storage).map(({ peak }) => peak);
    if (this.options.rows.has("memory") && peaks.length > 0) {
      const cpu = { servers: 0, client: 0, host: 0 };
      this.samples.set("memory", { figure: Math.max(...peaks) / 1e6, cpu });
    }
    return all.map(({ name, resident, peak }) => ({ name, resident, peak }));
  }
}

function rate(result: FioResult, direction: "read" | "write"): Measured {
  const { bytesPerSecond, bytes, operations, p50, p99 } = result[direction];
  return { figure: bytesPerSecond / 1e6, bytes, operations, ...latency(p50, p99) };
}

function count(result: FioResult, direction: "read" | "write"): Measured {
  const { operationsPerSecond, bytes, operations, p50, p99 } = result[direction];
  return { figure: operationsPerSecond, bytes, operations, ...latency(p50, p99) };
}

function latency(p50?: number, p99?: number): { p50?: number; p99?: number } {
  return { ...(p50 !== undefined && { p50 }), ...(p99 !== undefined && { p99 }) };
}

/** MB/s of `Throughput 34.7 MB/sec  4 clients  4 procs  max_latency=44.860 ms`. */
export function parseDbench(text: string): number {
  const found = /^Throughput ([\d.]+) MB\/sec/m.exec(text);
  if (found === null) throw new Error(`dbench reported no throughput: ${text.trim().slice(-300)}`);
  return Number(found[1]);
}

export const rowNamed = (id: RowId): (typeof ROWS)[number] => ROWS.find((row) => row.id === id)!;

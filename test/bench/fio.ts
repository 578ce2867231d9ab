/** Runs fio and reads its JSON: figures of one job group, both directions. */
import { succeed } from "../support/process.js";
import type { Teardown } from "../support/temp.js";

export interface FioDirection {
  readonly bytesPerSecond: number;
  readonly operationsPerSecond: number;
  readonly bytes: number;
  readonly operations: number;
  /** Completion latency in microseconds; undefined where fio measured none. */
  readonly p50?: number;
  readonly p99?: number;
}

export interface FioResult {
  readonly read: FioDirection;
  readonly write: FioDirection;
  /** Processor seconds of fio's own job, without its start. */
  readonly cpuSeconds: number;
}

export class FioError extends Error {}

interface RawDirection {
  bw_bytes?: number;
  iops?: number;
  io_bytes?: number;
  total_ios?: number;
  clat_ns?: { percentile?: Record<string, number> };
}
interface RawJob {
  error?: number;
  read?: RawDirection;
  write?: RawDirection;
  /** Percent of the run time, and that in milliseconds. */
  usr_cpu?: number;
  sys_cpu?: number;
  job_runtime?: number;
}
interface RawOutput {
  jobs?: RawJob[];
}

/** What `--output-format=json --group_reporting` prints; engines print notes before it. */
export function parseFio(text: string): FioResult {
  const start = /^\{/m.exec(text)?.index;
  const end = text.lastIndexOf("}");
  if (start === undefined || end < start) {
    throw new FioError(`fio printed no JSON: ${text.trim().slice(0, 200) || "nothing"}`);
  }
  let raw: RawOutput;
  try {
    raw = JSON.parse(text.slice(start, end + 1)) as RawOutput;
  } catch (cause) {
    throw new FioError("fio printed broken JSON", { cause });
  }
  const [job, ...others] = raw.jobs ?? [];
  if (job === undefined) throw new FioError("fio ran no job");
  if (others.length > 0) throw new FioError("fio reported several jobs: use --group_reporting");
  if (job.error !== undefined && job.error !== 0) {
    throw new FioError(`fio's job ended with error ${job.error}`);
  }
  const { usr_cpu = 0, sys_cpu = 0, job_runtime = 0 } = job;
  const cpuSeconds = ((usr_cpu + sys_cpu) / 100) * (job_runtime / 1000);
  return { read: direction(job.read), write: direction(job.write), cpuSeconds };
}

function direction(raw: RawDirection = {}): FioDirection {
  const micros = (name: string): number | undefined => {
    const ns = raw.clat_ns?.percentile?.[name];
    return ns === undefined ? undefined : ns / 1000;
  };
  const p50 = micros("50.000000");
  const p99 = micros("99.000000");
  return {
    bytesPerSecond: raw.bw_bytes ?? 0,
    operationsPerSecond: raw.iops ?? 0,
    bytes: raw.io_bytes ?? 0,
    operations: raw.total_ios ?? 0,
    ...(p50 !== undefined && { p50 }),
    ...(p99 !== undefined && { p99 }),
  };
}

export interface FioOptions {
  readonly withinMs: number;
  readonly env?: Readonly<Record<string, string>>;
}

/** fio knows an engine's own options only after the engine: `args` begin with it. */
export async function runFio(
  t: Teardown,
  args: readonly string[],
  options: FioOptions,
): Promise<FioResult> {
  const common = ["--name=bench", "--output-format=json", "--group_reporting", "--norandommap"];
  return parseFio(await succeed(t, "fio", [...common, ...args], options));
}

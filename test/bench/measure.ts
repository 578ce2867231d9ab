/** What a benchmark measures besides its own figures: processor time and memory of processes. */
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { execFileSync } from "node:child_process";

/** Ticks a second of /proc/PID/stat; 100 on every Linux that Node runs on. */
const TICKS = 100;

export interface Watched {
  readonly name: string;
  readonly role: string;
  readonly pid: number;
}

/** Seconds of processor time that the process has used, all threads, user and system. */
export function cpuSeconds(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  // The name in parentheses may hold anything; fields are counted from its end.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

function statusBytes(pid: number, field: string): number {
  const text = readFileSync(`/proc/${pid}/status`, "latin1");
  const found = new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(text);
  return Number(found?.[1] ?? 0) * 1024;
}
/** Resident bytes. */
export const residentBytes = (pid: number): number => statusBytes(pid, "VmRSS");
/** Of these, what is not pages of files, which the system drops when it needs room. */
export const anonymousBytes = (pid: number): number => statusBytes(pid, "RssAnon");

/** Seconds used by each role while the action ran. */
export async function withCpu<T>(
  processes: readonly Watched[],
  action: () => Promise<T>,
): Promise<{ value: T; cpu: Record<string, number> }> {
  const before = processes.map(({ pid }) => cpuSeconds(pid));
  const value = await action();
  const cpu: Record<string, number> = {};
  processes.forEach(({ role, pid }, i) => {
    cpu[role] = (cpu[role] ?? 0) + cpuSeconds(pid) - (before[i] ?? 0);
  });
  return { value, cpu };
}

/** The same, and as "rest" what the whole machine was busy with beside these processes. */
export async function withCpuAndRest<T>(
  processes: readonly Watched[],
  action: () => Promise<T>,
): Promise<{ value: T; cpu: Record<string, number> }> {
  const before = hostCpuSeconds();
  const { value, cpu } = await withCpu(processes, action);
  const known = Object.values(cpu).reduce((sum, each) => sum + each, 0);
  // Both are counted in ticks: a little less than nothing may be left.
  const rest = Math.max(0, hostCpuSeconds() - before - known);
  return { value, cpu: { ...cpu, rest } };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

export interface Machine {
  readonly processors: string;
  readonly memoryBytes: number;
  readonly kernel: string;
  readonly node: string;
}

export function describeMachine(): Machine {
  const all = cpus();
  return {
    processors: `${all.length} x ${all[0]?.model.trim() ?? "unknown"}`,
    memoryBytes: totalmem(),
    kernel: release(),
    node: process.version,
  };
}

/** The commit that is measured, with "+" when the tree differs from it; "unknown" without git. */
export function describeCommit(root: string): string {
  try {
    const git = (...args: string[]): string =>
      execFileSync("git", ["-C", root, ...args], { encoding: "utf8", stdio: "pipe" }).trim();
    const changed = git("status", "--porcelain", "--untracked-files=no") !== "";
    return git("rev-parse", "HEAD") + (changed ? "+" : "");
  } catch {
    return "unknown";
  }
}

/** The most that was ever resident. */
export function peakResidentBytes(pid: number): number {
  const found = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"));
  return Number(found?.[1] ?? 0) * 1024;
}

/** Busy processor seconds of the whole machine since it started. */
export function hostCpuSeconds(): number {
  const [, user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = readFileSync(
    "/proc/stat",
    "latin1",
  )
    .split("\n", 1)[0]!
    .split(/ +/)
    .map(Number);
  return (user + nice + system + irq + softirq + steal) / TICKS;
}

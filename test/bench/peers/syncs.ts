/**
 * What a system's storage daemons really sync: strace counts their sync calls while one client does
 * a few hundred writes, up to the moment of its last answer. A system that makes each durable on
 * every copy shows at least as many on each daemon; one that groups them has nothing to group here.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { start, succeed } from "../../support/process.js";
import { tempFolder, waitFor } from "../../support/temp.js";
import type { Scope } from "../../support/scope.js";
import type { SyncCount } from "./report.js";
import type { Running } from "./system.js";

const OPERATIONS = 200;
const CALLS = "fsync,fdatasync,syncfs,sync_file_range,msync";
const PROGRAM_MS = 120_000;

const CASES: readonly { readonly what: string; readonly args: readonly string[] }[] = [
  { what: "4 KiB direct overwrite", args: ["--direct=1"] },
  { what: "4 KiB overwrite + fsync", args: ["--fsync=1"] },
];

export async function countSyncs(parent: Scope, system: Running): Promise<SyncCount[]> {
  const path = join(system.mount, "syncs");
  const fio = async (...args: string[]): Promise<void> => {
    const all = ["--name=syncs", `--filename=${path}`, "--ioengine=psync", "--size=4M", ...args];
    await parent.within((t) => succeed(t, "fio", all, { withinMs: PROGRAM_MS }));
  };
  await fio("--rw=write", "--bs=1M", "--end_fsync=1");
  const counts: SyncCount[] = [];
  for (const { what, args } of CASES) {
    const daemons = await parent.within(async (scope) => {
      const folder = tempFolder(scope, "syncs");
      const traced = (await system.processes()).filter(({ storage }) => storage);
      const tracers = traced.map(({ name, pid }) => {
        const output = join(folder, name);
        const flags = ["-f", "-e", `trace=${CALLS}`, "-o", output, "-p", String(pid)];
        return { name, output, program: start(scope, "strace", flags) };
      });
      for (const { program } of tracers) await program.output(/attached/);
      await settle(tracers.map(({ output }) => output));
      const before = tracers.map(({ output }) => countLines(output));
      await fio("--rw=randwrite", "--bs=4k", `--number_ios=${OPERATIONS}`, ...args);
      const after = tracers.map(({ output }) => countLines(output));
      return Object.fromEntries(tracers.map(({ name }, i) => [name, after[i]! - before[i]!]));
    });
    counts.push({ what, operations: OPERATIONS, daemons });
  }
  return counts;
}

/** Waits until the daemons sync nothing on their own for a second; some never stop entirely. */
async function settle(outputs: readonly string[]): Promise<void> {
  const sum = (): number => outputs.reduce((total, output) => total + countLines(output), 0);
  let last = -1;
  const quiet = (): boolean => {
    const now = sum();
    const same = now === last;
    last = now;
    return same;
  };
  // One that never stops is counted with its own syncs: the figure is an upper bound then.
  await waitFor("no more syncs", quiet, { withinMs: 8_000, everyMs: 1_000 }).catch(() => undefined);
}

function countLines(path: string): number {
  try {
    return parseSyncs(readFileSync(path, "latin1"));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return 0;
    throw error;
  }
}

/** Calls that began; one that another thread interrupted in the log is resumed later, not new. */
export function parseSyncs(log: string): number {
  return log.split("\n").filter((line) => {
    return /^\d+ +(?:[\d.:]+ +)?(?:fsync|fdatasync|syncfs|sync_file_range|msync)\(/.test(line);
  }).length;
}

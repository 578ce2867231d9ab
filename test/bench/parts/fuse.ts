/**
 * FUSE alone: the driver of dss (client-fs/fuse) in a process of its own, on a file system that
 * answers from memory at once. "driver" and "load" are the two processes with what the kernel does
 * for each.
 */
import { join } from "node:path";
import { truncateSync, writeFileSync } from "node:fs";
import { threadPoolSize, unmountPath } from "../../../client-fs/fuse/device.js";
import { start } from "../../support/process.js";
import type { Program } from "../../support/process.js";
import type { Scope } from "../../support/scope.js";
import { tempFolder } from "../../support/temp.js";
import { CREATE, LOOKUP } from "./calls.js";
import { KiB, measureFio, MiB, programOf, runLoad, timed } from "./part.js";
import type { FioRow, Part, Row, Sizes } from "./part.js";

const CALLS: readonly Row[] = [
  { name: `fuse: ${LOOKUP}`, depth: 1 },
  { name: `fuse: ${CREATE}`, depth: 1 },
];

function direct(direction: "read" | "write", depth: number): FioRow {
  const args = ["--ioengine=libaio", "--direct=1", `--iodepth=${depth}`, "--bs=4k"];
  return {
    name: `fuse: direct ${direction} 4 KiB, ${depth} in flight`,
    ...{ direction, depth, bytes: 4 * KiB },
    args: (sizes) => [...args, `--rw=rand${direction}`, ...timed(sizes)],
  };
}

/** fio drops what the kernel holds of the file before it begins. */
export function sequential(what: string, direction: "read" | "write", end: string[] = []): FioRow {
  const args = ["--ioengine=psync", "--bs=1M", `--rw=${direction}`, ...end];
  return {
    name: `${what}: sequential ${direction} 1 MiB`,
    ...{ direction, bytes: MiB },
    args: ({ sequential: size }) => [...args, `--size=${size}`],
  };
}

const FIO: readonly FioRow[] = [
  direct("write", 1),
  direct("write", 16),
  direct("read", 1),
  direct("read", 16),
  sequential("fuse", "write"),
  sequential("fuse", "read"),
];

export const fuse: Part = {
  rows: [...CALLS, ...FIO],
  async measure(scope, rows, sizes) {
    const folder = tempFolder(scope, "fuse");
    const driver = await startDriver(scope, folder);
    const watched = [{ name: "driver", role: "driver", pid: driver.pid }];
    const calls = CALLS.filter((row) => rows.includes(row));
    const order = { where: { folder }, rows: calls, sizes, watched, role: "load" };
    const results = await runLoad(scope, "calls-load", order);
    const load = { place: [`--filename=${makeFile(folder, sizes)}`], watched, role: "load" };
    for (const row of FIO.filter((each) => rows.includes(each))) {
      results.push(await measureFio(scope, row, sizes, load));
    }
    return results;
  },
};

async function startDriver(scope: Scope, folder: string): Promise<Program> {
  // After the driver has ended, which takes its mount away unless it was killed.
  scope.teardown(() => unmountPath(folder, { lazy: true }).catch(() => undefined));
  const program = start(scope, process.execPath, [...programOf("fuse-host"), folder], {
    env: { UV_THREADPOOL_SIZE: String(threadPoolSize()) },
  });
  await program.output(/ready/);
  return program;
}

/** One that has its size, so that fio does not write it first. */
function makeFile(folder: string, sizes: Sizes): string {
  const path = join(folder, "file");
  writeFileSync(path, "");
  truncateSync(path, Math.max(sizes.area, sizes.sequential));
  return path;
}

/**
 * `posix-suite.js --suite DIR [--folder PLACE] [--part N/M] [--record FILE] [FILE…]`: runs test
 * files of a built pjdfstest, as root, on the mount of a cluster of its own, or in PLACE: any
 * folder of any file system, to know what it says there. Prints each file that fails and the
 * counts. Exit code 0: nothing failed.
 */
import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import { startCluster } from "../support/cluster.js";
import { Scope } from "../support/scope.js";
import { describeFigures, type SuiteFigures } from "./posix-steps.js";

/** Some files make a thousand system calls, each in a process of its own. */
const FILE_MS = 600_000;

interface FileResult {
  tests: number;
  excused: number;
  failures: string[];
}

/** Every test file below the folder, sorted. */
function testFiles(folder: string): string[] {
  const found: string[] = [];
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) found.push(...testFiles(path));
    else if (entry.name.endsWith(".t")) found.push(path);
  }
  return found.sort();
}

/** The suite's TAP is flat: a plan and numbered lines. */
function judge(output: string, code: number | null): FileResult {
  const result: FileResult = { tests: 0, excused: 0, failures: [] };
  let planned = -1;
  for (const line of output.split("\n")) {
    const plan = /^1\.\.(\d+)/.exec(line);
    if (plan) planned = Number(plan[1]);
    const match = /^(not )?ok\b(.*)$/.exec(line);
    if (match === null) continue;
    result.tests++;
    if (/# *(todo|skip)/i.test(match[2] ?? "")) result.excused++;
    else if (match[1] !== undefined) result.failures.push(line);
  }
  if (planned < 0 || planned !== result.tests) {
    const plan = planned < 0 ? "no plan" : `${planned} planned`;
    result.failures.push(`${plan}, ${result.tests} seen, exit code ${code ?? "none"}`);
  }
  return result;
}

async function runFile(file: string, folder: string): Promise<FileResult> {
  const child = spawn("/bin/sh", [file], {
    cwd: folder,
    detached: true, // Its own group, so that a file that hangs ends with its children.
    stdio: ["ignore", "pipe", "ignore"],
  });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  const timer = setTimeout(() => process.kill(-child.pid!, "SIGKILL"), FILE_MS);
  const code = await new Promise<number | null>((done, fail) => {
    child.once("error", fail);
    child.once("close", done);
  });
  clearTimeout(timer);
  return judge(Buffer.concat(chunks).toString("latin1"), code);
}

async function runFiles(files: string[], tests: string, place: string): Promise<SuiteFigures> {
  const figures: SuiteFigures = { files: 0, tests: 0, excused: 0, failures: [] };
  for (const file of files) {
    const folder = join(place, `pjd-${process.pid}-${figures.files}`);
    mkdirSync(folder);
    const { tests: count, excused, failures } = await runFile(file, folder);
    const name = relative(tests, file);
    figures.files++;
    figures.tests += count;
    figures.excused += excused;
    figures.failures.push(...failures.map((line) => `${name}: ${line}`));
    console.log(`${failures.length === 0 ? "ok" : "FAILED"} ${name} ${count}`);
    for (const line of failures) console.log(`  ${line}`);
    rmSync(folder, { recursive: true, force: true });
  }
  return figures;
}

const scope = new Scope();
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    suite: { type: "string" },
    folder: { type: "string" },
    part: { type: "string", default: "1/1" },
    record: { type: "string" },
  },
});
const tests = resolve(values.suite ?? "", "tests");
const [part = 1, parts = 1] = values.part.split("/").map(Number);
const named = positionals.map((each) => resolve(tests, each));
const all = named.length > 0 ? named : testFiles(tests);
// Dealt in turn: the long ones are neighbours.
const files = all.filter((_, index) => index % parts === part - 1);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void scope.end().finally(() => process.exit(130)));
}
process.umask(0o022);
try {
  const place = values.folder ?? (await startCluster(scope)).mount;
  const figures = await runFiles(files, tests, resolve(place));
  console.log(describeFigures(figures));
  if (values.record !== undefined) writeFileSync(values.record, JSON.stringify(figures));
  if (figures.failures.length > 0 || figures.tests === 0) process.exitCode = 1;
} finally {
  await scope.end();
}

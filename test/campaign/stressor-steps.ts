/**
 * The campaign `stressors`: programs of others that try a file system hard. Most come with Debian;
 * some are built by people from xfstests and from fuse3 (docs/posix.md) and found in `--suite-dir`,
 * without which their steps are left out. What each counted is kept in a file. The campaign `fsx`
 * is an hour of the one that has found most.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

/** `program`: must be there; `suite`: in the folder of suites. */
export const STRESSORS = {
  "stress-ng": { program: "stress-ng", suite: false },
  dbench: { program: "dbench", suite: false },
  postgres: { program: "/usr/lib/postgresql/*/bin/initdb", suite: false },
  sqlite: { program: "sqlite3", suite: false },
  git: { program: "git", suite: false },
  build: { program: "gcc", suite: false },
  fio: { program: "fio", suite: false },
  fsx: { program: "", suite: true },
  fsstress: { program: "", suite: true },
  syscalls: { program: "", suite: true },
  rwtest: { program: "", suite: true },
  "aio-stress": { program: "", suite: true },
} as const;
export type StressorName = keyof typeof STRESSORS;
const NAMES = Object.keys(STRESSORS) as StressorName[];
export const STRESSOR_STEPS = NAMES.length;

export interface StressorResult {
  good: boolean;
  counts: string;
}

const recordOf = (folder: string, name: string): string => join(folder, `stressors-${name}.json`);

interface StressorStep {
  program: string;
  args: string[];
}

function runOf(
  name: StressorName,
  record: string,
  suites: string,
  more: readonly string[] = [],
): StressorStep {
  rmSync(record, { force: true }); // Of an attempt that failed or was stopped.
  const suite = suites === "" ? [] : ["--suite", suites];
  if (STRESSORS[name].suite && suites === "") {
    return { program: "test/campaign/left-out.js", args: [name] };
  }
  const args = [name, "--record", record, ...suite, ...more];
  return { program: "test/campaign/stressors.js", args };
}

function summaryOf(folder: string, names: readonly string[]): { lines: string[]; good: boolean } {
  const lines: string[] = [];
  let good = true;
  for (const name of names) {
    const path = recordOf(folder, name);
    if (!existsSync(path)) continue;
    const found = JSON.parse(readFileSync(path, "utf8")) as StressorResult;
    lines.push(`${name}: ${found.counts}`);
    good &&= found.good;
  }
  return { lines, good };
}

export function stressorStep(step: number, folder: string, suites: string): StressorStep {
  const name = NAMES[step - 1] ?? "stress-ng";
  return runOf(name, recordOf(folder, name), suites);
}
export const stressorSummary = (folder: string): { lines: string[]; good: boolean } =>
  summaryOf(folder, NAMES);

/** Of five minutes each. */
export const FSX_STEPS = 12;
const FSX_SEEDS = 4;
const fsxRecord = (step: number): string => `fsx-hour-${step}`;

export function fsxStep(step: number, folder: string, suites: string): StressorStep {
  const first = 1_000 + (step - 1) * FSX_SEEDS;
  return runOf("fsx", recordOf(folder, fsxRecord(step)), suites, ["--seed", String(first)]);
}
export const fsxSummary = (folder: string): { lines: string[]; good: boolean } =>
  summaryOf(
    folder,
    Array.from({ length: FSX_STEPS }, (_, index) => fsxRecord(index + 1)),
  );

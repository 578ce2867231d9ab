/**
 * The campaign `stressors`: programs of others that try a file system hard. Most come with Debian;
 * fsx and fsstress are built by people from xfstests (docs/posix.md) and found in `--suite-dir`,
 * without which their steps are left out. What each counted is kept in a file.
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
} as const;
export type StressorName = keyof typeof STRESSORS;
const NAMES = Object.keys(STRESSORS) as StressorName[];
export const STRESSOR_STEPS = NAMES.length;

export interface StressorResult {
  good: boolean;
  counts: string;
}

const recordOf = (folder: string, name: string): string => join(folder, `stressors-${name}.json`);

export function stressorStep(
  step: number,
  folder: string,
  suites: string,
): { program: string; args: string[] } {
  const name = NAMES[step - 1] ?? "stress-ng";
  const record = recordOf(folder, name);
  rmSync(record, { force: true }); // Of an attempt that failed or was stopped.
  const suite = suites === "" ? [] : ["--suite", suites];
  if (STRESSORS[name].suite && suites === "") {
    return { program: "test/campaign/left-out.js", args: [name] };
  }
  return { program: "test/campaign/stressors.js", args: [name, "--record", record, ...suite] };
}

export function stressorSummary(folder: string): { lines: string[]; good: boolean } {
  const lines: string[] = [];
  let good = true;
  for (const name of NAMES) {
    const path = recordOf(folder, name);
    if (!existsSync(path)) continue;
    const found = JSON.parse(readFileSync(path, "utf8")) as StressorResult;
    lines.push(`${name}: ${found.counts}`);
    good &&= found.good;
  }
  return { lines, good };
}

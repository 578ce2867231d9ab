/**
 * The campaign `posix-suite`: pjdfstest, from a folder that people fetch and build themselves
 * (docs/posix.md). Its files are dealt to the steps in turn; what each step counted is kept in one
 * file a step, and added up when all are done.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../support/program.js";

export const POSIX_STEPS = 6;
const SUITE = "pjdfstest";

/** What posix-suite.ts counted. */
export interface SuiteFigures {
  files: number;
  tests: number;
  /** Of the tests: those that the suite itself marks as not to be judged (TODO), or skips. */
  excused: number;
  failures: string[];
}

const recordOf = (folder: string, step: number): string => join(folder, `posix-suite-${step}.json`);

export function posixStep(
  step: number,
  folder: string,
  suites: string,
): { program: string; args: string[] } {
  const suite = join(suites, SUITE);
  if (suites === "" || !existsSync(join(suite, SUITE))) {
    throw new UsageError(
      suites === ""
        ? `name the folder that has ${SUITE}, built, in it: --suite-dir DIR (docs/posix.md)`
        : `${suite} is no built ${SUITE}: see docs/posix.md`,
    );
  }
  const record = recordOf(folder, step);
  // Of an attempt that failed or was stopped.
  rmSync(record, { force: true });
  const part = ["--part", `${step}/${POSIX_STEPS}`];
  return {
    program: "test/campaign/posix-suite.js",
    args: ["--suite", suite, "--record", record, ...part],
  };
}

export function posixSummary(folder: string): { lines: string[]; good: boolean } {
  const total: SuiteFigures = { files: 0, tests: 0, excused: 0, failures: [] };
  for (let step = 1; step <= POSIX_STEPS; step++) {
    const path = recordOf(folder, step);
    if (!existsSync(path)) continue;
    const figures = JSON.parse(readFileSync(path, "utf8")) as SuiteFigures;
    total.files += figures.files;
    total.tests += figures.tests;
    total.excused += figures.excused;
    total.failures.push(...figures.failures);
  }
  return { lines: [describeFigures(total)], good: total.failures.length === 0 };
}

export function describeFigures({ files, tests, excused, failures }: SuiteFigures): string {
  return (
    `${SUITE}: ${files} files, ${tests} tests, ${failures.length} failures` +
    (excused === 0 ? "" : ` (${excused} that the suite excuses are not counted as failures)`)
  );
}

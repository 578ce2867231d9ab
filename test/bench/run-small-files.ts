/** Runs small-files.js, which is a program of its own, and reads what it has done. */
import { BUILD, succeed } from "../support/process.js";
import type { Teardown } from "../support/temp.js";
import type { SmallFilesResult } from "./small-files.js";

export interface SmallFilesRequest {
  readonly folder: string;
  readonly phase: string;
  readonly count: number;
  readonly workers: number;
  /** A worker that is not done by then stops; the program's own default when left out. */
  readonly seconds?: number;
}

export async function runSmallFiles(
  t: Teardown,
  { folder, phase, count, workers, seconds }: SmallFilesRequest,
  withinMs: number,
): Promise<SmallFilesResult> {
  const program = `${BUILD}test/bench/small-files.js`;
  const numbers = [count, workers, ...(seconds === undefined ? [] : [seconds])].map(String);
  const args = [program, folder, phase, ...numbers];
  return JSON.parse(await succeed(t, process.execPath, args, { withinMs })) as SmallFilesResult;
}

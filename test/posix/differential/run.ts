/**
 * Runs a sequence of operations on the file system under test and on the machine's own, each in a
 * process of its own, and compares result by result, then the final state by both ways in. A
 * sequence that shows a difference is shrunk to a few operations.
 */
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Prng } from "../../../cluster/base/prng.js";
import { run } from "../../support/process.js";
import type { Teardown } from "../../support/temp.js";
import { EXECUTOR } from "./executor.js";
import { BEGINNING, Generator, type Operation } from "./operations.js";

export interface Places {
  /** One folder of the file system under test, by two mounts of it. */
  readonly ways: readonly [string, string];
  /** A folder of a local file system, ext4 as a rule. */
  readonly local: string;
}

export interface Difference {
  /** How many operations there were before it. */
  readonly at: number;
  readonly operation: Operation | undefined;
  readonly found: string;
  readonly expected: string;
}

const RUN_MS = 600_000;
/** Runs that shrinking may take. */
const SHRINK_RUNS = 80;
let runs = 0;

export function operationsOf(seed: number, count: number): Operation[] {
  const generator = new Generator(new Prng(seed));
  return [...BEGINNING, ...Array.from({ length: count }, () => generator.next())];
}

/** Nobody's other mounts or runs are in the way: a folder of its own each time. */
async function execute(
  t: Teardown,
  ways: readonly string[],
  operations: readonly Operation[],
  list: string,
): Promise<string[]> {
  writeFileSync(list, JSON.stringify(operations));
  const { code, signal, stdout, stderr } = await run(
    t,
    "python3",
    ["-c", EXECUTOR, ways[0]!, ways[1]!, list],
    { withinMs: RUN_MS },
  );
  if (code !== 0) throw new Error(`executor: ${signal ?? code}\n${stderr.slice(-2_000)}`);
  return stdout.trimEnd().split("\n");
}

/** What another mount has moved may be out of reach for a moment (docs/posix.md). */
async function removeTree(folder: string): Promise<void> {
  for (let left = 100; ; left--) {
    try {
      return rmSync(folder, { recursive: true, force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESTALE" || left === 0) throw error;
    }
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** The first difference, or undefined. */
export async function compare(
  t: Teardown,
  places: Places,
  operations: readonly Operation[],
): Promise<Difference | undefined> {
  const name = `run-${process.pid}-${++runs}`;
  const ways = places.ways.map((way) => join(way, name));
  const local = join(places.local, name);
  const lists = [`${local}.dss.json`, `${local}.json`] as const;
  mkdirSync(ways[0]!);
  mkdirSync(local);
  chmodSync(places.local, 0o755); // Other users come here too.
  for (const folder of [ways[0]!, local]) chmodSync(folder, 0o777);
  const [found, expected] = await Promise.all([
    execute(t, ways, operations, lists[0]),
    execute(t, [local, local], operations, lists[1]),
  ]);
  let difference: Difference | undefined;
  const length = Math.max(found.length, expected.length);
  for (let at = 0; at < length && difference === undefined; at++) {
    if (found[at] === expected[at]) continue;
    const pair = { found: found[at] ?? "nothing", expected: expected[at] ?? "nothing" };
    difference = { at, operation: operations[at], ...pair };
  }
  for (const folder of [ways[0]!, local]) await removeTree(folder);
  for (const list of lists) rmSync(list, { force: true });
  return difference;
}

/** As short as a few dozen runs make it: ever smaller pieces go while it still differs. */
export async function shrink(
  t: Teardown,
  places: Places,
  operations: readonly Operation[],
  first: Difference,
): Promise<{ operations: Operation[]; difference: Difference }> {
  let left = operations.slice(0, first.at + 1);
  let difference = first;
  let budget = SHRINK_RUNS;
  for (let piece = Math.ceil(left.length / 2); piece >= 1; piece = Math.floor(piece / 2)) {
    for (let at = Math.max(0, left.length - 1 - piece); at >= 0 && budget > 0;) {
      const without = [...left.slice(0, at), ...left.slice(at + piece)];
      budget--;
      const still = await compare(t, places, without);
      if (still !== undefined) {
        left = without.slice(0, still.at + 1);
        difference = still;
        at = Math.min(at, left.length) - piece;
      } else at -= piece;
    }
  }
  return { operations: left, difference };
}

export function describeDifference(
  seed: number,
  { operations, difference }: { operations: readonly Operation[]; difference: Difference },
): string {
  const { at, found, expected } = difference;
  return (
    `seed ${seed}: operation ${at} gives ${found}, locally ${expected}\n` +
    operations.map((each) => `  ${JSON.stringify(each)},`).join("\n")
  );
}

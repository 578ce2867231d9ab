/**
 * POSIX semantics on any folder: each scenario in a child process, with a deadline, so that a file
 * system that hangs fails a test and not the run.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { BUILD, run } from "../support/process.js";
import { DATA } from "./data.js";
import { NAMES } from "./names.js";
import { OWNERS } from "./owners.js";
import type { WorkerRequest } from "./worker.js";

export interface Place {
  /** Folder of the file system under test; exists, is writable and below a mount that stays. */
  readonly folder: string;
  /** Folder of the machine's own file system. */
  readonly local: string;
  readonly scale: number;
  /** Forgets every cached byte of the file system under test (remount). */
  readonly cold?: () => Promise<void>;
}

const SCENARIO_MS = 90_000;
const SLOW_MS = 5_000;

async function work(t: Test, request: WorkerRequest): Promise<void> {
  const start = performance.now();
  const { code, stderr, signal } = await run(
    t,
    process.execPath,
    ["--enable-source-maps", `${BUILD}test/posix/worker.js`, JSON.stringify(request)],
    { withinMs: SCENARIO_MS },
  );
  t.equal(code, 0, stderr.trim().slice(0, 4_000) || (signal ?? request.scenario));
  const ms = performance.now() - start;
  if (ms > SLOW_MS) t.comment(`took ${(ms / 1000).toFixed(1)} s`);
}

export async function posixSuite(t: Test, place: Place): Promise<void> {
  let number = 0;
  const groups = { names: NAMES, owners: OWNERS, data: DATA };
  for (const [group, scenarios] of Object.entries(groups)) {
    await t.test(`POSIX ${group}`, async (t) => {
      for (const scenario of Object.keys(scenarios)) {
        await t.test(scenario, async (t) => {
          const root = join(place.folder, `posix-${number++}`);
          mkdirSync(root);
          await work(t, {
            scenario,
            root,
            local: place.local,
            seed: 1,
            scale: place.scale,
            clean: true,
          });
        });
      }
    });
  }
}

/** Random operations for each seed; then, with cold caches, every byte once more. */
export async function randomSuite(
  t: Test,
  place: Place,
  { seeds, count }: { seeds: readonly number[]; count: number },
): Promise<void> {
  await t.test("random operations beside a local file", async (t) => {
    const request = (scenario: string, seed: number): WorkerRequest => {
      const root = join(place.folder, `random-${seed}`);
      const common = { scenario, root, local: place.local, seed, count };
      return { ...common, scale: place.scale, clean: scenario !== "random operations" };
    };
    for (const seed of seeds) {
      mkdirSync(join(place.folder, `random-${seed}`));
      await t.test(`seed ${seed}`, (t) => work(t, request("random operations", seed)));
    }
    await place.cold?.();
    for (const seed of seeds) {
      await t.test(`seed ${seed}, read back`, (t) => work(t, request("compare with twin", seed)));
    }
  });
}

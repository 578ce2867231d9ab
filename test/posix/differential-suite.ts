/**
 * Random sequences of operations through two mounts of one file system, beside a local one: no
 * result and no final state may differ (test/posix/differential). `npm run campaign differential`
 * runs 100,000 operations.
 */
import type { Test } from "tap";
import {
  compare,
  describeDifference,
  operationsOf,
  shrink,
  type Places,
} from "./differential/run.js";
import { KEPT } from "./differential/kept.js";

export async function differentialSuite(
  t: Test,
  places: Places,
  { seeds, length }: { seeds: readonly number[]; length: number },
): Promise<void> {
  for (const [name, operations] of Object.entries(KEPT)) {
    await t.test(name, async (t) => {
      const difference = await compare(t, places, operations);
      const described = difference && describeDifference(0, { operations, difference });
      t.equal(described, undefined);
    });
  }
  for (const seed of seeds) {
    await t.test(`seed ${seed}`, async (t) => {
      const operations = operationsOf(seed, length);
      const difference = await compare(t, places, operations);
      if (difference === undefined) return;
      t.fail(describeDifference(seed, await shrink(t, places, operations, difference)));
    });
  }
}

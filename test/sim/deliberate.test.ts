/**
 * The proof that the simulator can fail: every deliberate fault is found within a few seeds, far
 * fewer than is allowed here (docs/simulator.md has the figures).
 */
import t from "tap";
import { NO_FAULTS, type Faults } from "../../cluster/base/faults.js";
import { FOUND_BY, seedsToFind } from "./deliberate.js";

const SEEDS_MAX = 60;

for (const fault of Object.keys(NO_FAULTS) as (keyof Faults)[]) {
  t.test(`${fault} is found`, async (t) => {
    const found = await seedsToFind(fault, { first: 1, seeds: SEEDS_MAX });
    t.ok(found !== undefined, `within ${SEEDS_MAX} seeds of ${FOUND_BY[fault]}`);
    t.comment(`${fault}: ${found?.needed} seeds of ${FOUND_BY[fault]}: ${found?.seen}`);
  });
}

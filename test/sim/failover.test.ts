/**
 * Fixed seeds of the failover scenarios, and the proof that they can fail: every deliberate fault
 * is found within a bounded number of seeds (docs/simulator.md has the table).
 */
import t from "tap";
import { NO_FAULTS, type Faults } from "../../osd/core/faults.js";
import { FOUND_BY, seedsToFind } from "./deliberate.js";
import { explain } from "./scenario-base.js";
import { runScenario, type Scenario } from "./scenarios.js";

const SEEDS = 5;
const SEEDS_TO_FIND = 60;

for (const scenario of ["failover", "thin"] satisfies Scenario[]) {
  t.test(`${scenario}: fixed seeds`, async (t) => {
    let faults = 0;
    for (let seed = 1; seed <= SEEDS; seed++) {
      try {
        faults += (await runScenario(scenario, seed)).faults;
        t.pass(`seed ${seed}`);
      } catch (error) {
        const again = `npm run test:sim -- --seed ${seed} --seeds 1 --scenario ${scenario}`;
        t.fail(`seed ${seed}: ${explain(error)}; ${again}`);
      }
    }
    t.ok(faults > 10 * SEEDS, `${faults} faults`);
  });
}

t.test("a run is a pure function of its seed", async (t) => {
  t.same(await runScenario("failover", 4711), await runScenario("failover", 4711));
});

t.test("every deliberate fault is found", async (t) => {
  for (const fault of Object.keys(NO_FAULTS) as (keyof Faults)[]) {
    const { scenario, seed: first } = FOUND_BY[fault];
    const found = await seedsToFind(fault, { first, seeds: SEEDS_TO_FIND });
    t.ok(found !== undefined, `${fault} by ${scenario}`);
    t.comment(`${fault}: ${found?.needed} seeds from ${first}: ${found?.seen}`);
  }
});

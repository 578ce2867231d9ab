/** Fixed seeds of the scenarios on whole clusters. */
import t from "tap";
import { explain } from "./scenario-base.js";
import { runScenario, SCENARIOS } from "./scenarios.js";

const SEEDS = 2;

// The writer has a file of its own.
for (const scenario of SCENARIOS.filter((name) => name !== "writer")) {
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
    t.ok(faults >= 3 * SEEDS, `${faults} faults`);
  });
}

t.test("a run is a pure function of its seed", async (t) => {
  t.same(await runScenario("failover", 4711), await runScenario("failover", 4711));
});

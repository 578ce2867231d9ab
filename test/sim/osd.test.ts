/**
 * Fixed seeds of the simulated OSD cluster: message delay and loss, crashes with lost and torn
 * writes.
 */
import t from "tap";
import { runOsdScenario } from "./osd-scenario.js";
import { explain } from "./scenario-base.js";
import { memoryDisk, simulatedDisk } from "./stores.js";

const SEEDS = 20;

t.test("seeds on file stores over simulated disks", async (t) => {
  let crashes = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      const result = await runOsdScenario({ seed, disk: simulatedDisk, operations: 500 });
      crashes += result.osdCrashes + result.clientCrashes;
      t.ok(result.operations >= 500, `seed ${seed}`);
    } catch (error) {
      t.fail(`seed ${seed}: ${explain(error)}; npm run test:sim -- --seed ${seed} --seeds 1`);
    }
  }
  t.ok(crashes > SEEDS, `${crashes} crashes`);
});

t.test("a run is a pure function of its seed", async (t) => {
  const run = (): Promise<object> =>
    runOsdScenario({ seed: 4711, disk: simulatedDisk, operations: 100 });
  t.same(await run(), await run());
});

t.test("the in-memory store behaves as the file store does", async (t) => {
  for (let seed = 100; seed < 105; seed++) {
    const result = await runOsdScenario({ seed, disk: memoryDisk, operations: 500 });
    t.ok(result.operations >= 500, `seed ${seed}`);
  }
});

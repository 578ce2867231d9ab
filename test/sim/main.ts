/**
 * `npm run test:sim -- --seed N --seeds COUNT --minutes M`: runs seeds of the simulator one after the other, until COUNT
 * are done or the time is over. A failing seed is printed with the command that repeats it.
 */
import { parseArgs } from "node:util";
import { explain, runOsdScenario } from "./osd-scenario.js";
import { simulatedDisk } from "./stores.js";

const OPERATIONS = 400;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      seeds: { type: "string", default: "20" },
      minutes: { type: "string", default: "60" },
    },
  });
  const [first, count, minutes] = [values.seed, values.seeds, values.minutes].map(Number);
  if (![first, count, minutes].every((value) => Number.isFinite(value) && value! >= 0)) {
    process.stderr.write("test:sim: --seed, --seeds and --minutes take numbers\n");
    return 2;
  }
  const end = Date.now() + minutes! * 60_000;
  let [done, operations, simulatedMs, crashes] = [0, 0, 0, 0];
  for (let seed = first!; seed < first! + count! && Date.now() < end; seed++) {
    try {
      const result = await runOsdScenario({ seed, disk: simulatedDisk, operations: OPERATIONS });
      operations += result.operations;
      simulatedMs += result.simulatedMs;
      crashes += result.osdCrashes + result.clientCrashes;
      done++;
    } catch (error) {
      process.stdout.write(`seed ${seed} failed: ${explain(error)}\n`);
      process.stdout.write(`again: npm run test:sim -- --seed ${seed} --seeds 1\n`);
      if (error instanceof Error) process.stdout.write(`${error.stack}\n`);
      return 1;
    }
  }
  const hours = (simulatedMs / 3_600_000).toFixed(2);
  process.stdout.write(
    `${done} seeds from ${first} passed: ${hours} simulated hours, ` +
      `${operations} operations, ${crashes} crashes\n`,
  );
  return 0;
}

process.exitCode = await main();

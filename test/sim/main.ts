/**
 * `npm run test:sim -- --seed N --seeds COUNT --minutes M [--scenario NAME] [--rotate]
 * [--fault NAME] [--log]`: runs seeds of the simulator one after the other, until COUNT are done or
 * the time is over: each in all scenarios, or with --rotate in one of them, in turn. A failing seed
 * is printed with the command that repeats it. With a deliberate fault (cluster/base/faults.ts) the
 * run is meant to fail, and tells how many seeds it took.
 */
import { parseArgs } from "node:util";
import { createLogger } from "../../cluster/platform/pino-log.js";
import { injectFault, NO_FAULTS, type Faults } from "../../cluster/base/faults.js";
import { explain } from "./scenario-base.js";
import { runScenario, SCENARIOS } from "./scenarios.js";

/** A failed assertion in a callback of a daemon, which would stop that daemon. */
let onBug: (error: unknown) => void = () => undefined;
process.on("unhandledRejection", (error) => {
  onBug(error);
  process.exit(1);
});

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      seeds: { type: "string", default: "20" },
      minutes: { type: "string", default: "60" },
      scenario: { type: "string" },
      rotate: { type: "boolean", default: false },
      fault: { type: "string" },
      log: { type: "boolean", default: false },
    },
  });
  const [first, count, minutes] = [values.seed, values.seeds, values.minutes].map(Number);
  if (![first, count, minutes].every((value) => Number.isFinite(value) && value! >= 0)) {
    return refuse("--seed, --seeds and --minutes take numbers");
  }
  const scenarios = SCENARIOS.filter((name) => (values.scenario ?? name) === name);
  if (scenarios.length === 0) return refuse(`scenarios are ${SCENARIOS.join(", ")}`);
  const { fault } = values;
  if (fault !== undefined && !(fault in NO_FAULTS)) {
    return refuse(`faults are ${Object.keys(NO_FAULTS).join(", ")}`);
  }
  injectFault(fault as keyof Faults | undefined);

  const logger = values.log ? createLogger({ level: "debug" }) : undefined;
  const end = Date.now() + minutes! * 60_000;
  const sum = { seeds: 0, operations: 0, simulatedMs: 0, faults: 0 };
  for (let seed = first!; seed < first! + count! && Date.now() < end; seed++) {
    const turn = scenarios[seed % scenarios.length]!;
    for (const scenario of values.rotate ? [turn] : scenarios) {
      const again = (error: unknown): void => report({ scenario, seed, fault, error });
      onBug = again;
      try {
        const result = await runScenario(scenario, seed, logger);
        sum.operations += result.operations;
        sum.simulatedMs += result.simulatedMs;
        sum.faults += result.faults;
      } catch (error) {
        again(error);
        return 1;
      }
    }
    sum.seeds++;
  }
  const hours = (sum.simulatedMs / 3_600_000).toFixed(2);
  process.stdout.write(
    `${sum.seeds} seeds from ${first} passed (${scenarios.join(", ")}): ` +
      `${hours} simulated hours, ${sum.operations} operations, ${sum.faults} faults\n`,
  );
  return 0;
}

function report(failed: {
  scenario: string;
  seed: number;
  fault: string | undefined;
  error: unknown;
}): void {
  const { scenario, seed, fault, error } = failed;
  const options = `--scenario ${scenario}${fault === undefined ? "" : ` --fault ${fault}`}`;
  process.stdout.write(`${scenario} seed ${seed} failed: ${explain(error)}\n`);
  process.stdout.write(`again: npm run test:sim -- --seed ${seed} --seeds 1 ${options}\n`);
  if (error instanceof Error) process.stdout.write(`${error.stack}\n`);
}

function refuse(why: string): number {
  process.stderr.write(`test:sim: ${why}\n`);
  return 2;
}

process.exitCode = await main();

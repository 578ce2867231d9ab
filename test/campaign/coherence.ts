/**
 * One step of the campaign `coherence`, as a program: `coherence.js --seed N [--rounds COUNT
 * --pairs COUNT --only KIND --calm --record FILE] [--folder A --second B]`. Rounds of
 * test/posix/coherence on two mounts of a cluster of its own. Unless `--calm`, the leading metadata
 * server is killed (`kill -9`) at one moment and both processes of a third mount, which holds
 * capabilities and locks, at another; the rounds go on meanwhile. With `--folder` (and `--second`),
 * calm rounds in a folder that is there already. Prints what was counted. Exit code 0: no stale
 * result, no error.
 */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Prng } from "../../cluster/base/prng.js";
import { describeCounts, KINDS, runRounds, type KindName } from "../posix/coherence/run.js";
import { startCluster } from "../support/cluster.js";
import { endWithProcess, Scope } from "../support/scope.js";
import { clientKill, leaderKill, type Violence } from "./coherence-violence.js";
import type { CoherenceFigures } from "./coherence-steps.js";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    rounds: { type: "string", default: "1000" },
    pairs: { type: "string", default: "4" },
    only: { type: "string" },
    calm: { type: "boolean", default: false },
    record: { type: "string" },
    folder: { type: "string" },
    second: { type: "string" },
  },
});
const [seed, rounds, pairs] = [values.seed, values.rounds, values.pairs].map(Number) as [
  number,
  number,
  number,
];
const scope = new Scope();
endWithProcess(scope);
let logs = (): string => "";

/** Begins each at its round, and waits for all of them in the end. */
class Schedule {
  private readonly begun: Promise<void>[] = [];

  constructor(private readonly plan: { at: number; name: string; action: Violence }[]) {}

  onRound(done: number): void {
    for (const { action, name } of this.plan.filter(({ at }) => at === done)) {
      console.log(`${name} after ${done} rounds`);
      const under = action();
      under.catch(() => undefined); // Thrown where it is waited for.
      this.begun.push(under);
    }
  }
  async end(): Promise<void> {
    await Promise.all(this.begun);
  }
}

async function main(): Promise<CoherenceFigures> {
  const only = values.only as KindName | undefined;
  if (only !== undefined && !(only in KINDS)) {
    throw new Error(`no kind "${only}"; there are: ${Object.keys(KINDS).join(", ")}`);
  }
  const common = { seed, rounds, pairs, ...(only === undefined ? {} : { only }) };
  if (values.folder !== undefined) {
    const mounts = [values.folder, values.second ?? values.folder] as const;
    const counts = await runRounds(scope, { ...common, mounts });
    return { ...counts, failovers: 0, kills: 0 };
  }
  const cluster = await startCluster(scope);
  logs = () => cluster.logTails(25);
  const mounts = [cluster.mount, await cluster.mountAgain("second")] as const;
  if (values.calm) {
    return { ...(await runRounds(scope, { ...common, mounts })), failovers: 0, kills: 0 };
  }
  const random = new Prng(seed);
  const folder = { cluster, mounts, seed, pairs, random };
  const around = (part: number): number => Math.ceil(rounds * (part + random.float() * 0.1));
  const schedule = new Schedule([
    { at: around(0.25), name: "the leader is killed", action: leaderKill(folder) },
    { at: around(0.6), name: "a client is killed", action: await clientKill(scope, folder) },
  ]);
  const counts = await runRounds(scope, {
    ...common,
    mounts,
    onRound: (done) => schedule.onRound(done),
  });
  await schedule.end();
  await cluster.healthy();
  return { ...counts, failovers: 1, kills: 1 };
}

try {
  const begin = performance.now();
  const figures = await main();
  const seconds = (performance.now() - begin) / 1000;
  for (const [kind, count] of Object.entries(figures.rounds).sort())
    console.log(
      `${kind}: ${count}, ${Math.round((figures.milliseconds[kind] ?? 0) / count)} ms each`,
    );
  console.log(
    `seed ${seed}: ${describeCounts(figures)}; ${figures.failovers} failovers, ` +
      `${figures.kills} clients killed; ${seconds.toFixed(1)} s`,
  );
  if (values.record !== undefined) writeFileSync(values.record, JSON.stringify(figures));
} catch (error) {
  const calm = values.calm ? " --calm" : "";
  console.log(`${logs()}\n${(error as Error).message}`);
  console.log(
    `again: node dist/test/campaign/coherence.js --seed ${seed} --rounds ${rounds} ` +
      `--pairs ${pairs}${calm}${values.only === undefined ? "" : ` --only "${values.only}"`}`,
  );
  process.exitCode = 1;
} finally {
  await scope.end();
}

/**
 * `differential.js --seed N [--seeds COUNT --length L] [--folder A --second B]`: random sequences
 * of operations through two mounts of a cluster of its own (or through A and B, one folder by two
 * mounts) and on a local file system, compared; differences are printed when they are found, and
 * again when all seeds have run, shrunk. Exit code 0: there is none.
 */
import { chmodSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import {
  compare,
  describeDifference,
  operationsOf,
  shrink,
  type Difference,
  type Places,
} from "../posix/differential/run.js";
import type { Operation } from "../posix/differential/operations.js";
import { startCluster } from "../support/cluster.js";
import { tempFolder } from "../support/temp.js";
import { Scope } from "../support/scope.js";

/** Sequences that run at a time, each in a folder of its own: most of it is waiting. */
const LANES = 20;
const scope = new Scope();
async function clusterWays(): Promise<[string, string]> {
  const cluster = await startCluster(scope);
  const second = await cluster.mountAgain("second");
  const ways: [string, string] = [join(cluster.mount, "d"), join(second, "d")];
  // Other users come here too.
  for (const folder of [cluster.folder, dirname(cluster.mount), dirname(second)]) {
    chmodSync(folder, 0o755);
  }
  mkdirSync(ways[0]);
  return ways;
}

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string", default: "1" },
    length: { type: "string", default: "500" },
    folder: { type: "string" },
    second: { type: "string" },
  },
});
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void scope.end().finally(() => process.exit(130)));
}
try {
  const { folder, second = folder } = values;
  const ways: [string, string] = folder ? [folder, second!] : await clusterWays();
  const places: Places = { ways, local: tempFolder(scope, "local") };
  const [first, seeds, length] = [values.seed, values.seeds, values.length].map(Number);
  let operations = 0;
  const differing: { seed: number; sequence: Operation[]; difference: Difference }[] = [];
  const left = Array.from({ length: seeds! }, (_, index) => first! + index);
  const lane = async (): Promise<void> => {
    for (let seed = left.shift(); seed !== undefined; seed = left.shift()) {
      const sequence = operationsOf(seed, length!);
      const difference = await compare(scope, places, sequence);
      operations += difference?.at ?? sequence.length;
      if (difference === undefined) continue;
      const { at, found, expected } = difference;
      console.log(`seed ${seed}: operation ${at} gives ${found}, locally ${expected}`);
      differing.push({ seed, sequence, difference });
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  for (const { seed, sequence, difference } of differing) {
    process.exitCode = 1;
    const small = await shrink(scope, places, sequence, difference);
    console.log(describeDifference(seed, small));
  }
  console.log(`${operations} operations compared, seeds from ${first}`);
} finally {
  await scope.end();
}

/**
 * One step of a soak, as a program: `soak.js random|fio SEED` on a cluster of its own. `random`:
 * random operations on the mount beside a local file. `fio`: fio writes and verifies on the mount
 * and on a volume while one OSD after the other is killed and comes back. Exit code 0: it holds.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Prng } from "../../cluster/base/prng.js";
import type { WorkerRequest } from "../posix/worker.js";
import { startCluster } from "../support/cluster.js";
import type { Cluster } from "../support/cluster.js";
import { BUILD, succeed } from "../support/process.js";
import { tempFolder } from "../support/temp.js";
import { Scope } from "../support/scope.js";
import { verifyWithFio } from "./fio-load.js";

const STEP_MS = 300_000;
const OPERATIONS = 8_000;
const FIO_SECONDS = 60;
/** Between the death of one OSD and the next: it comes back and catches up meanwhile. */
const KILL_EVERY_MS = 12_000;

const soak = new Scope();

async function randomOperations(cluster: Cluster, seed: number): Promise<void> {
  const root = join(cluster.mount, "random");
  mkdirSync(root);
  const local = tempFolder(soak, "local");
  const request = { root, local, seed, scale: 1, count: OPERATIONS, clean: false };
  const work = async (scenario: string): Promise<void> => {
    const document: WorkerRequest = { scenario, ...request };
    await succeed(
      soak,
      process.execPath,
      [`${BUILD}test/posix/worker.js`, JSON.stringify(document)],
      { withinMs: STEP_MS },
    );
  };
  await work("random operations");
  await cluster.remount();
  await work("compare with twin");
}

async function fioUnderFailures(cluster: Cluster, seed: number): Promise<void> {
  const random = new Prng(seed);
  const { server, socket } = await cluster.serve("soak", 2 ** 30);
  const load = { seed, seconds: FIO_SECONDS, mib: 192, fsyncEvery: 128, withinMs: STEP_MS };
  const volume = ["--ioengine=nbd", `--uri=nbd+unix:///soak?socket=${socket}`, "--iodepth=16"];
  let running = true;
  const loads = Promise.all([
    verifyWithFio(soak, load, [`--directory=${cluster.mount}`, "--ioengine=psync"]),
    verifyWithFio(soak, load, volume),
  ]).finally(() => (running = false));
  // What the loads throw is thrown below; a kill that fails meanwhile must not hide it.
  loads.catch(() => undefined);
  await new Promise((done) => setTimeout(done, KILL_EVERY_MS / 2));
  while (running) {
    const osd = random.pick(await cluster.processes("osd"));
    await cluster.kill([osd.pid]);
    await new Promise((done) => setTimeout(done, random.int(500, KILL_EVERY_MS / 2)));
    await cluster.up();
    await cluster.healthy(120_000);
    if (running) await new Promise((done) => setTimeout(done, KILL_EVERY_MS / 2));
  }
  await loads;
  await server.stop();
}

const [kind = "", seedText = "1"] = process.argv.slice(2);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => void soak.end().finally(() => process.exit(130)));
}
try {
  const cluster = await startCluster(soak);
  if (kind === "random") await randomOperations(cluster, Number(seedText));
  else if (kind === "fio") await fioUnderFailures(cluster, Number(seedText));
  else throw new Error(`no soak "${kind}"`);
  await cluster.healthy();
} finally {
  await soak.end();
}

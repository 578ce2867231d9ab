/**
 * Volumes against a model in memory (test/support/volume-model.ts) while OSDs are killed. The
 * campaign `volume-model` runs it longer: DSS_MODEL_OPERATIONS, DSS_MODEL_SEED, DSS_MODEL_KILL_EVERY.
 */
import t from "tap";
import { startCluster } from "../../support/cluster.js";
import { OsdKiller, VolumeModel } from "../../support/volume-model.js";

const number = (name: string, standard: number): number => Number(process.env[name] ?? standard);
const SEED = number("DSS_MODEL_SEED", 1);
const OPERATIONS = number("DSS_MODEL_OPERATIONS", 400);
const KILL_EVERY = number("DSS_MODEL_KILL_EVERY", 300);

t.setTimeout(number("TAP_TIMEOUT", 300) * 1_000);

t.test(`seed ${SEED}: ${OPERATIONS} operations on volumes equal the model's`, async (t) => {
  const cluster = await startCluster(t);
  const model = await VolumeModel.open(cluster, SEED);
  const killer = new OsdKiller(cluster, model.random.fork(), KILL_EVERY);
  await model.run(OPERATIONS, (done) => killer.at(done));
  await model.verify();
  t.ok(killer.kills > 0, `${killer.kills} OSDs were killed`);
  t.comment(JSON.stringify(Object.fromEntries(model.counts)));
  await model.close();
});

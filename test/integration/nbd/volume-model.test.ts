/**
 * Volumes against a model in memory (test/support/volume-model.ts) while OSDs are killed. The
 * campaign `volume-model` runs it longer, by DSS_MODEL_OPERATIONS, DSS_MODEL_SEED and
 * DSS_MODEL_KILL_EVERY.
 */
import { hostname } from "node:os";
import t from "tap";
import { silentLogger } from "../../../cluster/base/log.js";
import type { Prng } from "../../../cluster/base/prng.js";
import { loadConfig } from "../../../cluster/config/load.js";
import { nodePlatform } from "../../../cluster/platform/node.js";
import { connectCluster } from "../../../mds/client/cluster-session.js";
import { VolumeDirectory } from "../../../nbd/volume-directory.js";
import { Objecter } from "../../../osd/client/objecter.js";
import { startCluster, type Cluster } from "../../support/cluster.js";
import { VolumeModel } from "../../support/volume-model.js";

const KIB = 1024;
const number = (name: string, standard: number): number => Number(process.env[name] ?? standard);
const SEED = number("DSS_MODEL_SEED", 1);
const OPERATIONS = number("DSS_MODEL_OPERATIONS", 300);
const KILL_EVERY = number("DSS_MODEL_KILL_EVERY", 300);

t.setTimeout(number("TAP_TIMEOUT", 300) * 1_000);

/** Kills an OSD now and then and starts it again later; never two at a time. */
class OsdKiller {
  private dead = false;
  private next: number;
  kills = 0;

  constructor(
    private readonly cluster: Cluster,
    private readonly random: Prng,
    private readonly every: number,
  ) {
    this.next = Math.ceil(every / 4);
  }

  async at(done: number): Promise<void> {
    if (done < this.next) return;
    this.next = done + Math.ceil(this.every / 2);
    if (this.dead) {
      await this.cluster.up();
      await this.cluster.healthy();
    } else {
      const osds = await this.cluster.processes("osd");
      await this.cluster.kill([this.random.pick(osds).pid]);
      this.kills++;
    }
    this.dead = !this.dead;
  }
}

/** A client of the cluster in this process. */
async function connect(cluster: Cluster) {
  const { zookeeper } = await cluster.status();
  const session = await connectCluster({
    ...{ platform: nodePlatform, zookeeper, config: loadConfig(), logger: silentLogger },
    ...{ type: "library", instance: "", host: hostname(), detail: "volume model" },
  });
  const { clock, random } = nodePlatform;
  const { messenger, maps, mds } = session;
  await mds.open(60_000);
  const directory = new VolumeDirectory({
    ...{ mds, clock, names: [], readOnly: false },
    onLost: (error) => {
      throw error;
    },
    accessAs: (id) =>
      new Objecter({
        ...{ messenger, maps, clock, random, logger: silentLogger, client: () => id },
      }),
  });
  return { session, directory };
}

t.test(`seed ${SEED}: ${OPERATIONS} operations on volumes equal the model's`, async (t) => {
  const cluster = await startCluster(t);
  const { session, directory } = await connect(cluster);
  const model = new VolumeModel({
    ...{ mds: session.mds, directory, seed: SEED },
    ...{ sizeMax: 6 * KIB * KIB, requestMax: 200 * KIB, objectSize: 256 * KIB },
    pause: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  });
  const killer = new OsdKiller(cluster, model.random.fork(), KILL_EVERY);
  await model.run(OPERATIONS, (done) => killer.at(done));
  await model.verify();
  t.ok(killer.kills > 0, `${killer.kills} OSDs were killed`);
  t.comment(JSON.stringify(Object.fromEntries(model.counts)));
  await model.close();
  directory.shutDown();
  await session.close();
});

/**
 * Volumes, snapshots and clones over NBD against a model in memory (test/support/volume-model.ts)
 * while OSDs are killed. The
 * campaign `volume-model` runs it longer, by DSS_MODEL_OPERATIONS, DSS_MODEL_SEED and
 * DSS_MODEL_KILL_EVERY.
 */
import { hostname } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { silentLogger } from "../../../cluster/base/log.js";
import type { Prng } from "../../../cluster/base/prng.js";
import { loadConfig } from "../../../cluster/config/load.js";
import { nodePlatform } from "../../../cluster/platform/node.js";
import { connectCluster } from "../../../mds/client/cluster-session.js";
import { startCluster, type Cluster } from "../../support/cluster.js";
import { NbdDisks } from "../../support/nbd-disks.js";
import { VolumeModel } from "../../support/volume-model.js";
import { DiffModel } from "../../support/volume-model-diffs.js";
import { SnapshotModel } from "../../support/volume-model-snapshots.js";

const KIB = 1024;
const number = (name: string, standard: number): number => Number(process.env[name] ?? standard);
const SEED = number("DSS_MODEL_SEED", 1);
const OPERATIONS = number("DSS_MODEL_OPERATIONS", 300);
const KILL_EVERY = number("DSS_MODEL_KILL_EVERY", 300);
/** Every difference is several commands: they are for the campaign, and for diffs.test.ts. */
const WITH_DIFFS = OPERATIONS >= 1_000;
/** All that is there is compared after so many operations. */
const VERIFY_EVERY = 500;

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

/** A session with the metadata leader in this process. */
async function connect(t: Test, cluster: Cluster) {
  const { zookeeper } = await cluster.status();
  const session = await connectCluster({
    ...{ platform: nodePlatform, zookeeper, config: loadConfig(), logger: silentLogger },
    ...{ type: "library", instance: "", host: hostname(), detail: "volume model" },
  });
  // Also after a failure: it would keep the process alive.
  t.teardown(() => session.close());
  await session.mds.open(60_000);
  return session;
}

t.test(`seed ${SEED}: ${OPERATIONS} operations on volumes equal the model's`, async (t) => {
  const cluster = await startCluster(t);
  const session = await connect(t, cluster);
  const socket = join(cluster.folder, "nbd.sock");
  const server = cluster.start(["volume", "serve", "--unix", socket]);
  await server.output(/nbd\+unix:\S+/);
  const model = new VolumeModel({
    ...{ mds: session.mds, disks: new NbdDisks(socket, session.mds), seed: SEED },
    ...{ sizeMax: 6 * KIB * KIB, requestMax: 200 * KIB, objectSize: 256 * KIB, volumesMax: 6 },
    pause: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  });
  const snapshots = new SnapshotModel(model);
  if (WITH_DIFFS) new DiffModel(model, snapshots, cluster);
  const killer = new OsdKiller(cluster, model.random.fork(), KILL_EVERY);
  let verified = 0;
  await model.run(OPERATIONS, async (done) => {
    await killer.at(done);
    if (done < verified + VERIFY_EVERY) return;
    verified = done;
    await snapshots.verify();
    await model.verify();
  });
  await snapshots.verify();
  await model.verify();
  t.ok(killer.kills > 0, `${killer.kills} OSDs were killed`);
  t.comment(JSON.stringify(Object.fromEntries(model.counts)));
  await model.close();
  await server.stop();
});

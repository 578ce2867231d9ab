/**
 * A client's volumes against a model in memory (test/support/volume-model.ts) while OSDs and
 * metadata servers crash and connections break: every byte and every hole is right, sizes and names
 * are the model's, shrinking survives its leader, and copies are equal at the end.
 */
import { strict as assert } from "node:assert";
import type { Logger } from "../../cluster/base/log.js";
import { VolumeDirectory } from "../../nbd/volume-directory.js";
import { Objecter } from "../../osd/client/objecter.js";
import { DirectDisks } from "../support/direct-disks.js";
import { VolumeModel } from "../support/volume-model.js";
import { SnapshotModel } from "../support/volume-model-snapshots.js";
import { ClusterWorld, type DiskFactory } from "./cluster-world.js";
import { CLEAN_WITHIN_MS, ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

const OSDS = 4;
const MDSS = 2;
const KIB = 1024;

export interface VolumesOptions {
  seed: number;
  disk: DiskFactory;
  operations: number;
  logger?: Logger;
}
export interface VolumesResult {
  simulatedMs: number;
  operations: number;
  faults: number;
}

export async function runVolumesScenario(options: VolumesOptions): Promise<VolumesResult> {
  const scenario = new VolumesScenario(options);
  try {
    return await scenario.run();
  } catch (error) {
    if (error instanceof Error) error.message += `\n${scenario.world.describe()}`;
    throw error;
  }
}

class VolumesScenario extends ScenarioBase {
  private faults = 0;
  private isOver = false;
  /** Down at the moment: one at a time leaves every group two members. */
  private down: number | undefined;

  constructor(private readonly options: VolumesOptions) {
    super(
      new ClusterWorld({
        seed: options.seed,
        osds: OSDS,
        mdss: MDSS,
        disk: options.disk,
        settings: { "client.requestDeadlineMs": 600_000 },
        ...(options.logger === undefined ? {} : { logger: options.logger }),
      }),
    );
  }

  async run(): Promise<VolumesResult> {
    const { world, options } = this;
    await this.begin();
    const client = await this.settled(world.startClient(), 60_000, "no client");
    // Who has a volume open changes no snapshots of it in the same session.
    const admin = await this.settled(world.startClient(), 60_000, "no second client");
    const { messenger, maps, mds, clock, logger } = client;
    const chance = this.random.fork();
    const directory = new VolumeDirectory({
      ...{ mds, clock, names: [], readOnly: false },
      onLost: (error) => this.fail(`the client was evicted: ${error.message}`),
      accessAs: (id) =>
        new Objecter({
          ...{ messenger, maps, clock, logger, client: () => id, attemptDeadlineMs: 3_000 },
          random: chance,
        }),
    });
    const model = new VolumeModel({
      ...{ mds: admin.mds, disks: new DirectDisks(directory), seed: options.seed },
      ...{ sizeMax: 1_024 * KIB, requestMax: 96 * KIB, objectSize: 64 * KIB },
      pause: (ms) => this.pause(ms),
    });
    const snapshots = new SnapshotModel(model);
    const work = model.run(options.operations, () => this.pause(this.random.float() * 500));
    this.guard(this.strike());
    await this.settled(work, WORK_WITHIN_MS, "the work never ended");
    this.isOver = true;
    world.heal();
    for (let id = 0; id < OSDS; id++) world.startOsd(id);
    for (let id = 0; id < MDSS; id++) world.startMds(id);
    await this.until(() => world.allClean(), CLEAN_WITHIN_MS, "the PGs did not become clean");
    await this.settled(model.verify(), CLEAN_WITHIN_MS, "the volumes could not be read at the end");
    await this.settled(snapshots.verify(), CLEAN_WITHIN_MS, "the snapshots could not be read");
    await this.settled(this.purged(client), CLEAN_WITHIN_MS, "deleted data were never freed");
    this.checkReplicas();
    await this.settled(this.checkBlocks(), CLEAN_WITHIN_MS, "the copies could not be read");
    assert.ok((model.counts.get("burst") ?? 0) > 0);
    return { simulatedMs: world.clock.now, operations: options.operations, faults: this.faults };
  }

  private async purged(client: Awaited<ReturnType<ClusterWorld["startClient"]>>): Promise<void> {
    for (;;) {
      const { answer } = await client.mds.call({ op: "volumeList" });
      if (answer.volumePurges?.length === 0) return;
      await this.pause(100);
    }
  }

  private async strike(): Promise<void> {
    const { world, random } = this;
    while (!this.isOver) {
      await this.pause(500 + random.float() * 4_000);
      if (this.isOver) return;
      this.faults++;
      const roll = random.float();
      if (roll < 0.55 && this.down === undefined) {
        const osd = random.int(0, OSDS - 1);
        this.down = osd;
        world.crashOsd(osd);
        world.clock.schedule(random.float() * 5_000, () => world.startOsd(osd));
        world.clock.schedule(6_000, () => (this.down = undefined));
      } else if (roll < 0.85) {
        const mds = world.leader?.id ?? 0;
        world.crashMds(mds);
        world.clock.schedule(random.float() * 2_000, () => world.startMds(mds));
      } else {
        const host = random.pick([...world.clients]).host.name;
        world.cut(host, `osd.${random.int(0, OSDS - 1)}`, 1_500, "both");
      }
    }
  }
}

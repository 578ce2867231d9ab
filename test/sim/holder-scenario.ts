/**
 * Snapshots of a volume that is being written, under crashes of OSDs and metadata servers: an image
 * as the NBD server has it writes stamped blocks, several at once, while another client takes and
 * removes snapshots. What was answered before a snapshot was asked for is in it, nothing that began
 * after its answer is, and its bytes never change.
 */
import { strict as assert } from "node:assert";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { isDssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import { VolumeDirectory } from "../../nbd/volume-directory.js";
import { Objecter } from "../../osd/client/objecter.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "./cluster-world.js";
import { ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

const OSDS = 3;
const WRITERS = 4;
const BLOCKS = 12;
/** Blocks of the volume are this far apart, so that most are in objects of their own. */
const APART = 3 * 1024 * 1024;
const NAME = "disk";
const SNAPSHOTS_MAX = 4;

interface Write {
  block: number;
  value: number;
  begun: number;
  answered: number;
}
interface Taken {
  name: string;
  asked: number;
  answered: number;
  /** The value of each block, as it was read first. */
  values: number[] | undefined;
}

export async function runHolderScenario(options: {
  seed: number;
  disk: DiskFactory;
  snapshots: number;
  logger?: Logger;
}): Promise<{ simulatedMs: number; operations: number; faults: number }> {
  const { seed, disk, logger } = options;
  // Nobody is evicted here: a holder gives back what is recalled when its writes have ended, which
  // may take as long as several OSDs that crash one after the other.
  const settings = { "mds.sessionLeaseMs": 15_000, "mds.recallTimeoutMs": 15_000 };
  const world = new ClusterWorld({ seed, osds: OSDS, disk, settings, ...(logger && { logger }) });
  return new Scenario(world, options.snapshots).run();
}

class Scenario extends ScenarioBase {
  private readonly writes: Write[] = [];
  private readonly taken: Taken[] = [];
  private directory!: VolumeDirectory;
  private other!: SimClient;
  private value = 0;
  private faults = 0;
  private faultsOn = true;
  private isWriting = true;

  constructor(
    world: ClusterWorld,
    private readonly snapshots: number,
  ) {
    super(world);
  }

  async run(): Promise<{ simulatedMs: number; operations: number; faults: number }> {
    const { world } = this;
    await this.begin();
    const writer = await this.settled(world.startClient(), 60_000, "no session");
    this.other = await this.settled(world.startClient(), 60_000, "no session");
    world.network.faults = {
      delayMs: { min: 0.05, max: this.random.pick([0.2, 1, 5]) },
      loss: this.random.pick([0, 0.0005]),
    };
    this.directory = this.directoryOf(writer);
    let isOver = false;
    this.guard(this.work().then(() => void (isOver = true)));
    await this.until(() => isOver, WORK_WITHIN_MS, "the work never ended");
    const operations = this.writes.length;
    return { simulatedMs: world.clock.now, operations, faults: this.faults };
  }

  private directoryOf({ messenger, maps, clock, logger, mds }: SimClient): VolumeDirectory {
    const prng = this.random.fork();
    const random = { u32: () => prng.u32(), bytes: (length: number) => prng.bytes(length) };
    return new VolumeDirectory({
      ...{ mds, clock, names: [], readOnly: false },
      accessAs: (id) => new Objecter({ messenger, maps, clock, random, logger, client: () => id }),
      onLost: (error) => this.fail(`the volume was lost: ${error.message}`),
    });
  }

  private async work(): Promise<void> {
    const actor = { uid: 0, gid: 0, timeNs: 1n };
    const size = BLOCKS * APART;
    await this.safely({ op: "volumeCreate", name: NAME, size, pool: "", actor });
    this.scheduleFault();
    const image = await this.directory.open(NAME);
    const writers = Array.from({ length: WRITERS }, async (_, index) => {
      while (this.isWriting) {
        // Each has blocks of its own.
        const block = index + WRITERS * this.random.int(0, BLOCKS / WRITERS - 1);
        const write = { block, value: ++this.value, begun: this.now(), answered: Infinity };
        this.writes.push(write);
        const data = Buffer.alloc(BLOCK_SIZE);
        data.writeUInt32LE(write.value);
        await image.write(block * APART, data);
        write.answered = this.now();
        if (this.random.chance(0.5)) await this.pause(this.random.float() * 60);
      }
    });
    await this.takeSnapshots();
    this.faultsOn = false;
    this.isWriting = false;
    await Promise.all(writers);
    for (const taken of this.taken) await this.look(taken);
    for (const { name: snapshot } of this.taken) {
      await this.safely({ op: "volumeSnapRemove", name: NAME, snapshot });
    }
    await this.directory.close(image);
  }

  private async takeSnapshots(): Promise<void> {
    for (let count = 1; count <= this.snapshots; count++) {
      await this.pause(this.random.float() * 1_500);
      const taken: Taken = { name: `s${count}`, asked: this.now(), answered: 0, values: undefined };
      const actor = { uid: 0, gid: 0, timeNs: 1n };
      await this.safely({ op: "volumeSnapCreate", name: NAME, snapshot: taken.name, actor });
      taken.answered = this.now();
      this.taken.push(taken);
      await this.look(this.random.pick(this.taken));
      if (this.taken.length > SNAPSHOTS_MAX || this.random.chance(0.3)) {
        const [{ name: snapshot }] = this.taken.splice(
          this.random.int(0, this.taken.length - 1),
          1,
        ) as [Taken];
        await this.safely({ op: "volumeSnapRemove", name: NAME, snapshot });
      }
    }
  }

  /** Reads the snapshot and judges it. */
  private async look(taken: Taken): Promise<void> {
    const image = await this.directory.open(`${NAME}@${taken.name}`);
    const values: number[] = [];
    for (let block = 0; block < BLOCKS; block++) {
      const data = Buffer.concat(await image.read(block * APART, BLOCK_SIZE));
      values.push(data.readUInt32LE(0));
    }
    await this.directory.close(image);
    if (taken.values !== undefined) {
      assert.deepEqual(values, taken.values, `snapshot ${taken.name} has changed`);
      return;
    }
    taken.values = values;
    values.forEach((value, block) => {
      const history = this.writes.filter((write) => write.block === block);
      const before = history.filter(({ answered }) => answered < taken.asked).length;
      const until = history.filter(({ begun }) => begun <= taken.answered).length;
      const place = history.findIndex((write) => write.value === value) + 1;
      const where = `snapshot ${taken.name}, block ${block}: write ${place} of ${history.length}`;
      assert.ok(place >= before, `${where}: ${before} had been answered before`);
      assert.ok(place <= until, `${where}: only ${until} had begun`);
    });
  }

  /** Commands are repeated until they are done; what was done already counts. */
  private async safely(request: Parameters<SimClient["mds"]["call"]>[0]): Promise<void> {
    try {
      await this.other.mds.call(request, { wait: "safe" });
    } catch (error) {
      if (!isDssError(error, "TimedOut")) throw error;
      const again = this.safely(request);
      await again.catch((reason: unknown) => {
        if (!isDssError(reason, "Exists") && !isDssError(reason, "NotFound")) throw reason;
      });
    }
  }

  private scheduleFault(): void {
    this.world.clock.schedule(this.random.float() * 2_500, () => {
      if (!this.faultsOn) return;
      this.faults++;
      const ms = 10 + this.random.float() * 1_500;
      if (this.random.chance(0.5)) {
        const id = this.random.int(0, OSDS - 1);
        this.world.crashOsd(id);
        this.world.clock.schedule(ms, () => this.world.startOsd(id));
      } else {
        const id = this.world.leader?.id ?? 0;
        this.world.crashMds(id);
        this.world.clock.schedule(ms, () => this.world.startMds(id));
      }
      this.scheduleFault();
    });
  }
  private now(): number {
    return this.world.clock.now;
  }
}

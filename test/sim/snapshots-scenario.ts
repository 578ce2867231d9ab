/**
 * Snapshots under crashes and failovers: one writer changes the objects of a volume, takes
 * snapshots, returns to them and removes them. A snapshot's bytes never change and are the volume's
 * at that instant; of a removed one nothing is left; replicas are equal in the end, clones
 * included.
 */
import { strict as assert } from "node:assert";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { Logger } from "../../cluster/base/log.js";
import { allPgs } from "../../cluster/map/cluster-map.js";
import { cloneIdOf } from "../../cluster/base/object-name.js";
import { Objecter } from "../../osd/client/objecter.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "./cluster-world.js";
import { ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

const OBJECTS = 6;
const OBJECT_BLOCKS = 10;
const OBJECT_BYTES = OBJECT_BLOCKS * BLOCK_SIZE;
const OSDS = 4;
const POOL = 1;
const SNAPSHOTS_MAX = 5;

/** Undefined: the object does not exist. */
type Content = Buffer | undefined;

export interface SnapshotsResult {
  simulatedMs: number;
  operations: number;
  snapshots: number;
  faults: number;
}

export async function runSnapshotsScenario(options: {
  seed: number;
  disk: DiskFactory;
  operations: number;
  logger?: Logger;
}): Promise<SnapshotsResult> {
  const { seed, disk, logger } = options;
  const world = new ClusterWorld({ seed, osds: OSDS, disk, ...(logger && { logger }) });
  return new Scenario(world, options.operations).run();
}

class Scenario extends ScenarioBase {
  private readonly contents: Content[] = Array.from({ length: OBJECTS }, () => undefined);
  private readonly snapshots = new Map<number, Content[]>();
  private seq = 0;
  private taken = 0;
  private objects!: Objecter;
  private done = 0;
  private faults = 0;
  private faultsOn = true;

  constructor(
    world: ClusterWorld,
    private readonly operations: number,
  ) {
    super(world);
  }

  async run(): Promise<SnapshotsResult> {
    const { world } = this;
    await this.begin();
    this.objects = this.objecterOf(await this.settled(world.startClient(), 60_000, "no session"));
    world.network.faults = {
      delayMs: { min: 0.05, max: this.random.pick([0.2, 1, 5]) },
      loss: this.random.pick([0, 0.0005, 0.002]),
    };
    this.scheduleFault();
    let isOver = false;
    this.guard(this.work().then(() => void (isOver = true)));
    await this.until(() => isOver, WORK_WITHIN_MS, "the work never ended");
    await this.heal();
    let isChecked = false;
    this.guard(this.finalCheck().then(() => void (isChecked = true)));
    await this.until(() => isChecked, 600_000, "the end could not be checked");
    await this.until(() => world.allClean(), 900_000, "the cluster did not become whole");
    this.checkReplicas();
    this.checkNothingLeft();
    await this.settled(this.checkBlocks(), 600_000, "the blocks could not be checked");
    return {
      ...{ simulatedMs: world.clock.now, operations: this.done },
      ...{ snapshots: this.taken, faults: this.faults },
    };
  }

  private objecterOf({ messenger, maps, clock, logger, mds }: SimClient): Objecter {
    const prng = this.random.fork();
    return new Objecter({
      ...{ messenger, maps, clock, logger, client: () => mds.client },
      random: { u32: () => prng.u32(), bytes: (length) => prng.bytes(length) },
      attemptDeadlineMs: 3_000,
    });
  }

  private scheduleFault(): void {
    this.world.clock.schedule(this.random.float() * 3_000, () => {
      if (!this.faultsOn) return;
      const ids = this.random.chance(0.15) ? [0, 1, 2, 3] : [this.random.int(0, OSDS - 1)];
      for (const id of ids) {
        if (!this.world.running.has(id)) continue;
        this.faults++;
        this.world.crashOsd(id);
        const ms = 10 + this.random.float() * this.random.pick([500, 4_000]);
        this.world.clock.schedule(ms, () => this.world.startOsd(id));
      }
      this.scheduleFault();
    });
  }
  private async heal(): Promise<void> {
    this.faultsOn = false;
    this.world.network.faults = { delayMs: { min: 0.05, max: 0.2 }, loss: 0 };
    const all = (): boolean => this.world.running.size === OSDS && this.world.allActive();
    await this.until(all, 600_000, "the PGs did not become active again after healing");
  }

  // ——— Work: rounds of changes at once, and between them what needs a moment of rest ———

  private async work(): Promise<void> {
    while (this.done < this.operations) {
      await Promise.all(this.contents.map((_, index) => this.changeSome(index)));
      const dice = this.random.float();
      if (dice < 0.45) this.takeSnapshot();
      else if (dice < 0.6) await this.removeSnapshot();
      else if (dice < 0.7) await this.rollback();
      if (this.random.chance(0.3)) await this.pause(this.random.float() * 1_000);
    }
  }

  private async changeSome(index: number): Promise<void> {
    for (let left = this.random.int(0, 4); left > 0; left--) {
      this.done++;
      const dice = this.random.float();
      if (dice < 0.55) await this.write(index);
      else if (dice < 0.65) await this.zero(index);
      else if (dice < 0.75) await this.remove(index);
      else if (dice < 0.8) await this.writeIfAbsent(index);
      else await this.check(index, this.anySnapshot());
    }
  }

  private async write(index: number): Promise<void> {
    const offset = this.random.int(0, OBJECT_BYTES - 1);
    const bytes = this.random.bytes(this.random.int(1, OBJECT_BYTES - offset));
    await this.objects.write(this.address(index), offset, [bytes], this.stamped());
    const data = grown(this.contents[index], offset + bytes.length);
    bytes.copy(data, offset);
    this.contents[index] = data;
  }
  private async writeIfAbsent(index: number): Promise<void> {
    const bytes = this.random.bytes(this.random.int(1, OBJECT_BYTES));
    const options = { ...this.stamped(), ifAbsent: true };
    await this.objects.write(this.address(index), 0, [bytes], options);
    this.contents[index] ??= bytes;
  }
  private async zero(index: number): Promise<void> {
    const offset = this.random.int(0, OBJECT_BYTES - 1);
    const length = this.random.int(1, OBJECT_BYTES - offset);
    await this.objects.zero(this.address(index), offset, length, this.stamped());
    const data = this.contents[index];
    if (data === undefined) return;
    const end = Math.min(offset + length, data.length);
    const changed = Buffer.from(data);
    if (end > offset) changed.fill(0, offset, end);
    this.contents[index] = changed;
  }
  private async remove(index: number): Promise<void> {
    const whiteout = this.snapshots.size > 0;
    const options = { ...this.access(), unconditional: true, whiteout };
    await this.objects.remove(this.address(index), options);
    const isThere = this.contents[index] !== undefined;
    this.contents[index] = whiteout && isThere ? Buffer.alloc(0) : undefined;
  }

  // ——— Snapshots; nothing is under way ———

  private takeSnapshot(): void {
    if (this.snapshots.size >= SNAPSHOTS_MAX) return;
    this.taken++;
    this.seq += this.random.int(1, 2);
    this.snapshots.set(this.seq, [...this.contents]);
  }
  private async removeSnapshot(): Promise<void> {
    const snap = this.anySnapshot();
    if (snap === 0) return;
    this.snapshots.delete(snap);
    await this.trimClones();
  }
  /** As the metadata server does it; a repetition is harmless. */
  private async trimClones(): Promise<void> {
    const live = [...this.snapshots.keys()];
    const options = { ...this.access(), unconditional: true };
    for (let index = 0; index < OBJECTS; index++) {
      const address = this.address(index);
      const { clones } = await this.objects.stat(address, this.access());
      for (const { id, from } of clones) {
        if (live.some((snap) => snap > from && snap <= id)) continue;
        const object = `${address.object}#${id.toString(16).padStart(8, "0")}`;
        await this.objects.remove({ ...address, object }, options);
      }
    }
  }
  private async rollback(): Promise<void> {
    const snap = this.anySnapshot();
    if (snap === 0) return;
    await Promise.all(
      this.contents.map((_, index) =>
        this.objects.rollback(this.address(index), snap, this.stamped()),
      ),
    );
    this.contents.splice(0, OBJECTS, ...this.snapshots.get(snap)!);
  }

  // ——— Checks ———

  private async check(index: number, snap: number): Promise<void> {
    const expected = snap === 0 ? this.contents[index] : this.snapshots.get(snap)![index];
    const options = { ...this.access(), snap };
    const read = await this.objects.read(this.address(index), 0, OBJECT_BYTES, options);
    const where = `object ${index} at snapshot ${snap}`;
    assert.equal(read.exists, expected !== undefined, `${where}: exists`);
    if (expected === undefined) return;
    assert.equal(read.size, expected.length, `${where}: size`);
    assert.ok(Buffer.from(read.data).equals(expected), `${where}: other bytes`);
  }
  private async finalCheck(): Promise<void> {
    for (const snap of [0, ...this.snapshots.keys()]) {
      for (let index = 0; index < OBJECTS; index++) await this.check(index, snap);
    }
    this.snapshots.clear();
    await this.trimClones();
    for (let index = 0; index < OBJECTS; index++) await this.check(index, 0);
  }
  private checkNothingLeft(): void {
    for (const { pg, entry } of allPgs(this.world.map)) {
      for (const osd of entry.inSync) {
        const { store } = this.world.running.get(osd)!;
        const clones = store.list(pg, "", 1_000).filter((row) => cloneIdOf(row.object));
        assert.equal(clones.length, 0, `osd.${osd} has clones of snapshots that are gone`);
      }
    }
  }

  private anySnapshot(): number {
    return this.random.pick([0, ...this.snapshots.keys()]);
  }
  private address(index: number): { pool: number; object: string } {
    return { pool: POOL, object: `v1.${index.toString(16)}` };
  }
  private access() {
    const newest = Math.max(0, ...this.snapshots.keys());
    const snapshots = { seq: this.seq, newest };
    return { truncation: { seq: 0, size: 0 }, minEpoch: 0, snapshots };
  }
  private stamped() {
    return { ...this.access(), mtimeNs: 1n };
  }
}

function grown(content: Content, size: number): Buffer {
  const data = Buffer.alloc(Math.max(content?.length ?? 0, size));
  content?.copy(data);
  return data;
}

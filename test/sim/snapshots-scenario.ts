/**
 * Snapshots and clones under crashes and failovers: one writer changes the objects of volumes,
 * takes snapshots, returns to them and removes them, clones volumes from snapshots (of clones too),
 * shrinks their objects and makes them independent. A snapshot's bytes never change and are the
 * volume's at that instant; a clone begins with them and neither changes the other; of what was
 * removed nothing is left; replicas are equal in the end, snapshots included.
 */
import { strict as assert } from "node:assert";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import type { Logger } from "../../cluster/base/log.js";
import { allPgs } from "../../cluster/map/cluster-map.js";
import { cloneIdOf, clonePrefix, objectName } from "../../cluster/base/object-name.js";
import { ANY_SNAPSHOTS } from "../../osd/client/object-access.js";
import { Objecter } from "../../osd/client/objecter.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "./cluster-world.js";
import { ScenarioBase, WORK_WITHIN_MS } from "./scenario-base.js";

const OBJECTS = 6;
const OBJECT_BLOCKS = 10;
const OBJECT_BYTES = OBJECT_BLOCKS * BLOCK_SIZE;
const OSDS = 4;
const POOL = 1;
const SNAPSHOTS_MAX = 5;
const VOLUMES_MAX = 4;

/** Undefined: the object does not exist, not by a parent either. */
type Content = Buffer | undefined;

class ModelVolume {
  /** What was cloned begins as its parent's snapshot. */
  readonly contents: Content[];
  readonly snapshots = new Map<number, Content[]>();
  seq = 0;
  readonly prefix: string;

  constructor(
    readonly id: number,
    public parent?: { volume: ModelVolume; snap: number },
  ) {
    const begin = parent?.volume.snapshots.get(parent.snap);
    this.contents = begin ? [...begin] : Array.from({ length: OBJECTS }, () => undefined);
    this.prefix = parent === undefined ? `v${id}` : clonePrefix(parent.volume.prefix, id);
  }

  parentsOf(index: number): { object: string; snap: number }[] {
    if (this.parent === undefined) return [];
    const { volume, snap } = this.parent;
    return [{ object: objectName(volume.prefix, index), snap }, ...volume.parentsOf(index)];
  }
}

export interface SnapshotsResult {
  simulatedMs: number;
  operations: number;
  snapshots: number;
  clones: number;
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
  private readonly volumes = [new ModelVolume(1)];
  private nextVolume = 2;
  private taken = 0;
  private cloned = 0;
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
      ...{ snapshots: this.taken, clones: this.cloned, faults: this.faults },
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
      // Not every object: those of a clone with snapshots shall be its parent's for a while.
      await this.onEach(async (volume, index) => {
        if (this.random.chance(0.4)) await this.changeSome(volume, index);
      });
      const dice = this.random.float();
      const volume = this.random.pick(this.volumes);
      if (dice < 0.4) this.takeSnapshot(volume);
      else if (dice < 0.5) await this.removeSnapshot(volume);
      else if (dice < 0.58) await this.rollback(volume);
      else if (dice < 0.7) this.clone(volume);
      else if (dice < 0.75) await this.flatten(volume);
      else if (dice < 0.8) await this.removeVolume(volume);
      if (this.random.chance(0.3)) await this.pause(this.random.float() * 1_000);
    }
  }
  private async onEach(act: (volume: ModelVolume, index: number) => Promise<void>): Promise<void> {
    const every = this.volumes.flatMap((volume) => volume.contents.map((_, i) => act(volume, i)));
    await Promise.all(every);
  }

  private async changeSome(volume: ModelVolume, index: number): Promise<void> {
    for (let left = this.random.int(0, 4); left > 0; left--) {
      this.done++;
      const dice = this.random.float();
      if (dice < 0.5) await this.write(volume, index);
      else if (dice < 0.6) await this.zero(volume, index);
      else if (dice < 0.68) await this.remove(volume, index);
      else if (dice < 0.73) await this.truncate(volume, index);
      else if (dice < 0.78) await this.writeIfAbsent(volume, index);
      else await this.check(volume, index, this.anySnapshot(volume));
    }
  }

  private async write(volume: ModelVolume, index: number): Promise<void> {
    const isWhole = this.random.chance(0.1);
    const offset = isWhole ? 0 : this.random.int(0, OBJECT_BYTES - 1);
    const length = isWhole ? OBJECT_BYTES : this.random.int(1, OBJECT_BYTES - offset);
    const bytes = this.random.bytes(length);
    await this.objects.write(address(volume, index), offset, [bytes], stamped(volume, index));
    const data = grown(volume.contents[index], offset + bytes.length);
    bytes.copy(data, offset);
    volume.contents[index] = data;
  }
  private async writeIfAbsent(volume: ModelVolume, index: number): Promise<void> {
    const bytes = this.random.bytes(this.random.int(1, OBJECT_BYTES));
    const options = { ...stamped(volume, index), ifAbsent: true };
    await this.objects.write(address(volume, index), 0, [bytes], options);
    volume.contents[index] ??= bytes;
  }
  private async zero(volume: ModelVolume, index: number): Promise<void> {
    const offset = this.random.int(0, OBJECT_BYTES - 1);
    const length = this.random.int(1, OBJECT_BYTES - offset);
    await this.objects.zero(address(volume, index), offset, length, stamped(volume, index));
    const data = volume.contents[index];
    if (data === undefined) return;
    const end = Math.min(offset + length, data.length);
    const changed = Buffer.from(data);
    if (end > offset) changed.fill(0, offset, end);
    volume.contents[index] = changed;
  }
  private async remove(volume: ModelVolume, index: number): Promise<void> {
    const whiteout = volume.snapshots.size > 0 || volume.id !== 1;
    const options = { ...stamped(volume, index), unconditional: true, whiteout };
    await this.objects.remove(address(volume, index), options);
    const isThere = volume.contents[index] !== undefined;
    volume.contents[index] = whiteout && isThere ? Buffer.alloc(0) : undefined;
  }
  private async truncate(volume: ModelVolume, index: number): Promise<void> {
    const size = this.random.int(0, OBJECT_BYTES);
    const found = await this.objects.stat(address(volume, index), stamped(volume, index));
    assert.equal(found.size, volume.contents[index]?.length ?? 0, `object ${index}: size`);
    if (found.size <= size) return;
    await this.objects.truncate(address(volume, index), size, stamped(volume, index));
    volume.contents[index] = Buffer.from(volume.contents[index]!.subarray(0, size));
  }

  // ——— Snapshots and clones; nothing is under way ———

  private takeSnapshot(volume: ModelVolume): void {
    if (volume.snapshots.size >= SNAPSHOTS_MAX) return;
    this.taken++;
    volume.seq += this.random.int(1, 2);
    volume.snapshots.set(volume.seq, [...volume.contents]);
  }
  private async removeSnapshot(volume: ModelVolume): Promise<void> {
    const snap = this.anySnapshot(volume);
    if (snap === 0 || this.childrenOf(volume).some((child) => child.parent?.snap === snap)) return;
    volume.snapshots.delete(snap);
    await this.trimClones(volume);
  }
  /** As the metadata server does it; a repetition is harmless. */
  private async trimClones(volume: ModelVolume): Promise<void> {
    const live = [...volume.snapshots.keys()];
    const options = { ...NO_SNAPSHOTS, unconditional: true };
    for (let index = 0; index < OBJECTS; index++) {
      const head = address(volume, index);
      const { clones } = await this.objects.stat(head, NO_SNAPSHOTS);
      for (const { id, from } of clones) {
        if (live.some((snap) => snap > from && snap <= id)) continue;
        const object = `${head.object}#${id.toString(16).padStart(8, "0")}`;
        await this.objects.remove({ ...head, object }, options);
      }
    }
  }
  private async rollback(volume: ModelVolume): Promise<void> {
    const snap = this.anySnapshot(volume);
    if (snap === 0) return;
    const then = volume.snapshots.get(snap)!;
    await Promise.all(
      volume.contents.map(async (_, index) => {
        const { exists, clones } = await this.objects.stat(address(volume, index), NO_SNAPSHOTS);
        if (!exists && clones.length === 0) return; // The parent's, then and now.
        const options = { ...stamped(volume, index), parents: [] };
        await this.objects.rollback(address(volume, index), snap, options);
      }),
    );
    volume.contents.splice(0, OBJECTS, ...then);
  }
  private clone(volume: ModelVolume): void {
    const snap = this.anySnapshot(volume);
    if (snap === 0 || this.volumes.length >= VOLUMES_MAX) return;
    this.cloned++;
    this.volumes.push(new ModelVolume(this.nextVolume++, { volume, snap }));
  }
  private async flatten(volume: ModelVolume): Promise<void> {
    if (volume.parent === undefined) return;
    await Promise.all(
      volume.contents.map(async (_, index) => {
        // The volume is in use meanwhile.
        if (this.random.chance(0.3)) await this.changeSome(volume, index);
        const { snapshots: _none, ...options } = stamped(volume, index);
        await this.objects.copyUp(address(volume, index), options);
        if (this.random.chance(0.3)) await this.changeSome(volume, index);
      }),
    );
    delete volume.parent;
  }
  private async removeVolume(volume: ModelVolume): Promise<void> {
    if (volume.id === 1 || this.childrenOf(volume).length > 0) return;
    volume.snapshots.clear();
    await this.trimClones(volume);
    const options = { ...NO_SNAPSHOTS, unconditional: true };
    for (let index = 0; index < OBJECTS; index++) {
      await this.objects.remove(address(volume, index), options);
    }
    this.volumes.splice(this.volumes.indexOf(volume), 1);
  }
  private childrenOf(volume: ModelVolume): ModelVolume[] {
    return this.volumes.filter(({ parent }) => parent?.volume === volume);
  }

  // ——— Checks ———

  private async check(volume: ModelVolume, index: number, snap: number): Promise<void> {
    const { contents, snapshots, id } = volume;
    const expected = snap === 0 ? contents[index] : snapshots.get(snap)![index];
    const options = { ...stamped(volume, index), snap };
    const read = await this.objects.read(address(volume, index), 0, OBJECT_BYTES, options);
    const where = `volume ${id}, object ${index} at snapshot ${snap}`;
    assert.equal(read.exists, expected !== undefined, `${where}: exists`);
    if (expected === undefined) return;
    assert.equal(read.size, expected.length, `${where}: size`);
    assert.ok(Buffer.from(read.data).equals(expected), `${where}: other bytes`);
    const { extents } = await this.objects.extents(
      address(volume, index),
      0,
      OBJECT_BYTES,
      options,
    );
    const holes = Buffer.from(expected);
    for (const { offset, length } of extents) {
      holes.fill(0, offset, Math.min(offset + length, holes.length));
    }
    assert.ok(holes.equals(Buffer.alloc(holes.length)), `${where}: data in a hole`);
  }
  private async checkAll(): Promise<void> {
    for (const volume of this.volumes) {
      for (const snap of [0, ...volume.snapshots.keys()]) {
        for (let index = 0; index < OBJECTS; index++) await this.check(volume, index, snap);
      }
    }
  }
  private async finalCheck(): Promise<void> {
    await this.checkAll();
    for (const volume of this.volumes) await this.flatten(volume);
    await this.checkAll();
    for (const volume of this.volumes) {
      volume.snapshots.clear();
      await this.trimClones(volume);
    }
    await this.checkAll();
  }
  private checkNothingLeft(): void {
    const prefixes = new Set(this.volumes.map(({ prefix }) => objectName(prefix, 0)));
    for (const { pg, entry } of allPgs(this.world.map)) {
      for (const osd of entry.inSync) {
        const { store } = this.world.running.get(osd)!;
        const rows = store.list(pg, "", 1_000);
        const clones = rows.filter((row) => cloneIdOf(row.object));
        assert.equal(clones.length, 0, `osd.${osd} has clones of snapshots that are gone`);
        for (const { object } of rows) {
          const first = object.replace(/\.[0-9a-f]+/, ".0");
          assert.ok(prefixes.has(first), `osd.${osd} has ${object} of a volume that is gone`);
        }
      }
    }
  }

  private anySnapshot({ snapshots }: ModelVolume): number {
    return this.random.pick([0, ...snapshots.keys()]);
  }
}

const NO_SNAPSHOTS = {
  ...{ truncation: { seq: 0, size: 0 }, minEpoch: 0, mtimeNs: 1n },
  snapshots: ANY_SNAPSHOTS,
};
function address({ prefix }: ModelVolume, index: number): { pool: number; object: string } {
  return { pool: POOL, object: objectName(prefix, index) };
}
function stamped(volume: ModelVolume, index: number) {
  const snapshots = { seq: volume.seq, newest: Math.max(0, ...volume.snapshots.keys()) };
  const parents = volume.parentsOf(index);
  return { truncation: { seq: 0, size: 0 }, minEpoch: 0, mtimeNs: 1n, snapshots, parents };
}

function grown(content: Content, size: number): Buffer {
  const data = Buffer.alloc(Math.max(content?.length ?? 0, size));
  content?.copy(data);
  return data;
}

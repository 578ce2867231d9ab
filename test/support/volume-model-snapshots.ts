/**
 * What the model of volumes (volume-model.ts) does with snapshots and clones: takes them, reads
 * them, returns to them, removes them, clones them, and makes clones independent, also while they
 * are being changed.
 */
import { DssError, isDssError } from "../../cluster/base/errors.js";
import type { Volume } from "../../mds/proto.js";
import type { Content, ModelVolume, VolumeModel } from "./volume-model.js";

const SNAPSHOTS_MAX = 4;
const LOOK_MS = 20;
/** A server gives a snapshot back in the background after its last reader. */
const BUSY_MS = 30_000;

export interface ModelSnapshot extends Content {
  name: string;
}

export class SnapshotModel {
  private readonly snapshots = new Map<ModelVolume, ModelSnapshot[]>();
  private readonly parents = new Map<ModelVolume, ModelSnapshot>();
  private names = 0;

  constructor(private readonly model: VolumeModel) {
    const once = (weight: number, work: (volume: ModelVolume) => Promise<unknown>) => ({
      weight,
      run: async (): Promise<number> => {
        await work(model.any());
        return 1;
      },
    });
    Object.assign(model.operations, {
      snapshot: once(8, (volume) => this.take(volume)),
      readSnapshot: once(8, (volume) => this.readOne(volume)),
      rollback: once(4, (volume) => this.rollback(volume)),
      dropSnapshot: once(5, (volume) => this.drop(volume)),
      clone: once(7, (volume) => this.clone(volume)),
      flatten: once(4, (volume) => this.flatten(volume)),
      remove: once(2, (volume) => this.remove(volume)),
    });
  }

  of(volume: ModelVolume): readonly ModelSnapshot[] {
    return this.snapshots.get(volume) ?? [];
  }

  /** Every snapshot is what it was. */
  async verify(): Promise<void> {
    for (const volume of this.model.volumes) {
      const info = await this.model.info(volume.name);
      const wanted = this.of(volume).map(({ name }) => name);
      const found = info.snapshots.map(({ name }) => name);
      if (found.join() !== wanted.join()) throw new Error(`${volume.name}: snapshots ${found}`);
      const parent = this.parents.get(volume)?.name;
      if (info.ancestors[0]?.snapshot !== parent) {
        throw new Error(`${volume.name}: its parent is ${JSON.stringify(info.ancestors[0])}`);
      }
      for (const snapshot of this.of(volume)) await this.read(volume, snapshot, true);
    }
  }

  /** A snapshot that there is, taken just now. */
  note(volume: ModelVolume, name: string): void {
    const taken = { name, bytes: Buffer.from(volume.bytes), kept: volume.kept.slice() };
    this.snapshots.set(volume, [...this.of(volume), taken]);
  }
  newName(): string {
    return `s${this.names++}`;
  }
  async take(volume: ModelVolume): Promise<void> {
    if (this.of(volume).length >= SNAPSHOTS_MAX) return;
    const snapshot = this.newName();
    const actor = { uid: 0, gid: 0, timeNs: 1n };
    await this.model.ask({ op: "volumeSnapCreate", name: volume.name, snapshot, actor });
    this.note(volume, snapshot);
  }

  private any(volume: ModelVolume): ModelSnapshot | undefined {
    const snapshots = this.of(volume);
    return snapshots.length === 0 ? undefined : this.model.random.pick(snapshots);
  }
  private async readOne(volume: ModelVolume): Promise<void> {
    const snapshot = this.any(volume);
    if (snapshot !== undefined) await this.read(volume, snapshot, false);
  }
  private async read(volume: ModelVolume, snapshot: ModelSnapshot, all: boolean): Promise<void> {
    const { disks } = this.model;
    const name = `${volume.name}@${snapshot.name}`;
    const image = await disks.open(name);
    const { bytes, kept } = snapshot;
    const reading = { name, image, bytes, kept };
    if (all) await this.model.readAll(reading);
    else {
      const [offset, length] = this.model.range(snapshot);
      await this.model.read(reading, offset, length);
      await this.model.status(reading, offset, length);
    }
    await disks.close(image);
  }

  private async rollback(volume: ModelVolume): Promise<void> {
    const snapshot = this.any(volume);
    if (snapshot === undefined) return;
    const { name } = volume;
    await this.model.disks.close(volume.image);
    await this.unused(() =>
      this.model.ask({ op: "volumeRollback", name, snapshot: snapshot.name }),
    );
    await this.until(name, ({ rollbackTo }) => rollbackTo === 0);
    volume.bytes = Buffer.from(snapshot.bytes);
    volume.kept = snapshot.kept.slice();
    volume.image = await this.model.disks.open(name);
  }

  private isParent(snapshot: ModelSnapshot): boolean {
    return [...this.parents.values()].includes(snapshot);
  }
  private async drop(volume: ModelVolume): Promise<void> {
    const snapshot = this.any(volume);
    if (snapshot !== undefined) await this.dropOne(volume, snapshot);
  }
  private async dropOne(volume: ModelVolume, snapshot: ModelSnapshot): Promise<void> {
    const op = "volumeSnapRemove" as const;
    const request = { op, name: volume.name, snapshot: snapshot.name };
    if (this.isParent(snapshot)) {
      const refusal = await this.model.ask(request).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (isDssError(refusal, "Busy") && refusal.message.includes("has clones")) return;
      throw new DssError("Conflict", `${volume.name}@${snapshot.name} is needed, and was removed`);
    }
    await this.unused(() => this.model.ask(request));
    this.snapshots.set(
      volume,
      this.of(volume).filter((each) => each !== snapshot),
    );
  }

  private async clone(volume: ModelVolume): Promise<void> {
    const snapshot = this.any(volume);
    if (snapshot === undefined || this.model.isFull) return;
    const newName = this.model.newName();
    const actor = { uid: 0, gid: 0, timeNs: 1n };
    const { name } = volume;
    await this.model.ask({
      ...{ op: "volumeClone", name, snapshot: snapshot.name, newName, actor },
    });
    const content = { bytes: Buffer.from(snapshot.bytes), kept: snapshot.kept.slice() };
    this.parents.set(await this.model.add(newName, content), snapshot);
  }

  /** While it goes on the volume is changed. */
  private async flatten(volume: ModelVolume): Promise<void> {
    if (!this.parents.has(volume)) return;
    await this.model.ask({ op: "volumeFlatten", name: volume.name });
    for (let left = this.model.random.int(0, 2); left > 0; left--) await this.model.burst(volume);
    await this.until(volume.name, ({ isFlattening }) => !isFlattening);
    this.parents.delete(volume);
  }

  private async remove(volume: ModelVolume): Promise<void> {
    if (this.of(volume).some((snapshot) => this.isParent(snapshot))) return;
    for (const snapshot of this.of(volume)) await this.dropOne(volume, snapshot);
    await this.model.remove(volume);
    this.parents.delete(volume);
    this.snapshots.delete(volume);
  }

  private async until(name: string, isDone: (volume: Volume) => boolean): Promise<void> {
    while (!isDone(await this.model.info(name))) await this.model.options.pause(LOOK_MS);
  }
  /** Whoever has closed a volume gives it back a moment later. */
  private async unused(work: () => Promise<unknown>): Promise<void> {
    for (let waited = 0; ; waited += LOOK_MS) {
      try {
        await work();
        return;
      } catch (error) {
        const isUsed = isDssError(error, "Busy") && /in use by/.test(error.message);
        if (!isUsed || waited >= BUSY_MS) throw error;
        await this.model.options.pause(LOOK_MS);
      }
    }
  }
}

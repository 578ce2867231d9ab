/**
 * Volumes of a real cluster against bytes in memory: seeded random writes, zeros, trims, reads and
 * block statuses, several at a time, and between them growth, shrinking, new names, removal, export
 * and import, while OSDs are killed and started again. Every byte that is read must be the model's;
 * what is called a hole must be zeros there, and what was never written, or was given back, must be
 * called a hole. Snapshots and clones are in volume-model-snapshots.ts.
 */
import { Prng } from "../../cluster/base/prng.js";
import { contentOf } from "../../cli/volume/export.js";
import { dataRuns } from "../../cli/volume/transfer.js";
import type { Answer, Request, Volume } from "../../mds/proto.js";
import type { BlockImage } from "../../nbd/block-image.js";
import type { VolumeSession } from "../../nbd/volume-directory.js";

const KIB = 1024;
const BLOCK = 4 * KIB;
const VOLUMES_MAX = 4;
/** Requests of one burst; they may overlap and take effect in their order. */
const BURST_MAX = 8;
const LOOK_MS = 20;

export type Disk = Pick<BlockImage, "size" | "read" | "status" | "write" | "zero" | "trim">;
/** Where volumes are opened. */
export interface Disks {
  open(name: string): Promise<Disk>;
  /** When it resolves, the volume is nobody's. */
  close(disk: Disk): Promise<void>;
  /** An open disk hears of growth by itself. */
  readonly followsSize: boolean;
}

export interface ModelOptions {
  mds: VolumeSession;
  disks: Disks;
  seed: number;
  /** Bytes. */
  sizeMax: number;
  requestMax: number;
  volumesMax?: number;
  /** The smallest; there are larger ones too. */
  objectSize: number;
  pause(ms: number): Promise<void>;
}

/** What a volume is, or was at a snapshot. */
export interface Content {
  bytes: Buffer;
  /** By block: 1 where something may be kept; what was never written or given back is a hole. */
  kept: Uint8Array;
}
export interface ModelVolume extends Content {
  name: string;
  image: Disk;
}

export interface ModelOperation {
  readonly weight: number;
  /** How many of the counted operations it was. */
  run(): Promise<number>;
}

export class VolumeModel {
  readonly volumes: ModelVolume[] = [];
  readonly random: Prng;
  readonly counts = new Map<string, number>();
  readonly operations: Record<string, ModelOperation> = {
    burst: { weight: 100, run: () => this.burst() },
    reopen: { weight: 2, run: () => this.once(() => this.reopen(this.any())) },
    grow: { weight: 4, run: () => this.once(() => this.grow(this.any())) },
    shrink: { weight: 4, run: () => this.once(() => this.shrink(this.any())) },
    rename: { weight: 3, run: () => this.once(() => this.rename(this.any())) },
    remove: { weight: 1, run: () => this.once(() => this.remove(this.any())) },
    create: { weight: 2, run: () => this.once(() => this.create()) },
    copy: { weight: 1, run: () => this.once(() => this.copy(this.any())) },
  };
  private names = 0;

  readonly seed: number;
  private readonly mds: VolumeSession;
  readonly disks: Disks;

  constructor(readonly options: ModelOptions) {
    this.random = new Prng(options.seed);
    const { mds, disks, seed } = options;
    this.mds = mds;
    this.disks = disks;
    this.seed = seed;
  }

  async close(): Promise<void> {
    for (const { image } of this.volumes) await this.disks.close(image);
    this.volumes.length = 0;
  }

  /** Runs about so many operations. */
  async run(
    count: number,
    between: (done: number) => Promise<void> = () => Promise.resolve(),
  ): Promise<void> {
    const names = Object.keys(this.operations);
    const total = names.reduce((sum, name) => sum + this.operations[name]!.weight, 0);
    for (let done = 0; done < count;) {
      if (this.volumes.length === 0) await this.create();
      let at = this.random.int(0, total - 1);
      const name = names.find((each) => (at -= this.operations[each]!.weight) < 0)!;
      try {
        done += await this.operations[name]!.run();
      } catch (cause) {
        throw new Error(`seed ${this.seed}, operation ${done} (${name})`, { cause });
      }
      this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
      await between(done);
    }
  }

  /** Everything that is there is the model's. */
  async verify(): Promise<void> {
    const { volumes = [] } = await this.ask({ op: "volumeList" });
    const known = volumes.map(({ name, size }) => `${name} ${size}`).sort();
    const wanted = this.volumes.map(({ name, bytes }) => `${name} ${bytes.length}`).sort();
    if (known.join() !== wanted.join()) throw new Error(`volumes: ${known}, expected: ${wanted}`);
    for (const volume of this.volumes) {
      await this.readAll(volume);
    }
  }

  // ---- Bytes -----------------------------------------------------------------------------------

  async burst(volume = this.any()): Promise<number> {
    const count = this.random.int(1, BURST_MAX);
    await Promise.all(Array.from({ length: count }, () => this.change(volume)));
    const [offset, length] = this.range(volume);
    await this.read(volume, offset, length);
    if (this.random.chance(0.3)) await this.status(volume, offset, length);
    return count + 1;
  }

  /** The model changes at once, in the order in which the requests are made. */
  private async change({ image, bytes, kept }: ModelVolume): Promise<void> {
    const { random } = this;
    const [offset, length] = this.range({ bytes });
    const end = offset + length;
    const kind = random.int(0, 9);
    // Whole blocks become holes; the bytes beside them stay as they are.
    const [first, last] = [Math.ceil(offset / BLOCK), Math.floor(end / BLOCK)];
    const touch = (): void => void kept.fill(1, Math.floor(offset / BLOCK), Math.ceil(end / BLOCK));
    if (kind < 6) {
      const data = random.bytes(length);
      data.copy(bytes, offset);
      touch();
      await image.write(offset, data, { fua: random.chance(0.5) });
    } else if (kind < 8) {
      const mayTrim = random.chance(0.7);
      bytes.fill(0, offset, end);
      touch();
      if (mayTrim && last > first) kept.fill(0, first, last);
      await image.zero(offset, length, { fua: false, mayTrim, fast: false });
    } else {
      if (last > first) {
        bytes.fill(0, first * BLOCK, last * BLOCK);
        kept.fill(0, first, last);
      }
      await image.trim(offset, length, { fua: false });
    }
  }

  async read({ name, image, bytes }: Reading, offset: number, length: number): Promise<void> {
    for (let at = offset; at < offset + length; at += this.options.requestMax * 4) {
      const count = Math.min(this.options.requestMax * 4, offset + length - at);
      const found = Buffer.concat(await image.read(at, count));
      same(found, bytes.subarray(at, at + count), `${name} from ${at}`);
    }
  }

  async status(volume: Reading, offset: number, length: number): Promise<void> {
    const { name, image, bytes, kept } = volume;
    for (let at = offset; at < offset + length;) {
      for (const extent of await image.status(at, offset + length - at, 64)) {
        const end = at + extent.length;
        const part = bytes.subarray(at, end);
        if (extent.zero && !part.equals(Buffer.alloc(part.length))) {
          throw new Error(`${name}: ${extent.length} bytes at ${at} are called a hole`);
        }
        const [first, last] = [Math.floor(at / BLOCK), Math.ceil(end / BLOCK)];
        if (!extent.hole && kept.subarray(first, last).includes(0)) {
          const what = `${name}: ${extent.length} bytes at ${at} are called data`;
          throw new Error(`${what}, but block ${kept.indexOf(0, first)} is a hole`);
        }
        at = end;
      }
    }
  }
  async readAll(volume: Reading): Promise<void> {
    if (volume.image.size !== volume.bytes.length) {
      throw new Error(`${volume.name}: ${volume.image.size} bytes, not ${volume.bytes.length}`);
    }
    await this.read(volume, 0, volume.bytes.length);
    await this.status(volume, 0, volume.bytes.length);
  }

  // ---- Records ---------------------------------------------------------------------------------

  get isFull(): boolean {
    return this.volumes.length >= (this.options.volumesMax ?? VOLUMES_MAX);
  }
  newName(): string {
    return `model-${this.seed}-${this.names++}`;
  }
  async create(size = this.anySize()): Promise<ModelVolume | undefined> {
    if (this.isFull) return undefined;
    const name = this.newName();
    const actor = { uid: 0, gid: 0, timeNs: 1n };
    const layout = this.random.pick(this.layouts());
    await this.ask({ op: "volumeCreate", name, size, pool: "data", ...layout, actor });
    return await this.add(name, { bytes: Buffer.alloc(size), kept: new Uint8Array(size / BLOCK) });
  }
  /** A volume that there is. */
  async add(name: string, content: Content): Promise<ModelVolume> {
    const volume = { name, ...content, image: await this.disks.open(name) };
    this.volumes.push(volume);
    return volume;
  }
  async remove(volume: ModelVolume): Promise<void> {
    await this.disks.close(volume.image);
    await this.ask({ op: "volumeRemove", name: volume.name });
    this.volumes.splice(this.volumes.indexOf(volume), 1);
  }
  async reopen(volume: ModelVolume): Promise<void> {
    await this.disks.close(volume.image);
    volume.image = await this.disks.open(volume.name);
  }
  private async rename(volume: ModelVolume): Promise<void> {
    const newName = this.newName();
    await this.ask({ op: "volumeRename", name: volume.name, newName });
    volume.name = newName;
  }
  private async grow(volume: ModelVolume): Promise<void> {
    const size = Math.min(
      this.options.sizeMax,
      volume.bytes.length + this.random.int(1, 200) * BLOCK,
    );
    await this.ask({ op: "volumeResize", name: volume.name, size, shrink: false });
    const grown = Buffer.alloc(size);
    volume.bytes.copy(grown);
    volume.bytes = grown;
    const kept = new Uint8Array(size / BLOCK);
    kept.set(volume.kept);
    volume.kept = kept;
    if (!this.disks.followsSize) return await this.reopen(volume);
    // Its server is told, or asks when it has lost its connection.
    while (volume.image.size !== size) await this.options.pause(LOOK_MS);
  }
  private async shrink(volume: ModelVolume): Promise<void> {
    const { name } = volume;
    const size = this.random.int(1, volume.bytes.length / BLOCK) * BLOCK;
    await this.disks.close(volume.image);
    await this.ask({ op: "volumeResize", name, size, shrink: true });
    while ((await this.info(name)).shrinkTo > 0) await this.options.pause(LOOK_MS);
    volume.bytes = Buffer.from(volume.bytes.subarray(0, size));
    volume.kept = volume.kept.slice(0, size / BLOCK);
    volume.image = await this.disks.open(name);
  }
  /** Out as an export and in as an import do it. */
  private async copy(source: ModelVolume): Promise<void> {
    const target = await this.create(source.bytes.length);
    if (target === undefined) return;
    for await (const { offset, length, pieces } of contentOf(source.image, 0)) {
      if (pieces === undefined) continue;
      const data = Buffer.concat(pieces, length);
      for (const run of dataRuns(data)) {
        const part = data.subarray(run.at, run.at + run.length);
        await target.image.write(offset + run.at, part, { fua: false });
      }
    }
    source.bytes.copy(target.bytes);
    for (const { at, length } of dataRuns(target.bytes)) {
      target.kept.fill(1, at / BLOCK, Math.ceil((at + length) / BLOCK));
    }
    await this.read(target, 0, target.bytes.length);
  }

  private layouts() {
    const { objectSize } = this.options;
    return [
      { objectSize },
      { objectSize: objectSize * 4 },
      { objectSize, stripeUnit: objectSize / 16, stripeCount: 3 },
    ];
  }

  // ---- Choices ---------------------------------------------------------------------------------

  any(): ModelVolume {
    return this.random.pick(this.volumes);
  }
  private anySize(): number {
    return this.random.int(1, this.options.sizeMax / BLOCK) * BLOCK;
  }
  /** Any alignment; now and then a whole object or more. */
  range({ bytes }: { bytes: Buffer }): [offset: number, length: number] {
    const { random } = this;
    const most = random.chance(0.1) ? bytes.length : this.options.requestMax;
    let length = random.int(1, Math.min(most, bytes.length));
    let offset = random.int(0, bytes.length - length);
    if (random.chance(0.4)) {
      offset -= offset % BLOCK;
      length = Math.min(Math.ceil(length / BLOCK) * BLOCK, bytes.length - offset);
    }
    return [offset, length];
  }
  private async once(work: () => Promise<unknown>): Promise<number> {
    await work();
    return 1;
  }
  async info(name: string): Promise<Volume> {
    return (await this.ask({ op: "volumeInfo", name })).volume!;
  }
  async ask(request: Request): Promise<Answer> {
    return (await this.mds.call(request, { wait: "safe" })).answer;
  }
}

/** A volume, or a snapshot of one, that can be read. */
export type Reading = Content & { name: string; image: Pick<Disk, "size" | "read" | "status"> };

function same(found: Buffer, wanted: Buffer, what: string): void {
  if (found.equals(wanted)) return;
  let at = 0;
  while (found[at] === wanted[at]) at++;
  throw new Error(`${what}: byte ${at} is ${found[at]}, expected ${wanted[at]}`);
}

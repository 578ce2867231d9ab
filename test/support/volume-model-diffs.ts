/**
 * What the model of volumes (volume-model.ts) does with differences: makes copies of volumes by
 * them, brings copies up to date, and finds that damaged ones change nothing; by the command line.
 */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Cluster } from "./cluster.js";
import type { ModelVolume, VolumeModel } from "./volume-model.js";
import type { ModelSnapshot, SnapshotModel } from "./volume-model-snapshots.js";

/** Of a command, on a machine that does other things too. */
const LONG = { withinMs: 180_000 };

export class DiffModel {
  /** Of each copy what it is a copy of. */
  private readonly sources = new Map<ModelVolume, ModelVolume>();
  private files = 0;

  constructor(
    private readonly model: VolumeModel,
    private readonly snapshots: SnapshotModel,
    private readonly cluster: Cluster,
  ) {
    const once = (work: (volume: ModelVolume) => Promise<void>) => async (): Promise<number> => {
      await work(model.any());
      return 1;
    };
    Object.assign(model.operations, {
      replicate: { weight: 2, run: once((volume) => this.replicate(volume)) },
      update: { weight: 4, run: once((volume) => this.update(volume)) },
    });
  }

  /** A new volume from nothing. */
  private async replicate(volume: ModelVolume): Promise<void> {
    if (this.model.isFull) return;
    if (this.snapshots.of(volume).length === 0) await this.snapshots.take(volume);
    const snapshot = this.model.random.pick(this.snapshots.of(volume));
    const name = this.model.newName();
    await this.transfer([`${volume.name}@${snapshot.name}`], name, "removed again");
    const content = { bytes: Buffer.from(snapshot.bytes), kept: keptOf(snapshot) };
    const copy = await this.model.add(name, content);
    this.snapshots.note(copy, snapshot.name);
    this.sources.set(copy, volume);
    await this.model.readAll(copy);
  }

  /** From a snapshot that both have to a newer one. */
  private async update(copy: ModelVolume): Promise<void> {
    const source = this.sources.get(copy);
    if (source === undefined || !this.model.volumes.includes(source)) return;
    const theirs = this.snapshots.of(source);
    const names = new Set(this.snapshots.of(copy).map(({ name }) => name));
    const base = theirs.findLastIndex(({ name }) => names.has(name));
    if (base < 0) return;
    const { random } = this.model;
    if (random.chance(0.7)) await this.model.burst(source);
    if (base === theirs.length - 1) await this.snapshots.take(source);
    const later = this.snapshots.of(source).slice(base + 1);
    if (later.length === 0) return; // It has as many as it may have.
    const [from, to] = [theirs[base]!, random.pick(later)];
    if (this.snapshots.of(copy).length > 6) return;
    await this.model.disks.close(copy.image);
    const what = [`${source.name}@${to.name}`, "--from", from.name];
    await this.transfer(what, copy.name, `${copy.name} is what it was at ${from.name}`);
    const mine = this.snapshots.of(copy).find(({ name }) => name === from.name)!;
    copy.bytes = Buffer.from(to.bytes);
    copy.kept = updated(mine, from, to);
    this.snapshots.note(copy, to.name);
    copy.image = await this.model.disks.open(copy.name);
    await this.model.readAll(copy);
  }

  /** Out and in; before that sometimes damaged, which must be found and leave nothing. */
  private async transfer(what: readonly string[], name: string, undone: string): Promise<void> {
    const { cluster } = this;
    const { random } = this.model;
    const file = join(cluster.folder, `diff-${this.files++}`);
    const importing = ["volume", "import-diff"];
    const flags = undone.includes("removed") ? [] : ["--rollback"];
    await cluster.ok(["volume", "export-diff", what[0]!, file, ...what.slice(1)], LONG);
    if (random.chance(0.3)) {
      const bytes = readFileSync(file);
      const bad = Buffer.from(bytes);
      const at = random.int(0, bytes.length - 1);
      bad[at]! ^= 1 << random.int(0, 7);
      const broken = random.chance(0.5) ? bytes.subarray(0, at) : bad;
      writeFileSync(`${file}.bad`, broken);
      const refused = await cluster.dss([...importing, `${file}.bad`, name, ...flags], LONG);
      if (refused.code !== 1 || !/difference/.test(refused.stderr)) {
        throw new Error(`damaged at ${at}, imported: ${refused.code} ${refused.stderr}`);
      }
      const piped = await cluster.dss([...importing, "-", name, ...flags], {
        ...LONG,
        input: broken,
      });
      const isEarly = /no difference of a volume|header|after 16 bytes|at byte 16/.test(
        piped.stderr,
      );
      if (piped.code !== 1 || !(isEarly || piped.stderr.includes(undone))) {
        throw new Error(`damaged at ${at}, piped: ${piped.code} ${piped.stderr}`);
      }
    }
    if (random.chance(0.3)) {
      const input = readFileSync(file);
      await cluster.ok([...importing, "-", name, ...flags], { ...LONG, input });
    } else await cluster.ok([...importing, file, name, ...flags], LONG);
    rmSync(file);
    rmSync(`${file}.bad`, { force: true });
  }
}

const BLOCK = 4096;
/** Only what is not zeros is written into a new volume. */
function keptOf({ bytes }: ModelSnapshot): Uint8Array {
  const kept = new Uint8Array(bytes.length / BLOCK);
  for (let block = 0; block < kept.length; block++) {
    if (bytes.subarray(block * BLOCK, (block + 1) * BLOCK).some((byte) => byte !== 0)) {
      kept[block] = 1;
    }
  }
  return kept;
}
/** What has not changed is kept as it was; what has become zeros is a hole. */
function updated(copy: ModelSnapshot, from: ModelSnapshot, to: ModelSnapshot): Uint8Array {
  const kept = keptOf(to);
  for (let block = 0; block < kept.length; block++) {
    const [start, end] = [block * BLOCK, (block + 1) * BLOCK];
    const isSame = end <= from.bytes.length && !changed(from, to, start, end);
    if (isSame && copy.kept[block] === 1) kept[block] = 1;
  }
  return kept;
}
function changed(from: ModelSnapshot, to: ModelSnapshot, start: number, end: number): boolean {
  return !from.bytes.subarray(start, end).equals(to.bytes.subarray(start, end));
}

/**
 * Full disks in a whole simulated cluster: a write that any member has no room for is refused, what
 * was acknowledged stays through crashes, deletes bring everything back, and copies wait for a disk
 * that is too full to take them.
 */
import t from "tap";
import { isDssError } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import type { OsdId } from "../../cluster/base/ids.js";
import { allPgs } from "../../cluster/map/cluster-map.js";
import { NO_TRUNCATION } from "../../osd/client/object-access.js";
import { FileStore } from "../../osd/store/file-store.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "./cluster-world.js";
import { SimDisk } from "./sim-disk.js";

const MiB = 2 ** 20;
const OBJECT = 128 * 1024;
const OPTIONS = { truncation: NO_TRUNCATION, minEpoch: 0 };

/** Each OSD with a disk of `sizes[osd]` bytes. */
function diskOf(sizes: readonly number[]): DiskFactory {
  return (osd, random, clock) => {
    const disk = new SimDisk({
      random: random.fork(),
      schedule: (ms, run) => void clock.schedule(ms, run),
      delayMs: 0.3,
      capacityBytes: sizes[osd]!,
    });
    return {
      open: (nodeClock) => {
        const source = random.fork();
        return FileStore.open(disk.attach(), {
          osdId: osd,
          options: {
            walSegmentBytes: 512 * 1024,
            walSegments: 3,
            dataFileBytes: 4 * MiB,
            overlayBytesMax: 256 * 1024,
            checkpointMs: 200,
            reserveBytes: 256 * 1024,
          },
          logger: silentLogger,
          clock: nodeClock,
          random: { u32: () => source.u32(), bytes: (length) => source.bytes(length) },
        });
      },
      crash: () => disk.crash(),
    };
  };
}

class Full {
  readonly world: ClusterWorld;
  client!: SimClient;
  /** Acknowledged: object and the byte that fills it. */
  readonly kept = new Map<string, number>();

  constructor(sizes: readonly number[], settings: Readonly<Record<string, number>> = {}) {
    this.world = new ClusterWorld({
      seed: 11,
      osds: sizes.length,
      mdss: 1,
      disk: diskOf(sizes),
      settings: {
        "osd.nearFullRatio": 0.85,
        "osd.fullRatio": 0.95,
        "osd.backfillFullRatio": 0.97,
        "pool.replicas": 3,
        "pool.minimum": 2,
        ...settings,
      },
    });
  }
  async start(osds: readonly OsdId[]): Promise<void> {
    this.world.start(osds);
    if (!(await this.until(() => this.world.allClean()))) throw new Error(this.world.describe());
    this.client = await this.wait(this.world.startClient(), "a client");
  }
  async wait<T>(promise: Promise<T>, what: string, ms = 60_000): Promise<T> {
    let settled = false;
    promise.then(
      () => (settled = true),
      () => (settled = true),
    );
    if (!(await this.until(() => settled, ms))) throw new Error(`${what} hangs`);
    return promise;
  }
  until(condition: () => boolean, ms = 60_000): Promise<boolean> {
    return this.world.clock.runUntil(condition, ms);
  }
  async sleep(ms: number): Promise<void> {
    await this.wait(new Promise<void>((done) => void this.world.clock.schedule(ms, done)), "sleep");
  }
  /** The code of the refusal, or nothing. */
  async write(object: string, fill: number): Promise<string> {
    const data = [Buffer.alloc(OBJECT, fill)];
    const options = { ...OPTIONS, mtimeNs: 1n };
    const { objects } = this.client;
    try {
      await this.wait(objects.write({ pool: 1, object }, 0, data, options), `write ${object}`);
      this.kept.set(object, fill);
      return "";
    } catch (error) {
      if (isDssError(error)) return error.code;
      throw error;
    }
  }
  async remove(object: string): Promise<void> {
    const options = { ...OPTIONS, unconditional: true };
    const { objects } = this.client;
    await this.wait(objects.remove({ pool: 1, object }, options), `remove ${object}`);
    this.kept.delete(object);
  }
  async wrong(): Promise<string[]> {
    const wrong: string[] = [];
    for (const [object, fill] of this.kept) {
      const reading = this.client.objects.read({ pool: 1, object }, 0, OBJECT, OPTIONS);
      const { data } = await this.wait(reading, `read ${object}`);
      if (!data.equals(Buffer.alloc(OBJECT, fill))) wrong.push(object);
    }
    return wrong;
  }
  ratio(osd: OsdId): number {
    const { used, total } = this.world.running.get(osd)!.store.usage();
    return used / total;
  }
  /** Until writes are refused wherever they go; with which code. */
  async fill(prefix: string): Promise<string[]> {
    const codes = new Set<string>();
    for (let i = 0, refused = 0; refused < 20; i++) {
      const code = await this.write(`${prefix}${i}`, (i % 250) + 1);
      refused = code === "" ? 0 : refused + 1;
      if (code !== "") codes.add(code);
    }
    return [...codes];
  }
}

t.test("one small disk of three: refused, kept through crashes, normal after deletes", async (t) => {
  const full = new Full([24 * MiB, 8 * MiB, 24 * MiB]);
  await full.start([0, 1, 2]);
  t.same(await full.fill("a"), ["NoSpace"]);
  t.ok(full.ratio(1) > 0.88 && full.ratio(1) < 0.97, `the small disk: ${full.ratio(1)}`);
  t.ok(full.ratio(0) < 0.5, "the others have room");
  for (const id of [1, 0, 2]) {
    full.world.crashOsd(id);
    await full.sleep(500);
    full.world.startOsd(id);
    t.ok(await full.until(() => full.world.allClean()), full.world.describe());
  }
  t.same(await full.wrong(), []);
  t.equal(await full.write("still", 1), "NoSpace");
  t.ok(full.ratio(1) < 0.99, `nothing was filled up by it: ${full.ratio(1)}`);
  for (const object of [...full.kept.keys()].slice(0, 20)) await full.remove(object);
  await full.sleep(3_000);
  for (let i = 0; i < 8; i++) t.equal(await full.write(`b${i}`, 7), "", "there is room again");
  t.same(await full.wrong(), []);
  t.same(full.world.fatal, []);
});

t.test("a disk that is too full takes no copies, and the PG says so until it does", async (t) => {
  // osd.3 comes when the others are nearly full of what belongs there, too.
  const full = new Full([24 * MiB, 24 * MiB, 24 * MiB, 5 * MiB], { downOutMs: 5_000 });
  await full.start([0, 1, 2]);
  for (let i = 0; i < 60; i++) await full.write(`a${i}`, i + 1);
  full.world.crashOsd(0);
  full.world.startOsd(3);
  const waiting = (): number[] =>
    [...full.world.running.values()].flatMap(({ daemon }) =>
      daemon
        .status()
        .pgs.flatMap((pg) => pg.learners)
        .filter(({ tooFull }) => tooFull)
        .map(({ osd }) => osd),
    );
  t.ok(await full.until(() => waiting().includes(3)), "copies wait");
  await full.sleep(20_000);
  t.ok(waiting().includes(3), "and go on waiting");
  t.ok(full.ratio(3) < 0.98, `it was not filled up: ${full.ratio(3)}`);
  t.same(await full.wrong(), [], "everything is served meanwhile");
  const copies = [...allPgs(full.world.map)].map(({ entry }) => entry.inSync.length);
  t.ok(Math.min(...copies) >= 2, `no PG lost a copy for it: ${copies.join()}`);
  for (const object of [...full.kept.keys()].slice(0, 40)) await full.remove(object);
  t.ok(await full.until(() => full.world.allClean(), 120_000), full.world.describe());
  t.same(waiting(), [], "recovery went on by itself");
  t.same(await full.wrong(), []);
  t.same(full.world.fatal, []);
});

/** How many volumes are served at once, and how many snapshots one has. */
import { MIB } from "../../../cli/sizes.js";
import type { Cluster } from "../../support/cluster.js";
import { median } from "../measure.js";
import { changeBlocks, onVolume, randomBlocks, warmUp, writeAll } from "./fio-load.js";
import type { Place, RandomLoad } from "./fio-load.js";
import { medianOf, msOf, residentMB, type Growth, type Theme } from "./growth.js";
import type { Figure } from "./table.js";

const VOLUME_BYTES = 256 * MIB;
const VOLUMES = { small: [1, 2], usual: [1, 4, 16] };
/** Of all volumes together. */
const VOLUMES_AREA = { small: 8 * MIB, usual: 256 * MIB };
const SNAPSHOTS = { small: [0, 1, 3], usual: [0, 1, 10, 100] };
const SNAPSHOTS_AREA = { small: 8 * MIB, usual: 64 * MIB };
const SECONDS = { small: 1, usual: 2 };
/** Written between two snapshots, 4 KiB at a time. */
const CHANGED_BYTES = 256 * 1024;

export const volumes: Theme = {
  name: "volumes",
  async measure(growth) {
    const { scope } = growth;
    const cluster = await growth.cluster();
    const places: Place[] = [];
    const servers: number[] = [];
    const bytes = growth.pick(VOLUMES_AREA);
    const load: RandomLoad = { direction: "write", bytes, seconds: growth.pick(SECONDS) };
    await growth.table(
      {
        title: "Volumes, one server each, 16 requests in flight in all",
        what: "volumes",
        columns: [
          { name: "random write 4 KiB, all together", unit: "/s" },
          { name: "dss volume ls", unit: "ms", whole: true },
          { name: "resident, one server", unit: "MB" },
        ],
      },
      growth.pick(VOLUMES),
      async (count) => {
        while (places.length < count) {
          const name = `v${places.length}`;
          const { server, socket } = await cluster.serve(name, VOLUME_BYTES);
          places.push(onVolume(name, socket));
          servers.push(server.pid);
        }
        await writeAll(scope, places, bytes);
        await warmUp(scope, places, load);
        const writes = await medianOf(() => randomBlocks(scope, places, load));
        const list = await medianOf(() => msOf(() => cluster.ok(["volume", "ls"])));
        return [writes, list, residentMB(...servers)];
      },
    );
  },
};

export const snapshots: Theme = {
  name: "snapshots",
  async measure(growth) {
    const cluster = await growth.cluster();
    const volume = await SnapshotVolume.make(growth, cluster);
    await growth.table(
      {
        title: "Snapshots of a volume",
        what: "snapshots",
        columns: [
          { name: "random write 4 KiB", unit: "/s" },
          { name: "random read 4 KiB", unit: "/s" },
          { name: "snap create", unit: "ms" },
          { name: "random read 4 KiB of the oldest", unit: "/s" },
        ],
      },
      growth.pick(SNAPSHOTS),
      (count) => volume.measure(count),
    );
  },
};

const NAME = "kept";

/** A volume that is served and written while it gets more and more snapshots. */
class SnapshotVolume {
  private readonly createMs: number[] = [];
  private readonly load: Omit<RandomLoad, "direction">;
  private oldest: Place | undefined;

  private constructor(
    private readonly growth: Growth,
    private readonly cluster: Cluster,
    private readonly head: Place,
  ) {
    this.load = { bytes: growth.pick(SNAPSHOTS_AREA), seconds: growth.pick(SECONDS) };
  }

  static async make(growth: Growth, cluster: Cluster): Promise<SnapshotVolume> {
    const { socket } = await cluster.serve(NAME, VOLUME_BYTES);
    const head = onVolume(NAME, socket);
    const volume = new SnapshotVolume(growth, cluster, head);
    await writeAll(growth.scope, [head], volume.load.bytes);
    await warmUp(growth.scope, [head], volume.load);
    return volume;
  }

  async measure(count: number): Promise<Figure[]> {
    while (this.createMs.length < count) await this.takeSnapshot();
    const writes = await this.random(this.head, "write");
    const reads = await this.random(this.head, "read");
    if (count === 0) return [writes, reads, null, null];
    this.oldest ??= await this.serveOldest();
    const last = median(this.createMs.slice(-3));
    return [writes, reads, last, await this.random(this.oldest, "read")];
  }

  /** Of a volume that has changed since the one before. */
  private async takeSnapshot(): Promise<void> {
    const { bytes } = this.load;
    await changeBlocks(this.growth.scope, this.head, { bytes, changed: CHANGED_BYTES });
    const name = `${NAME}@s${this.createMs.length}`;
    this.createMs.push(await msOf(() => this.cluster.ok(["volume", "snap", "create", name])));
  }

  private async serveOldest(): Promise<Place> {
    const name = `${NAME}@s0`;
    const { socket } = await this.cluster.serveExisting(name, "oldest.sock");
    const oldest = onVolume(name, socket);
    await randomBlocks(this.growth.scope, [oldest], { ...this.load, direction: "read" });
    return oldest;
  }

  private async random(place: Place, direction: RandomLoad["direction"]): Promise<number> {
    const load = { ...this.load, direction };
    return await medianOf(() => randomBlocks(this.growth.scope, [place], load));
  }
}

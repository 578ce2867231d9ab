/**
 * A cluster whose OSDs live on lossy test disks (lossy-disk.ts), and the cutting of their power:
 * the disks stop answering, the OSDs are killed, and what comes back is what a seed lets survive.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, renameSync, rmSync } from "node:fs";
import type { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "./cluster.js";
import type { Cluster, ClusterProcess } from "./cluster.js";
import { LossyDisk } from "./lossy-disk.js";
import type { CutOptions } from "./lossy-disk.js";
import type { Teardown } from "./temp.js";

/** Small logs: they wrap often, and the disks are in memory. */
const SMALL = {
  DSS_OSD_WAL_SEGMENT_BYTES: "16M",
  DSS_OSD_WAL_SEGMENTS: "3",
  DSS_OSD_OVERLAY_BYTES_MAX: "16M",
};

/** Under load this is a second or two. */
const CHANGES_MAX = 400;

export class PoweredCluster {
  private constructor(
    readonly cluster: Cluster,
    private readonly disks: ReadonlyMap<string, LossyDisk>,
  ) {}

  static async start(t: Teardown): Promise<PoweredCluster> {
    const cluster = await startCluster(t, { env: SMALL });
    const osds = await cluster.killRoles("osd");
    const disks = new Map<string, LossyDisk>();
    for (const { name, data } of osds) {
      const initial = `${data}.initial`;
      renameSync(data, initial);
      mkdirSync(data);
      const disk = await LossyDisk.start(t, data);
      execFileSync("cp", ["-a", "--sparse=always", `${initial}/.`, data]);
      await disk.settle();
      rmSync(initial, { recursive: true });
      disks.set(name, disk);
    }
    // Before the disks go: a process that waits for a disk cannot end.
    t.teardown(async () => {
      const left = await cluster.processes("osd").catch(() => []);
      await cluster.kill(left.map(({ pid }) => pid));
    });
    const powered = new PoweredCluster(cluster, disks);
    await cluster.up();
    await cluster.healthy();
    return powered;
  }

  /** The power of these OSDs fails at one instant; the other processes named die with them. */
  async cut(
    osds: readonly ClusterProcess[],
    random: Prng,
    options: CutOptions & { alsoKill?: readonly number[] } = {},
  ): Promise<string[]> {
    const disks = osds.map(({ name }) => {
      const disk = this.disks.get(name);
      if (disk === undefined) throw new Error(`${name} has no lossy disk`);
      return disk;
    });
    const [first, ...others] = disks;
    await first?.fail({ afterChanges: random.int(0, CHANGES_MAX) });
    await Promise.all(others.map((disk) => disk.fail()));
    const pids = [...osds.map(({ pid }) => pid), ...(options.alsoKill ?? [])];
    // Killed, they end only when the disks refuse what they wait for.
    const gone = this.cluster.kill(pids);
    const reports = await Promise.all(disks.map((disk) => disk.cut(random.u32(), options)));
    await gone;
    return reports.map((report, i) => `${osds[i]?.name} ${JSON.stringify(report)}`);
  }

  /** The power is back: the disks are there again, and all that was killed is started. */
  async return(osds: readonly ClusterProcess[]): Promise<void> {
    for (const { name } of osds) await this.disks.get(name)?.return();
    await this.cluster.up();
  }

  async ignoreSyncs(): Promise<void> {
    for (const disk of this.disks.values()) await disk.ignoreSyncs();
  }
}

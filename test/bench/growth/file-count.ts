/** How many files there are: in the file system, and in one directory. */
import { join } from "node:path";
import type { Cluster } from "../../support/cluster.js";
import { FileTree, perSecond } from "./file-tree.js";
import { medianOf, medians, msOf, residentMB, type Growth, type Theme } from "./growth.js";

const SIZES = {
  small: [50, 200],
  usual: [1_000, 10_000, 100_000],
  large: [1_000, 10_000, 100_000, 1_000_000],
};
const ENTRIES = { small: SIZES.small, usual: SIZES.usual };
/** Files that are created, deleted or looked up for one figure. */
const SAMPLE = { small: 20, usual: 1_000 };
const FILE_BYTES = 1024;
const PER_DIRECTORY = 1_000;

/** The code of a mount's and a leader's first requests is not compiled yet. */
async function warmUp(growth: Growth, cluster: Cluster): Promise<void> {
  const folder = join(cluster.mount, "warm-up");
  const tree = new FileTree(growth, { folder, filesPerDirectory: PER_DIRECTORY, bytes: 1 });
  await tree.createAndDelete(growth.pick({ small: 20, usual: 4_000 }));
}

export const filesInAll: Theme = {
  name: "files in all",
  async measure(growth) {
    const cluster = await growth.cluster();
    await warmUp(growth, cluster);
    const tree = new FileTree(growth, {
      folder: join(cluster.mount, "files"),
      filesPerDirectory: PER_DIRECTORY,
      bytes: FILE_BYTES,
    });
    await growth.table(
      {
        title: "Files of the file system, 1 KiB each, 1,000 in a directory",
        what: "files",
        columns: [
          { name: "create", unit: "/s" },
          { name: "delete", unit: "/s" },
          { name: "stat of random ones, cold", unit: "/s" },
          { name: "dss du", unit: "ms" },
          { name: "resident, leader", unit: "MB", whole: true },
          { name: "resident, mount", unit: "MB", whole: true },
        ],
      },
      growth.pick(SIZES),
      (count) => measureFiles(growth, cluster, { tree, count }),
    );
  },
};

interface Filling {
  readonly tree: FileTree;
  readonly count: number;
}

async function measureFiles(
  growth: Growth,
  cluster: Cluster,
  { tree, count }: Filling,
): Promise<number[]> {
  await tree.fill(count);
  const sample = growth.pick(SAMPLE);
  const changes = await medians(() => tree.createAndDelete(sample));
  const stat = await medianOf(async () => {
    const paths = tree.draw(sample);
    cluster.dropCaches();
    return perSecond(paths.length, await growth.fileMs({ do: "stat", paths }));
  });
  const usage = await medianOf(() => msOf(() => cluster.ok(["du", cluster.mount])));
  const leader = residentMB(await cluster.leaderPid());
  const mount = residentMB(...(await cluster.processes("mount")).map(({ pid }) => pid));
  return [...changes, stat, usage, leader, mount];
}

export const directoryEntries: Theme = {
  name: "entries of a directory",
  async measure(growth) {
    const cluster = await growth.cluster();
    await warmUp(growth, cluster);
    const shape = { folder: cluster.mount, filesPerDirectory: Number.MAX_SAFE_INTEGER, bytes: 0 };
    const tree = new FileTree(growth, shape);
    await growth.table(
      {
        title: "Entries of one directory, empty files",
        what: "entries",
        columns: [
          { name: "create", unit: "/s" },
          { name: "delete", unit: "/s" },
          { name: "ls -f, cold", unit: "ms", whole: true },
          { name: "look-up of one, cold", unit: "ms" },
        ],
      },
      growth.pick(ENTRIES),
      (count) => measureEntries(growth, cluster, { tree, count }),
    );
  },
};

async function measureEntries(
  growth: Growth,
  cluster: Cluster,
  { tree, count }: Filling,
): Promise<number[]> {
  await tree.fill(count);
  const changes = await medians(() => tree.createAndDelete(growth.pick(SAMPLE)));
  const path = join(cluster.mount, "d0");
  const list = await medianOf(() => {
    cluster.dropCaches();
    return growth.fileMs({ do: "list", path, entries: count });
  });
  const lookUp = await medianOf(() => {
    cluster.dropCaches();
    return growth.fileMs({ do: "stat", paths: tree.draw(1) });
  });
  return [...changes, list, lookUp];
}

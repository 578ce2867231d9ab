/** The metadata that another server takes over, and that a cluster starts with again. */
import { join } from "node:path";
import type { Cluster } from "../../support/cluster.js";
import { FileTree } from "./file-tree.js";
import { medianOf, medians, msOf, type Growth, type Theme } from "./growth.js";

const SIZES = {
  small: [50, 200],
  usual: [1_000, 10_000, 100_000],
  large: [1_000, 10_000, 100_000, 1_000_000],
};

export const takeover: Theme = {
  name: "takeover",
  async measure(growth) {
    const cluster = await growth.cluster();
    const folder = join(cluster.mount, "files");
    const tree = new FileTree(growth, { folder, filesPerDirectory: 1_000, bytes: 0 });
    await growth.table(
      {
        title: "Metadata of empty files, after kill -9 of the leader and after a restart of all",
        what: "files",
        columns: [
          { name: "until a cold stat answers", unit: "ms", whole: true },
          { name: "until a create answers", unit: "ms", whole: true },
          { name: "restart until healthy", unit: "ms", whole: true },
        ],
      },
      growth.pick(SIZES),
      async (count) => {
        await tree.fill(count);
        const answers = await medians(() => killLeader(growth, cluster, tree));
        return [...answers, await medianOf(() => restart(cluster))];
      },
    );
  },
};

async function killLeader(growth: Growth, cluster: Cluster, tree: FileTree): Promise<number[]> {
  const pid = await cluster.leaderPid();
  const [stat] = tree.draw(1);
  const create = join(cluster.mount, `after-${Date.now()}`);
  cluster.dropCaches();
  const answers = await growth.files({ do: "takeover", pid, stat: stat!, create });
  await cluster.up();
  await cluster.healthy();
  return answers;
}

/** Milliseconds from the start of the first daemon until all is well. */
export async function restart(cluster: Cluster): Promise<number> {
  await cluster.down();
  return await msOf(async () => {
    await cluster.up();
    await cluster.healthy();
  });
}

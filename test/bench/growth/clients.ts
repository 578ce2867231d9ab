/** How many processes use one mount at once. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Cluster } from "../../support/cluster.js";
import { runSmallFiles } from "../run-small-files.js";
import { medians, type Growth, type Theme } from "./growth.js";

const WORKERS = { small: [1, 2], usual: [1, 4, 16, 32] };
/** Of all processes together. */
const FILES = { small: 80, usual: 6_400 };
const PROGRAM_MS = 180_000;

export const clientProcesses: Theme = {
  name: "client processes",
  async measure(growth) {
    const cluster = await growth.cluster();
    const folder = join(cluster.mount, "small");
    mkdirSync(folder);
    await smallFiles(growth, cluster, { folder, workers: 1 }); // Compiles what is used often.
    await growth.table(
      {
        title: "Processes that use one mount, 1 KiB files, ten directories each",
        what: "processes",
        columns: [
          { name: "create, all together", unit: "/s" },
          { name: "stat, cold, all together", unit: "/s" },
        ],
      },
      growth.pick(WORKERS),
      (workers) => medians(() => smallFiles(growth, cluster, { folder, workers })),
    );
  },
};

async function smallFiles(
  growth: Growth,
  cluster: Cluster,
  place: { folder: string; workers: number },
): Promise<number[]> {
  const count = growth.pick(FILES);
  const rate = async (phase: string): Promise<number> => {
    const { operations, seconds } = await growth.scope.within((t) =>
      runSmallFiles(t, { ...place, phase, count }, PROGRAM_MS),
    );
    return operations / seconds;
  };
  const create = await rate("create");
  cluster.dropCaches();
  const stat = await rate("stat");
  await rate("delete");
  return [create, stat];
}

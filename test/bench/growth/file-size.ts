/** The size of a file: one that is full of data, and one that is nearly all hole. */
import { join } from "node:path";
import { GIB, KIB, MIB } from "../../../cli/sizes.js";
import type { Cluster } from "../../support/cluster.js";
import { medians, type Growth, type Theme } from "./growth.js";

const DENSE = {
  small: [MIB, 8 * MIB],
  usual: [MIB, 16 * MIB, 256 * MIB, 2 * GIB],
  large: [MIB, 16 * MIB, 256 * MIB, 2 * GIB, 8 * GIB],
};
const SPARSE = { small: [MIB, GIB], usual: [MIB, 64 * MIB, GIB, 50 * GIB] };

export const fileSize: Theme = {
  name: "file size",
  async measure(growth) {
    const cluster = await growth.cluster();
    // The code of the first writes and reads of a mount is not compiled yet.
    for (let i = 0; i < growth.pick({ small: 1, usual: 5 }); i++) await dense(growth, cluster, MIB);
    await denseTable(growth, cluster);
    await sparseTable(growth, cluster);
  },
};

async function denseTable(growth: Growth, cluster: Cluster): Promise<void> {
  await growth.table(
    {
      title: "File size, dense",
      what: "size",
      inBytes: true,
      columns: [
        { name: "write + fsync", unit: "MB/s" },
        { name: "read, cold", unit: "MB/s" },
        { name: "rm", unit: "ms" },
      ],
    },
    growth.pick(DENSE),
    (bytes) => medians(() => dense(growth, cluster, bytes)),
  );
}

async function dense(growth: Growth, cluster: Cluster, bytes: number): Promise<number[]> {
  const path = join(cluster.mount, "dense");
  const megabytesPerSecond = (ms: number): number => bytes / 1e6 / (ms / 1000);
  const write = await growth.fileMs({ do: "write", path, bytes });
  cluster.dropCaches();
  const read = await growth.fileMs({ do: "read", path, bytes });
  const remove = await growth.fileMs({ do: "delete", paths: [path] });
  return [megabytesPerSecond(write), megabytesPerSecond(read), remove];
}

async function sparseTable(growth: Growth, cluster: Cluster): Promise<void> {
  await growth.table(
    {
      title: "File size, sparse but for the last 4 KiB",
      what: "size",
      inBytes: true,
      columns: [
        { name: "make", unit: "ms" },
        { name: "stat, cold", unit: "ms" },
        { name: "4 KiB read of the hole, cold", unit: "ms" },
        { name: "rm", unit: "ms" },
      ],
    },
    growth.pick(SPARSE),
    (bytes) => medians(() => sparse(growth, cluster, bytes)),
  );
}

async function sparse(growth: Growth, cluster: Cluster, bytes: number): Promise<number[]> {
  const path = join(cluster.mount, "sparse");
  const make = await growth.fileMs({ do: "sparse", path, bytes });
  cluster.dropCaches();
  const stat = await growth.fileMs({ do: "stat", paths: [path] });
  cluster.dropCaches();
  const read = await growth.fileMs({ do: "read-block", path, offset: bytes / 2 - 4 * KIB });
  const remove = await growth.fileMs({ do: "delete", paths: [path] });
  return [make, stat, read, remove];
}

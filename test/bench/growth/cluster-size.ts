/** How many OSDs a cluster has, and into how many placement groups its pools are divided. */
import { join } from "node:path";
import { ClusterClient } from "../../../cli/context.js";
import { MIB } from "../../../cli/sizes.js";
import { MAP_PATH } from "../../../cluster/zk/schema.js";
import { Cluster } from "../../support/cluster.js";
import type { Scope } from "../../support/scope.js";
import { onFile, randomBlocks, warmUp, writeAll, type RandomLoad } from "./fio-load.js";
import { medianOf, residentMB, type Growth, type Theme } from "./growth.js";
import { restart } from "./takeover.js";

const OSDS = { small: [3, 4], usual: [3, 6, 12] };
const PGS = { small: [8, 16], usual: [32, 128, 512] };
const AREA = { small: 8 * MIB, usual: 256 * MIB };
const SECONDS = { small: 1, usual: 2 };

export const osds: Theme = {
  name: "OSDs",
  async measure(growth) {
    await growth.table(
      {
        title: "OSDs, all on this machine",
        what: "OSDs",
        columns: [
          { name: "dss cluster up", unit: "ms", whole: true },
          { name: "sequential write", unit: "MB/s" },
          { name: "random direct write 4 KiB", unit: "/s" },
          { name: "resident, one OSD", unit: "MB" },
        ],
      },
      growth.pick(OSDS),
      (count) => growth.scope.within((scope) => measureOsds(growth, scope, count)),
    );
  },
};

async function measureOsds(growth: Growth, scope: Scope, count: number): Promise<number[]> {
  const cluster = new Cluster(scope, { osds: count });
  const up = await cluster.up();
  await cluster.healthy();
  const writes = await measureWrites(growth, scope, cluster);
  const pids = (await cluster.processes("osd")).map(({ pid }) => pid);
  return [up, ...writes, residentMB(...pids)];
}

/** Sequential in MB/s, random a second. */
async function measureWrites(
  growth: Growth,
  scope: Scope,
  cluster: Cluster,
): Promise<[number, number]> {
  const places = [onFile(join(cluster.mount, "file"))];
  const bytes = growth.pick(AREA);
  const load: RandomLoad = { direction: "write", bytes, seconds: growth.pick(SECONDS) };
  const sequential = await medianOf(() => writeAll(scope, places, bytes));
  await warmUp(scope, places, load);
  return [sequential, await medianOf(() => randomBlocks(scope, places, load))];
}

export const placementGroups: Theme = {
  name: "placement groups",
  async measure(growth) {
    await growth.table(
      {
        title: "Placement groups of each pool",
        what: "placement groups",
        columns: [
          { name: "cluster map", unit: "KB", whole: true },
          { name: "restart until healthy", unit: "ms", whole: true },
          { name: "random direct write 4 KiB", unit: "/s" },
          { name: "resident, one OSD", unit: "MB", whole: true },
        ],
      },
      growth.pick(PGS),
      (count) => growth.scope.within((scope) => measurePgs(growth, scope, count)),
    );
  },
};

async function measurePgs(growth: Growth, scope: Scope, count: number): Promise<number[]> {
  const cluster = new Cluster(scope, { env: { DSS_POOL_PGS: String(count) } });
  await cluster.up();
  await cluster.healthy();
  const [, random] = await measureWrites(growth, scope, cluster);
  const pids = (await cluster.processes("osd")).map(({ pid }) => pid);
  const resident = residentMB(...pids);
  const map = (await mapBytes(cluster)) / 1000;
  return [map, await medianOf(() => restart(cluster)), random, resident];
}

/** Of the cluster map as every daemon gets it. */
async function mapBytes(cluster: Cluster): Promise<number> {
  const client = await ClusterClient.open((await cluster.status()).zookeeper);
  try {
    return (await client.coordination.get(MAP_PATH))!.data.length;
  } finally {
    await client.close();
  }
}

/**
 * What the tests of failures share: the limits of what a failure may cost, and finding out who is
 * who in a cluster at the moment.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Cluster, ClusterProcess } from "./cluster.js";
import { objectName } from "../../cluster/base/object-name.js";
import { recordStall, type FaultLoad, type Measured } from "./fault-load.js";
import { waitFor } from "./temp.js";
import { fourLetterWord } from "./zookeeper.js";

/** What a failure may cost, as the median of a campaign (milliseconds). */
export const KILL_GOAL_MS = 2_000;
export const SILENCE_GOAL_MS = 8_000;
/** A single repeat, on a machine that others may use: it catches a service that does not go on. */
const SINGLE_FACTOR = 3;

export interface Tap {
  comment(text: string): void;
  equal(found: unknown, wanted: unknown): void;
  ok(value: unknown, message: string): void;
}

/** Makes the failure under load, says and records what it cost, and judges it. */
export async function measure(
  t: Tap,
  load: FaultLoad,
  options: { name: string; goalMs: number; settleMs?: number },
  failure: () => Promise<void>,
): Promise<Measured> {
  const { name, goalMs } = options;
  const settleMs = options.settleMs ?? (goalMs === KILL_GOAL_MS ? 3_000 : 7_000);
  const measured = await load.during(failure, { settleMs });
  const lanes = Object.entries(measured.lanes).map(([lane, ms]) => `${lane} ${ms}`);
  t.comment(`${name}: longest stall ${measured.longestMs} ms (${lanes.join(", ")})`);
  recordStall(name, goalMs, measured);
  t.ok(measured.longestMs <= goalMs * SINGLE_FACTOR, `${name}: ${measured.longestMs} ms`);
  return measured;
}

export interface PgRow {
  readonly pg: string;
  readonly inSync: readonly number[];
  readonly primary: number;
}

/** The process of an OSD. */
export async function osdProcess(cluster: Cluster, id: number): Promise<ClusterProcess> {
  const found = (await cluster.processes("osd")).find(({ name }) => name === `osd.${id}`);
  if (found === undefined) throw new Error(`osd.${id} does not run`);
  return found;
}

/** The members of the placement group of the first object of a volume: the primary first. */
export async function membersOf(cluster: Cluster, volume: string): Promise<number[]> {
  const info = await cluster.json<{ objectPrefix: string }>(["volume", "info", volume]);
  const object = objectName(info.objectPrefix, 0);
  const { inSync, primary } = await cluster.json<PgRow>(["pg", "locate", "data", object]);
  return [primary, ...inSync.filter((osd) => osd !== primary)];
}

/** Every placement group has three copies, none of them on these OSDs. */
export async function healedWithout(cluster: Cluster, ...gone: number[]): Promise<void> {
  await waitFor(
    `three copies without ${gone.map((id) => `osd.${id}`).join(", ")}`,
    async () => {
      const pgs = await cluster.json<PgRow[]>(["pg", "ls"]);
      return pgs.every(
        ({ inSync }) => inSync.length === 3 && !inSync.some((osd) => gone.includes(osd)),
      );
    },
    { withinMs: 90_000, everyMs: 300 },
  );
}

/** Waits until the map shows the OSD as down. */
export async function shownDown(cluster: Cluster, id: number): Promise<void> {
  await waitFor(
    `osd.${id} is shown as down`,
    async () => {
      const { osds } = await cluster.json<{ osds: { id: number; up: boolean }[] }>(["status"]);
      return osds.some((osd) => osd.id === id && !osd.up);
    },
    { withinMs: 30_000, everyMs: 250 },
  );
}

/** The ZooKeeper server that leads the ensemble. */
export async function zookeeperLeader(cluster: Cluster): Promise<ClusterProcess> {
  const state = JSON.parse(readFileSync(join(cluster.data, "cluster.json"), "utf8")) as {
    zookeeper: { servers: { id: number; port: number }[] };
  };
  for (const { id, port } of state.zookeeper.servers) {
    if (!/Mode: leader/.test(await fourLetterWord(port, "srvr"))) continue;
    const processes = await cluster.processes("zookeeper");
    const found = processes.find(({ name }) => name === `zookeeper.${id}`);
    if (found !== undefined) return found;
  }
  throw new Error("no ZooKeeper server leads");
}

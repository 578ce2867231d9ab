/**
 * Sessions with ZooKeeper end, and ZooKeeper is wholly gone for a while (frozen, so that every
 * session expires when it wakes; then killed), under a load of fio with verification on the mount
 * and on a volume. Data of open files and volumes goes on, metadata changes wait and then finish,
 * and afterwards nobody was declared dead. Losing one server of three is crash-failover.test.ts.
 *
 * DSS_ZK_OUTAGE_SECONDS (20; the campaign's are gone for 60) and DSS_ZK_SERVERS (1).
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { startCluster } from "../support/cluster.js";
import type { Cluster } from "../support/cluster.js";
import { FaultLoad } from "../support/fault-load.js";
import type { Program } from "../support/process.js";
import { waitFor } from "../support/temp.js";
import { expireSession } from "../support/zookeeper.js";

const OUTAGE_MS = Number(process.env["DSS_ZK_OUTAGE_SECONDS"] ?? 20) * 1_000;
const SERVERS = Number(process.env["DSS_ZK_SERVERS"] ?? 1);
/** Into the outage: what ends with it has ended, what goes on goes on. */
const SETTLED_MS = 4_000;
/** A single operation on data while ZooKeeper is gone; the machine may be busy. */
const DATA_MS_MAX = 4_000;
const DATA_LANES = ["mount write", "mount read", "nbd write", "nbd read"];
const AFTER = { settleMs: 12_000, withinMs: 90_000 };

t.setTimeout(420_000 + 4 * OUTAGE_MS);
const cluster = await startCluster(t, { osds: 3, mds: 2, zookeeper: SERVERS });
let server: Program | undefined;
const load = await FaultLoad.start(t, {
  mount: cluster.mount,
  serve: async (volume, bytes) => {
    const served = await cluster.serve(volume, bytes);
    server = served.server;
    return served;
  },
});

// ---- What the programs say ---------------------------------------------------------------------

interface LogLine {
  message?: string;
  session?: string;
  events?: string[];
}
function linesOf(name: string): LogLine[] {
  const text = name === "nbd" ? server!.tail(10_000) : readLog(cluster, name);
  return text
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as LogLine);
}
function readLog(cluster: Cluster, name: string): string {
  return readFileSync(join(cluster.data, "log", `${name}.log`), "utf8");
}
function sessionOf(name: string): string {
  const last = linesOf(name).filter(({ message }) => message === "connected to ZooKeeper");
  return last.at(-1)?.session ?? "";
}
/** Lines of the metadata servers in which anybody is declared dead. */
function declaredDead(): string[] {
  return ["mds.0", "mds.1"].flatMap((name) =>
    linesOf(name)
      .filter(
        ({ message, events }) =>
          message === "evicting a session" || events?.some((event) => event === "osdGone"),
      )
      .map((line) => `${name}: ${JSON.stringify(line)}`),
  );
}

function zookeeperPort(): number {
  const state = JSON.parse(readFileSync(join(cluster.data, "cluster.json"), "utf8")) as {
    zookeeper: { servers: { port: number }[] };
  };
  return state.zookeeper.servers[0]!.port;
}

// ---- Expiry ------------------------------------------------------------------------------------

async function expire(t: Test, name: string): Promise<void> {
  const before = sessionOf(name);
  const { longestMs, lane } = await load.during(
    async () => {
      await expireSession(zookeeperPort(), BigInt(`0x${before}`));
      await waitFor(`a new session of ${name}`, () => sessionOf(name) !== before, {
        withinMs: 20_000,
      });
    },
    { withinMs: 90_000 },
  );
  t.comment(`${name} lost session ${before}: longest stall ${longestMs} ms (${lane})`);
  await cluster.healthy();
  t.match(sessionOf(name), /^[0-9a-f]+$/);
}

await t.test("the session of each kind of program expires", async (t) => {
  const { mds } = await cluster.json<{ mds: { leader: number } }>(["status"]);
  const standby = mds.leader === 0 ? 1 : 0;
  for (const name of ["osd.1", `mds.${standby}`, `mds.${mds.leader}`, "mount", "nbd"]) {
    await expire(t, name);
  }
});

// ---- ZooKeeper gone ----------------------------------------------------------------------------

async function outage(t: Test, begin: () => Promise<void>, end: () => Promise<void>) {
  const before = declaredDead();
  await begin();
  await sleep(SETTLED_MS);
  await load.prober.report();
  const rest = OUTAGE_MS - SETTLED_MS;
  for (let second = 0; second < rest; second += rest / 4) {
    await sleep(rest / 4);
    const { longest, count, errors } = await load.prober.report();
    t.same(errors, []);
    t.equal(count["mount names"], 0, "metadata changes wait");
    for (const lane of DATA_LANES) {
      t.ok(count[lane]! > 0 && longest[lane]! < DATA_MS_MAX, `${lane}: ${longest[lane]} ms`);
    }
  }
  const { lanes } = await load.during(end, AFTER);
  t.comment(`afterwards: ${JSON.stringify(lanes)}`);
  await cluster.healthy();
  t.same(declaredDead().slice(before.length), [], "nobody was declared dead");
  if (!t.passing()) t.comment(cluster.logTails(40));
}

await t.test(`ZooKeeper is frozen for ${OUTAGE_MS / 1000} s: all sessions expire`, async (t) => {
  const pids = (await cluster.processes("zookeeper")).map(({ pid }) => pid);
  await outage(
    t,
    () => cluster.kill(pids, "SIGSTOP"),
    () => cluster.kill(pids, "SIGCONT"),
  );
});

await t.test(`ZooKeeper is dead for ${OUTAGE_MS / 1000} s`, async (t) => {
  await outage(
    t,
    async () => void (await cluster.killRoles("zookeeper")),
    async () => void (await cluster.up()),
  );
});

await t.test("nobody saw an error or a wrong byte", async (t) => {
  await load.stop();
  t.ok(load.passes > 0, `${load.passes} passes of fio`);
});

/**
 * Power cuts: OSDs on lossy test disks, which forget or tear what was not synced, cut at a random
 * instant under load; one OSD, all at once, or all with their clients. When the power is back every
 * OSD starts, everything acknowledged is there, every block is old or new and never torn, and the
 * copies are equal. The ledger of acknowledgements is kept by this process.
 *
 * Then the test is tested: disks that ignore syncs must be found out.
 * DSS_POWER_ROUNDS (3, one of each kind), DSS_POWER_SEED, and DSS_POWER_KIND for one kind alone.
 */
import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { objectName } from "../../cluster/base/object-name.js";
import { filePrefix } from "../../osd/client/striper.js";
import { Load, verify } from "../support/load.js";
import { PoweredCluster } from "../support/powered-cluster.js";
import { Ledger } from "../support/stamped-blocks.js";
import { waitFor } from "../support/temp.js";
import type { WriterRequest } from "../support/writer.js";

const ROUNDS = Number(process.env["DSS_POWER_ROUNDS"] ?? 3);
const SEED = Number(process.env["DSS_POWER_SEED"] ?? 1);
/** 8 MiB a file: two objects. */
const BLOCKS = 2_048;
const VOLUME = "power";
/** Always the same: the server that follows a killed one succeeds it. */
const SOCKET = "power.sock";
const LOAD_MS = [600, 2_500] as const;
const AWAY_MS = 1_500;
const KINDS = ["one", "all", "all and clients"] as const;
type Kind = (typeof KINDS)[number];
const ONLY = KINDS.find((kind) => kind === process.env["DSS_POWER_KIND"]);

t.setTimeout((180 + ROUNDS * 120) * 1_000);
const powered = await PoweredCluster.start(t);
const { cluster } = powered;
const random = new Prng(SEED);
const folder = join(cluster.mount, "load");
mkdirSync(folder);
const files = new Ledger();
const volume = new Ledger();

function request(
  what: "write" | "verify",
  target: WriterRequest["target"],
  ledger: Ledger,
): WriterRequest {
  const seed = random.u32();
  return { do: what, target, blocks: BLOCKS, seed, from: ledger.generationMax + 1 };
}

/** Loads, a cut, the return of the power; what is wrong afterwards. */
async function round(t: Test, kind: Kind, luck?: "all lost"): Promise<string[]> {
  const { server, socket } = await cluster.serve(VOLUME, BLOCKS * 4096, SOCKET);
  const loads = [
    new Load(t, request("write", { folder }, files), files),
    new Load(t, request("write", { socket, volume: VOLUME }, volume), volume),
  ];
  const before = files.acknowledgements + volume.acknowledgements;
  await waitFor("the loads", () => files.acknowledgements + volume.acknowledgements > before + 20, {
    withinMs: 20_000,
  });
  lap(t, "start");
  await sleep(random.int(...LOAD_MS));
  lap(t, "load");
  if (kind === "all" && random.chance(0.5)) {
    // What a killed process wrote and did not sync is in the page cache of the next.
    await cluster.killRoles("osd");
    await cluster.up();
    await sleep(random.int(0, AWAY_MS));
    lap(t, "kill -9 before");
  }
  const osds = await cluster.processes("osd");
  const victims = kind === "one" ? [random.pick(osds)] : osds;
  const mounts = kind === "all and clients" ? await cluster.processes("mount") : [];
  const clients = mounts.flatMap(({ pid, supervisor = pid }) => [supervisor, pid]);
  const alsoKill = kind === "all and clients" ? [...clients, server.pid] : [];
  const reports = await powered.cut(victims, random, { alsoKill, ...(luck && { luck }) });
  for (const report of reports) t.comment(report);
  if (alsoKill.length > 0) await Promise.all(loads.map((load) => load.end()));
  else await sleep(random.int(0, AWAY_MS));
  lap(t, "cut");
  await powered.return(victims);
  lap(t, "return");
  if (alsoKill.length === 0) {
    // Clients that lived through it go on where they were.
    await Promise.all(loads.map((load) => load.finish()));
    t.match([files.ended, volume.ended], ["asked to stop", "asked to stop"]);
    await server.stop();
    await cluster.remount();
  }
  lap(t, "finish");
  t.comment(`acknowledged: ${files.acknowledgements} and ${volume.acknowledgements}`);
  return await whatIsWrong(t);
}

let since = performance.now();
/** Where the time of a round goes. */
function lap(t: Test, what: string): void {
  t.comment(`${what}: ${((performance.now() - since) / 1000).toFixed(1)} s`);
  since = performance.now();
}

async function whatIsWrong(t: Test): Promise<string[]> {
  const again = await cluster.serve(VOLUME, BLOCKS * 4096, SOCKET);
  const inFiles = await verify(t, request("verify", { folder }, files));
  const target = { socket: again.socket, volume: VOLUME };
  const inVolume = await verify(t, request("verify", target, volume));
  await again.server.stop();
  lap(t, "verify");
  for (const each of [...inFiles.garbage, ...inVolume.garbage]) t.comment(each);
  if (inFiles.garbage.length > 0) {
    // Is it on the disks, or was it made on the way here?
    await cluster.remount();
    const again = await verify(t, request("verify", { folder }, files));
    t.comment(`read again: ${again.garbage.join("; ") || "good"}`);
  }
  return [
    ...files.check(inFiles.blocks),
    ...files.checkNames(inFiles.names, inFiles.damaged),
    ...volume.check(inVolume.blocks).map((each) => `volume: ${each}`),
  ];
}

for (let number = 1; number <= ROUNDS && t.passing(); number++) {
  const kind = ONLY ?? KINDS[number - 1] ?? random.pick(KINDS);
  await t.test(`round ${number}: ${kind}`, async (t) => {
    t.comment(`DSS_POWER_SEED=${SEED}`);
    t.same((await round(t, kind)).slice(0, 20), []);
    await cluster.healthy();
    lap(t, "healthy");
    t.same(await cluster.unequalCopies(VOLUME), [], "copies of the volume");
    const { ino } = statSync(join(folder, "blocks-1"));
    const names = [0, 1].map((index) => objectName(filePrefix(ino), index));
    const { pool } = await cluster.json<{ pool: number }>(["volume", "info", VOLUME]);
    t.same(await cluster.unequalObjects(pool, names), [], "copies of a file");
    lap(t, "copies");
    if (!t.passing()) t.comment(cluster.logTails());
  });
}

await t.test("disks that ignore syncs are found out", { skip: !t.passing() }, async (t) => {
  await powered.ignoreSyncs();
  const wrong = await round(t, "all and clients", "all lost");
  t.comment(`found: ${wrong.slice(0, 3).join("; ")}`);
  t.ok(wrong.length > 0, "acknowledged writes are missing");
});

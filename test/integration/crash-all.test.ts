/**
 * All OSDs, metadata servers and clients die at the same instant under load, again and again. After
 * each restart every acknowledged write is there, every block is old or new and never torn, every
 * name that was made durable exists. DSS_CRASH_ROUNDS (2; the campaign runs 20) and DSS_CRASH_SEED.
 *
 * kill -9 keeps the kernel's page cache: this proves the order of acknowledgements and recovery,
 * and crash-strace.test.ts that each acknowledgement follows a sync on every replica.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "../support/cluster.js";
import { Load, verify } from "../support/load.js";
import { Ledger } from "../support/stamped-blocks.js";
import type { WriterRequest } from "../support/writer.js";

const ROUNDS = Number(process.env["DSS_CRASH_ROUNDS"] ?? 2);
const SEED = Number(process.env["DSS_CRASH_SEED"] ?? 1);
/** 12 MiB a file: three objects, so that requests cross borders. */
const BLOCKS = 3_072;
const VOLUME = "crash";
const LOAD_MS = [1_500, 4_000] as const;

const cluster = await startCluster(t);
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

for (let round = 1; round <= ROUNDS && t.passing(); round++) {
  await t.test(`round ${round}`, async (t) => {
    const { server, socket } = await cluster.serve(VOLUME, BLOCKS * 4096);
    const acknowledged = [files.acknowledgements, volume.acknowledgements];
    const loads = [
      new Load(t, request("write", { folder }, files), files),
      new Load(t, request("write", { socket, volume: VOLUME }, volume), volume),
    ];
    const { processes } = await cluster.status();
    const victims = processes
      .filter(({ role }) => role !== "zookeeper")
      .flatMap(({ pid, supervisor = pid }) => [supervisor, pid]);
    await new Promise((done) => setTimeout(done, random.int(...LOAD_MS)));
    await cluster.kill([...victims, server.pid]);
    await Promise.all(loads.map((load) => load.end()));
    t.ok(files.acknowledgements > (acknowledged[0] ?? 0) + 10, `files: ${files.ended}`);
    t.ok(volume.acknowledgements > (acknowledged[1] ?? 0) + 10, `volume: ${volume.ended}`);
    t.notMatch(files.ended, /asked|short/, "the load ran until the crash");

    const ms = await cluster.up();
    t.comment(
      `up again in ${(ms / 1000).toFixed(1)} s; acknowledged so far: ` +
        `${files.acknowledgements} of files, ${volume.acknowledgements} of the volume`,
    );
    const again = await cluster.serve(VOLUME, BLOCKS * 4096);
    const inFiles = await verify(t, request("verify", { folder }, files));
    const target = { socket: again.socket, volume: VOLUME };
    const inVolume = await verify(t, request("verify", target, volume));
    t.same(files.check(inFiles.blocks).slice(0, 20), [], "blocks of files");
    t.same(files.checkNames(inFiles.names, inFiles.damaged).slice(0, 20), [], "names");
    t.same(volume.check(inVolume.blocks).slice(0, 20), [], "blocks of the volume");
    await again.server.stop();
    if (!t.passing()) {
      t.comment(`DSS_CRASH_SEED=${SEED}`);
      t.comment(cluster.logTails());
    }
  });
}

await t.test("afterwards all is healthy and the copies are equal", async (t) => {
  await cluster.healthy();
  t.same(await cluster.unequalCopies(VOLUME), []);
});

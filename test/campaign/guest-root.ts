/**
 * A step of the campaign "guest-root": a virtual machine runs on a root file system that is a dss
 * volume, while the volume's server and OSDs (with primaries among them) are killed. Two boots; the
 * second one finds what the first has written. After each shutdown `fsck -n` finds nothing.
 * GUEST_ROOT_SEED decides who dies when.
 */
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "../support/cluster.js";
import { bootRoot, checkRoot, makeRoot, ROOT_BYTES } from "../support/guest-root.js";
import type { Program } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const SEED = Number(process.env["GUEST_ROOT_SEED"] ?? 1);
const BOOT_MS = 600_000;
const ANSWERS = /"pid":(\d+),"size":\d+,"resent":(\d+)/g;

/** The present server under the supervisor. */
async function serverPid(supervisor: Program): Promise<number> {
  return await waitFor("a server", () => {
    const pids = [...supervisor.stderr.matchAll(ANSWERS)].map(([, pid]) => Number(pid));
    return pids.at(-1);
  });
}

t.setTimeout(1_500_000);
const prng = new Prng(SEED);
const cluster = await startCluster(t);
const folder = tempFolder(t, "root");

t.test(`a machine lives on a volume (seed ${SEED})`, { timeout: 1_400_000 }, async (t) => {
  await cluster.ok(["volume", "create", "root", `${ROOT_BYTES / 2 ** 20}M`]);
  const socket = join(folder, "root.sock");
  const supervisor = cluster.start(["volume", "serve", "root", "--supervise", "--unix", socket]);
  const [, uri] = await supervisor.output(/(nbd\+unix:\/\/\S+)/, 60_000);
  await makeRoot(t, folder, uri!);

  for (const boot of [1, 2]) {
    const deaths: string[] = [];
    const onStep = async (step: string): Promise<void> => {
      const what = prng.pick(["server", "osd", "both", "neither"] as const);
      // The first two rounds of each boot see one of each, whatever the seed.
      const chosen = step === "round1" ? "server" : step === "round2" ? "osd" : what;
      deaths.push(`${step}: ${chosen}`);
      const victims: number[] = [];
      if (chosen === "server" || chosen === "both") victims.push(await serverPid(supervisor));
      if (chosen === "osd" || chosen === "both") {
        const osds = await cluster.processes("osd");
        // One at a time: two copies are the least that takes writes.
        if (osds.length === 3) victims.push(prng.pick(osds).pid);
      }
      await cluster.kill(victims);
      if (chosen === "neither") await cluster.up();
    };
    const disk = { socket, name: "root" };
    const { code, results, console } = await bootRoot(t, disk, { withinMs: BOOT_MS, onStep });
    t.comment(`boot ${boot}: ${deaths.join(", ")}`);
    t.equal(code, 0, console);
    t.equal(results.get("earlier"), boot === 1 ? "none" : "good");
    for (const name of ["written", "busybox", "done"]) t.ok(results.has(name), name);
    t.match(await checkRoot(t, folder, uri!), /\d+\/\d+ files/, "fsck is clean");
    await cluster.up();
  }
  t.ok(supervisor.running);
  await supervisor.stop({ graceMs: 30_000 });
  await cluster.healthy(120_000);
  t.same(await cluster.unequalCopies("root"), [], "all copies are equal");
});

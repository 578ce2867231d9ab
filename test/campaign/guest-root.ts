/**
 * A step of the campaign "guest-root": a virtual machine runs on a root file system that is a dss
 * volume, while the volume's server and OSDs (with primaries among them) are killed. Two boots; the
 * second one finds what the first has written. After each shutdown `fsck -n` finds nothing.
 * GUEST_ROOT_SEED decides who dies when.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster, type Cluster } from "../support/cluster.js";
import { bootRoot, checkRoot, makeRoot, ROOT_BYTES } from "../support/guest-root.js";
import type { Program } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";
import { Scope } from "../support/scope.js";

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

const machine = new Scope();

class World {
  private constructor(
    readonly cluster: Cluster,
    readonly folder: string,
    readonly socket: string,
    readonly supervisor: Program,
    readonly uri: string,
  ) {}

  static async begin(): Promise<World> {
    const cluster = await startCluster(machine);
    const folder = tempFolder(machine, "root");
    await cluster.ok(["volume", "create", "root", `${ROOT_BYTES / 2 ** 20}M`]);
    const socket = join(folder, "root.sock");
    const supervisor = cluster.start(["volume", "serve", "root", "--supervise", "--unix", socket]);
    const [, uri] = await supervisor.output(/(nbd\+unix:\/\/\S+)/, 60_000);
    return new World(cluster, folder, socket, supervisor, uri!);
  }

  /** Kills somebody at the beginning of a round; says whom. */
  async strike(prng: Prng, step: string): Promise<string> {
    const { cluster } = this;
    const drawn = prng.pick(["server", "osd", "both", "neither"] as const);
    // The first two rounds of each boot see one of each, whatever the seed.
    const chosen = step === "round1" ? "server" : step === "round2" ? "osd" : drawn;
    const victims: number[] = [];
    if (chosen === "server" || chosen === "both") victims.push(await serverPid(this.supervisor));
    if (chosen === "osd" || chosen === "both") {
      const osds = await cluster.processes("osd");
      // One at a time: two copies are the least that takes writes.
      if (osds.length === 3) victims.push(prng.pick(osds).pid);
      else await cluster.up();
    }
    await cluster.kill(victims);
    if (chosen === "neither") await cluster.up();
    return `${step} ${chosen}`;
  }

  async boot(prng: Prng, number: number): Promise<void> {
    const { socket, folder, uri, cluster } = this;
    const deaths: string[] = [];
    const onStep = async (step: string): Promise<void> => {
      deaths.push(await this.strike(prng, step));
    };
    const options = { withinMs: BOOT_MS, onStep };
    const {
      code,
      results,
      console: said,
    } = await bootRoot(machine, { socket, name: "root" }, options);
    console.log(`boot ${number}: killed ${deaths.join(", ")}`);
    assert.equal(code, 0, said);
    assert.equal(results.get("earlier"), number === 1 ? "none" : "good", "of the boot before");
    for (const name of ["written", "busybox", "done"])
      assert.ok(results.has(name), `${name}: ${said}`);
    const checked = await checkRoot(machine, folder, uri);
    assert.match(checked, /\d+\/\d+ files/);
    console.log(`boot ${number}: ${checked.trim().split("\n").at(-1)}`);
    await cluster.up();
  }
}

try {
  const prng = new Prng(SEED);
  const world = await World.begin();
  const { supervisor, cluster, folder, uri } = world;
  await makeRoot(machine, folder, uri);
  for (const boot of [1, 2]) await world.boot(prng, boot);
  assert.ok(supervisor.running);
  const deaths = supervisor.stderr.match(/the volume's server has ended/g) ?? [];
  console.log(`the supervisor has lived through the deaths of ${deaths.length} servers`);
  await supervisor.stop({ graceMs: 30_000 });
  await cluster.healthy(120_000);
  assert.deepEqual(await cluster.unequalCopies("root"), [], "all copies are equal");
  console.log(`guest-root holds (seed ${SEED})`);
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  await machine.end();
}

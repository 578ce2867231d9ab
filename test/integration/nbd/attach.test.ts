/**
 * Volumes of a real cluster whose server dies: under supervision clients go on, and after a
 * takeover by force they do not.
 */
import { join } from "node:path";
import t from "tap";
import { startCluster } from "../../support/cluster.js";
import { NbdClient } from "../../support/nbd-client.js";
import { run, succeed, type Program } from "../../support/process.js";
import { tempFolder, waitFor } from "../../support/temp.js";

const URI = /(nbd\+unix:\/\/\S+)/;
const ANSWERS = /"pid":\d+,"name":"nbd"[^}]*?"pid":(\d+),"size":\d+,"resent":(\d+)/g;

const cluster = await startCluster(t);
const folder = tempFolder(t, "attach");

/** Process ids of the servers that a supervisor has had, the present one last. */
const serversOf = (supervisor: Program): number[] =>
  [...supervisor.stderr.matchAll(ANSWERS)].map(([, pid]) => Number(pid));

async function nextServer(supervisor: Program, count: number): Promise<number> {
  return await waitFor("the next server", () => serversOf(supervisor)[count], { withinMs: 60_000 });
}

t.test("a supervised server is killed under fio, and nobody sees an error", async (t) => {
  await cluster.ok(["volume", "create", "kept", "64M"]);
  const socket = join(folder, "kept.sock");
  const supervisor = cluster.start(["volume", "serve", "kept", "--supervise", "--unix", socket]);
  const [, uri] = await supervisor.output(URI);
  const args = ["--name=verify", "--ioengine=nbd", `--uri=${uri}`, "--rw=randwrite"];
  const load = ["--bsrange=4k-64k", "--size=16m", "--iodepth=16", "--rate=4m", "--randseed=9"];
  const checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
  const fio = run(t, "fio", [...args, ...load, ...checks], { cwd: folder, withinMs: 240_000 });
  for (let death = 0; death < 2; death++) {
    const pid = await nextServer(supervisor, death);
    await new Promise((resolve) => setTimeout(resolve, 500));
    await cluster.kill([pid]);
  }
  await nextServer(supervisor, 2);
  const { code, stdout, stderr } = await fio;
  t.equal(code, 0, stderr);
  t.match(stdout, /err= 0/);
  interface Info {
    owner: string;
  }
  const { owner } = await cluster.json<Info>(["volume", "info", "kept"]);
  t.match(owner, new RegExp(`pid ${serversOf(supervisor).at(-1)}\\b`));

  // Somebody takes it away: no server of this line gets it again, not even when it is free.
  const client = await NbdClient.connect(socket, "kept");
  t.teardown(() => client.close());
  const other = ["volume", "serve", "kept", "--unix", join(folder, "b.sock"), "--force"];
  const taker = cluster.start(other);
  const [, takerUri] = await taker.output(URI);
  await succeed(t, "qemu-io", ["-f", "raw", "-c", "write -P 0x44 0 4096", takerUri!]);
  await taker.stop();
  await t.rejects(client.write(0, Buffer.alloc(4096, 0x11)), /NBD error 108|closed/);
  t.not((await supervisor.exited).code, 0);
  t.match(supervisor.stderr, /the volume is lost: ending its export/);
  t.match(supervisor.stderr, /dss: kept is lost/);
  t.equal(await cluster.ok(["volume", "read", "kept", "0", "4"]), "DDDD");
});

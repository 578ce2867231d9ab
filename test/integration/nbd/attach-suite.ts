/**
 * Volumes of a real cluster whose server dies: under supervision clients go on, and after a
 * takeover by force they do not.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../../cluster/base/prng.js";
import { NbdClient } from "../../support/nbd-client.js";
import { run, succeed, type Program } from "../../support/process.js";
import { waitFor } from "../../support/temp.js";
import { cluster, folder } from "./volumes-support.js";

const URI = /(nbd\+unix:\/\/\S+)/;
const ANSWERS = /"pid":\d+,"name":"nbd"[^}]*?"pid":(\d+),"size":\d+,"resent":(\d+)/g;

/** Deaths of a server in each test; the campaign "attach" has more. */
const DEATHS = Number(process.env["DSS_SERVER_DEATHS"] ?? 1);

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
  const load = ["--bsrange=4k-64k", "--size=8m", "--iodepth=16", "--rate=4m", "--randseed=9"];
  const checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
  const fio = run(t, "fio", [...args, ...load, ...checks], { cwd: folder, withinMs: 240_000 });
  for (let death = 0; death < DEATHS; death++) {
    const pid = await nextServer(supervisor, death);
    await new Promise((resolve) => setTimeout(resolve, 500));
    await cluster.kill([pid]);
  }
  await nextServer(supervisor, DEATHS);
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
  const other = ["volume", "serve", "kept", "--unix", join(folder, "taker.sock"), "--force"];
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

t.test("a volume as a loop device keeps ext4 while its server dies", async (t) => {
  await cluster.ok(["volume", "create", "loop", "64M"]);
  const table = join(folder, "attachments");
  const attached = async () =>
    await cluster.json<{ volume: string; device: string; serving: boolean; pid: number }[]>([
      "volume",
      "attached",
    ]);
  const attach = ["volume", "attach", "--loop", "loop", "--save", "--table", table];
  const device = (await cluster.ok(attach, { withinMs: 90_000 })).trim();
  t.teardown(() => cluster.dss(["volume", "detach", "--all"], { withinMs: 90_000 }));
  t.match(device, /^\/dev\/loop\d+$/);
  t.match(await attached(), [{ volume: "loop", device, serving: true }]);
  t.match((await cluster.dss(attach)).stderr, /loop is attached as \/dev\/loop/);

  const source = join(folder, "source");
  writeFileSync(source, new Prng(11).bytes(16 * 2 ** 20));
  const mountpoint = join(folder, "ext4");
  mkdirSync(mountpoint);
  await succeed(t, "mkfs.ext4", ["-q", "-F", device], { withinMs: 90_000 });
  await succeed(t, "mount", [device, mountpoint]);
  t.teardown(() => run(t, "umount", ["-l", mountpoint]).catch(() => undefined));
  const busy = await cluster.dss(["volume", "detach", "loop"]);
  t.match(busy.stderr, /is mounted at .*umount/s);
  // In the middle of a copy that ends with a sync.
  const log = join(cluster.data, "run/volumes");
  const serverPid = async (count: number): Promise<number> =>
    await waitFor(
      "the server",
      () => {
        const text = readdirSync(log)
          .filter((name) => name.endsWith(".log"))
          .map((name) => readFileSync(join(log, name), "utf8"))
          .join("");
        return [...text.matchAll(ANSWERS)].map(([, pid]) => Number(pid))[count];
      },
      { withinMs: 60_000 },
    );
  for (let death = 0; death < DEATHS; death++) {
    const target = join(mountpoint, `copy${death}`);
    const copying = succeed(t, "sh", ["-c", 'cp "$0" "$1" && sync', source, target], {
      withinMs: 120_000,
    }).catch((error: unknown) => t.fail(String(error)));
    await cluster.kill([await serverPid(death)]);
    await copying;
    await serverPid(death + 1);
    if (death < DEATHS - 1) await run(t, "rm", [target]);
  }
  await succeed(t, "fstrim", [mountpoint], { withinMs: 60_000 });
  await succeed(t, "umount", [mountpoint], { withinMs: 60_000 });
  await cluster.ok(["volume", "detach", device], { withinMs: 90_000 });
  t.same(await attached(), []);

  // Restored from the table, on whatever device, with everything that was written.
  const again = await cluster.ok(["volume", "attach", "--all", "--table", table], {
    withinMs: 90_000,
  });
  const [, second] = /^loop (\/dev\/loop\d+)$/m.exec(again) ?? [];
  await succeed(t, "e2fsck", ["-n", "-f", second!], { withinMs: 60_000 });
  await succeed(t, "mount", ["-o", "ro", second!, mountpoint]);
  await succeed(t, "cmp", [source, join(mountpoint, `copy${DEATHS - 1}`)], { withinMs: 60_000 });
  await succeed(t, "umount", [mountpoint]);
  await cluster.ok(["volume", "detach", "loop", "--forget", "--table", table]);
  t.notMatch(readFileSync(table, "utf8"), /^loop/m);
});

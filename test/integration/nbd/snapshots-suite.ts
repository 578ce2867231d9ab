/** Snapshots on a real cluster: taken under load, kept while an OSD dies, returned to, removed. */
import { join } from "node:path";
import t from "tap";
import { dss, run, succeed } from "../../support/process.js";
import { cluster, folder } from "./volumes-support.js";

const SIZE = 16 * 1024 * 1024;

const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
async function sumOf(name: string): Promise<string> {
  const { zookeeper } = await cluster.status();
  const [node, args] = dss("volume", "read", name, "0", String(SIZE));
  const pipe = ["-c", 'set -o pipefail; "$@" | sha256sum', "bash", node, ...args];
  return await succeed(t, "bash", pipe, { env: { DSS_ZOOKEEPER: zookeeper } });
}
async function stored(name: string): Promise<number> {
  const rows = await cluster.json<{ stored: number }[]>(["volume", "du", name]);
  return rows[0]!.stored;
}

t.test("a snapshot under load stays what it was, whatever happens to the volume", async (t) => {
  await volume("create", "disk", "16M");
  await volume("write", "disk", "0", "before");
  await volume("snap", "create", "disk@base");
  const socket = join(folder, "disk.sock");
  const server = cluster.start(["volume", "serve", "disk", "--unix", socket]);
  await server.output(/nbd\+unix:\S+/);
  const uri = `nbd+unix:///disk?socket=${socket}`;
  const load = ["--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8", "--size=16M", "--loops=2"];
  const checks = ["--verify=crc32c", "--verify_state_save=0"];
  const args = ["--name=load", "--ioengine=nbd", `--uri=${uri}`, ...load, ...checks];
  const fio = run(t, "fio", args, { cwd: folder, withinMs: 120_000 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  await volume("snap", "create", "disk@loaded");
  const loaded = await sumOf("disk@loaded");
  const { processes } = await cluster.status();
  const osd = processes.find(({ role }) => role === "osd")!;
  await cluster.kill([osd.pid]);
  t.equal(await sumOf("disk@loaded"), loaded, "while an OSD is away and the load goes on");
  const { code, stdout, stderr } = await fio;
  t.equal(code, 0, `${stdout}\n${stderr}`);
  await cluster.up();
  const after = await sumOf("disk");
  t.not(after, loaded);
  t.equal(await sumOf("disk@loaded"), loaded);
  const busy = await cluster.dss(["volume", "snap", "rollback", "disk@base"]);
  t.match(busy, { code: 1, stderr: /in use by/ });
  await server.stop();

  await volume("snap", "create", "disk@end");
  await volume("snap", "rollback", "disk@loaded");
  t.equal(await sumOf("disk"), loaded, "the volume is what it was");
  t.equal(await sumOf("disk@end"), after, "and what it was since is kept");
  const base = await cluster.dss(["volume", "read", "disk@base", "0", "8"]);
  t.equal(base.stdout, "before\0\0");
  t.match(await cluster.dss(["volume", "write", "disk@base", "0", "x"]), { code: 1 });

  await volume("snap", "protect", "disk@base");
  t.match(await cluster.dss(["volume", "snap", "rm", "disk@base"]), {
    code: 1,
    stderr: /protected/,
  });
  const info = await cluster.json<object>(["volume", "info", "disk@base"]);
  t.match(info, { volume: "disk", name: "base", size: SIZE, protected: true, clones: [] });
  t.match(await cluster.dss(["volume", "info", "disk@never"]), {
    code: 1,
    stderr: /no snapshot disk@never[^]*dss volume snap ls disk/,
  });
  await volume("snap", "unprotect", "disk@base");
  // The hint is the leader's: only it knows what stands in the way.
  const kept = /has 3 snapshots\n.*remove them first: dss volume snap rm --all disk/;
  t.match(await cluster.dss(["volume", "rm", "disk"]), { code: 1, stderr: kept });
  const before = await stored("disk");
  for (const name of ["loaded", "end", "base"]) {
    await volume("snap", "rm", `disk@${name}`, "--wait");
    t.equal(await sumOf("disk"), loaded, `without ${name}`);
  }
  const left = await stored("disk");
  t.ok(left <= 3 * SIZE && left < before, `${left} bytes are left of ${before}`);
  await volume("rm", "disk", "--wait");
});

/**
 * Going down and up in good order: all data is there; a second `up` is quick and changes nothing;
 * `up` starts only what is missing.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "../support/cluster.js";
import type { ClusterStatus } from "../support/cluster.js";
import { NbdClient } from "../support/nbd-client.js";
import { succeed } from "../support/process.js";
import { tempFolder } from "../support/temp.js";

const UP_AGAIN_MS = 10_000;

const cluster = await startCluster(t);
const local = tempFolder(t, "local");
const random = new Prng(3);
mkdirSync(join(local, "tree/sub"), { recursive: true });
for (let i = 0; i < 60; i++) {
  writeFileSync(join(local, "tree", i % 2 === 0 ? "sub" : ".", `f${i}`), random.bytes(i * 1_111));
}
writeFileSync(join(local, "tree/large"), random.bytes(10_000_000));
const image = random.bytes(300_000);

const pids = ({ processes }: ClusterStatus): Record<string, number> =>
  Object.fromEntries(processes.map(({ name, pid }) => [name, pid]));
const compare = (t: Parameters<typeof succeed>[0]): Promise<string> =>
  succeed(t, "diff", ["-r", join(local, "tree"), join(cluster.mount, "tree")]);

await t.test("a second up takes under 10 s and changes nothing", async (t) => {
  const before = pids(await cluster.status());
  const ms = await cluster.up();
  t.ok(ms < UP_AGAIN_MS, `${Math.round(ms)} ms`);
  t.same(pids(await cluster.status()), before);
});

await t.test("all data is there after down and up", async (t) => {
  await succeed(t, "cp", ["-r", join(local, "tree"), cluster.mount]);
  const { server, socket } = await cluster.serve("kept", 64 * 2 ** 20);
  const client = await NbdClient.connect(socket, "kept");
  await client.write(4 * 2 ** 20 - 100_000, image);
  await client.flush();
  client.close();
  await server.stop();
  // No sync of the files: going down writes back what the mount still holds.
  const before = pids(await cluster.status());
  await cluster.down();
  t.equal((await cluster.status()).processes.length, 0, "nothing runs");
  const ms = await cluster.up();
  t.comment(`up in ${Math.round(ms)} ms`);
  const after = pids(await cluster.status());
  t.same(Object.keys(after).sort(), Object.keys(before).sort());
  await compare(t);
  const offset = String(4 * 2 ** 20 - 100_000);
  const out = await cluster.dss(["volume", "read", "kept", offset, "300000"]);
  t.equal(out.code, 0, out.stderr);
  t.ok(out.stdoutBytes.equals(image), "the volume's bytes");
});

await t.test("up starts only what is missing", async (t) => {
  await cluster.healthy();
  const before = pids(await cluster.status());
  await cluster.kill([before["osd.1"] ?? 0]);
  await compare(t);
  writeFileSync(join(local, "tree/while-down"), "written with one OSD down");
  await succeed(t, "cp", [join(local, "tree/while-down"), join(cluster.mount, "tree")]);
  await cluster.up();
  const after = pids(await cluster.status());
  t.not(after["osd.1"], before["osd.1"]);
  delete after["osd.1"];
  delete before["osd.1"];
  t.same(after, before);
  await cluster.healthy();
  await compare(t);
});

await t.test("killed all at once, with ZooKeeper, it comes up again", async (t) => {
  const sync = "find tree -type f -exec sync {} +; find tree -type d -exec sync {} +";
  await succeed(t, "sh", ["-c", sync], { cwd: cluster.mount });
  await cluster.killRoles("zookeeper", "mds", "osd", "mount");
  await cluster.up();
  await cluster.healthy();
  await compare(t);
});

await t.test("down --purge leaves nothing", async (t) => {
  await cluster.down(["--purge"]);
  t.equal((await cluster.dss(["cluster", "status", "--data", cluster.data])).code, 1);
  const mounts = await succeed(t, "cat", ["/proc/self/mountinfo"]);
  t.notMatch(mounts, cluster.mount);
  t.same((await succeed(t, "ls", ["-A", cluster.mount])).trim(), "");
  rmSync(cluster.mount, { recursive: true });
});

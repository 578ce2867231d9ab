/**
 * `dss fsck` on a real cluster: nothing on a healthy one, however busy; damage made on purpose (an
 * object under an unused inode number, a page of names edited in ZooKeeper) is found, left alone
 * without --repair, mended with it, and gone in the run after.
 */
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { silentLogger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { nodeClock, nodeRandom } from "../../cluster/platform/node.js";
import { MapWatch } from "../../cluster/zk/map-watch.js";
import { pagePath } from "../../cluster/zk/schema.js";
import { connectZooKeeper } from "../../cluster/zk/session.js";
import { ClusterClient } from "../../cli/context.js";
import { decodePage, directoryPageKey, encodePage } from "../../mds/core/page.js";
import type { FsckFinding } from "../../mds/proto-fsck.js";
import { ROOT_INO } from "../../mds/proto.js";
import { NO_TRUNCATION } from "../../osd/client/object-access.js";
import { Objecter } from "../../osd/client/objecter.js";
import { startCluster } from "../support/cluster.js";
import { NbdClient } from "../support/nbd-client.js";
import { BUILD, start, succeed } from "../support/process.js";
import { waitFor } from "../support/temp.js";

interface Report {
  inodes: number;
  objects: number;
  pgs: number;
  found: number;
  repaired: number;
  findings: FsckFinding[];
}

const cluster = await startCluster(t);
const fsck = async (...args: string[]): Promise<{ code: number | null; report: Report }> => {
  const { code, stdout, stderr } = await cluster.dss(["fsck", "--json", ...args], {
    withinMs: 90_000,
  });
  if (stdout === "") throw new Error(`dss fsck: ${stderr}`);
  return { code, report: JSON.parse(stdout) as Report };
};
const kinds = ({ findings }: Report): string[] => findings.map(({ kind }) => kind).sort();
const image = new Prng(5).bytes(300_000);

await t.test("a healthy cluster has nothing", async (t) => {
  await succeed(t, "cp", ["-r", join(BUILD, "..", "docs"), cluster.mount]);
  writeFileSync(join(cluster.mount, "victim"), image);
  for (let i = 0; i < 20; i++) writeFileSync(join(cluster.mount, `file${i}`), image);
  const { server, socket } = await cluster.serve("v", 64 * 2 ** 20);
  const client = await NbdClient.connect(socket, "v");
  await client.write(9 * 2 ** 20, image);
  await client.flush();
  client.close();
  await server.stop();
  await succeed(t, "sync", ["-f", cluster.mount]);
  const { code, report } = await fsck();
  t.same(report.findings, []);
  t.equal(code, 0);
  t.ok(report.inodes > 20 && report.objects > 20, `${report.inodes} and ${report.objects}`);
  const said = await cluster.dss(["fsck"]);
  t.match(said.stdout, "nothing wrong");
});

/** Makes, writes, renames, links, truncates and removes files as fast as it can. */
const BUSY = `
const fs = require("node:fs"), path = require("node:path");
const root = process.argv[1];
for (let i = 0; ; i++) {
  const folder = path.join(root, "busy" + (i % 3));
  fs.mkdirSync(folder, { recursive: true });
  const file = path.join(folder, "f" + (i % 50));
  fs.writeFileSync(file, Buffer.alloc((i * 7919) % 200000, i));
  if (i % 3 === 0) fs.renameSync(file, path.join(root, "moved" + (i % 20)));
  if (i % 5 === 0) fs.rmSync(path.join(root, "moved" + ((i + 7) % 20)), { force: true });
  // What was moved may have been removed meanwhile.
  if (i % 7 === 0) { try { fs.linkSync(path.join(root, "moved0"), file + ".l"); } catch {} }
  if (i % 11 === 0) { try { fs.truncateSync(path.join(root, "moved1"), i % 5000); } catch {} }
  if (i % 40 === 39) fs.rmSync(folder, { recursive: true });
}`;

await t.test("nor has a busy one", async (t) => {
  const busy = start(t, process.execPath, ["-e", BUSY, cluster.mount]);
  await waitFor("it is busy", () => readdirSync(cluster.mount).includes("moved0"));
  for (let round = 0; round < 4; round++) {
    const { code, report } = await fsck(...(round === 3 ? ["--repair"] : []));
    t.same(
      report.findings,
      [],
      `round ${round}: ${report.inodes} inodes, ${report.objects} objects`,
    );
    t.equal(code, 0);
  }
  t.ok(busy.running, "it was busy all the time");
  await busy.stop();
});

async function writeObject(object: string): Promise<void> {
  const client = await ClusterClient.open((await cluster.status()).zookeeper);
  const maps = new MapWatch(client.coordination, nodeClock, silentLogger);
  try {
    await maps.atLeast(1, 10_000);
    await client.withSession("a test", async (mds) => {
      const objects = new Objecter({
        messenger: client.messenger,
        maps,
        clock: nodeClock,
        random: nodeRandom,
        logger: silentLogger,
        client: () => mds.client,
      });
      const options = { truncation: NO_TRUNCATION, minEpoch: 0, mtimeNs: 1n };
      await objects.write({ pool: 1, object }, 0, [image], options);
      objects.close();
    });
  } finally {
    maps.close();
    await client.close();
  }
}

/** "victim" leads to an inode that does not exist; the page is otherwise as it should be. */
async function editNames(): Promise<void> {
  const { zookeeper: servers } = await cluster.status();
  const zk = await connectZooKeeper({ servers, clock: nodeClock, log: silentLogger });
  try {
    const key = directoryPageKey(ROOT_INO, "");
    const node = await zk.get(pagePath(key));
    const page = decodePage(key, node?.data);
    if (page.body.kind !== "d") throw new Error("no page of names");
    const victim = page.body.entries.get("victim");
    if (victim === undefined) throw new Error("the page does not have the name yet");
    page.body.entries.set("victim", { ...victim, ino: 999_999_999 });
    await zk.multi([{ op: "set", path: pagePath(key), data: encodePage(page), version: -1 }]);
  } finally {
    await zk.close();
  }
}

await t.test("an object under an unused inode number", async (t) => {
  await writeObject("3b9ac9ff.0");
  const { code, report } = await fsck();
  t.same(kinds(report), ["object-without-owner"]);
  t.match(report.findings[0]?.what, "3b9ac9ff.0");
  t.equal(code, 1);
  t.same(kinds((await fsck("--no-objects")).report), [], "not looked at");
  const repaired = await fsck("--repair");
  t.match(repaired, { code: 1, report: { found: 1, repaired: 1 } });
  t.match(await fsck(), { code: 0, report: { found: 0 } });
});

await t.test("a page of names that was edited behind the servers' backs", async (t) => {
  await cluster.ok(["umount", cluster.mount], { withinMs: 60_000 });
  await new Promise((done) => setTimeout(done, 7_000)); // A checkpoint has written the pages.
  await cluster.killRoles("mds");
  await editNames();
  await cluster.up();
  await cluster.healthy();
  const { code, report } = await fsck();
  t.same(kinds(report), ["inode-without-name", "name-without-inode"]);
  t.equal(code, 1);
  const said = await cluster.dss(["fsck"]);
  t.match(said.stdout, /name-without-inode: name "victim" in directory 1, of inode 3b9ac9ff/);
  t.match(said.stderr, "2 problems found, 0 repaired");
  t.match(await fsck("--repair"), { code: 1, report: { found: 2, repaired: 2 } });
  t.match(await fsck(), { code: 0, report: { found: 0 } });
  const [name] = readdirSync(join(cluster.mount, "lost+found"));
  t.ok(readFileSync(join(cluster.mount, "lost+found", name!)).equals(image), "its bytes are there");
  t.notOk(readdirSync(cluster.mount).includes("victim"));
});

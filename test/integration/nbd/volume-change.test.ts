/** Volumes of a real cluster that change: size, name, layout, removal; and what they take. */
import { join } from "node:path";
import t from "tap";
import { startCluster, type Cluster } from "../../support/cluster.js";
import { succeed, type Program } from "../../support/process.js";
import { tempFolder } from "../../support/temp.js";

const MIB = 1024 * 1024;

t.setTimeout(300_000);
let cluster: Cluster;
let folder: string;
t.before(async () => {
  folder = tempFolder(t, "volume-change");
  cluster = await startCluster(t);
});

interface View {
  name: string;
  size: number;
  owner: string;
  objectSize: number;
  stripeUnit: number;
  stripeCount: number;
}
const info = (name: string): Promise<View> => cluster.json<View>(["volume", "info", name]);
const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
async function used(name: string): Promise<{ used: number; stored: number; objects: number }> {
  const [row] = await cluster.json<{ used: number; stored: number; objects: number }[]>([
    ...["volume", "du", name],
  ]);
  return row!;
}
let sockets = 0;
async function serve(...names: string[]): Promise<{ server: Program; socket: string }> {
  const socket = join(folder, `${sockets++}.sock`);
  const server = cluster.start(["volume", "serve", ...names, "--unix", socket]);
  await server.output(/nbd\+unix:\S+/);
  return { server, socket };
}
const sizeOf = async (socket: string, name: string): Promise<string> =>
  (await succeed(t, "nbdinfo", ["--size", `nbd+unix:///${name}?socket=${socket}`])).trim();

t.test("a served volume grows and gets another name under its users", async (t) => {
  await volume("create", "disk", "64M");
  const { server, socket } = await serve("disk");
  t.match(await volume("resize", "disk", "100M"), /100 MiB/);
  t.equal(await sizeOf(socket, "disk"), String(100 * MIB), "new connections see it at once");
  const tail = await cluster.dss(["volume", "resize", "disk", "32M", "--allow-shrink"]);
  t.equal(tail.code, 1);
  t.match(tail.stderr, /in use by/);
  const bare = await cluster.dss(["volume", "resize", "disk", "32M"]);
  t.match(bare.stderr, /--allow-shrink/);
  await volume("rename", "disk", "database");
  const uri = `nbd+unix:///disk?socket=${socket}`;
  await succeed(t, "qemu-io", ["-f", "raw", "-c", "write -P 7 99M 64K", uri]);
  t.match(await info("database"), { size: 100 * MIB });
  t.equal(await sizeOf(socket, "disk"), String(100 * MIB), "the server keeps the name it has");
  await server.stop();
  t.equal(await volume("read", "database", "99M", "4"), "\x07\x07\x07\x07");
});

t.test("what a volume lost by shrinking stays lost when it grows again", async (t) => {
  await volume("create", "tide", "40M");
  for (const at of ["0", "4M", "11M", "20M", "39M"]) await volume("write", "tide", at, "data");
  const before = await used("tide");
  t.match(before, { objects: 5, used: 5 * 4096, stored: 3 * 5 * 4096 });
  t.match(await volume("resize", "tide", "10M", "--allow-shrink"), /tide has 10 MiB/);
  t.match(await used("tide"), { objects: 3, used: 2 * 4096 }, "the third was cut");
  await volume("resize", "tide", "40M");
  for (const at of ["11M", "20M"]) {
    t.equal(await volume("read", "tide", at, "4"), "\0\0\0\0", at);
  }
  t.equal(await volume("read", "tide", "4M", "4"), "data");
  await volume("rm", "tide", "--wait");
});

t.test("a volume of 16 EiB, finely striped: used at its end, gone at once", async (t) => {
  const layout = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "4"];
  await volume("create", "huge", "16E", ...layout);
  t.match(await info("huge"), { objectSize: MIB, stripeUnit: 65_536, stripeCount: 4 });
  const last = String(2n ** 64n - 8192n);
  await volume("write", "huge", last, "x".repeat(4096));
  t.equal(await volume("read", "huge", last, "4096"), "x".repeat(4096));
  t.match(await used("huge"), { objects: 1, used: 4096 });
  await volume("resize", "huge", "1G", "--allow-shrink");
  t.match(await used("huge"), { objects: 0, used: 0 });
  await volume("rm", "huge", "--wait");
  const bad = await cluster.dss(["volume", "create", "odd", "1G", "--stripe-unit", "100K"]);
  t.match(bad, { code: 1 });
  t.match(bad.stderr, /stripe unit/);
});

/**
 * Quotas of directories in a leader on memory: what is refused and what never is, what mounts may
 * hold below one, and that all of it outlives the leader.
 */
import t, { type Test } from "tap";
import { isDssError } from "../../../cluster/base/errors.js";
import { ROOT_INO, type Grant, type MdsReply, type Request } from "../../../mds/proto.js";
import { TotalsService } from "../../../mds/totals-service.js";
import { wrongTotals } from "../../support/totals-check.js";
import { TestClient, TestCluster } from "./harness.js";

const MiB = 2 ** 20;
const RENAME = { op: "rename", noReplace: false, exchange: false, stillOpen: false } as const;

async function begin(): Promise<{ cluster: TestCluster; client: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  return { cluster, client: await cluster.client() };
}
const service = (cluster: TestCluster): TotalsService => new TotalsService(cluster.leader.inside());
async function mkdir(client: TestClient, parent: number, name: string): Promise<number> {
  return (await client.mkdir(parent, name)).answer.inode!.ino;
}
async function refused(t: Test, work: Promise<unknown>, what: string): Promise<void> {
  const outcome = await work.then(
    () => "done",
    (error: unknown) => (isDssError(error) ? error.code : String(error)),
  );
  t.equal(outcome, "QuotaExceeded", what);
}
function grantOf(reply: MdsReply, ino: number): Grant {
  return reply.grants.find((grant) => grant.ino === ino)!;
}
const named = (name: string) => Buffer.from(name);
async function right(t: Test, { leader }: TestCluster): Promise<void> {
  const { metadata, loader } = leader.inside();
  t.same(await wrongTotals(metadata, (read) => loader.run(read)), []);
}

t.test("inodes: exact, nested, and nothing that makes less is refused", async (t) => {
  const { cluster, client } = await begin();
  const top = await mkdir(client, ROOT_INO, "top");
  const sub = await mkdir(client, top, "sub");
  const outside = await mkdir(client, ROOT_INO, "outside");
  await service(cluster).setQuota({ path: [named("top")] }, { maxInodes: 4 });
  await service(cluster).setQuota({ ino: sub }, { maxInodes: 2 });
  const { ino } = (await client.create(sub, "a")).answer.inode!;
  await client.create(sub, "b", { mode: 0o120777, target: named("somewhere") });
  await refused(t, client.create(sub, "c"), "the inner one is full");
  await refused(t, client.mkdir(sub, "c"), "mkdir");
  await client.create(top, "c");
  await refused(t, client.create(top, "d", { mode: 0o010644 }), "the outer one is full");
  const actor = client.actor();
  const rename = { ...RENAME, actor };
  await client.create(outside, "x");
  const into = { ...rename, parent: outside, newParent: top, newName: named("x") } as const;
  await refused(t, client.send({ ...into, name: named("x") }), "a move into it");
  await client.send({ ...into, name: named("x"), newName: named("c") });
  t.pass("over a file of it: not one more");
  const folder = await mkdir(client, outside, "folder");
  await client.create(folder, "1");
  await client.send({ op: "unlink", parent: top, name: named("c"), stillOpen: false, actor });
  await refused(t, client.send({ ...into, name: named("folder") }), "two at once");
  const within = { ...rename, parent: sub, name: named("a"), newParent: top, newName: named("a") };
  await client.send(within);
  await client.send({ ...within, parent: top, newParent: sub });
  t.pass("moves within a realm");
  // A second name is no new inode; the first name of a file without one is.
  await client.send({ op: "link", ino, parent: sub, name: named("again"), actor });
  const unnamed = await client.ino();
  const layer = { op: "tmpfile", parent: sub, ino: unnamed, mode: 0o100600, actor } as const;
  await client.send(layer);
  const link = { op: "link", ino: unnamed, parent: sub, name: named("new"), actor } as const;
  await refused(t, client.send(link), "the first name of an unnamed file");
  await client.send({ op: "unlink", parent: sub, name: named("b"), stillOpen: false, actor });
  await client.send(link);
  // Below what there is: nothing new, anything less.
  await service(cluster).setQuota({ ino: top }, { maxInodes: 1 });
  await refused(t, client.create(top, "more"), "lowered below what there is");
  await client.send({ op: "unlink", parent: sub, name: named("new"), stillOpen: false, actor });
  await client.send({
    ...rename,
    parent: sub,
    name: named("a"),
    newParent: outside,
    newName: named("a"),
  });
  await right(t, cluster);
  await service(cluster).setQuota({ ino: top }, { maxInodes: 0 });
  await client.create(top, "more");
  cluster.leader.stop();
});

t.test("bytes: grants end where the quota does", async (t) => {
  const { cluster, client } = await begin();
  const top = await mkdir(client, ROOT_INO, "top");
  await service(cluster).setQuota({ ino: top }, { maxBytes: 3 * MiB });
  const reply = await client.create(top, "a");
  const { ino } = reply.answer.inode!;
  t.equal(grantOf(reply, ino).maxSize, 0, "with little room nobody writes without asking");
  await refused(t, client.send({ op: "extend", ino, size: 3 * MiB + 1 }), "one byte too many");
  const small = await client.send({ op: "extend", ino, size: 100 });
  const step = grantOf(small, ino).maxSize - 100;
  t.equal(step, Math.floor((3 * MiB - 100) / 16), "a little more than was asked for");
  const told = { op: "publish", ino, mtimeNs: 5n, allocated: 0, recount: false } as const;
  await client.send({ op: "extend", ino, size: 2 * MiB });
  const second = await client.create(top, "b");
  const other = second.answer.inode!.ino;
  await refused(t, client.send({ op: "extend", ino: other, size: MiB }), "that is reserved");
  await client.send({ ...told, size: 2 * MiB });
  await client.send({ op: "extend", ino: other, size: MiB });
  t.pass("what is told is not reserved any more");
  await client.send({ ...told, ino: other, size: 0 });
  const actor = client.actor();
  await refused(t, client.send({ op: "setattr", ino: other, size: MiB + 1, actor }), "truncate up");
  await client.send({ op: "setattr", ino: other, size: MiB, actor });
  await right(t, cluster);
  const link = { mode: 0o120777, target: named("x") };
  await refused(t, client.create(top, "d", link), "the bytes of a symbolic link");
  await client.create(top, "c");
  await client.send({ ...told, size: 4 * MiB });
  t.pass("what a writer has written is told, also beyond");
  await client.send({ op: "setattr", ino, size: 0, actor });
  const { totals } = await service(cluster).usage({ ino: top }, false);
  t.match(totals, { files: 3, directories: 0, bytes: BigInt(MiB), maxBytes: 3 * MiB });
  const wide = await mkdir(client, ROOT_INO, "wide");
  await service(cluster).setQuota({ ino: wide }, { maxBytes: 2 ** 50 });
  const made = await client.create(wide, "f");
  const free = made.answer.inode!.ino;
  t.equal(grantOf(made, free).maxSize, 4 * MiB, "with much room as elsewhere");
  const extended = await client.send({ op: "extend", ino: free, size: 100 * MiB });
  t.equal(grantOf(extended, free).maxSize, 116 * MiB, "not four times as far, as elsewhere");
  const outside = (await client.create(ROOT_INO, "f")).answer.inode!.ino;
  const far = await client.send({ op: "extend", ino: outside, size: 100 * MiB });
  t.equal(grantOf(far, outside).maxSize, 400 * MiB);
  cluster.leader.stop();
});

t.test("no mount has a directory below a quota for itself", async (t) => {
  const { cluster, client } = await begin();
  const mount = await cluster.client({ type: "mount", instance: "m" });
  const top = await mkdir(mount, ROOT_INO, "top");
  const made = await mount.mkdir(top, "sub");
  const sub = made.answer.inode!.ino;
  t.equal(grantOf(made, sub).mode, "sole");
  const file = await mount.create(sub, "f");
  t.equal(grantOf(file, file.answer.inode!.ino).maxSize, 4 * MiB);
  const beside = (await mount.mkdir(ROOT_INO, "beside")).answer.inode!.ino;
  await service(cluster).setQuota({ ino: top }, { maxInodes: 3, maxBytes: MiB });
  const recalled = new Set(mount.link.recalls.map(({ ino, mode }) => `${ino} ${mode}`));
  for (const ino of [top, sub, file.answer.inode!.ino]) t.ok(recalled.has(`${ino} shared`));
  t.notOk(
    [...recalled].some((each) => each.startsWith(`${beside} `)),
    "nothing beside it",
  );
  const again = await mount.mkdir(sub, "d");
  t.notOk(
    again.grants.some(({ mode }) => mode === "sole"),
    "and it gets none of them back",
  );
  // What was promised before it heard of the quota is taken.
  const { ino } = (await mount.create(beside, "late")).answer.inode!;
  const promised: Request = {
    ...{ op: "create", parent: sub, name: named("late"), ino: ino + 1, mode: 0o100644, rdev: 0 },
    ...{ exclusive: true, actor: mount.actor() },
  };
  const taken = await mount.send(promised, { replay: true });
  t.equal(grantOf(taken, ino + 1).maxSize, 4 * MiB, "with the grant that it believes to have");
  await refused(t, client.create(top, "more"), "over the limit now");
  await right(t, cluster);
  cluster.leader.stop();
});

t.test("a directory that is moved below a quota", async (t) => {
  const { cluster } = await begin();
  const mount = await cluster.client({ type: "mount", instance: "m" });
  const realm = await mkdir(mount, ROOT_INO, "realm");
  const tree = await mkdir(mount, ROOT_INO, "tree");
  const deep = await mkdir(mount, tree, "deep");
  await service(cluster).setQuota({ ino: realm }, { maxInodes: 2 });
  const actor = mount.actor();
  const rename = { ...RENAME, actor };
  const move = { ...rename, parent: ROOT_INO, name: named("tree"), newName: named("tree") };
  await mount.send({ ...move, newParent: realm });
  await cluster.clock.advance(1);
  const recalled = mount.link.recalls.map(({ ino, mode }) => `${ino} ${mode}`);
  t.ok(recalled.includes(`${deep} shared`), "its own mount is asked for what it has below");
  await refused(t, mount.create(deep, "f"), "full");
  await right(t, cluster);
  cluster.leader.stop();
});

t.test("quotas outlive the leader and end with their directory", async (t) => {
  const { cluster, client } = await begin();
  const top = await mkdir(client, ROOT_INO, "top");
  await client.send({ op: "quotaSet", ino: top, maxInodes: 1 });
  await client.create(top, "f");
  await client.send({ op: "sync" });
  await cluster.leader.checkpoint();
  await cluster.lead();
  const next = new TestClient(cluster);
  next.adopt(client);
  await next.open({ client: client.id });
  next.keepAlive();
  await refused(t, next.create(top, "g"), "under the next leader");
  const [listed] = await service(cluster).quotas();
  t.match(listed, { path: [named("top")], totals: { ino: top, maxInodes: 1, files: 1 } });
  const read = await next.send({ op: "totals", ino: top });
  t.match(read.answer.totals, { files: 1, maxInodes: 1, maxBytes: 0 });
  const actor = next.actor();
  await next.send({ op: "unlink", parent: top, name: named("f"), stillOpen: false, actor });
  await next.send({ op: "rmdir", parent: ROOT_INO, name: named("top"), actor });
  t.same(await service(cluster).quotas(), []);
  const missing = service(cluster).usage({ path: [named("top")] }, false);
  await t.rejects(missing, { code: "NotFound" });
  cluster.leader.stop();
});

t.test("totals of the directories in one", async (t) => {
  const { cluster, client } = await begin();
  const top = await mkdir(client, ROOT_INO, "top");
  for (const name of ["b", "a"]) {
    const folder = await mkdir(client, top, name);
    await client.create(folder, "f");
    await mkdir(client, folder, "empty");
  }
  await client.create(top, "g");
  const usage = await service(cluster).usage({ path: [named("top")] }, true);
  t.match(usage, { totals: { files: 3, directories: 4 }, isCut: false });
  t.same(
    usage.children.map(({ name, totals }) => [name.toString(), totals.files, totals.directories]),
    [
      ["a", 1, 1],
      ["b", 1, 1],
    ],
  );
  cluster.leader.stop();
});

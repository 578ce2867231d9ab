/** What becomes of deleted data: many files at a time, and some whose objects do not go. */
import t from "tap";
import { ROOT_INO } from "../../../mds/proto.js";
import type { LeaderOptions } from "../../../mds/leader.js";
import { settle, TestCluster, type TestClient } from "./harness.js";

async function begin(cacheBytes?: number, options: Partial<LeaderOptions> = {}) {
  const cluster = new TestCluster(options, cacheBytes);
  await cluster.lead();
  const a = await cluster.client();
  /** A file of one object; resolves with its inode and the object's name. */
  const file = async (name: string, size = 5) => {
    const { ino } = (await a.create(ROOT_INO, name)).answer.inode!;
    await a.send({ op: "publish", ino, size, mtimeNs: 1n, allocated: 0, recount: true });
    const object = `${ino.toString(16)}.0`;
    cluster.objects.sizes.set(object, { size, mtimeNs: 1n });
    return { ino, object };
  };
  return { cluster, a, file };
}
function unlink(a: TestClient, name: string, parent = ROOT_INO): Promise<unknown> {
  const request = { op: "unlink", parent, name: Buffer.from(name), stillOpen: false } as const;
  return a.send({ ...request, actor: a.actor() });
}
const left = (cluster: TestCluster): number => cluster.leader.status().purgeQueue.entries;

t.test("what was removed together ends together; one that fails is tried again", async (t) => {
  const { cluster, a, file } = await begin();
  const files = 100;
  const objects: string[] = [];
  for (let i = 0; i < files; i++) objects.push((await file(`f${i}`)).object);
  await a.mkdir(ROOT_INO, "d");
  await settle();
  cluster.objects.failing.add(objects[7]!);
  let writes = 0;
  cluster.pause = async () => void writes++;
  for (let i = 0; i < files; i++) void unlink(a, `f${i}`);
  void a.send({ op: "rmdir", parent: ROOT_INO, name: Buffer.from("d"), actor: a.actor() });
  await settle();
  t.equal(cluster.objects.sizes.size, 1);
  t.equal(left(cluster), 1, "only the one that failed is left");
  t.ok(writes <= 10, `${writes} batches of the journal`);

  cluster.objects.failing.clear();
  await cluster.clock.advance(1_100);
  t.equal(cluster.objects.sizes.size, 0, "it was tried again");
  t.equal(left(cluster), 0);
  const removed = cluster.objects.removed.map(({ object }) => object);
  t.same(removed.sort(), objects.sort(), "each once");
});

t.test("objects that nobody answers for hold nothing else up", async (t) => {
  const { cluster, a, file } = await begin();
  const gone = 200;
  for (let i = 0; i < gone; i++) cluster.objects.silent.add((await file(`gone${i}`)).object);
  const other = await file("other", 10_000);
  for (let i = 0; i < 100; i++) await file(`f${i}`);
  void unlink(a, "gone0");
  const cut = { op: "setattr", ino: other.ino, actor: a.actor() } as const;
  void a.send({ ...cut, size: 100 });
  await settle();
  let longer = false;
  const { ino } = other;
  await a.send({ op: "publish", ino, size: 5_000, mtimeNs: 2n, allocated: 0, recount: true });
  void a.send({ ...cut, size: 3_000 }).then(() => (longer = true));
  await settle();
  t.ok(longer, "what the shorter truncation cut is gone");
  for (let i = 1; i < gone; i++) void unlink(a, `gone${i}`);
  await settle();
  for (let i = 0; i < 100; i++) void unlink(a, `f${i}`);
  await cluster.clock.advance(20_000);
  t.equal(cluster.objects.removed.length, 100);
  t.equal(left(cluster), gone);
});

t.test("the page that a record drops may have left the memory meanwhile", async (t) => {
  const { cluster, a, file } = await begin(150_000);
  const names = 2_200; // The directory has more than one page.
  const { ino: large } = (await a.mkdir(ROOT_INO, "d")).answer.inode!;
  for (let i = 0; i < names; i++) await a.create(large, `n${i}`);
  for (let i = 0; i < names; i++) await unlink(a, `n${i}`, large);
  await cluster.clock.advance(3_000);
  const { object } = await file("f");
  const others: number[] = [];
  for (let i = 0; i < 4; i++) {
    const { ino } = (await a.mkdir(ROOT_INO, `o${i}`)).answer.inode!;
    for (let name = 0; name < 600; name++) await a.create(ino, `n${name}`);
    others.push(ino);
  }
  await cluster.leader.checkpoint();
  t.equal(left(cluster), 0);
  let release = (): void => undefined;
  cluster.objects.heldRemovals = new Promise((resolve) => (release = resolve));
  void unlink(a, "f");
  void a.send({ op: "rmdir", parent: ROOT_INO, name: Buffer.from("d"), actor: a.actor() });
  await settle();
  await cluster.leader.checkpoint();
  for (let round = 0; round < 2; round++) {
    for (const parent of others) {
      for (let name = 0; name < 600; name += 100) {
        await a.send({ op: "lookup", parent, name: Buffer.from(`n${name}`) });
      }
    }
  }
  release();
  await cluster.clock.advance(100);
  t.same(cluster.failures, []);
  t.match(cluster.objects.removed, [{ object }]);
  t.equal(left(cluster), 0);
});

t.test("small files that were deleted rest; what is cut off others does not", async (t) => {
  const { cluster, a, file } = await begin(undefined, { purgeDelayMs: 5_000 });
  const { sizes } = cluster.objects;
  for (let i = 0; i < 10; i++) await file(`f${i}`);
  const cut = await file("cut", 100_000);
  for (let i = 0; i < 10; i++) await unlink(a, `f${i}`);
  await a.send({ op: "setattr", ino: cut.ino, actor: a.actor(), size: 0 });
  await cluster.clock.advance(4_900);
  t.equal(sizes.size, 10);
  t.notOk(sizes.has(cut.object), "what was cut off");
  t.equal(left(cluster), 10);
  await cluster.clock.advance(200);
  t.equal(sizes.size, 0);
  t.equal(left(cluster), 0);

  await file("last");
  await unlink(a, "last");
  await settle();
  t.equal(left(cluster), 1);
  await cluster.lead();
  await cluster.clock.advance(20_000);
  t.equal(left(cluster), 0, "what a leader leaves, the next one frees");
  t.equal(sizes.size, 0);
});

t.test("many that have rested go at a measured pace", async (t) => {
  const { cluster, a, file } = await begin(undefined, { purgeDelayMs: 5_000 });
  const { sizes } = cluster.objects;
  for (let i = 0; i < 600; i++) await file(`f${i}`);
  for (let i = 0; i < 600; i++) await unlink(a, `f${i}`);
  await cluster.clock.advance(5_450);
  t.ok(sizes.size > 200 && sizes.size < 500, `${sizes.size} left`);
  await cluster.clock.advance(1_000);
  t.equal(sizes.size, 0);
  t.equal(left(cluster), 0);
});

t.test("little rests, and nothing while space is scarce", async (t) => {
  const { cluster, a, file } = await begin(undefined, { purgeDelayMs: 60_000 });
  const large = 4 * 2 ** 20;
  for (let i = 0; i < 70; i++) {
    await file(`f${i}`, large);
    await unlink(a, `f${i}`);
  }
  await settle();
  t.equal(left(cluster), 64, "256 MiB");
  await cluster.clock.advance(1_000);
  cluster.available = 50;
  await file("f", 5);
  await unlink(a, "f");
  await settle();
  t.equal(left(cluster), 64);
  await cluster.clock.advance(60_100);
  t.equal(left(cluster), 0);
});

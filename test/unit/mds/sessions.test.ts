/**
 * Capabilities, visibility, replay, eviction, volumes' locks and damage to the journal, through a
 * leader on memory.
 */
import t from "tap";
import { silentLogger } from "../../../cluster/base/log.js";
import { ROOT_INO } from "../../../mds/proto.js";
import { replayMetadata } from "../../../mds/replay.js";
import { FakeLink, TestClient, TestCluster, settle } from "./harness.js";

async function begin(): Promise<{ cluster: TestCluster; a: TestClient; b: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  return { cluster, a: await cluster.client(), b: await cluster.client() };
}
const lookup = (name: string) =>
  ({ op: "lookup", parent: ROOT_INO, name: Buffer.from(name) }) as const;

t.test("a change of a directory recalls its names from others first", async (t) => {
  const { a, b } = await begin();
  const absent = await b.send(lookup("x"));
  t.ok(absent.notFound);
  t.match(absent.grants, [{ ino: ROOT_INO, mode: "shared" }], "an absence can be cached");
  b.polite = false;
  let created = false;
  const creating = a.create(ROOT_INO, "x").then(() => (created = true));
  await settle();
  t.match(b.link.recalls, [{ ino: ROOT_INO, mode: "none" }]);
  t.notOk(created, "waits for the release");
  b.release(ROOT_INO, "none", b.link.recalls[0]!.seq);
  await creating;
  t.notOk((await b.send(lookup("x"))).notFound);
});

t.test("others see a change only when it is safe", async (t) => {
  const { cluster, a, b } = await begin();
  let open: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => (open = resolve));
  await a.create(ROOT_INO, "w"); // Loads the pages.
  await a.send({ op: "sync" });
  cluster.pause = () => gate;
  const mine = await a.create(ROOT_INO, "x");
  t.ok(mine.journal > 0, "the session itself is answered at once");
  let seen = false;
  const looking = b.send(lookup("x")).then((reply) => (seen = !reply.notFound));
  await settle();
  t.notOk(seen);
  open();
  await looking;
  t.ok(seen);
  t.ok(a.link.safe >= mine.journal, "and told that it is safe");
});

t.test("a reader recalls a writer, whose last word counts", async (t) => {
  const { a, b } = await begin();
  const { answer, grants } = await a.create(ROOT_INO, "f");
  t.match(grants.at(0), { mode: "exclusive", maxSize: 4 * 2 ** 20 });
  a.size = 1234;
  const found = await b.send({ op: "getattr", ino: answer.inode!.ino });
  t.match(found.answer.inode, { size: 1234, mtimeNs: 7_000n });
  t.match(a.link.recalls.at(-1), { ino: answer.inode!.ino, mode: "shared" });
});

t.test("a dead writer is fenced, its objects say how much it wrote", async (t) => {
  const { cluster, a, b } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const { ino } = answer.inode!;
  const extended = await a.send({ op: "extend", ino, size: 9 * 2 ** 20 });
  t.match(extended.grants.at(0), { maxSize: 36 * 2 ** 20 });
  await a.send({ op: "sync" });
  cluster.objects.sizes.set(`${ino.toString(16)}.2`, { size: 10, mtimeNs: 99_000n });
  a.polite = false;
  let size = -1;
  const reading = b.send({ op: "getattr", ino }).then((reply) => (size = reply.answer.inode!.size));
  await settle();
  t.equal(size, -1, "waits");
  await cluster.clock.advance(1_500);
  t.same(cluster.fenced, [a.id]);
  // It may read what it has cached until its lease is over.
  await cluster.clock.advance(10_000);
  await reading;
  t.equal(size, 8 * 2 ** 20 + 10);
  const grant = (await b.send({ op: "acquire", ino, mode: "exclusive" })).grants[0]!;
  t.ok(grant.minEpoch >= 6, "later grants carry the epoch of the fence");
  await t.rejects(a.send({ op: "statfs" }), { code: "NoSession" });
});

t.test("a session whose fence its leader did not outlive ends under the next one", async (t) => {
  const { cluster, a, b } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const { ino } = answer.inode!;
  await a.send({ op: "sync" });
  cluster.leader.stop();
  cluster.fenced.push(a.id); // And it had not come to note the session's end.
  await cluster.lead();
  const again = new TestClient(cluster);
  again.adopt(a);
  await t.rejects(again.open({ client: a.id, floor: 1 }), { code: "NoSession" });
  const other = new TestClient(cluster);
  other.adopt(b);
  await other.open({ client: b.id, floor: 1 });
  let size = -1;
  const reading = other.send({ op: "getattr", ino });
  void reading.then((reply) => (size = reply.answer.inode!.size));
  await cluster.clock.advance(1_000);
  t.equal(size, -1, "it may read what it has cached until the lease is over that it had last");
  await cluster.clock.advance(10_000);
  await reading;
  t.equal(size, 0);
});

t.test("while the store is gone no lease is extended and nobody is evicted", async (t) => {
  const { cluster, a, b } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const { ino } = answer.inode!;
  await a.send({ op: "sync" });
  t.equal(a.keepAlive().confirmed, true);
  a.polite = false;
  let back: () => void = () => undefined;
  const gone = new Promise<void>((resolve) => (back = resolve));
  cluster.pause = () => gone;
  await cluster.clock.advance(4_000);
  t.equal(a.keepAlive().confirmed, false);
  let size = -1;
  const reading = b.send({ op: "getattr", ino }).then((reply) => (size = reply.answer.inode!.size));
  await cluster.clock.advance(60_000);
  t.equal(a.link.recalls.length > 0, true, "it was asked, and is silent for a minute");
  t.same(cluster.fenced, []);
  cluster.pause = () => Promise.resolve();
  back();
  await cluster.clock.advance(900);
  t.equal(a.keepAlive().confirmed, true);
  t.same(cluster.fenced, [], "it may have been unable to do what it was asked");
  await cluster.clock.advance(1_000);
  await cluster.clock.advance(2_000); // The rest of its lease.
  await reading;
  t.same(cluster.fenced, [a.id], "now it has had its time");
  t.equal(size, 0);
});

t.test("requests are executed once across leaders", async (t) => {
  const { cluster, a } = await begin();
  const made = await a.mkdir(ROOT_INO, "d");
  const id = a.lastRequest;
  await a.send({ op: "sync" });
  cluster.leader.stop();
  await cluster.lead();
  const again = new TestClient(cluster);
  again.adopt(a);
  await again.open({ client: a.id, floor: 1 });
  t.ok(again.opened.completed.includes(id));
  const { ino } = made.answer.inode!;
  const reply = await again.send(
    {
      ...{ op: "create", parent: ROOT_INO, name: Buffer.from("d"), ino, mode: 0o040755, rdev: 0 },
      ...{ exclusive: true, actor: a.actor() },
    },
    { id, replay: true },
  );
  t.equal(reply.answer.inode!.ino, ino, "answered, not refused with Exists");
});

t.test("an old leader can write nothing", async (t) => {
  const { cluster, a } = await begin();
  const old = cluster.leader;
  await cluster.lead();
  const lost = a.link;
  cluster.leader.stop();
  cluster.leader = old;
  await a.ino().catch(() => undefined);
  await settle();
  t.match(cluster.failures, [{ code: "Fenced" }]);
  t.ok(lost.closed, "its sessions turn elsewhere");
});

t.test("unlinked files live until the last close, then their objects go", async (t) => {
  const { cluster, a } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const { ino } = answer.inode!;
  const object = `${ino.toString(16)}.0`;
  cluster.objects.sizes.set(object, { size: 5, mtimeNs: 1n });
  const name = Buffer.from("f");
  const actor = a.actor();
  await a.send({ op: "unlink", parent: ROOT_INO, name, stillOpen: true, actor });
  t.equal((await a.send({ op: "getattr", ino })).answer.inode!.nlink, 0);
  await a.send({ op: "orphanRelease", ino });
  await settle();
  t.match(cluster.objects.removed, [{ object, seq: 1 }]);
  t.equal(cluster.leader.status().purgeQueue.entries, 0);
  await t.rejects(a.send({ op: "getattr", ino }), { code: "StaleHandle" });
});

t.test("a longer truncation waits until what a shorter one cut is gone", async (t) => {
  const { cluster, a } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const { ino } = answer.inode!;
  const actor = a.actor();
  await a.send({ op: "publish", ino, size: 10_000, mtimeNs: 1n, allocated: 0, recount: true });
  let release = (): void => undefined;
  cluster.objects.held = new Promise((resolve) => (release = resolve));
  await a.send({ op: "setattr", ino, size: 100, actor });
  await a.send({ op: "publish", ino, size: 5_000, mtimeNs: 2n, allocated: 0, recount: true });
  let longer = false;
  const waiting = a.send({ op: "setattr", ino, size: 3_000, actor }).then(() => (longer = true));
  await settle();
  t.notOk(longer, "bytes 100 … 3,000 of the first life could be seen again");
  release();
  await waiting;
  await settle();
  t.match(cluster.objects.trimmed[0], { seq: 1, size: 100 });
});

t.test("one writer of a volume at a time", async (t) => {
  const { cluster, a, b } = await begin();
  const actor = a.actor();
  await a.send({ op: "volumeCreate", name: "disk", size: 5000, pool: "", actor });
  const { answer } = await a.send({ op: "volumeOpen", name: "disk", write: true });
  t.equal(answer.volume!.size, 8192, "rounded up to 4 KiB");
  const opening = () => b.send({ op: "volumeOpen", name: "disk", write: true });
  await t.rejects(opening(), { code: "Busy", message: /test \(library client/ });
  await t.rejects(b.send({ op: "volumeRemove", name: "disk" }), { code: "Busy" });
  await cluster.clock.advance(1_900);
  await b.send({ op: "volumeList" });
  await cluster.clock.advance(300);
  t.equal((await opening()).answer.volume!.ownerClient, b.id, "a silent owner loses it");
  t.same(cluster.fenced, [a.id]);
  for (const name of ["", "a/b", "ä", "x".repeat(129)]) {
    const bad = b.send({ op: "volumeCreate", name, size: 1, pool: "", actor });
    await t.rejects(bad, { code: "InvalidArgument" });
  }
});

t.test("a volume is taken away by force from an owner that is fenced first", async (t) => {
  const { cluster, a, b } = await begin();
  await a.send({ op: "volumeCreate", name: "disk", size: 4096, pool: "", actor: a.actor() });
  const first = { op: "volumeOpen", name: "disk", write: true, holder: "line 1" } as const;
  await a.send(first);
  const refused = b.send({ op: "volumeOpen", name: "disk", write: true });
  await t.rejects(refused, { code: "Busy", message: /client\.\d+, pid \d+.* since 1970-01-01T/ });
  const reading = await b.send({ op: "volumeOpen", name: "disk", write: false });
  t.equal(reading.answer.volume!.ownerClient, a.id, "a reader takes nothing");
  t.same(cluster.fenced, []);
  const taken = await b.send({ op: "volumeOpen", name: "disk", write: true, force: true });
  t.equal(taken.answer.volume!.ownerClient, b.id);
  t.same(cluster.fenced, [a.id], "the owner is fenced");
  t.ok(taken.answer.minEpoch! > 0, "and OSDs learn of it before they serve the next one");
  const { answer } = await b.send({ op: "volumeInfo", name: "disk" });
  t.match(answer.volume, { ownerClient: b.id, writer: { client: b.id, holder: "" } });
  await t.rejects(a.send({ op: "volumeInfo", name: "disk" }));
});

t.test("a line of succession ends when somebody else has had the volume", async (t) => {
  const { cluster, a, b } = await begin();
  await a.send({ op: "volumeCreate", name: "disk", size: 4096, pool: "", actor: a.actor() });
  const line = { op: "volumeOpen", name: "disk", write: true, holder: "line 1" } as const;
  const id = (await a.send(line)).answer.volume!.id;
  await a.send({ op: "volumeClose", id });
  await b.send({ ...line, continues: true });
  t.pass("nobody has had it meanwhile");
  await b.send({ op: "volumeClose", id });
  await a.send({ ...line, holder: "line 2" });
  await a.send({ op: "volumeClose", id });
  const late = { ...line, continues: true };
  await t.rejects(b.send(late), {
    code: "StaleHandle",
    message: /taken over by client\.\d+ at 1970/,
  });
  await t.rejects(b.send({ ...late, holder: "" }), { code: "StaleHandle" });
  await t.rejects(b.send({ ...late, force: true }), { code: "StaleHandle" }, "nor by force");
  t.same(cluster.fenced, []);
  await b.send({ ...line, holder: "line 3" });
});

t.test("a missing or damaged batch is refused", async (t) => {
  const { cluster, a } = await begin();
  for (const name of ["1", "2", "3"]) {
    await a.mkdir(ROOT_INO, name);
    await a.send({ op: "sync" });
  }
  cluster.leader.stop();
  const seq = [...cluster.data.batches.keys()].at(-2)!;
  const good = cluster.data.batches.get(seq)!;
  const load = () =>
    replayMetadata(cluster.data.lead(), {
      ...{ cacheBytes: 2 ** 20, tail: new Map(), logger: silentLogger },
    });
  const bad = Buffer.from(good);
  bad[10]! ^= 1;
  cluster.data.batches.set(seq, bad);
  await t.rejects(load(), { code: "Corrupt", message: new RegExp(`batch ${seq}: checksum`) });
  cluster.data.batches.delete(seq);
  await t.rejects(load(), { code: "Corrupt", message: new RegExp(`batch ${seq} is missing`) });
  cluster.data.batches.set(seq, good);
  await t.resolves(load());
});

t.test("what a client said that it holds counts with what it says at last", async (t) => {
  const { cluster, a, b } = await begin();
  await a.create(ROOT_INO, "x");
  await cluster.lead();
  const resume = (claimed: number, link: FakeLink): Promise<unknown> => {
    const open = { type: "library" as const, instance: "", host: "test", pid: 1, detail: "" };
    const going = { client: a.id, held: [], orphans: [], floor: a.floor };
    return cluster.leader.openSession({ ...open, ...going, claimed }, link);
  };
  const link = new FakeLink();
  await t.rejects(resume(1, link), { code: "ConnectionLost", retry: "same" }, "a part is missing");
  cluster.leader.claim({ held: [{ ino: ROOT_INO, mode: "shared", seq: 1 }] }, link);
  await resume(1, link);
  await b.open({ client: b.id });
  cluster.leader.keepAlive({ client: a.id, floor: a.floor }, link);
  b.keepAlive();
  await settle();
  void b.create(ROOT_INO, "y");
  await cluster.clock.advance(100);
  t.match(link.recalls, [{ ino: ROOT_INO, mode: "none" }], "the new leader knows of it");
});

t.test("claims that are no claims are refused, and the leader goes on", async (t) => {
  const { cluster, a } = await begin();
  const link = new FakeLink();
  const held = { ino: ROOT_INO, mode: "shared" as const, seq: 1 };
  const bad = [undefined, 7, "held", [null], [{ ...held, ino: "1" }], [{ ...held, mode: "all" }]];
  const open = { type: "library" as const, instance: "", host: "test", pid: 1, detail: "" };
  const going = { client: a.id, orphans: [], floor: a.floor };
  for (const wrong of bad as (typeof held)[][]) {
    t.throws(() => cluster.leader.claim({ held: wrong }, link), { code: "Malformed" });
    const opening = cluster.leader.openSession({ ...open, ...going, held: wrong }, link);
    await t.rejects(opening, { code: "Malformed" });
  }
  const many = Array.from({ length: 2 ** 19 + 1 }, () => held);
  cluster.leader.claim({ held: many }, link);
  t.throws(() => cluster.leader.claim({ held: many }, link), { code: "Malformed" });
});

t.test("of a directory that is made and removed the store is asked nothing", async (t) => {
  const { cluster, a } = await begin();
  await a.mkdir(ROOT_INO, "warm");
  const asked: string[] = [];
  const loadPage = cluster.store.loadPage.bind(cluster.store);
  cluster.store.loadPage = (key) => {
    asked.push(key);
    return loadPage(key);
  };
  const { ino } = (await a.mkdir(ROOT_INO, "d")).answer.inode!;
  await a.create(ino, "f");
  const actor = a.actor();
  await a.send({ op: "unlink", parent: ino, name: Buffer.from("f"), stillOpen: false, actor });
  asked.length = 0; // The queue of what is to be purged.
  await a.send({ op: "rmdir", parent: ROOT_INO, name: Buffer.from("d"), actor });
  t.same(asked, []);
  const again = (await a.mkdir(ROOT_INO, "e")).answer.inode!;
  await a.create(again.ino, "f");
  t.same(asked, []);
});

/** A session goes on with another worker: what it keeps, what its predecessor can still do. */
import t from "tap";
import { LOCK_END, ROOT_INO, type LockClaim, type Request } from "../../../mds/proto.js";
import { TestClient, TestCluster, settle } from "./harness.js";

async function begin(): Promise<{ cluster: TestCluster; a: TestClient; b: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  const a = await cluster.client({ type: "mount" });
  return { cluster, a, b: await cluster.client({ type: "mount" }) };
}
/** The next worker of the client's mount, which knows what its record says. */
async function succeed(
  cluster: TestCluster,
  old: TestClient,
  options: Parameters<TestClient["open"]>[0] = {},
): Promise<TestClient> {
  const next = new TestClient(cluster);
  next.adopt(old);
  await next.open({ client: old.id, generation: 1, restoring: true, ...options });
  return next;
}
const end = (cluster: TestCluster, client: TestClient, inos: number[] = []) =>
  cluster.leader.endTakeover({ client: client.id, inos }, client.link);
const claim = (ino: number, start: bigint, last: bigint): LockClaim => ({
  ...{ kind: "posix", ino, owner: "a", mode: "exclusive" },
  ...{ start, end: last, pid: 7 },
});
const lock = (ino: number, start: bigint, last: bigint, waiter = 0): Request => ({
  ...{ op: "lock", waiter },
  ...claim(ino, start, last),
});

t.test("the predecessor is fenced and refused, also by the next leader", async (t) => {
  const { cluster, a } = await begin();
  const link = a.link;
  const next = await succeed(cluster, a);
  t.equal(next.id, a.id, "one session");
  t.same(cluster.fenced, [a.id], "the first worker has the session's id");
  t.not(next.opened.worker, a.id);
  t.ok(link.closed);
  await t.rejects(a.open({ client: a.id, generation: 0 }), { code: "Conflict" });
  const again = await succeed(cluster, next);
  t.equal(again.opened.worker, next.opened.worker, "the answer was lost: the same again");
  await cluster.lead();
  await t.rejects(a.open({ client: a.id, generation: 0 }), { code: "Conflict" });
  const third = await succeed(cluster, next, { generation: 2 });
  t.same(cluster.fenced, [a.id, next.opened.worker]);
  t.not(third.opened.worker, next.opened.worker);
  await cluster.leader.fence(third.opened.worker);
  t.same(cluster.fenced.at(-1), third.opened.worker, "people may name the worker or the session");
});

t.test("what it wrote is found out before anybody else gets it", async (t) => {
  const { cluster, a, b } = await begin();
  const { answer } = await a.create(ROOT_INO, "f");
  const other = (await a.create(ROOT_INO, "g")).answer.inode!.ino;
  const { ino } = answer.inode!;
  await a.send({ op: "sync" });
  a.polite = false;
  cluster.objects.sizes.set(`${ino.toString(16)}.0`, { size: 77, mtimeNs: 99_000n });
  cluster.objects.sizes.set(`${other.toString(16)}.0`, { size: 88, mtimeNs: 99_000n });
  const next = await succeed(cluster, a);
  next.size = 5; // A worker that knows nothing gives nothing back by its word.
  let size = -1;
  const reading = b.send({ op: "getattr", ino }).then((reply) => (size = reply.answer.inode!.size));
  await settle();
  await cluster.clock.advance(1_500);
  t.equal(size, -1, "waits for the end of the takeover");
  t.same(await end(cluster, next, [ino]), { sizes: [{ ino, size: 77 }] });
  await reading;
  t.equal(size, 77);
  const found = await b.send({ op: "getattr", ino: other });
  t.equal(found.answer.inode!.size, 0, "its size had been told: its objects are not asked");
  t.same(await end(cluster, next, [ino]), { sizes: [] }, "once");
  t.same(cluster.failures, []);
});

t.test("a request of the predecessor is executed once, whoever hears the answer", async (t) => {
  const { cluster, a } = await begin();
  const first = await a.mkdir(ROOT_INO, "d");
  const id = a.lastRequest;
  const { ino } = first.answer.inode!;
  const request: Request = {
    ...{ op: "create", parent: ROOT_INO, name: Buffer.from("d"), ino, mode: 0o040755, rdev: 0 },
    ...{ exclusive: true, actor: a.actor() },
  };
  for (const leader of ["the same", "the next"]) {
    if (leader === "the next") await cluster.lead();
    const generation = leader === "the same" ? 1 : 2;
    const next = await succeed(cluster, a, { generation });
    t.ok(next.opened.completed.includes(id));
    const again = await next.send(request, { id, replay: true });
    t.equal(again.answer.inode?.ino, ino, `not "exists" (${leader} leader)`);
    await end(cluster, next);
  }
});

t.test("locks that are claimed stay, all others go to who waits", async (t) => {
  const { cluster, a, b } = await begin();
  const { ino } = (await a.create(ROOT_INO, "f")).answer.inode!;
  const outcome = async (client: TestClient, request: Request): Promise<string | undefined> =>
    (await client.send(request)).answer.lock?.outcome;
  t.equal(await outcome(a, lock(ino, 0n, 99n)), "granted");
  t.equal(await outcome(b, lock(ino, 200n, LOCK_END)), "granted");
  t.equal(await outcome(a, lock(ino, 200n, 300n, 1)), "queued");
  t.equal(await outcome(b, lock(ino, 0n, 9n)), "conflict");
  const next = await succeed(cluster, a, { locks: [claim(ino, 0n, 9n), claim(ino, 20n, 29n)] });
  t.equal(await outcome(b, lock(ino, 0n, 9n)), "conflict", "never free in between");
  t.equal(await outcome(b, lock(ino, 10n, 19n)), "granted", "nobody knew of it");
  t.equal(await outcome(b, lock(ino, 25n, 25n)), "conflict");
  t.equal(await outcome(b, lock(ino, 30n, 99n)), "granted");
  await end(cluster, next);
  const unlock: Request = {
    ...{ op: "unlock", kind: "posix", ino, owner: "a", start: 0n, end: LOCK_END },
  };
  await b.send(unlock);
  t.equal(await outcome(b, lock(ino, 200n, 300n)), "granted", "the dead do not wait");
});

t.test("an unlinked file that is open stays until the next worker closes it", async (t) => {
  const { cluster, a, b } = await begin();
  const { ino } = (await a.create(ROOT_INO, "f")).answer.inode!;
  const name = Buffer.from("f");
  await a.send({ op: "unlink", parent: ROOT_INO, name, stillOpen: true, actor: a.actor() });
  const next = await succeed(cluster, a, { open: [ino] });
  await end(cluster, next);
  t.equal((await next.send({ op: "getattr", ino })).answer.inode?.nlink, 0);
  const shared = (await next.create(ROOT_INO, "g")).answer.inode!.ino;
  const third = await succeed(cluster, next, { generation: 2, open: [ino, shared] });
  await end(cluster, third);
  const gone = { op: "unlink", parent: ROOT_INO, name: Buffer.from("g") } as const;
  await b.send({ ...gone, stillOpen: false, actor: b.actor() });
  t.equal((await third.send({ op: "getattr", ino: shared })).answer.inode?.nlink, 0, "open here");
  await third.send({ op: "orphanRelease", ino });
  await t.rejects(third.send({ op: "getattr", ino }), { code: "StaleHandle" });
});

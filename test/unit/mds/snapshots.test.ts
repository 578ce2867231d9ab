/** Snapshots of volumes: records, who is asked before they change, what goes with them. */
import t from "tap";
import { contextKey, type Volume } from "../../../mds/proto.js";
import { TestCluster, settle, type TestClient } from "./harness.js";

const OBJECT = 4 * 2 ** 20;

async function begin(): Promise<{ cluster: TestCluster; a: TestClient; b: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  const [a, b] = [await cluster.client(), await cluster.client()];
  const actor = a.actor();
  await a.send({ op: "volumeCreate", name: "disk", size: 4 * OBJECT, pool: "", actor });
  return { cluster, a, b };
}
const take = (a: TestClient, snapshot: string, name = "disk") =>
  a.send({ op: "volumeSnapCreate", name, snapshot, actor: a.actor() }, { wait: "safe" });
async function disk(a: TestClient): Promise<Volume> {
  return (await a.send({ op: "volumeInfo", name: "disk" })).answer.volume!;
}
const names = ({ snapshots }: Volume): string[] => snapshots.map(({ id, name }) => `${id} ${name}`);

t.test("ids rise, are never used again, and outlive the leader", async (t) => {
  const { cluster, a } = await begin();
  await take(a, "one");
  await take(a, "two");
  await a.send({ op: "volumeSnapRemove", name: "disk", snapshot: "two" }, { wait: "safe" });
  const { answer } = await take(a, "two");
  t.same(names(answer.volume!), ["1 one", "3 two"]);
  await a.send({ op: "volumeResize", name: "disk", size: 8 * OBJECT, shrink: false });
  await a.send(
    { op: "volumeSnapProtect", name: "disk", snapshot: "one", isProtected: true },
    { wait: "safe" },
  );
  await cluster.leader.checkpoint();
  await cluster.lead();
  await cluster.clock.advance(3_000);
  const b = await cluster.client();
  const found = await disk(b);
  t.match(found, { snapSeq: 3, size: 8 * OBJECT });
  t.match(found.snapshots, [
    { id: 1, name: "one", size: 4 * OBJECT, isProtected: true },
    { id: 3, name: "two", size: 4 * OBJECT, isProtected: false },
  ]);
});

t.test("what cannot be is refused, and why is told", async (t) => {
  const { a } = await begin();
  await take(a, "one");
  await t.rejects(take(a, "one"), { code: "Exists", message: /disk@one/ });
  await t.rejects(take(a, "-x"), { code: "InvalidArgument" });
  await t.rejects(take(a, "a@b"), { code: "InvalidArgument" });
  await t.rejects(take(a, "one", "none"), { code: "NotFound", message: /volume none/ });
  const snapshot = { name: "disk", snapshot: "none" };
  await t.rejects(a.send({ op: "volumeSnapRemove", ...snapshot }), { code: "NotFound" });
  await t.rejects(a.send({ op: "volumeRollback", ...snapshot }), { code: "NotFound" });
  await a.send({ op: "volumeSnapProtect", name: "disk", snapshot: "one", isProtected: true });
  await t.rejects(a.send({ op: "volumeSnapRemove", name: "disk", snapshot: "one" }), {
    code: "Busy",
    message: /protected/,
  });
  await t.rejects(a.send({ op: "volumeRemove", name: "disk" }), {
    code: "Busy",
    message: /1 snapshot/,
  });
  await t.rejects(a.send({ op: "volumeOpen", name: "disk@one", write: true }), {
    code: "ReadOnly",
  });
  await t.rejects(a.send({ op: "volumeContext", id: 1 }), { code: "NotPermitted" });
});

t.test("whoever writes stops before there is a snapshot, and hears of it", async (t) => {
  const { a, b } = await begin();
  a.polite = false;
  const opened = await a.send({ op: "volumeOpen", name: "disk", write: true });
  const key = contextKey(opened.answer.volume!.id);
  t.match(opened.grants, [{ ino: key, mode: "shared" }]);
  let isTaken = false;
  const taken = take(b, "one").then(() => (isTaken = true));
  await settle();
  t.match(a.link.recalls, [{ ino: key, mode: "none" }]);
  const again = a.send({ op: "volumeContext", id: opened.answer.volume!.id });
  await settle();
  t.notOk(isTaken, "its changes are under way still");
  t.equal((await disk(b)).snapSeq, 0);
  a.release(key, "none", a.link.recalls[0]!.seq);
  await taken;
  const { answer, grants } = await again;
  t.same(names(answer.volume!), ["1 one"], "it goes on with the snapshot");
  t.match(grants, [{ ino: key, mode: "shared" }]);
  await a.send({ op: "volumeClose", id: answer.volume!.id });
});

t.test("a writer that does not answer is fenced before there is a snapshot", async (t) => {
  const { cluster, a, b } = await begin();
  a.polite = false;
  await a.send({ op: "volumeOpen", name: "disk", write: true });
  let isTaken = false;
  const taken = take(b, "one").then(() => (isTaken = true));
  for (let i = 0; i < 5 && !isTaken; i++) {
    t.same([isTaken, cluster.fenced.includes(a.id)], [false, false]);
    await cluster.clock.advance(400);
    b.keepAlive();
    if (cluster.fenced.length > 0) break;
  }
  await cluster.clock.advance(2_500);
  await taken;
  t.same(cluster.fenced, [a.id]);
});

t.test("a writer that comes back to a new leader is asked by it", async (t) => {
  const { cluster, a, b } = await begin();
  const opened = await a.send({ op: "volumeOpen", name: "disk", write: true }, { wait: "safe" });
  const { ino, seq } = opened.grants[0]!;
  await cluster.lead();
  await a.open({ client: a.id, held: [{ ino, mode: "shared", seq }] });
  await b.open({ client: b.id });
  a.keepAlive();
  b.keepAlive();
  await cluster.clock.advance(500);
  a.polite = false;
  const taken = take(b, "one");
  await settle();
  t.match(a.link.recalls, [{ ino, mode: "none" }]);
  a.release(ino, "none", a.link.recalls[0]!.seq);
  t.same(names((await taken).answer.volume!), ["1 one"]);
});

t.test(
  "a snapshot that is read stays, and its clones go with the last that needs them",
  async (t) => {
    const { cluster, a, b } = await begin();
    const { objects } = cluster;
    for (const name of ["one", "two", "three"]) await take(a, name);
    const opened = await b.send({ op: "volumeOpen", name: "disk@one", write: false });
    const { id, snapshot, size } = opened.answer.volume!;
    t.same({ snapshot, size }, { snapshot: 1, size: 4 * OBJECT });
    const remove = (name: string) =>
      a.send({ op: "volumeSnapRemove", name: "disk", snapshot: name }, { wait: "safe" });
    await t.rejects(remove("one"), { code: "Busy", message: /in use by test/ });
    await b.send({ op: "volumeClose", id: id + 2 ** 32 });
    // What the object was at 1 and 2; what another one was at 3.
    for (const [object, from] of [
      ["v1.0#00000002", 0],
      ["v1.1#00000003", 2],
    ] as const) {
      objects.sizes.set(object, { size: OBJECT, mtimeNs: 1n });
      objects.snapSeqs.set(object, from);
    }
    objects.sizes.set("v1.0", { size: OBJECT, mtimeNs: 1n });
    await remove("one");
    await cluster.clock.advance(100);
    t.same(objects.removed, [], "snapshot two needs it");
    await remove("two");
    await cluster.clock.advance(100);
    t.same(
      objects.removed.map(({ object }) => object),
      ["v1.0#00000002"],
    );
    await remove("three");
    await cluster.clock.advance(100);
    t.same([...objects.sizes.keys()], ["v1.0"]);
    await a.send({ op: "volumeRemove", name: "disk" }, { wait: "safe" });
    await cluster.clock.advance(100);
    t.same([...objects.sizes.keys()], []);
  },
);

t.test(
  "a volume that is rolled back is nobody's until every object is, across leaders",
  async (t) => {
    const { cluster, a, b } = await begin();
    const { objects } = cluster;
    await take(a, "one");
    await a.send({ op: "volumeResize", name: "disk", size: 8 * OBJECT, shrink: false });
    await take(a, "two");
    for (const object of ["v1.0", "v1.1", "v1.5"])
      objects.sizes.set(object, { size: 1, mtimeNs: 1n });
    objects.snapSeqs.set("v1.1", 1);
    objects.snapSeqs.set("v1.5", 2);
    const rollback = { op: "volumeRollback", name: "disk", snapshot: "one" } as const;
    await b.send({ op: "volumeOpen", name: "disk", write: true });
    await t.rejects(a.send(rollback), { code: "Busy", message: /in use by test/ });
    await b.send({ op: "volumeClose", id: 1 });
    let release: () => void = () => undefined;
    objects.heldRemovals = new Promise((resolve) => (release = resolve));
    t.match((await a.send(rollback, { wait: "safe" })).answer.volume, { rollbackTo: 1 });
    await t.rejects(a.send({ op: "volumeOpen", name: "disk", write: false }), {
      code: "Busy",
      message: /rolled back to its snapshot one/,
    });
    await t.rejects(take(a, "three"), { code: "Busy" });
    await t.rejects(a.send({ op: "volumeRemove", name: "disk" }), { code: "Busy" });
    await cluster.lead();
    await cluster.clock.advance(3_000);
    release();
    objects.heldRemovals = undefined;
    const c = await cluster.client();
    await cluster.clock.advance(100);
    t.match(await disk(c), { rollbackTo: 0, size: 4 * OBJECT, snapSeq: 2 });
    const done = new Set(
      objects.rolledBack.map(({ object, snap, seq }) => `${object} ${snap} ${seq}`),
    );
    t.same([...done].sort(), ["v1.1 1 2", "v1.5 1 2"], "v1.0 has not changed since");
  },
);

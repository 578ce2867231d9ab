/** Volumes' records: sizes, names, layouts, limits, and deletes in the background. */
import t from "tap";
import type { Request, Volume } from "../../../mds/proto.js";
import type { TestClient } from "./harness.js";
import { TestCluster, settle } from "./harness.js";

const MIB = 2 ** 20;
const OBJECT = 4 * MIB;

async function begin(): Promise<{ cluster: TestCluster; a: TestClient; b: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  return { cluster, a: await cluster.client(), b: await cluster.client() };
}
type Layout = Partial<Extract<Request, { op: "volumeCreate" }>>;
async function create(a: TestClient, name: string, size: number, extra: Layout = {}) {
  const actor = a.actor();
  const { answer } = await a.send({ op: "volumeCreate", name, size, pool: "", actor, ...extra });
  return answer.volume!;
}
async function list(a: TestClient) {
  const { answer } = await a.send({ op: "volumeList" });
  return { volumes: answer.volumes!, purges: answer.volumePurges! };
}
async function named(a: TestClient, name: string): Promise<Volume> {
  return (await a.send({ op: "volumeInfo", name })).answer.volume!;
}
const has = (cluster: TestCluster, object: string, size = OBJECT) =>
  cluster.objects.sizes.set(object, { size, mtimeNs: 1n });

t.test("a volume in use grows, and its users hear of it", async (t) => {
  const { cluster, a, b } = await begin();
  const { id } = await create(a, "disk", OBJECT);
  await a.send({ op: "volumeOpen", name: "disk", write: true });
  const resize = { op: "volumeResize", name: "disk", shrink: false } as const;
  const { answer } = await b.send({ ...resize, size: 10 * OBJECT + 1 });
  t.equal(answer.volume!.size, 10 * OBJECT + 4096, "in whole blocks");
  await settle();
  t.match(a.link.told, [{ id, size: 10 * OBJECT + 4096, revision: 2 }]);
  t.same(b.link.told, [], "only users are told");
  await t.rejects(b.send({ ...resize, size: OBJECT }), {
    code: "InvalidArgument",
    message: /has \d+ bytes already/,
  });
  await t.rejects(b.send({ ...resize, size: OBJECT, shrink: true }), {
    code: "Busy",
    message: /in use by test/,
  });
  await t.rejects(b.send({ ...resize, size: 0 }), { code: "InvalidArgument" });
  await t.rejects(b.send({ ...resize, size: 2 ** 64 - 1 }), { code: "Malformed" });
  await t.rejects(b.send({ ...resize, size: -5 }), { code: "Malformed" });
  await cluster.lead();
  await cluster.clock.advance(3_000);
  const again = await cluster.client();
  t.equal((await named(again, "disk")).size, 10 * OBJECT + 4096, "journaled");
});

t.test("a shrunk volume has its new size only when the rest is gone", async (t) => {
  const { cluster, a } = await begin();
  const { id, objectPrefix } = await create(a, "disk", 10 * OBJECT);
  for (const index of [0, 1, 2, 5, 9]) has(cluster, `${objectPrefix}.${index}`);
  let release: () => void = () => undefined;
  cluster.objects.heldRemovals = new Promise((resolve) => (release = resolve));
  const size = OBJECT + 8192;
  const resize = { op: "volumeResize", name: "disk", shrink: true, size } as const;
  const { answer } = await a.send(resize, { wait: "safe" });
  t.match(answer.volume, { size: 10 * OBJECT, shrinkTo: size });
  await settle();
  t.match((await list(a)).purges, [{ volume: id, name: "disk", shrinking: true, total: 10 }]);
  for (const request of [
    { op: "volumeOpen", name: "disk", write: true },
    { op: "volumeOpen", name: "disk", write: false },
    { ...resize, size: 20 * OBJECT },
    resize,
  ] as const) {
    await t.rejects(a.send(request), { code: "Busy", message: /being shrunk/ }, request.op);
  }
  // The leader dies in the middle; the next one goes on.
  await cluster.lead();
  await cluster.clock.advance(3_000);
  const b = await cluster.client();
  t.match(await named(b, "disk"), { size: 10 * OBJECT, shrinkTo: size });
  release();
  cluster.objects.heldRemovals = undefined;
  await cluster.clock.advance(3_000);
  t.match(await named(b, "disk"), { size, shrinkTo: 0 });
  t.same(
    [...cluster.objects.sizes].map(([name, { size: bytes }]) => [name, bytes]),
    [
      [`${objectPrefix}.0`, OBJECT],
      [`${objectPrefix}.1`, 8192],
    ],
  );
  t.same((await list(b)).purges, []);
  const opened = await b.send({ op: "volumeOpen", name: "disk", write: true });
  t.equal(opened.answer.volume!.size, size);
});

t.test("a silent user is fenced before a volume is shrunk under it", async (t) => {
  const { cluster, a, b } = await begin();
  const { objectPrefix } = await create(a, "disk", 10 * OBJECT);
  has(cluster, `${objectPrefix}.7`);
  await a.send({ op: "volumeOpen", name: "disk", write: true });
  await cluster.clock.advance(1_900);
  await b.send({ op: "volumeList" });
  await cluster.clock.advance(300);
  await b.send({ op: "volumeResize", name: "disk", size: OBJECT, shrink: true });
  t.same(cluster.fenced, [a.id]);
  await cluster.clock.advance(100);
  t.equal((await named(b, "disk")).size, OBJECT);
  t.equal(cluster.objects.sizes.size, 0);
});

t.test("the space of a huge volume is freed by asking which objects there are", async (t) => {
  const { cluster, a } = await begin();
  const size = 2 ** 64 - 4096;
  const { id, objectPrefix } = await create(a, "huge", size);
  t.equal((await named(a, "huge")).size, size);
  const far = (2 ** 42 - 1).toString(16);
  for (const index of ["0", "1f", far]) has(cluster, `${objectPrefix}.${index}`);
  has(cluster, `${objectPrefix}0.1`);
  const shrink = { op: "volumeResize", name: "huge", size: 2 ** 63, shrink: true } as const;
  await a.send(shrink);
  await cluster.clock.advance(100);
  t.match(await named(a, "huge"), { size: 2 ** 63, shrinkTo: 0 });
  t.notOk(cluster.objects.sizes.has(`${objectPrefix}.${far}`));
  t.equal(cluster.objects.listed.length, 2, "looked twice: something may have been on its way");
  await a.send({ op: "volumeRemove", name: "huge" });
  t.match((await list(a)).purges, [{ volume: id, name: "huge", shrinking: false }]);
  await cluster.clock.advance(100);
  t.same([...cluster.objects.sizes.keys()], [`${objectPrefix}0.1`], "others stay");
  t.same(await list(a), { volumes: [], purges: [] });
});

t.test("a volume gets another name, also while it is in use", async (t) => {
  const { a, b } = await begin();
  await create(a, "one", OBJECT);
  await create(a, "two", OBJECT);
  const { answer } = await a.send({ op: "volumeOpen", name: "one", write: true });
  const rename = { op: "volumeRename", name: "one" } as const;
  await t.rejects(b.send({ ...rename, newName: "two" }), { code: "Exists" });
  await t.rejects(b.send({ ...rename, newName: "-x" }), { code: "InvalidArgument" });
  await t.rejects(b.send({ ...rename, name: "none", newName: "x" }), { code: "NotFound" });
  await b.send({ ...rename, newName: "three" });
  t.match(await named(b, "three"), { id: answer.volume!.id, ownerClient: a.id });
  await t.rejects(named(b, "one"), { code: "NotFound" });
  await create(b, "one", OBJECT);
  t.not((await named(b, "one")).id, answer.volume!.id);
});

t.test("limits are kept and told", async (t) => {
  const { cluster, a, b } = await begin();
  const { id } = await create(a, "disk", OBJECT);
  await a.send({ op: "volumeOpen", name: "disk", write: false });
  await b.send({ op: "volumeLimit", name: "disk", iops: 100, bandwidth: MIB });
  await b.send({ op: "volumeLimit", name: "disk", iops: 50 });
  await settle();
  t.match(a.link.told.at(-1), { id, iopsLimit: 50, bandwidthLimit: MIB });
  await t.rejects(b.send({ op: "volumeLimit", name: "disk", iops: -1 }), { code: "Malformed" });
  await cluster.lead();
  await cluster.clock.advance(3_000);
  t.match(await named(await cluster.client(), "disk"), { iopsLimit: 50, bandwidthLimit: MIB });
});

t.test("a layout is taken when its parts fit together", async (t) => {
  const { a } = await begin();
  const { layout } = await create(a, "wide", 64 * MIB, {
    ...{ objectSize: MIB, stripeUnit: 65_536, stripeCount: 8 },
  });
  t.match(layout, { objectSize: MIB, stripeUnit: 65_536, stripeCount: 8 });
  const small = await create(a, "small", 64 * MIB, { objectSize: MIB });
  t.match(small.layout, { objectSize: MIB, stripeUnit: MIB, stripeCount: 1 });
  for (const bad of [
    { objectSize: MIB + 4096 },
    { objectSize: 32_768 },
    { objectSize: 128 * MIB },
    { stripeUnit: 8 * MIB },
    { stripeUnit: 1024 },
    { stripeUnit: 12_288 },
    { stripeCount: 0 },
    { stripeCount: 257 },
  ]) {
    await t.rejects(
      create(a, "bad", MIB, bad),
      { code: "InvalidArgument", message: /: give/ },
      JSON.stringify(bad),
    );
  }
});

t.test("what servers report is shown while their sessions last", async (t) => {
  const { cluster, a, b } = await begin();
  const { id } = await create(a, "disk", OBJECT);
  const zero = { p50Us: 0, p99Us: 0, maxUs: 0 };
  const activity = {
    ...{ volume: id, spanMs: 1_000, reads: 5, writes: 0, others: 0, readBytes: 20_480 },
    ...{ writeBytes: 0, read: zero, write: zero, other: zero, failures: 0, heldMs: 0 },
  };
  await a.send({ op: "volumeReport", volumes: [activity, { ...activity, volume: 99 }] });
  const top = async () => (await b.send({ op: "volumeTop" })).answer.volumeTop;
  t.match(await top(), [{ name: "disk", client: a.id, activity: { reads: 5 } }]);
  for (const bad of [{ ...activity, reads: -1 }, { ...activity, read: {} }, 7, null]) {
    const volumes = [bad] as unknown as (typeof activity)[];
    await t.rejects(a.send({ op: "volumeReport", volumes }), { code: "Malformed" });
  }
  await cluster.leader.closeSession({ client: a.id }, a.link);
  t.same(await top(), []);
});

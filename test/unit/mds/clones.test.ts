/** Clones of volumes: records, what they keep alive, and how they become independent. */
import t from "tap";
import type { Volume } from "../../../mds/proto.js";
import { TestCluster, type TestClient } from "./harness.js";

const OBJECT = 4 * 2 ** 20;

async function begin(): Promise<{ cluster: TestCluster; a: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  const a = await cluster.client();
  const actor = a.actor();
  await a.send({ op: "volumeCreate", name: "golden", size: 4 * OBJECT, pool: "", actor });
  await take(a, "golden", "base");
  return { cluster, a };
}
const take = (a: TestClient, name: string, snapshot: string) =>
  a.send({ op: "volumeSnapCreate", name, snapshot, actor: a.actor() }, { wait: "safe" });
const drop = (a: TestClient, name: string, snapshot: string) =>
  a.send({ op: "volumeSnapRemove", name, snapshot }, { wait: "safe" });
async function clone(a: TestClient, from: string, newName: string): Promise<Volume> {
  const [name, snapshot] = from.split("@") as [string, string];
  const request = { op: "volumeClone", name, snapshot, newName, actor: a.actor() } as const;
  return (await a.send(request, { wait: "safe" })).answer.volume!;
}
async function info(a: TestClient, name: string): Promise<Volume> {
  return (await a.send({ op: "volumeInfo", name })).answer.volume!;
}

t.test("a clone names its parents, which outlive the leader and new names", async (t) => {
  const { cluster, a } = await begin();
  await a.send({ op: "volumeResize", name: "golden", size: 8 * OBJECT, shrink: false });
  const child = await clone(a, "golden@base", "child");
  t.match(child, { id: 2, size: 4 * OBJECT, objectPrefix: "v1$00000002", snapshots: [] });
  await take(a, "child", "then");
  await clone(a, "child@then", "grandchild");
  await a.send({ op: "volumeRename", name: "golden", newName: "gold" }, { wait: "safe" });
  await cluster.leader.checkpoint();
  await cluster.lead();
  await cluster.clock.advance(3_000);
  const b = await cluster.client();
  const { ancestors, parent } = await info(b, "grandchild");
  t.same(parent, { volume: 2, snap: 1, overlap: 4 * OBJECT });
  t.same(ancestors, [
    { name: "child", snapshot: "then", objectPrefix: "v1$00000002", snap: 1, size: 4 * OBJECT },
    { name: "gold", snapshot: "base", objectPrefix: "v1", snap: 1, size: 4 * OBJECT },
  ]);
  t.same((await info(b, "gold")).children, [{ name: "child", snap: 1 }]);
  const { volumes = [] } = (await b.send({ op: "volumeList" })).answer;
  t.same(
    volumes.map(({ name, children }) => [name, children.map((each) => each.name).join()]),
    [
      ["child", "grandchild"],
      ["gold", "child"],
      ["grandchild", ""],
    ],
  );
});

t.test("what a clone needs stays, and who needs it is told", async (t) => {
  const { a } = await begin();
  await t.rejects(clone(a, "golden@none", "x"), { code: "NotFound" });
  await t.rejects(clone(a, "none@base", "x"), { code: "NotFound" });
  await t.rejects(clone(a, "golden@base", "golden"), { code: "Exists" });
  await t.rejects(clone(a, "golden@base", "-x"), { code: "InvalidArgument" });
  for (let i = 0; i < 7; i++) await clone(a, "golden@base", `c${i}`);
  await t.rejects(drop(a, "golden", "base"), {
    code: "Busy",
    message: "snapshot golden@base has clones: c0, c1, c2, c3, c4 and 2 more",
  });
  await t.rejects(a.send({ op: "volumeRemove", name: "golden" }), { code: "Busy" });
  for (let i = 0; i < 7; i++) await a.send({ op: "volumeRemove", name: `c${i}` }, { wait: "safe" });
  await drop(a, "golden", "base");
});

t.test("clones of clones are refused beyond sixteen", async (t) => {
  const { a } = await begin();
  let from = "golden@base";
  for (let i = 1; i <= 16; i++) {
    await clone(a, from, `c${i}`);
    await take(a, `c${i}`, "s");
    from = `c${i}@s`;
  }
  await t.rejects(clone(a, from, "c17"), { code: "TooBig", message: /c16@s is the end of 16/ });
  t.equal((await info(a, "c16")).ancestors.length, 16);
});

t.test("a removed clone leaves its parent's objects, and the other way round", async (t) => {
  const { cluster, a } = await begin();
  const { objects } = cluster;
  await clone(a, "golden@base", "one");
  await clone(a, "golden@base", "two");
  const has = (...names: string[]): void => {
    for (const name of names) objects.sizes.set(name, { size: OBJECT, mtimeNs: 1n });
  };
  has("v1.0", "v1.2", "v1.0$00000002", "v1.9$00000002", "v1.0$00000003", "v1.1$00000003");
  await a.send({ op: "volumeRemove", name: "one" }, { wait: "safe" });
  await cluster.clock.advance(100);
  t.same([...objects.sizes.keys()], ["v1.0", "v1.2", "v1.0$00000003", "v1.1$00000003"]);

  // It gets what its parent has and it has not itself, across leaders.
  let release: () => void = () => undefined;
  objects.heldRemovals = new Promise((resolve) => (release = resolve));
  const flatten = { op: "volumeFlatten", name: "two" } as const;
  t.match((await a.send(flatten, { wait: "safe" })).answer.volume, { isFlattening: true });
  t.match((await a.send(flatten)).answer.volume, { isFlattening: true }, "asked again");
  await t.rejects(a.send({ op: "volumeRemove", name: "two" }), { code: "Busy" });
  await t.rejects(drop(a, "golden", "base"), { code: "Busy" });
  await cluster.lead();
  await cluster.clock.advance(3_000);
  const b = await cluster.client();
  release();
  await cluster.clock.advance(100);
  t.match(await info(b, "two"), { parent: null, ancestors: [], isFlattening: false });
  const copied = objects.copiedUp.map(({ object, parents }) => [object, ...parents].join());
  t.same([...new Set(copied)], ["v1.2$00000003,v1.2@1"]);
  await t.rejects(b.send(flatten), { code: "InvalidArgument", message: /no parent/ });
  await drop(b, "golden", "base");
  await b.send({ op: "volumeRemove", name: "golden" }, { wait: "safe" });
  await cluster.clock.advance(100);
  t.same([...objects.sizes.keys()].sort(), ["v1.0$00000003", "v1.1$00000003", "v1.2$00000003"]);
});

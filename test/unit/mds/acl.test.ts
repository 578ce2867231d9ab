/**
 * Access control lists at the leader: what setting one does to the mode, chmod to the list, a
 * default list to what is made below; and files without a name.
 */
import t from "tap";
import { ACL_ACCESS, ACL_DEFAULT, ROOT_INO } from "../../../mds/proto.js";
import { chmodAcl, inheritAcl, modeOfAcl, parseAcl } from "../../../mds/core/acl.js";
import { TestClient, TestCluster } from "./harness.js";

/** `u::7 u:1000:6 g::5 m::7 o::1`, permissions in octal. */
function acl(text: string): Buffer {
  const tags: Record<string, number> = { u: 1, U: 2, g: 4, G: 8, m: 16, o: 32 };
  const entries = text.split(" ").map((each) => {
    const [kind = "", id = "", permissions = ""] = each.split(":");
    const bytes = Buffer.alloc(8);
    bytes.writeUInt16LE(tags[id === "" ? kind : kind.toUpperCase()] ?? 64, 0);
    bytes.writeUInt16LE(Number(permissions), 2);
    bytes.writeUInt32LE(id === "" ? 0xffff_ffff : Number(id), 4);
    return bytes;
  });
  return Buffer.concat([Buffer.from([2, 0, 0, 0]), ...entries]);
}

t.test("a list and the mode that it stands for", (t) => {
  t.same(modeOfAcl(parseAcl(acl("u::7 g::5 o::1"))), { bits: 0o751, minimal: true });
  const extended = acl("u::7 u:1000:6 g::5 m::4 o::1");
  t.same(modeOfAcl(parseAcl(extended)), { bits: 0o741, minimal: false });
  t.same(chmodAcl(extended, 0o620), acl("u::6 u:1000:6 g::5 m::2 o::0"), "chmod sets the mask");
  t.same(chmodAcl(acl("u::7 g::5 o::1"), 0o620), acl("u::6 g::2 o::0"));
  t.same(inheritAcl(acl("u::7 g::5 o::1"), 0o100666), { mode: 0o100640 });
  t.same(inheritAcl(extended, 0o100666), {
    mode: 0o100640,
    access: acl("u::6 u:1000:6 g::5 m::4 o::0"),
  });
  t.end();
});

t.test("what is no list is refused", (t) => {
  for (const wrong of [
    Buffer.alloc(0),
    Buffer.from([2, 0, 0, 0]),
    Buffer.from([3, 0, 0, 0]),
    acl("u::7 g::5 o::1").subarray(0, 25),
    acl("u::7 g::5"),
    acl("u::7 u:5:1 g::5 o::1"), // A named user without a mask.
    acl("u::7 u:5:1 u:5:2 g::5 m::1 o::1"),
    acl("u::7 u::7 g::5 o::1"),
    acl("u::7 o::1 g::5"),
    acl("u::8 g::5 o::1"),
    acl("u::7 g::5 o::1 x::1"),
  ]) {
    t.throws(() => parseAcl(wrong), { name: "DssError" }, wrong.toString("hex"));
  }
  t.end();
});

async function begin(): Promise<{ cluster: TestCluster; a: TestClient; b: TestClient }> {
  const cluster = new TestCluster({ leaseMs: 2_000, recallTimeoutMs: 1_000 });
  await cluster.lead();
  await cluster.clock.advance(1);
  return { cluster, a: await cluster.client(), b: await cluster.client() };
}
const set = (a: TestClient, ino: number, name: string, value: Buffer, clearSgid = false) =>
  a.send({
    op: "setxattr",
    ino,
    name: Buffer.from(name),
    value,
    create: false,
    replace: false,
    ...(clearSgid ? { clearSgid } : {}),
    actor: a.actor(),
  });
const get = async (a: TestClient, ino: number, name: string): Promise<Buffer | undefined> =>
  (await a.send({ op: "getxattrs", ino })).answer.xattrs!.find(
    (each) => each.name.toString() === name,
  )?.value;

t.test("lists on files and directories", async (t) => {
  const { cluster, a } = await begin();
  const { ino } = (await a.create(ROOT_INO, "f", { mode: 0o102640 })).answer.inode!;
  const list = acl("u::7 u:1000:6 g::5 m::6 o::1");
  const under = (await set(a, ino, ACL_ACCESS, list)).answer.inode!;
  t.equal(under.mode, 0o102761);
  t.equal(under.xattrCount, 1);
  const chmod = await a.send({ op: "setattr", ino, mode: 0o604, actor: a.actor() });
  t.equal(chmod.answer.inode!.mode, 0o100604);
  t.same(await get(a, ino, ACL_ACCESS), acl("u::6 u:1000:6 g::5 m::0 o::4"));
  await a.send({ op: "setattr", ino, mode: 0o2604, actor: a.actor() });
  t.equal((await set(a, ino, ACL_ACCESS, list, true)).answer.inode!.mode, 0o100761, "no sgid");
  const plain = (await set(a, ino, ACL_ACCESS, acl("u::6 g::4 o::0"))).answer.inode!;
  t.match(plain, { mode: 0o100640, xattrCount: 0 }, "the mode says it all");
  await t.rejects(set(a, ino, ACL_DEFAULT, list), { code: "AccessDenied" });
  await t.rejects(set(a, ino, ACL_ACCESS, Buffer.alloc(3)), { code: "InvalidArgument" });
  t.equal((await a.send({ op: "getattr", ino })).answer.inode!.mode, 0o100640);

  const d = (await a.mkdir(ROOT_INO, "d")).answer.inode!.ino;
  await set(a, d, ACL_DEFAULT, acl("u::7 u:1000:7 g::5 m::7 o::0"));
  const asked = { mode: 0o100600, unmasked: 0o100666 };
  const file = (await a.create(d, "f", asked)).answer.inode!;
  t.match(file, { mode: 0o100660, xattrCount: 1 }, "the umask does not count");
  t.same(await get(a, file.ino, ACL_ACCESS), acl("u::6 u:1000:7 g::5 m::6 o::0"));
  const below = (await a.create(d, "d", { mode: 0o040700, unmasked: 0o040777 })).answer.inode!;
  t.match(below, { mode: 0o040770, xattrCount: 2 });
  t.same(await get(a, below.ino, ACL_DEFAULT), acl("u::7 u:1000:7 g::5 m::7 o::0"));
  const link = { mode: 0o120777, target: Buffer.from("f") };
  t.match((await a.create(d, "l", link)).answer.inode, { mode: 0o120777, xattrCount: 0 });

  // All of it is in the journal.
  await a.send({ op: "sync" });
  await cluster.lead();
  const later = new TestClient(cluster);
  later.adopt(a);
  await later.open({ client: a.id, held: [] });
  later.keepAlive();
  await cluster.clock.advance(5_000);
  const c = await cluster.client();
  t.match((await c.send({ op: "getattr", ino: below.ino })).answer.inode, { xattrCount: 2 });
  t.same(await get(c, file.ino, ACL_ACCESS), acl("u::6 u:1000:7 g::5 m::6 o::0"));
});

t.test("a file without a name gets one, or ends with its session", async (t) => {
  const { cluster, b } = await begin();
  const a = await cluster.client({ instance: "a" });
  const make = async () => {
    const ino = await a.ino();
    const request = { op: "tmpfile", parent: ROOT_INO, ino, mode: 0o100600 } as const;
    const { answer, grants } = await a.send({ ...request, actor: a.actor() });
    t.match(answer.inode, { ino, nlink: 0, mode: 0o100600 });
    t.ok(grants.some((grant) => grant.ino === ino && grant.mode === "exclusive"));
    return ino;
  };
  const link = (client: TestClient, ino: number, name: string) =>
    client.send({
      op: "link",
      ino,
      parent: ROOT_INO,
      name: Buffer.from(name),
      actor: client.actor(),
    });
  const first = await make();
  await t.rejects(link(b, first, "mine"), { code: "NotFound" }, "not another session's");
  t.match((await link(a, first, "x")).answer.inode, { nlink: 1 });
  await a.send({ op: "orphanRelease", ino: first });
  const lookup = { op: "lookup", parent: ROOT_INO, name: Buffer.from("x") } as const;
  t.match((await b.send(lookup)).answer.inode, { ino: first, nlink: 1 });
  const second = await make();
  await a.send({ op: "orphanRelease", ino: second });
  await t.rejects(a.send({ op: "getattr", ino: second }), { code: "StaleHandle" });
  const third = await make();
  await a.send({ op: "sync" });
  const c = await cluster.client({ instance: "a" }); // The successor ends its predecessor.
  await t.rejects(c.send({ op: "getattr", ino: third }), { code: "StaleHandle" });
  await t.rejects(
    c.send({ op: "tmpfile", parent: ROOT_INO, ino: 5, mode: 0o100600, actor: c.actor() }),
    { code: "InvalidArgument" },
    "a number that is not the session's",
  );
});

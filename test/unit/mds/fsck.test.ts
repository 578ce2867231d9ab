/**
 * `dss fsck` in a leader on memory: every kind of damage is found, put right with `repair` and gone
 * in the next run; without it nothing changes; and a file system that is merely busy has none.
 */
import t, { type Test } from "tap";
import { Prng } from "../../../cluster/base/prng.js";
import type { Delta } from "../../../mds/core/delta.js";
import { Draft } from "../../../mds/core/draft.js";
import { S_IFDIR, type InodeRecord } from "../../../mds/core/inode.js";
import { decodePage, directoryPageKey, encodePage, inodePageKey } from "../../../mds/core/page.js";
import { Fsck, type FsckSettings, type ObjectLister } from "../../../mds/fsck.js";
import { ROOT_INO } from "../../../mds/proto.js";
import { type FsckStatus } from "../../../mds/proto-fsck.js";
import { makeChain } from "../../../mds/core/totals-changes.js";
import { wrongTotals } from "../../support/totals-check.js";
import { LAYOUT, TestCluster, settle, type TestClient } from "./harness.js";

const MiB = 2 ** 20;

class World {
  readonly cluster: TestCluster;
  client!: TestClient;

  constructor(cacheBytes: number) {
    this.cluster = new TestCluster({ leaseMs: 2_000 }, cacheBytes);
  }
  static async make(cacheBytes = 64 * MiB): Promise<World> {
    const world = new World(cacheBytes);
    await world.cluster.lead();
    await world.cluster.clock.advance(1);
    world.client = await world.cluster.client();
    return world;
  }
  /** A new leader, without sessions to wait for. */
  async takeOver(): Promise<void> {
    await this.client.send({ op: "sync" });
    await this.cluster.leader.closeSession({ client: this.client.id }, this.client.link);
    await this.cluster.leader.checkpoint();
    await this.cluster.lead();
    await this.cluster.clock.advance(1);
    this.client = await this.cluster.client();
  }
  get lister(): ObjectLister {
    const { sizes } = this.cluster.objects;
    return {
      pools: () => [{ id: 1, pgCount: 1 }],
      list: async (_pg, after, limit) =>
        [...sizes.keys()]
          .sort()
          .filter((object) => object > after)
          .slice(0, limit)
          .map((object) => ({ object, size: sizes.get(object)!.size })),
    };
  }
  async fsck(settings: Partial<FsckSettings> = {}): Promise<FsckStatus> {
    const fsck = new Fsck(this.cluster.leader.inside(), this.lister, this.cluster.data.term);
    const { run } = fsck.start({ repair: false, objects: true, ...settings });
    for (;;) {
      await this.cluster.clock.advance(10);
      const status = fsck.status(run, 0);
      if (status.state !== "running") return status;
    }
  }
  /** What no operation would do. */
  async damage(work: (draft: Draft) => void | Delta[]): Promise<void> {
    const { operations, metadata } = this.cluster.leader.inside();
    await operations.change(() => {
      const draft = new Draft(metadata);
      return work(draft) ?? draft.finish();
    });
  }
  async inode(ino: number): Promise<InodeRecord | undefined> {
    const { loader, metadata } = this.cluster.leader.inside();
    return loader.run(() => metadata.inode(ino));
  }
  async create(name: string, parent = ROOT_INO): Promise<number> {
    const { answer } = await this.client.create(parent, name);
    const ino = answer.inode!.ino;
    return ino;
  }
  async mkdir(name: string, parent = ROOT_INO): Promise<number> {
    return (await this.client.mkdir(parent, name)).answer.inode!.ino;
  }
  object(name: string, size: number): void {
    this.cluster.objects.sizes.set(name, { size, mtimeNs: 1n });
  }
  async names(directory: number): Promise<string[]> {
    const request = { op: "readdir", ino: directory, cookie: 0, limit: 100, plus: false } as const;
    const { answer } = await this.client.send(request);
    return answer.entries!.map(({ name }) => name.toString()).sort();
  }
}

const kinds = ({ findings }: FsckStatus): string[] => findings.map(({ kind }) => kind).sort();
/** Finds exactly this, changes nothing; repairs it; finds nothing more. */
async function mends(t: Test, world: World, ...expected: string[]): Promise<void> {
  const looked = await world.fsck();
  t.equal(looked.error, "");
  t.same(kinds(looked), expected.sort(), "found");
  t.equal(looked.repaired, 0);
  t.same(kinds(await world.fsck()), expected, "nothing was changed");
  const repaired = await world.fsck({ repair: true });
  t.same(kinds(repaired), expected);
  t.equal(repaired.repaired, repaired.found, "all are repaired");
  t.same((await world.fsck()).findings, [], "and gone");
}

t.test("a healthy file system has nothing", async (t) => {
  const world = await World.make();
  const folder = await world.mkdir("d");
  const ino = await world.create("f", folder);
  await world.client.send({
    op: "link",
    ino,
    parent: ROOT_INO,
    name: Buffer.from("second"),
    actor: world.client.actor(),
  });
  world.object(`${ino.toString(16)}.0`, 4096); // Written under the grant, not published yet.
  const status = await world.fsck();
  t.same(status.findings, []);
  t.match(status, { state: "done", inodes: 3, names: 3, objects: 1, found: 0, pgs: 1 });
  await world.takeOver();
  t.same((await world.fsck()).findings, [], "after a failover");
});

t.test("a name that leads nowhere", async (t) => {
  const world = await World.make();
  const ino = await world.create("gone");
  await world.create("kept");
  await world.damage((draft) => {
    draft.setCounter("inodes", draft.counter("inodes") - 1);
    return [...draft.finish(), { d: "inodeRemove", ino }];
  });
  t.same(kinds(await world.fsck()), ["name-without-inode"], "totals: once the names are right");
  t.same(kinds(await world.fsck({ repair: true })), ["directory-totals", "name-without-inode"]);
  t.same((await world.fsck()).findings, []);
  t.same(await world.names(ROOT_INO), ["kept"]);
});

t.test("inodes without a name go to lost+found", async (t) => {
  const world = await World.make();
  const ino = await world.create("file");
  const folder = await world.mkdir("folder");
  const inside = await world.create("inside", folder);
  const root = (await world.inode(ROOT_INO))!;
  await world.damage((draft) => {
    draft.unlink(ROOT_INO, Buffer.from("file"));
    draft.unlink(ROOT_INO, Buffer.from("folder"));
    draft.put({ ...root, size: 0, nlink: 2 });
  });
  await mends(t, world, "inode-without-name", "inode-without-name");
  t.same(await world.names(ROOT_INO), ["lost+found"]);
  const { answer } = await world.client.send({
    op: "lookup",
    parent: ROOT_INO,
    name: Buffer.from("lost+found"),
  });
  const hex = (each: number): string => `inode-${each.toString(16)}`;
  t.same(await world.names(answer.inode!.ino), [hex(ino), hex(folder)].sort());
  t.same(await world.names(folder), ["inside"]);
  t.equal((await world.inode(inside))!.nlink, 1);
});

t.test("counts, types and the total", async (t) => {
  const world = await World.make();
  const ino = await world.create("f");
  const other = await world.mkdir("d");
  const inode = (await world.inode(ino))!;
  const folder = (await world.inode(other))!;
  await world.damage((draft) => {
    draft.put({ ...inode, nlink: 7 });
    draft.put({ ...folder, size: 3 });
  });
  await mends(t, world, "directory-count", "link-count");
  await world.damage((draft) => draft.link(ROOT_INO, Buffer.from("f"), { ino, mode: S_IFDIR }));
  const wrong = await world.fsck();
  t.same(kinds(wrong), ["directory-count", "wrong-type"], "it would be one more subdirectory");
  await world.fsck({ repair: true });
  await world.fsck({ repair: true });
  t.same((await world.fsck()).findings, []);
  await world.damage((draft) => draft.setCounter("inodes", 99));
  await mends(t, world, "inode-total");
});

t.test("recursive totals and the homes of files", async (t) => {
  const world = await World.make();
  const top = await world.mkdir("top");
  const folder = await world.mkdir("sub", top);
  const ino = await world.create("f", folder);
  await world.create("g", top);
  const right = async (): Promise<void> => {
    const { metadata, loader } = world.cluster.leader.inside();
    t.same(await wrongTotals(metadata, (read) => loader.run(read)), []);
  };
  await right();
  const by = { files: 3, directories: -1, bytes: 2n ** 60n, allocated: -4096n, reserved: 5n };
  await world.damage(() => [{ d: "totalsAdd", chain: makeChain([folder]), by }]);
  await mends(t, world, "directory-totals");
  await right();
  await world.damage(() => [{ d: "totalsAdd", chain: makeChain([folder, top]), by }]);
  await mends(t, world, "directory-totals", "directory-totals");
  const inode = (await world.inode(ino))!;
  await world.damage((draft) => void draft.put({ ...inode, parent: top }));
  await mends(t, world, "file-home");
  await right();
  const quota = { maxBytes: 1, maxInodes: 0 };
  await world.damage(() => [{ d: "quotaPut", ino, quota }]);
  await mends(t, world, "quota-without-directory");
  const link = { op: "link", ino, parent: top, actor: world.client.actor() } as const;
  await world.client.send({ ...link, name: Buffer.from("second") });
  await world.client.send({ ...link, name: Buffer.from("third") });
  await right();
  await world.damage(() => [{ d: "linkPut", ino, directory: folder, count: 2 }]);
  await mends(t, world, "file-home");
  await world.damage(() => [{ d: "linkDrop", ino }]);
  await mends(t, world, "file-home");
  await right();
  await world.takeOver();
  await right();
});

t.test("a directory with two names, or another parent than its name says", async (t) => {
  const world = await World.make();
  const folder = await world.mkdir("a");
  const other = await world.mkdir("b");
  const inside = (await world.inode(await world.mkdir("sub", folder)))!;
  const target = (await world.inode(other))!;
  await world.damage((draft) => {
    draft.link(other, Buffer.from("again"), inside);
    draft.put({ ...target, size: 1, nlink: 3 });
  });
  await mends(t, world, "directory-parent");
  t.same(await world.names(other), []);
  await world.damage((draft) => void draft.put({ ...inside, parent: other }));
  await mends(t, world, "directory-parent");
  t.equal((await world.inode(inside.ino))!.parent, folder);
});

t.test("directories below themselves", async (t) => {
  const world = await World.make();
  const a = (await world.inode(await world.mkdir("a")))!;
  const b = (await world.inode(await world.mkdir("b", a.ino)))!;
  const root = (await world.inode(ROOT_INO))!;
  await world.damage((draft) => {
    draft.unlink(ROOT_INO, Buffer.from("a"));
    draft.put({ ...root, size: 0, nlink: 2 });
    draft.link(b.ino, Buffer.from("a"), a);
    draft.put({ ...a, parent: b.ino, size: 1, nlink: 3 });
    draft.put({ ...b, size: 1, nlink: 3 });
  });
  t.same(kinds(await world.fsck()), ["cycle"], "totals: once the names are right");
  const repaired = await world.fsck({ repair: true });
  t.equal(repaired.repaired, repaired.found, "all are repaired");
  t.ok(kinds(repaired).includes("cycle"));
  t.same((await world.fsck()).findings, [], "and gone");
  t.same(await world.names(ROOT_INO), ["lost+found"]);
});

t.test("an unlinked inode that nobody has open, and a deletion of what is in use", async (t) => {
  const world = await World.make();
  const ino = await world.create("f");
  const live = await world.create("live");
  await world.client.send({ op: "sync" });
  const inode = (await world.inode(ino))!;
  const root = (await world.inode(ROOT_INO))!;
  await world.damage((draft) => {
    draft.unlink(ROOT_INO, Buffer.from("f"));
    draft.put({ ...root, size: 1 });
    draft.put({ ...inode, nlink: 0 });
  });
  await mends(t, world, "unlinked-inode");
  t.equal(await world.inode(ino), undefined);
  let release = (): void => undefined;
  world.cluster.objects.held = new Promise((resolve) => (release = resolve));
  await world.damage((draft) =>
    draft.purge({
      what: "objects",
      ino: live,
      prefix: live.toString(16),
      layout: LAYOUT,
      from: MiB,
      likely: 0,
      bound: 2 * MiB,
      truncateSeq: 5,
      unconditional: false,
    }),
  );
  await mends(t, world, "purge-in-use");
  release();
});

t.test("objects: without an owner, beyond the end, longer than their file", async (t) => {
  const world = await World.make();
  const { client } = world;
  const created = await client.create(ROOT_INO, "f");
  const { ino } = created.answer.inode!;
  const held = await world.create("held");
  const { answer } = await client.send({
    op: "volumeCreate",
    name: "v",
    size: 8 * MiB,
    pool: "",
    actor: client.actor(),
  });
  const prefix = answer.volume!.objectPrefix;
  const name = (each: number, index: number): string => `${each.toString(16)}.${index}`;
  // The holder of the grant has written and published; then it gives the grant back.
  client.size = 3 * MiB;
  client.release(ino, "none", created.grants.find((grant) => grant.ino === ino)!.seq);
  await settle();
  world.object(name(ino, 0), 3 * MiB);
  world.object(name(held, 0), 4 * MiB);
  world.object(`${prefix}.1`, MiB);
  const coming = name(await client.ino(), 0);
  world.object(coming, 4096);
  t.same((await world.fsck()).findings, [], "these are right, or of a file that is being made");
  world.cluster.objects.sizes.delete(coming);
  world.object("20.0", 4096);
  world.object("ffffff.3", 4096);
  world.object(`${prefix}f.0`, 4096);
  await mends(t, world, "object-without-owner", "object-without-owner", "object-without-owner");
  t.equal(world.cluster.objects.sizes.has("20.0"), false);
  t.equal(world.cluster.objects.sizes.size, 3, "nothing else was removed");
  world.object(name(ino, 0), 4 * MiB);
  await mends(t, world, "file-too-short");
  t.equal((await world.inode(ino))!.size, 4 * MiB);
  world.object(name(ino, 5), 1);
  world.object(`${prefix}.2`, 1);
  world.object("no such form", 1);
  const status = await world.fsck({ repair: true });
  t.same(kinds(status), ["object-beyond-end", "object-beyond-end", "object-unknown"]);
  t.equal(status.repaired, 0, "nobody can tell whether these are needed");
});

t.test("a sweep removes what has no owner, and nothing else", async (t) => {
  const world = await World.make();
  const ino = await world.create("f");
  world.object(`${ino.toString(16)}.0`, 4096);
  world.object("ffffff.3", 4096);
  world.object("no such form", 1);
  await world.damage((draft) => {
    const inode = draft.inode(ROOT_INO)!;
    draft.put({ ...inode, size: inode.size + 1 });
  });
  const fsck = new Fsck(world.cluster.leader.inside(), world.lister, world.cluster.data.term);
  fsck.sweep();
  await world.cluster.clock.advance(1_000);
  const left = [...world.cluster.objects.sizes.keys()].sort();
  t.same(left, [`${ino.toString(16)}.0`, "no such form"]);
  t.same(kinds(await world.fsck({ objects: false })), ["directory-count"], "still to be told");
  // Who asks for a check does not wait for a sweep.
  fsck.sweep();
  t.equal(fsck.start({ repair: false, objects: true }).state, "running");
});

t.test("what is being deleted has an owner until it is gone", async (t) => {
  const world = await World.make();
  const ino = await world.create("f");
  world.object(`${ino.toString(16)}.0`, 4096);
  const { objects } = world.cluster;
  const remove = objects.remove.bind(objects);
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => (release = resolve));
  objects.remove = async (...args) => {
    await gate;
    await remove(...args);
  };
  const unlink = {
    op: "unlink",
    parent: ROOT_INO,
    name: Buffer.from("f"),
    stillOpen: false,
    actor: world.client.actor(),
  } as const;
  await world.client.send(unlink);
  await settle();
  t.equal(await world.inode(ino), undefined);
  t.same((await world.fsck({ repair: true })).findings, []);
  release();
  await world.cluster.clock.advance(2_000);
  t.equal(objects.sizes.size, 0);
});

t.test("stored pages: other than written, damaged; a journal batch that is gone", async (t) => {
  const world = await World.make();
  const ino = await world.create("f");
  await world.create("g");
  await world.takeOver();
  await world.fsck(); // Everything is in memory.
  await world.cluster.leader.checkpoint();
  const { pages, batches } = world.cluster.data;
  const key = directoryPageKey(ROOT_INO, "");
  const page = decodePage(key, pages.get(key));
  if (page.body.kind === "d") page.body.entries.delete("f");
  pages.set(key, encodePage(page));
  await mends2(t, world, "page-differs");
  // Behind the back of the next leader it is the truth.
  await world.cluster.leader.checkpoint();
  pages.set(key, encodePage(page));
  await world.takeOver();
  const found = await world.fsck();
  t.same(kinds(found), ["directory-count", "inode-without-name"]);
  await world.fsck({ repair: true });
  t.same((await world.fsck()).findings, []);
  t.same(await world.names(ROOT_INO), ["g", "lost+found"]);

  await world.takeOver();
  const inodes = inodePageKey(ino);
  const good = pages.get(inodes)!;
  const bad = Buffer.from(good);
  bad[20]! ^= 1;
  pages.set(inodes, bad);
  const damaged = await world.fsck({ repair: true });
  t.same(kinds(damaged), ["page-damaged"], "nothing is concluded from what cannot be read");
  t.equal(damaged.repaired, 0);
  pages.set(inodes, good);
  t.same((await world.fsck()).findings, []);
  await world.create("late");
  await world.client.send({ op: "sync" });
  const last = Math.max(...batches.keys());
  batches.delete(last);
  t.match((await world.fsck()).findings, [
    { kind: "journal-damaged", what: `journal batch ${last} is missing` },
  ]);
});
/** As `mends`; the repair is done when the checkpoint has written it. */
async function mends2(t: Test, world: World, kind: string): Promise<void> {
  t.same(kinds(await world.fsck()), [kind]);
  t.match(await world.fsck({ repair: true }), { found: 1, repaired: 1 });
  await world.cluster.leader.checkpoint();
  t.same((await world.fsck()).findings, []);
}

t.test("a busy file system has nothing, whatever happens meanwhile", async (t) => {
  // Pages come from the store, which takes its time: operations get in between.
  const world = await World.make(1_000);
  world.cluster.pause = async () => {
    for (let i = 0; i < 3; i++) await new Promise<void>((resolve) => setImmediate(resolve));
  };
  const random = new Prng(7);
  const folders = [ROOT_INO];
  for (let i = 0; i < 6; i++) folders.push(await world.mkdir(`d${i}`, random.pick(folders)));
  let stop = false;
  let operations = 0;
  const files: { parent: number; name: string }[] = [];
  const step = async (): Promise<void> => {
    const { client } = world;
    const actor = client.actor();
    const parent = random.pick(folders);
    const name = `n${random.int(0, 40)}`;
    const at = random.int(0, Math.max(0, files.length - 1));
    const file = files[at];
    const dice = random.int(0, 3);
    if (dice === 0 || file === undefined) {
      const { answer } = await client.create(parent, name);
      world.object(`${answer.inode!.ino.toString(16)}.0`, random.int(1, 4_096));
      files.push({ parent, name });
    } else if (dice === 1) {
      const { parent: from, name: old } = file;
      const names = { name: Buffer.from(old), newParent: parent, newName: Buffer.from(name) };
      const flags = { noReplace: true, exchange: false, stillOpen: false };
      await client.send({ op: "rename", parent: from, ...names, ...flags, actor });
      files[at] = { parent, name };
    } else {
      const { parent: from, name: old } = file;
      const unlink = { op: "unlink", parent: from, name: Buffer.from(old) } as const;
      await client.send({ ...unlink, stillOpen: random.chance(0.3), actor });
      files.splice(at, 1);
    }
  };
  const busy = (async () => {
    while (!stop) {
      // A name may be taken: that is no damage.
      await step().catch(() => undefined);
      operations++;
      if (operations % 20 === 0) void world.cluster.leader.checkpoint();
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  })();
  for (let round = 0; round < 5; round++) {
    const status = await world.fsck({ repair: true });
    t.same(status.findings, [], `round ${round}`);
    t.equal(status.error, "");
  }
  stop = true;
  await busy;
  t.ok(operations > 50, `${operations} operations meanwhile`);
  await world.cluster.clock.advance(3_000);
  t.same((await world.fsck()).findings, []);
});

/**
 * Changes that a mount makes by itself in directories that it holds alone: they cost no question,
 * are what the leader would have made, are seen by others at once and only when they are safe,
 * survive leaders and connections, and are reported when they are lost.
 */
import t from "tap";
import { isDssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

const NAME = (i: number): Buffer => Buffer.from(`f${i}`);

async function mkdir(mount: TestMount, parent: number, name: string): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(parent, Buffer.from(name), 0o755, CALLER));
  return made.attributes.ino;
}
/** Creates, writes and closes a file. */
async function make(mount: TestMount, parent: number, name: string, text = ""): Promise<number> {
  const file = await mount.create(parent, name);
  if (text !== "") await mount.write(file, 0, text);
  await mount.run(mount.vfs.release(file.ino, file.handle));
  return file.ino;
}
async function content(mount: TestMount, parent: number, name: string): Promise<string> {
  const ino = await mount.lookup(parent, name);
  const handle = await mount.open(ino);
  const bytes = await mount.read({ ino, handle }, 0, 1_000);
  await mount.run(mount.vfs.release(ino, handle));
  return bytes.toString();
}
/** Everything below the directory, by path: attributes and what links point to. */
async function tree(mount: TestMount, directory: number, path = ""): Promise<Map<string, unknown>> {
  const found = new Map<string, unknown>();
  found.set(`${path}/`, (await mount.run(mount.vfs.getattr(directory))).attributes);
  for (const name of await mount.names(directory)) {
    const ino = await mount.lookup(directory, name);
    const { attributes } = await mount.run(mount.vfs.getattr(ino));
    const type = attributes.mode & 0o170000;
    if (type === 0o040000) {
      for (const [key, value] of await tree(mount, ino, `${path}/${name}`)) found.set(key, value);
    } else found.set(`${path}/${name}`, attributes);
    if (type === 0o120000) found.set(`${path}/${name}>`, await mount.run(mount.vfs.readlink(ino)));
  }
  return found;
}

t.test("creations and removals ask nobody", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const d = await mkdir(mount, 1, "d");
  await world.clock.advance(2_000);
  const before = world.network.messages;
  const beforeMs = world.clock.now;
  for (let i = 0; i < 100; i++) {
    await make(mount, d, `f${i}`, "x");
    await mount.run(mount.vfs.setattr(await mount.lookup(d, `f${i}`), { mode: 0o600 }, CALLER));
  }
  const below = await mkdir(mount, d, "below");
  await make(mount, below, "x");
  await mount.run(mount.vfs.unlink(below, Buffer.from("x"), CALLER));
  await mount.run(mount.vfs.rmdir(d, Buffer.from("below"), CALLER));
  for (let i = 0; i < 50; i++) await mount.run(mount.vfs.unlink(d, NAME(i), CALLER));
  t.ok(world.clock.now - beforeMs < 5, "no time passed");
  await mount.run(mount.vfs.syncfs());
  t.ok(world.network.messages - before < 40, `${world.network.messages - before} messages`);
  const other = await world.mount();
  t.same((await other.names(d)).length, 50);
  t.equal(await content(other, d, "f50"), "x");
  t.equal(await world.fails(other.vfs.lookup(d, NAME(0))), "NotFound");
  await mount.run(mount.vfs.destroy());
});

/** One random change; what the leader would refuse is refused here too. */
async function change(mount: TestMount, random: Prng, directories: number[]): Promise<void> {
  const { vfs } = mount;
  const parent = random.pick(directories);
  const name = Buffer.from(`n${random.int(0, 7)}`);
  const caller = { ...CALLER, uid: random.pick([0, 1000]) };
  const roll = random.int(0, 9);
  try {
    if (roll < 3) {
      const flags = random.chance(0.5) ? 0o302 : 0o102;
      const made = await mount.run(vfs.create(parent, name, 0o100644, flags, caller));
      const { ino } = made.attributes;
      if (random.chance(0.5)) await mount.write({ ino, handle: made.handle }, 0, "some text");
      await mount.run(vfs.release(ino, made.handle));
    } else if (roll === 3) {
      const made = await mount.run(vfs.mkdir(parent, name, random.pick([0o755, 0o2755]), caller));
      directories.push(made.attributes.ino);
    } else if (roll === 4) {
      await mount.run(vfs.symlink(parent, name, Buffer.from("../some/where"), caller));
    } else if (roll === 5) {
      await mount.run(vfs.unlink(parent, name, caller));
    } else if (roll === 6) {
      const ino = await mount.lookup(parent, name.toString());
      await mount.run(vfs.rmdir(parent, name, caller));
      directories.splice(directories.indexOf(ino), 1);
    } else if (roll === 7) {
      const ino = await mount.lookup(parent, name.toString());
      const changes = random.pick([
        { mode: random.pick([0o600, 0o4755, 0o2644]) },
        { uid: 5, gid: 6 },
        { atimeNs: 3n, mtimeNs: 4n },
        { mtimeNs: "now" as const },
      ]);
      await mount.run(vfs.setattr(ino, changes, { ...caller, uid: 0 }));
    } else if (roll === 8) {
      const ino = await mount.lookup(parent, name.toString());
      await mount.run(vfs.link(ino, random.pick(directories), Buffer.from("l"), caller));
    } else {
      const flags = { noReplace: false, exchange: random.chance(0.2) };
      const newName = Buffer.from(`n${random.int(0, 7)}`);
      await mount.run(vfs.rename(parent, name, random.pick(directories), newName, flags, caller));
    }
  } catch (error) {
    if (!isDssError(error)) throw error;
    const expected = ["Exists", "NotFound", "NotDirectory", "IsDirectory", "NotEmpty"];
    const others = ["NotPermitted", "InvalidArgument", "StaleHandle"];
    if (![...expected, ...others].includes(error.code)) throw error;
  }
}

t.test("what a mount believes is what the leader has: random changes, seeded", async (t) => {
  for (let seed = 1; seed <= 6; seed++) {
    const world = await newWorld(seed);
    const random = new Prng(seed);
    const mount = await world.mount();
    const top = await mkdir(mount, 1, "top");
    if (seed % 3 === 0) await mount.run(mount.vfs.setattr(top, { mode: 0o1777 }, CALLER));
    const directories = [top];
    for (let i = 0; i < 300; i++) {
      await change(mount, random, directories);
      if (random.chance(0.02)) await world.clock.advance(random.int(1, 700));
    }
    const believed = await tree(mount, top);
    await mount.run(mount.vfs.syncfs());
    await world.clock.advance(2_000);
    t.same(await tree(mount, top), believed, `seed ${seed}: nothing changed by itself`);
    const other = await world.mount();
    t.same(await tree(other, top), believed, `seed ${seed}: another mount sees the same`);
    await mount.run(mount.vfs.destroy());
    await other.run(other.vfs.destroy());
    t.same(world.failures, []);
  }
});

t.test("two mounts change one directory in turn, each sees the other's at once", async (t) => {
  const world = await newWorld(3);
  const mounts = [await world.mount(), await world.mount()] as const;
  const d = await mkdir(mounts[0], 1, "d");
  for (let i = 0; i < 60; i++) {
    const [one, other] = i % 2 === 0 ? mounts : ([mounts[1], mounts[0]] as const);
    for (let j = 0; j < i % 4; j++) await make(one, d, `f${i}-${j}`, `${i}`);
    await make(one, d, `f${i}`, `text ${i}`);
    t.equal(await content(other, d, `f${i}`), `text ${i}`);
    if (i % 3 !== 0) continue;
    await other.run(other.vfs.unlink(d, NAME(i), CALLER));
    t.equal(await world.fails(one.vfs.lookup(d, NAME(i))), "NotFound");
  }
  t.same(await mounts[0].names(d), await mounts[1].names(d));
});

t.test("both at once: every name has one maker, and nothing is lost", async (t) => {
  for (let seed = 20; seed < 24; seed++) {
    const world = await newWorld(seed);
    const mounts = [await world.mount(), await world.mount(), await world.mount()];
    const d = await mkdir(mounts[0]!, 1, "d");
    const won: string[] = [];
    const work = async (mount: TestMount): Promise<void> => {
      for (let i = 0; i < 40; i++) {
        try {
          const made = await mount.vfs.create(d, NAME(i), 0o100644, 0o302, CALLER);
          won.push(`f${i}`);
          await mount.vfs.release(made.attributes.ino, made.handle);
          if (i % 5 === 0) await pause(world, world.random.int(0, 30));
        } catch (error) {
          if (!isDssError(error, "Exists")) throw error;
        }
      }
    };
    await world.run(Promise.all(mounts.map(work)));
    const names = Array.from({ length: 40 }, (_, i) => `f${i}`).sort();
    t.same(won.sort(), names, `seed ${seed}`);
    for (const mount of mounts) t.same(await mount.names(d), names);
  }
});
function pause(world: World, ms: number): Promise<void> {
  return new Promise((resolve) => void world.clock.schedule(ms, resolve));
}

t.test("a leader dies with changes sent, unsent and answered: the next has all", async (t) => {
  for (let seed = 30; seed < 36; seed++) {
    const world = await newWorld(seed);
    const [a, b] = [await world.mount(), await world.mount()];
    const d = await mkdir(a, 1, "d");
    const expected: string[] = [];
    for (let i = 0; i < 60; i++) {
      await make(a, d, `f${i}`, `${i}`);
      expected.push(`f${i}`);
      if (i % 7 === 3) {
        await a.run(a.vfs.unlink(d, Buffer.from(expected.shift()!), CALLER));
      }
      if (seed % 2 === 0) await world.clock.advance(world.random.int(0, 6));
      if (i === 20 || i === 45) world.crashLeader();
      if (i === 30 || i === 50) await world.lead();
    }
    t.same(await b.names(d), [...expected].sort(), `seed ${seed}`);
    await a.run(a.vfs.syncfs());
    for (const name of expected) t.equal(await content(b, d, name), name.slice(1));
    t.same(world.failures, []);
  }
});

t.test("a connection breaks: nothing is done twice or lost", async (t) => {
  for (let seed = 50; seed < 56; seed++) {
    const world = await newWorld(seed);
    const [a, b] = [await world.mount(), await world.mount()];
    const d = await mkdir(a, 1, "d");
    for (let i = 0; i < 80; i++) {
      await make(a, d, `f${i}`);
      await world.clock.advance(world.random.int(0, 3));
      if (i % 11 === 5) world.network.breakBetween(a.host.name, "mds1");
      if (i % 13 === 5) await a.run(a.vfs.unlink(d, NAME(i - 1), CALLER));
      if (i % 17 === 5) t.ok(await b.lookup(d, `f${i}`));
    }
    await a.run(a.vfs.syncfs());
    t.same(await b.names(d), await a.names(d), `seed ${seed}`);
    t.equal((await b.names(d)).length, 80 - 6);
  }
});

t.test("a mount that dies loses only what it had not synced", async (t) => {
  const world = await newWorld(70);
  const [a, b] = [await world.mount(), await world.mount()];
  const d = await mkdir(a, 1, "d");
  for (let i = 0; i < 20; i++) await make(a, d, `f${i}`);
  await a.run(a.vfs.syncfs());
  for (let i = 20; i < 40; i++) await make(a, d, `f${i}`);
  a.host.crash();
  const names = await b.names(d);
  for (let i = 0; i < 20; i++) t.ok(names.includes(`f${i}`));
  t.equal(names.length, 20, "what had not left it is gone");
});

t.test("an evicted mount reports what it lost, and goes on", async (t) => {
  const world = await newWorld(71);
  const [a, b] = [await world.mount(), await world.mount()];
  const d = await mkdir(a, 1, "d");
  await make(a, d, "kept");
  await a.run(a.vfs.syncfs());
  const heal = world.network.partition(a.host.name, "mds1");
  const healBack = world.network.partition("mds1", a.host.name);
  const open = await a.create(d, "open");
  await make(a, d, "lost");
  await a.run(a.vfs.unlink(d, Buffer.from("kept"), CALLER));
  t.same(await b.names(d), ["kept"], "others see what was safe");
  await make(b, d, "lost", "by b");
  heal();
  healBack();
  t.equal(await world.fails(a.vfs.syncfs()), "NoSession");
  t.same(await a.names(d), ["kept", "lost"]);
  t.equal(await content(a, d, "lost"), "by b");
  t.equal(await world.fails(a.vfs.fsync(open.ino, open.handle)), "Disk", "the open file says so");
  await make(a, d, "again");
  await a.run(a.vfs.syncfs());
  t.same(await b.names(d), ["again", "kept", "lost"]);
});

t.test("a refused change is reported and forgotten", async (t) => {
  const world = await newWorld(72);
  const mount = await world.mount();
  const d = await mkdir(mount, 1, "d");
  await make(mount, d, "good");
  Object.defineProperty(mount.mds.inos, "fileLayout", {
    configurable: true,
    get: () => ({ pool: 1, objectSize: 5, stripeUnit: 2, stripeCount: 1 }),
  });
  const bad = await mount.create(d, "bad");
  Reflect.deleteProperty(mount.mds.inos, "fileLayout");
  t.equal(await world.fails(mount.vfs.syncfs()), "Malformed");
  t.equal(await world.fails(mount.vfs.fsync(bad.ino, bad.handle)), "Disk");
  t.equal(await world.fails(mount.vfs.lookup(d, Buffer.from("bad"))), "NotFound");
  t.same(await mount.names(d), ["good"]);
  await make(mount, d, "more");
  await mount.run(mount.vfs.syncfs());
  t.same(await (await world.mount()).names(d), ["good", "more"]);
});

t.test("with -o sync every change waits for the journal", async (t) => {
  const world = await newWorld(73);
  const mount = await world.mount({ sync: true });
  const d = await mkdir(mount, 1, "d");
  await make(mount, d, "f");
  mount.host.crash();
  t.same(await (await world.mount()).names(d), ["f"]);
});

t.test("an answer to a later request is newer than what is not confirmed", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const { table } = mount.vfs;
  const d = await mkdir(mount, 1, "d");
  await world.clock.advance(2_000);
  const ino = await make(mount, d, "f");
  const node = table.get(ino);
  t.equal(node.promised, 1, "the leader has not confirmed it");
  const answer = (id: number): void => {
    const inode = { ...node.inode!, nlink: 2, truncateSeq: 1 };
    const request = { op: "getattr", ino } as const;
    table.apply(request, { id, journal: 0, notFound: false, answer: { inode }, grants: [] }, false);
  };
  answer(node.promisedUpTo - 1);
  t.match(node.inode, { nlink: 1, truncateSeq: 0 });
  answer(node.promisedUpTo + 1);
  t.match(node.inode, { nlink: 2, truncateSeq: 1 });
  await mount.run(mount.vfs.destroy());
});

t.test("a small file is one change: made, written, its mode and times set", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const d = await mkdir(mount, 1, "d");
  await world.clock.advance(2_000);
  const asked: string[] = [];
  const { mds } = mount;
  const promise = mds.promise.bind(mds);
  mds.promise = (request, cause) => (asked.push(request.op), promise(request, cause));
  const callLater = mds.callLater.bind(mds);
  mds.callLater = (request) => (asked.push(request.op), callLater(request));
  for (let i = 0; i < 20; i++) {
    const ino = await make(mount, d, `f${i}`, "some text");
    await mount.run(mount.vfs.setattr(ino, { mode: 0o640, uid: 7 }, CALLER));
    if (i % 2 === 0) await mount.run(mount.vfs.setattr(ino, { mtimeNs: 5n, atimeNs: 6n }, CALLER));
  }
  await world.clock.advance(2_000);
  t.same(asked, new Array(20).fill("create"));
  await mount.run(mount.vfs.syncfs());
  const other = await world.mount();
  for (let i = 0; i < 20; i++) {
    t.equal(await content(other, d, `f${i}`), "some text");
    const ino = await other.lookup(d, `f${i}`);
    const { attributes } = await mount.run(other.vfs.getattr(ino));
    t.match(attributes, { mode: 0o100640, uid: 7, size: 9 });
    if (i % 2 === 0) t.match(attributes, { mtimeNs: 5n });
    t.equal(attributes.blocks, 8);
  }
  await mount.run(mount.vfs.destroy());
});

t.test("attributes of one inode set one after the other are one change", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const { vfs, mds } = mount;
  const a = await mkdir(mount, 1, "a");
  const b = await mkdir(mount, 1, "b");
  await world.clock.advance(2_000);
  const asked: string[] = [];
  const promise = mds.promise.bind(mds);
  mds.promise = (request, cause) => (asked.push(request.op), promise(request, cause));
  await mount.run(vfs.setattr(a, { mtimeNs: 5n, atimeNs: 6n }, CALLER));
  await mount.run(vfs.setattr(a, { uid: 7, gid: 8 }, CALLER));
  await mount.run(vfs.setattr(a, { mode: 0o750, mtimeNs: 9n }, CALLER));
  t.same(asked, ["setattr"]);
  await mount.run(vfs.setattr(b, { mode: 0o700 }, CALLER));
  await mount.run(vfs.setattr(a, { gid: 9 }, CALLER));
  t.same(asked, ["setattr", "setattr", "setattr"], "what came between keeps its place");
  await world.clock.advance(2_000); // They are on their way: nothing is added to them.
  await mount.run(vfs.setattr(a, { gid: 10 }, CALLER));
  t.equal(asked.length, 4);
  await mount.run(vfs.syncfs());
  const other = await world.mount();
  const { attributes } = await mount.run(other.vfs.getattr(a));
  t.match(attributes, { mode: 0o040750, uid: 7, gid: 10, atimeNs: 6n, mtimeNs: 9n });
  t.match((await mount.run(other.vfs.getattr(b))).attributes, { mode: 0o040700 });
  await mount.run(vfs.destroy());
});

t.test("attributes set while there is no leader come after what was done before", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const { vfs } = mount;
  const d = await mkdir(mount, 1, "d");
  await world.clock.advance(2_000);
  await mount.run(vfs.setattr(d, { mtimeNs: 5n }, CALLER));
  world.network.breakBetween(mount.host.name, "mds1");
  for (let i = 0; i < 50 && mount.mds.active; i++) await world.clock.advance(0.1);
  t.notOk(mount.mds.active);
  t.ok(mount.mds.mayPromise);
  await make(mount, d, "f");
  await mount.run(vfs.setattr(d, { mtimeNs: 7n }, CALLER));
  await mount.run(vfs.syncfs());
  const other = await world.mount();
  t.match((await mount.run(other.vfs.getattr(d))).attributes, { mtimeNs: 7n });
  await mount.run(vfs.destroy());
});

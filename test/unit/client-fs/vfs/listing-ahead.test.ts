/** Look-ups of one name after the other: the second brings the whole directory. */
import t from "tap";
import { CALLER, newWorld } from "./world.js";
import type { TestMount, World } from "./world.js";

const FILES = 200;

async function fill(mount: TestMount, count: number): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const directory = made.attributes.ino;
  for (let i = 0; i < count; i++) {
    const file = await mount.create(directory, `f${i}`);
    await mount.write(file, 0, "x".repeat(i % 50));
    await mount.run(mount.vfs.release(file.ino, file.handle));
  }
  await mount.run(mount.vfs.destroy());
  return directory;
}

t.test("a walk over a directory costs a listing, not a question for each name", async (t) => {
  const world = await newWorld(1);
  const directory = await fill(await world.mount(), FILES);
  const mount = await world.mount();
  t.equal(await mount.lookup(1, "d"), directory);
  const before = world.network.messages;
  for (let i = 0; i < FILES; i++) {
    const ino = await mount.lookup(directory, `f${i}`);
    t.equal(await mount.size(ino), i % 50);
  }
  t.equal(await world.fails(mount.vfs.lookup(directory, Buffer.from("none"))), "NotFound");
  t.ok(world.network.messages - before < 20, `${world.network.messages - before} messages`);
});

t.test("what another mount changes meanwhile is seen at once", async (t) => {
  const world = await newWorld(2);
  const directory = await fill(await world.mount(), 20);
  const [a, b] = [await world.mount(), await world.mount()];
  for (let i = 0; i < 20; i++) {
    // b looks at every name, and then a takes one away and makes another.
    for (let j = i; j < 20; j++) t.ok(await b.lookup(directory, `f${j}`));
    await a.run(a.vfs.unlink(directory, Buffer.from(`f${i}`), CALLER));
    t.equal(await world.fails(b.vfs.lookup(directory, Buffer.from(`f${i}`))), "NotFound");
    await a.create(directory, `new${i}`);
    t.ok(await b.lookup(directory, `new${i}`));
  }
});

t.test("look-ups side by side while the listing is under way", async (t) => {
  const world = await newWorld(3);
  const directory = await fill(await world.mount(), FILES);
  const [a, b] = [await world.mount(), await world.mount()];
  const names = Array.from({ length: FILES }, (_, i) => Buffer.from(`f${i}`));
  const looks = names.map((name) => a.vfs.lookup(directory, name));
  const removals = names.slice(0, 20).map((name) => b.vfs.unlink(directory, name, CALLER));
  const outcomes = await world.run(Promise.allSettled(looks));
  await world.run(Promise.all(removals));
  for (const outcome of outcomes.slice(20)) t.equal(outcome.status, "fulfilled");
  for (let i = 0; i < 20; i++) {
    t.equal(await world.fails(a.vfs.lookup(directory, names[i]!)), "NotFound");
  }
});

const SUBDIRECTORIES = 40;
const FILES_EACH = 3;

async function fillTree(mount: TestMount): Promise<number[]> {
  const inos: number[] = [];
  for (let i = 0; i < SUBDIRECTORIES; i++) {
    const name = Buffer.from(`d${String(i).padStart(2, "0")}`);
    const { ino } = (await mount.run(mount.vfs.mkdir(1, name, 0o755, CALLER))).attributes;
    inos.push(ino);
    for (let k = 0; k < FILES_EACH; k++) {
      const file = await mount.create(ino, `f${k}`);
      await mount.run(mount.vfs.release(file.ino, file.handle));
    }
  }
  await mount.run(mount.vfs.destroy());
  return inos;
}

/** Lists these one after the other; how many of the listings had to wait for the leader. */
async function waits(world: World, mount: TestMount, inos: readonly number[]): Promise<number> {
  let waited = 0;
  for (const ino of inos) {
    const begun = world.clock.now;
    const { length } = await mount.names(ino);
    if (length !== FILES_EACH) throw new Error(`${length} entries`);
    if (world.clock.now > begun) waited++;
    await world.run(new Promise<void>((resolve) => void world.clock.schedule(2, resolve)));
  }
  return waited;
}

t.test("who lists directories one after the other waits for few of them", async (t) => {
  const world = await newWorld(4);
  const inos = await fillTree(await world.mount());
  for (const order of ["forwards", "backwards"]) {
    const mount = await world.mount();
    await mount.names(1);
    const walk = order === "forwards" ? inos : [...inos].reverse();
    const waited = await waits(world, mount, walk);
    if (order === "forwards") t.ok(waited < SUBDIRECTORIES / 4, `${order}: ${waited} waited`);
    else t.ok(waited > SUBDIRECTORIES / 2, `none of the orders: ${waited} waited`);
    await mount.run(mount.vfs.destroy());
  }
});

t.test("what becomes of directories that were listed ahead is seen", async (t) => {
  const world = await newWorld(5);
  const inos = await fillTree(await world.mount());
  const [a, b] = [await world.mount(), await world.mount()];
  await b.names(1);
  await waits(world, b, inos.slice(0, 3));
  for (const ino of inos.slice(3)) {
    await a.run(a.vfs.unlink(ino, Buffer.from("f0"), CALLER));
    await a.create(ino, "new");
    t.same(await b.names(ino), ["f1", "f2", "new"]);
  }
});

t.test("who empties directories one after the other waits for few of them", async (t) => {
  const world = await newWorld(6);
  const inos = await fillTree(await world.mount());
  const mount = await world.mount();
  await mount.names(1);
  for (const ino of inos) await mount.names(ino); // Before any of them is held alone.
  let waited = 0;
  for (const [i, ino] of inos.entries()) {
    const names = await mount.names(ino);
    const begun = world.clock.now;
    for (const name of names) {
      await mount.run(mount.vfs.unlink(ino, Buffer.from(name), CALLER));
    }
    await mount.run(mount.vfs.rmdir(1, Buffer.from(`d${String(i).padStart(2, "0")}`), CALLER));
    if (world.clock.now > begun) waited++;
    await world.run(new Promise<void>((resolve) => void world.clock.schedule(2, resolve)));
  }
  t.ok(waited < SUBDIRECTORIES / 4, `${waited} waited`);
  const other = await world.mount();
  await mount.run(mount.vfs.destroy());
  t.same(await other.names(1), []);
});

t.test("what is emptied ahead of others who use it stays theirs, too", async (t) => {
  const world = await newWorld(7);
  const inos = await fillTree(await world.mount());
  const [a, b] = [await world.mount(), await world.mount()];
  await a.names(1);
  for (const ino of inos) {
    // b works in every directory before and after a has taken one name away.
    t.same(await b.names(ino), ["f0", "f1", "f2"]);
    await a.names(ino);
    await a.run(a.vfs.unlink(ino, Buffer.from("f0"), CALLER));
    t.same(await b.names(ino), ["f1", "f2"]);
    await b.create(ino, "new");
    t.same(await a.names(ino), ["f1", "f2", "new"]);
  }
});

/** Look-ups of one name after the other: the second brings the whole directory. */
import t from "tap";
import { CALLER, newWorld } from "./world.js";
import type { TestMount } from "./world.js";

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

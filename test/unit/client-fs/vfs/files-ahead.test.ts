/** Small files of a directory read one after the other: fetched before they are asked for. */
import t from "tap";
import { CALLER, newWorld } from "./world.js";
import type { TestMount, World } from "./world.js";

const FILES = 60;
const O_RDONLY = 0;
const nameOf = (i: number): string => `f${String(i).padStart(3, "0")}`;

async function fill(mount: TestMount): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const directory = made.attributes.ino;
  for (let i = 0; i < FILES; i++) {
    const file = await mount.create(directory, nameOf(i));
    await mount.write(file, 0, `content of ${i}`);
    await mount.run(mount.vfs.release(file.ino, file.handle));
  }
  await mount.run(mount.vfs.syncfs());
  return directory;
}
async function content(mount: TestMount, directory: number, name: string): Promise<string> {
  const ino = await mount.lookup(directory, name);
  const handle = await mount.open(ino, O_RDONLY);
  const bytes = await mount.read({ ino, handle }, 0, 4096);
  await mount.run(mount.vfs.release(ino, handle));
  return bytes.toString();
}
/** Reads in this order; how many of them had to wait for an object. */
async function walk(
  t: { equal(found: unknown, wanted: unknown, message: string): unknown },
  world: World,
  mount: TestMount,
  directory: number,
  order: readonly number[],
): Promise<number> {
  let waited = 0;
  for (const i of order) {
    const ino = await mount.lookup(directory, nameOf(i));
    const handle = await mount.open(ino, O_RDONLY);
    const begun = world.clock.now;
    const bytes = await mount.read({ ino, handle }, 0, 4096);
    if (world.clock.now > begun) waited++;
    await mount.run(mount.vfs.release(ino, handle));
    t.equal(bytes.toString(), `content of ${i}`, nameOf(i));
    await world.run(new Promise<void>((resolve) => void world.clock.schedule(2, resolve)));
  }
  return waited;
}

t.test(
  "in the order of names: most reads wait for nothing, and no object is read twice",
  async (t) => {
    const world = await newWorld(1);
    const a = await world.mount();
    const directory = await fill(a);
    await a.run(a.vfs.destroy());
    const b = await world.mount();
    await b.lookup(1, "d");
    const before = world.objects.reads;
    const order = Array.from({ length: FILES }, (_, i) => i);
    const waited = await walk(t, world, b, directory, order);
    t.ok(waited < FILES / 4, `${waited} of ${FILES} reads waited`);
    t.equal(world.objects.reads - before, FILES, "object reads");
  },
);

t.test("in no order nothing is fetched that nobody reads", async (t) => {
  const world = await newWorld(2);
  const a = await world.mount();
  const directory = await fill(a);
  await a.run(a.vfs.destroy());
  const b = await world.mount();
  await b.lookup(1, "d");
  const before = world.objects.reads;
  // Backwards: none of the orders.
  const order = Array.from({ length: 20 }, (_, i) => FILES - 1 - 3 * i);
  await walk(t, world, b, directory, order);
  // The listing's order is by chance; a few steps of it may look like one.
  t.ok(world.objects.reads - before < 60, `${world.objects.reads - before} object reads for 20`);
});

t.test("what another mount writes after it was fetched is read", async (t) => {
  for (let seed = 10; seed < 12; seed++) {
    const world = await newWorld(seed);
    const [a, b] = [await world.mount(), await world.mount()];
    const directory = await fill(a);
    await b.lookup(1, "d");
    for (let i = 0; i < FILES; i++) {
      const changed = (i + 1 + (i % 5)) % FILES;
      // While b's read of this file fetches the next ones.
      const reading = content(b, directory, nameOf(i));
      const ino = await a.lookup(directory, nameOf(changed));
      const handle = await a.open(ino);
      await a.write({ ino, handle }, 0, `CHANGED ${i}`);
      await a.run(a.vfs.release(ino, handle));
      await reading;
      const [seen, own] = [
        await content(b, directory, nameOf(changed)),
        await content(a, directory, nameOf(changed)),
      ];
      t.equal(seen, own, `seed ${seed}, file ${changed}`);
      t.match(seen, `CHANGED ${i}`);
    }
  }
});

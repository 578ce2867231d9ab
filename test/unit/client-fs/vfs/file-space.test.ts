/**
 * `st_blocks`: what stat tells of a file is what its objects hold, whoever wrote it and however,
 * also when a writer dies; random operations by two mounts against the objects.
 */
import t from "tap";
import { FileSpace } from "../../../../client-fs/vfs/file-space.js";
import { CALLER, newWorld, OBJECT_SIZE, type TestMount, type World } from "./world.js";

const O_RDWR = 2;
const O_DIRECT = 0o40000;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;
const BLOCK = 4_096;

interface File {
  ino: number;
  handle: number;
}
const truncate = (mount: TestMount, { ino }: File, size: number): Promise<unknown> =>
  mount.run(mount.vfs.setattr(ino, { size }, CALLER));
const fallocate = (
  mount: TestMount,
  file: File,
  offset: number,
  length: number,
  mode: number,
): Promise<void> =>
  mount.run(mount.vfs.fallocate(file.ino, file.handle, offset, length, mode, CALLER));

t.test("holes count nothing", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  await truncate(mount, file, 2 ** 40);
  t.equal(await mount.allocated(file.ino), 0);
  await mount.write(file, 2 ** 40, "x");
  t.equal(await mount.allocated(file.ino), BLOCK, "at once, as with delayed allocation");
  await mount.write(file, 2 ** 39 + 100, Buffer.alloc(2 * BLOCK, 1));
  t.equal(await mount.allocated(file.ino), 4 * BLOCK);
  await mount.write(file, 2 ** 39, "x");
  t.equal(await mount.allocated(file.ino), 4 * BLOCK, "a block counts once");
  await mount.run(mount.vfs.release(file.ino, file.handle));
  const other = await world.mount();
  const ino = await other.lookup(1, "a");
  t.equal(await other.allocated(ino), 4 * BLOCK);
  t.equal(world.objects.allocatedOf(ino), 4 * BLOCK);
});

t.test("a total that is not sure never falls below nothing", async (t) => {
  const size = 2 ** 20;
  const whole = [{ start: 0, length: size }];
  const space = new FileSpace(
    { allocated: BLOCK, recount: true, size },
    { stripeUnit: 4 * size },
    () => Promise.resolve(whole),
  );
  space.wrote(BLOCK, 2 * BLOCK);
  await space.pending;
  space.truncated(8 * BLOCK);
  t.equal(space.allocated, 0, "less than what was cut was known");
  t.ok(space.recount);
});

t.test("a block of which only what a truncation cuts had been written is none", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  for (const sent of [false, true]) {
    const file = await mount.create(1, sent ? "b" : "a");
    await mount.write(file, 0, Buffer.alloc(BLOCK, 1));
    await mount.write(file, OBJECT_SIZE - 100, "x");
    if (sent) await mount.run(mount.vfs.fsync(file.ino, file.handle));
    await truncate(mount, file, OBJECT_SIZE - 200);
    const known = BLOCK + (sent ? BLOCK : 0);
    t.equal(await mount.allocated(file.ino), known);
    await mount.run(mount.vfs.fsync(file.ino, file.handle));
    t.equal(world.objects.allocatedOf(file.ino), known);
    await mount.write(file, OBJECT_SIZE - 300, "y");
    await truncate(mount, file, OBJECT_SIZE - 299);
    t.equal(await mount.allocated(file.ino), 2 * BLOCK, "what is left of it is written");
    await mount.run(mount.vfs.fsync(file.ino, file.handle));
    t.equal(world.objects.allocatedOf(file.ino), 2 * BLOCK);
  }
});

t.test("the next writer of a file with holes learns what is there", async (t) => {
  const world = await newWorld(2);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.write(file, 3 * OBJECT_SIZE + BLOCK, Buffer.alloc(BLOCK, 1));
  await a.write(file, 5 * OBJECT_SIZE, Buffer.alloc(OBJECT_SIZE, 1));
  await a.run(a.vfs.release(file.ino, file.handle));
  const ino = await b.lookup(1, "a");
  const theirs = { ino, handle: await b.open(ino) };
  await b.write(theirs, 3 * OBJECT_SIZE, Buffer.alloc(3 * BLOCK, 2));
  const expected = OBJECT_SIZE + 3 * BLOCK;
  t.equal(await b.allocated(ino), expected, "also before the data are out");
  const flags = O_RDWR | O_DIRECT;
  await b.write(theirs, 4 * OBJECT_SIZE, Buffer.alloc(BLOCK, 3), flags);
  t.equal(await b.allocated(ino), expected + BLOCK);
  await fallocate(b, theirs, 5 * OBJECT_SIZE, OBJECT_SIZE / 2, PUNCH_HOLE | KEEP_SIZE);
  t.equal(await b.allocated(ino), expected + BLOCK - OBJECT_SIZE / 2);
  await b.run(b.vfs.fsync(ino, theirs.handle));
  t.equal(world.objects.allocatedOf(ino), await b.allocated(ino));
  t.equal(await a.allocated(ino), await b.allocated(ino));
});

t.test("what a writer that died had written is counted", async (t) => {
  for (const holes of [false, true]) {
    const world = await newWorld(3);
    const [a, b] = [await world.mount(), await world.mount()];
    const file = await a.create(1, "a");
    await a.write(file, holes ? OBJECT_SIZE : 0, Buffer.alloc(3 * OBJECT_SIZE, 1));
    await a.run(a.vfs.fsync(file.ino, file.handle));
    await a.run(a.vfs.syncfs());
    await world.clock.advance(2_000);
    await a.write(file, 0, Buffer.alloc(5 * OBJECT_SIZE + 1, 1));
    await a.run(a.vfs.fsync(file.ino, file.handle));
    a.host.crash();
    const ino = await b.lookup(1, "a");
    await b.allocated(ino); // Somebody looks, so it is counted.
    await world.clock.advance(10_000);
    t.equal(await b.allocated(ino), 5 * OBJECT_SIZE + BLOCK);
  }
});

t.test("a writer that dies while it punches holes", async (t) => {
  const world = await newWorld(4);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.write(file, 0, Buffer.alloc(3 * OBJECT_SIZE, 1));
  await a.run(a.vfs.fsync(file.ino, file.handle));
  await fallocate(a, file, 0, OBJECT_SIZE, PUNCH_HOLE | KEEP_SIZE);
  a.host.crash();
  const ino = await b.lookup(1, "a");
  await b.allocated(ino);
  await world.clock.advance(10_000);
  t.equal(await b.allocated(ino), 2 * OBJECT_SIZE);
});

/** One random operation of one mount. */
async function step(world: World, mount: TestMount, file: File): Promise<void> {
  const below = (limit: number): number => world.random.int(0, limit - 1);
  const limit = 6 * OBJECT_SIZE;
  const at = below(4) === 0 ? below(24) * BLOCK : below(limit);
  const length = 1 + below(below(3) === 0 ? 2 * OBJECT_SIZE : 2 * BLOCK);
  switch (below(10)) {
    case 0:
      return void (await truncate(mount, file, below(2 * limit)));
    case 1:
      return void (await truncate(mount, file, below(3) * BLOCK));
    case 2:
      return await fallocate(mount, file, at, length, PUNCH_HOLE | KEEP_SIZE);
    case 3:
      return await fallocate(mount, file, at, length, ZERO_RANGE);
    case 4:
      return await fallocate(mount, file, at, length, 0);
    case 5: {
      const flags = O_RDWR | O_DIRECT;
      return void (await mount.write(file, at, Buffer.alloc(length, 7), flags));
    }
    case 6:
      return await mount.run(mount.vfs.fsync(file.ino, file.handle));
    default:
      return void (await mount.write(file, at, Buffer.alloc(length, 7)));
  }
}

t.test("random operations by two mounts", async (t) => {
  for (let seed = 1; seed <= 8; seed++) {
    const world = await newWorld(seed);
    const mounts = [await world.mount(), await world.mount()] as const;
    const first = await mounts[0].create(1, "a");
    const ino = await mounts[1].lookup(1, "a");
    const files = [first, { ino, handle: await mounts[1].open(ino) }] as const;
    let way = 0;
    for (let round = 0; round < 60; round++) {
      if (world.random.int(0, 11) === 0) way = 1 - way;
      await step(world, mounts[way]!, files[way]!);
      if (round % 20 !== 19) continue;
      await mounts[way]!.run(mounts[way]!.vfs.fsync(ino, files[way]!.handle));
      await mounts[0].allocated(ino);
      // The ends of truncated objects go, and what is unsure is counted.
      await world.clock.advance(10_000);
      const found = [await mounts[0].allocated(ino), await mounts[1].allocated(ino)];
      const truth = world.objects.allocatedOf(ino);
      t.same(found, [truth, truth], `seed ${seed} round ${round}`);
    }
    t.same(world.failures, [], `seed ${seed}`);
  }
});

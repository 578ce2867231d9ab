/** copy_file_range: the same bytes as a program that reads and writes, and holes stay holes. */
import t from "tap";
import { CALLER, newWorld, OBJECT_SIZE, type TestMount } from "./world.js";

interface File {
  ino: number;
  handle: number;
}
function copy(
  mount: TestMount,
  from: File & { offset: number },
  to: File & { offset: number },
  length: number,
): Promise<number> {
  return mount.run(mount.vfs.copyFileRange(from, to, length, CALLER));
}

t.test("bytes, holes and the end of the source", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const [a, b] = [await mount.create(1, "a"), await mount.create(1, "b")];
  const data = world.random.bytes(10_000);
  await mount.write(a, 3 * OBJECT_SIZE + 5, data);
  await mount.write(b, 0, Buffer.alloc(2 * OBJECT_SIZE, 1));
  const size = 3 * OBJECT_SIZE + 5 + data.length;
  const copied = await copy(mount, { ...a, offset: 5 }, { ...b, offset: 5 }, 2 ** 30);
  t.equal(copied, size - 5);
  t.equal(await mount.size(b.ino), size);
  const expected = Buffer.alloc(size);
  expected.fill(1, 0, 5);
  data.copy(expected, 3 * OBJECT_SIZE + 5);
  t.same(await mount.read(b, 0, 2 * size), expected);
  await mount.run(mount.vfs.fsync(b.ino, b.handle));
  const allocated = await mount.allocated(b.ino);
  t.ok(allocated <= data.length + 3 * 4_096, `${allocated} bytes: holes were copied as holes`);
  t.equal(world.objects.allocatedOf(b.ino), allocated);
  t.equal(await copy(mount, { ...a, offset: size }, { ...b, offset: 0 }, 10), 0);
  await mount.run(mount.vfs.setattr(a.ino, { size: 2 * size }, CALLER));
  t.equal(await copy(mount, { ...a, offset: size }, { ...b, offset: size }, 2 * size), size);
  t.equal(await mount.size(b.ino), 2 * size, "a hole at the end counts for the size");
});

t.test("set-id bits go with a copy by somebody else, also with one of a hole", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const [a, b] = [await mount.create(1, "a"), await mount.create(1, "b")];
  await mount.write(b, 0, Buffer.alloc(OBJECT_SIZE, 1));
  await mount.run(mount.vfs.setattr(a.ino, { size: OBJECT_SIZE }, CALLER));
  for (const bytes of [false, true]) {
    if (bytes) await mount.write(a, 100, "x");
    await mount.run(mount.vfs.setattr(b.ino, { mode: 0o4755 }, CALLER));
    t.equal(await copy(mount, { ...a, offset: 0 }, { ...b, offset: 500 }, 4_096), 4_096);
    t.equal((await mount.run(mount.vfs.getattr(b.ino))).attributes.mode, 0o100755);
  }
});

t.test("random ranges by two mounts against plain buffers", async (t) => {
  for (let seed = 1; seed <= 6; seed++) {
    const world = await newWorld(seed);
    const { random } = world;
    const mounts = [await world.mount(), await world.mount()] as const;
    const made = [await mounts[0].create(1, "a"), await mounts[0].create(1, "b")] as const;
    const files = [made, []] as File[][];
    for (const { ino } of made) files[1]!.push({ ino, handle: await mounts[1].open(ino) });
    const truth = [Buffer.alloc(0), Buffer.alloc(0)] as [Buffer, Buffer];
    const put = (index: 0 | 1, at: number, bytes: Buffer): void => {
      const longer = Buffer.alloc(Math.max(truth[index].length, at + bytes.length));
      truth[index].copy(longer);
      bytes.copy(longer, at);
      truth[index] = longer;
    };
    for (let round = 0; round < 40; round++) {
      const way = random.int(0, 1) as 0 | 1;
      const [mount, own] = [mounts[way], files[way]!];
      const index = random.int(0, 1) as 0 | 1;
      const at = random.int(0, 4 * OBJECT_SIZE);
      if (random.int(0, 2) === 0) {
        const bytes = random.bytes(random.int(1, OBJECT_SIZE));
        await mount.write(own[index]!, at, bytes);
        put(index, at, bytes);
        continue;
      }
      const from = random.int(0, truth[index].length);
      const length = random.int(1, 3 * OBJECT_SIZE);
      const other = (1 - index) as 0 | 1;
      const source = { ...own[index]!, offset: from };
      const copied = await copy(mount, source, { ...own[other]!, offset: at }, length);
      const bytes = truth[index].subarray(from, from + length);
      t.equal(copied, bytes.length, `seed ${seed} round ${round}`);
      if (bytes.length > 0) put(other, at, Buffer.from(bytes));
    }
    for (const way of [0, 1] as const) {
      for (const index of [0, 1] as const) {
        const found = await mounts[way].read(files[way]![index]!, 0, 2 ** 21);
        t.ok(found.equals(truth[index]), `seed ${seed}: file ${index} by mount ${way}`);
      }
    }
    t.same(world.failures, []);
  }
});

/** Times of access: what a read changes, when the leader learns of it, what survives. */
import t from "tap";
import { CALLER, newWorld, type TestMount } from "./world.js";

const O_RDONLY = 0;
const RELATIME = { mode: "relatime", directories: true } as const;
const atime = async (mount: TestMount, ino: number): Promise<bigint> =>
  (await mount.run(mount.vfs.getattr(ino))).attributes.atimeNs;

t.test("the first read after a change counts, and is told later", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount({ atime: RELATIME });
  const file = await mount.create(1, "a");
  await mount.write(file, 0, "x");
  const made = await atime(mount, file.ino);
  await world.clock.advance(1_000);
  await mount.read(file, 0, 1);
  const first = await atime(mount, file.ino);
  t.ok(first > made);
  await world.clock.advance(1_000);
  await mount.read(file, 0, 1);
  t.equal(await atime(mount, file.ino), first, "it is later than the last change");
  await world.clock.advance(6_000);
  const other = await world.mount({ atime: { mode: "noatime", directories: true } });
  const ino = await other.lookup(1, "a");
  t.equal(await atime(other, ino), first, "the leader knows");
  const handle = await other.open(ino, O_RDONLY);
  await other.write({ ino, handle: await other.open(ino) }, 0, "y");
  await world.clock.advance(1_000);
  await other.read({ ino, handle }, 0, 1);
  t.equal(await atime(other, ino), first, "noatime");
  t.same(world.failures, []);
});

t.test("a time that is set counts from then on", async (t) => {
  const world = await newWorld(2);
  const mount = await world.mount({ atime: { mode: "strictatime", directories: true } });
  const file = await mount.create(1, "a");
  await mount.write(file, 0, "x");
  for (let i = 0; i < 3; i++) {
    const before = await atime(mount, file.ino);
    await world.clock.advance(10);
    await mount.read(file, 0, 1);
    t.ok((await atime(mount, file.ino)) > before, "every read");
  }
  await mount.run(mount.vfs.setattr(file.ino, { atimeNs: 5n }, CALLER));
  t.equal(await atime(mount, file.ino), 5n);
  await world.clock.advance(6_000);
  t.equal(await atime(mount, file.ino), 5n, "what was read before is not told any more");
  await mount.names(1);
  await mount.run(mount.vfs.destroy());
  const other = await world.mount({ atime: RELATIME });
  t.equal(await atime(other, await other.lookup(1, "a")), 5n);
});

t.test("who had it from the kernel's pages has read it", async (t) => {
  const world = await newWorld(3);
  const mount = await world.mount({ atime: RELATIME });
  const file = await mount.create(1, "a");
  await mount.write(file, 0, "x");
  await mount.run(mount.vfs.release(file.ino, file.handle));
  const before = await atime(mount, file.ino);
  await world.clock.advance(1_000);
  const handle = await mount.open(file.ino, O_RDONLY);
  await mount.run(mount.vfs.release(file.ino, handle));
  t.ok((await atime(mount, file.ino)) > before);
  const link = await mount.run(mount.vfs.symlink(1, Buffer.from("l"), Buffer.from("a"), CALLER));
  const { ino, atimeNs } = link.attributes;
  await world.clock.advance(1_000);
  await mount.run(mount.vfs.readlink(ino));
  t.ok((await atime(mount, ino)) > atimeNs);
});

/** What the kernel keeps a mount from forgetting, and how the mount has the kernel forget it. */
import t from "tap";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

const FILES = 60;
const INODES_MAX = 20;

interface Kernel {
  /** Names that it was asked to drop. */
  readonly asked: string[];
}
/** A kernel that has looked every file up once, and forgets as it is told. */
function kernelOf(mount: TestMount, inos: ReadonlyMap<string, number>, keeps: string[]): Kernel {
  const asked: string[] = [];
  const known = new Set(inos.values());
  mount.onForgetName = (_, name) => {
    asked.push(name);
    const ino = inos.get(name);
    if (ino === undefined || keeps.includes(name) || !known.delete(ino)) return;
    mount.vfs.forget(ino, 1);
  };
  return { asked };
}
async function folder(world: World): Promise<{
  mount: TestMount;
  inos: Map<string, number>;
  directory: number;
  open: { ino: number; handle: number };
}> {
  const mount = await world.mount({ inodesMax: INODES_MAX });
  const made = await mount.run(mount.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const directory = made.attributes.ino;
  const open = await mount.create(directory, "open");
  const inos = new Map([["open", open.ino]]);
  for (let i = 0; i < FILES; i++) {
    const file = await mount.create(directory, `f${i}`);
    await mount.write(file, 0, `content ${i}`);
    await mount.run(mount.vfs.release(file.ino, file.handle));
    inos.set(`f${i}`, file.ino);
  }
  return { mount, inos, directory, open };
}

t.test("files that only the kernel knows are forgotten, the oldest first", async (t) => {
  const world = await newWorld(1);
  const { mount, inos, directory, open } = await folder(world);
  const { asked } = kernelOf(mount, inos, []);
  const { table } = mount.vfs;
  await world.clock.advance(60_000);
  await mount.create(directory, "another");
  await world.clock.advance(60_000);
  t.ok(table.size <= INODES_MAX, `${table.size} inodes are left`);
  t.ok(table.size > INODES_MAX / 2, "not more than needed");
  t.equal(asked[0], "f0");
  t.notOk(asked.includes("open"), "not an open file");
  t.notOk(asked.includes("d"), "not a directory");
  await mount.write(open, 0, "still there");
  for (const [name, ino] of inos) t.equal(await mount.lookup(directory, name), ino, name);
});

t.test("a kernel that has a use for them all is not asked without end", async (t) => {
  const world = await newWorld(2);
  const { mount, inos } = await folder(world);
  const { asked } = kernelOf(mount, inos, [...inos.keys()]);
  await mount.create(1, "another");
  await world.clock.advance(100_000);
  t.ok(asked.length >= FILES, `${asked.length} names`);
  t.ok(asked.length <= 6 * FILES, `${asked.length} names`);
});

t.test("files that are gone do not stay", async (t) => {
  const world = await newWorld(3);
  const mount = await world.mount();
  const { table } = mount.vfs;
  const files = 1_500;
  for (let i = 0; i < files; i++) {
    const file = await mount.create(1, "again");
    await mount.write(file, 0, "content");
    await mount.run(mount.vfs.release(file.ino, file.handle));
    await mount.run(mount.vfs.unlink(1, Buffer.from("again"), CALLER));
    mount.vfs.forget(file.ino, 1);
  }
  await world.clock.advance(10_000);
  t.ok(table.size < 1_100, `${table.size} inodes of ${files}`);
  const ino = (await mount.create(1, "again")).ino;
  t.equal(await mount.lookup(1, "again"), ino);
});

/** When the kernel may keep the listing of a directory, and when it is told to drop it. */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import type { OpenDirReply } from "../../../../client-fs/file-system.js";
import { CALLER, newWorld, type TestMount } from "./world.js";

const NO_FLAGS = { noReplace: false, exchange: false };
const DROPPED = { cacheListing: true, keepListing: false };
const KEPT = { cacheListing: true, keepListing: true };
const NEITHER = { cacheListing: false, keepListing: false };

/** A directory "d" with that many files, which `b` knows, and both mounts. */
async function two(files: number, options: Parameters<TestMount["world"]["mount"]>[0] = {}) {
  const world = await newWorld(9);
  const [a, b] = [await world.mount(), await world.mount({ attributeValidMs: 5_000, ...options })];
  const made = await a.run(a.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const { ino } = made.attributes;
  for (let i = 0; i < files; i++) {
    const file = await a.create(ino, `f${i}`);
    await a.run(a.vfs.release(file.ino, file.handle));
  }
  await b.lookup(1, "d");
  await world.clock.advance(2);
  return { world, a, b, ino };
}
/** As the kernel opens it, whose attributes of it are not valid any more. */
async function open(mount: TestMount, ino: number): Promise<OpenDirReply> {
  await mount.run(mount.vfs.getattr(ino));
  return mount.run(mount.vfs.opendir(ino));
}
/** Reads on from `cookie`; the number of names, and the last cookie. */
async function read(
  mount: TestMount,
  ino: number,
  handle: number,
  { cookie = 0, answers = Infinity, plus = true, maxEntries = 100 } = {},
): Promise<{ names: number; cookie: number }> {
  let names = 0;
  for (let i = 0; i < answers; i++) {
    const asked = mount.vfs.readdir(ino, handle, cookie, { maxEntries, plus });
    const entries = [...(await mount.run(asked))].slice(0, maxEntries);
    if (entries.length === 0) break;
    names += entries.filter(({ name }) => name[0] !== 0x2e).length;
    // As `ls -l` does with the first few.
    if (plus && cookie === 0) await mount.lookup(ino, entries.at(-1)!.name.toString());
    cookie = entries.at(-1)!.cookie;
  }
  return { names, cookie };
}
async function list(mount: TestMount, ino: number, plus = true): Promise<object> {
  const { handle, ...kept } = await open(mount, ino);
  await read(mount, ino, handle, { plus });
  await mount.run(mount.vfs.releasedir(ino, handle));
  return kept;
}

t.test("a listing is kept until somebody else changes the directory", async (t) => {
  const { world, a, b, ino } = await two(250);
  t.same(await list(b, ino), DROPPED, "what was there before is not known");
  t.same(await list(b, ino), KEPT);
  t.same(await list(b, ino), KEPT);
  b.invalidated.length = 0;
  await a.create(ino, "new");
  t.ok(b.invalidated.includes(ino), "the kernel was told");
  t.same(await list(b, ino), DROPPED);
  t.same(await list(b, ino), KEPT);
  await world.clock.advance(5_001);
  t.same(await list(b, ino), DROPPED, "names would be looked up one by one");
});

t.test("what a reader gets who began before a change is dropped again and again", async (t) => {
  const { a, b, ino } = await two(250);
  const { handle, ...kept } = await open(b, ino);
  t.same(kept, DROPPED);
  const { cookie } = await read(b, ino, handle, { answers: 1 });
  await a.create(ino, "new");
  t.same(await list(b, ino), NEITHER, "while he reads nobody else's is kept");
  b.invalidated.length = 0;
  const { cookie: end } = await read(b, ino, handle, { cookie });
  t.equal(b.invalidated.filter((each) => each === ino).length, 3, "two answers and the end");
  await read(b, ino, handle, { cookie: end, answers: 1 });
  t.equal(b.invalidated.filter((each) => each === ino).length, 4);
  await b.run(b.vfs.releasedir(ino, handle));
  t.same(await list(b, ino), DROPPED);
  t.same(await list(b, ino), KEPT);
});

t.test("names of a large directory without attributes are not kept", async (t) => {
  const { b, ino } = await two(1_100);
  await list(b, ino, false);
  t.same(await list(b, ino, false), DROPPED);
  t.same(await list(b, ino), DROPPED);
  t.same(await list(b, ino), KEPT);
  t.same(await list(b, ino, false), KEPT, "who wants names alone may have them, too");
});

t.test("a listing that would change the time of access reaches the mount", async (t) => {
  for (const mode of ["relatime", "strictatime"] as const) {
    const { b, ino } = await two(10, { atime: { mode, directories: true } });
    await list(b, ino);
    t.same(await list(b, ino), mode === "relatime" ? KEPT : DROPPED, mode);
  }
});

t.test("a kernel that can be told nothing keeps nothing", async (t) => {
  const { world, b, ino } = await two(10);
  b.onInvalidate = () => Promise.reject(new DssError("NotSupported", "no notifications"));
  b.vfs.init(b, { canInvalidateAllEntries: false });
  await world.clock.advance(1);
  await list(b, ino);
  t.same(await list(b, ino), NEITHER);
});

t.test("names and attributes are the kernel's no longer than the lease", async (t) => {
  const { world, b, ino } = await two(10);
  const valid = async (): Promise<number[]> => {
    const { entryValidMs, attributesValidMs } = await b.run(b.vfs.lookup(ino, Buffer.from("f1")));
    return [entryValidMs, attributesValidMs];
  };
  await world.clock.advance(4_000);
  t.same(await valid(), [5_000, 5_000]);
  const directory = await b.run(b.vfs.getattr(ino));
  t.equal(directory.attributesValidMs, 1_000, "programs may work in it when this worker dies");
  world.crashLeader();
  const left = b.mds.trustedMs;
  await world.clock.advance(left - 300);
  t.ok(b.mds.trustedMs > 0 && b.mds.trustedMs <= 300);
  t.same(await valid(), [b.mds.trustedMs, b.mds.trustedMs]);
});

t.test("nobody is given what was listed before a change, of whomever", async (t) => {
  for (const files of [250, 2_500, 5_000]) {
    for (const isOwn of [true, false]) {
      const { a, b, ino } = await two(files);
      const entries = async (handle: number, cookie: number): Promise<string[]> => {
        const names: string[] = [];
        for (;;) {
          const asked = b.vfs.readdir(ino, handle, cookie, { maxEntries: 100, plus: true });
          const some = [...(await b.run(asked))].slice(0, 100);
          if (some.length === 0) return names;
          for (const { name, entry } of some)
            names.push(`${name.toString()} ${entry?.attributes.ino}`);
          cookie = some.at(-1)!.cookie;
        }
      };
      const { handle } = await open(b, ino);
      const { cookie } = await read(b, ino, handle, { answers: 2 });
      const changer = isOwn ? b : a;
      for (let i = 0; i < 20; i++) {
        const file = await changer.create(ino, `new${i}`);
        await b.run(changer.vfs.release(file.ino, file.handle));
        const [from, to] = [Buffer.from(`f${i}`), Buffer.from(`moved${i}`)];
        await b.run(changer.vfs.rename(ino, from, ino, to, NO_FLAGS, CALLER));
        await b.run(changer.vfs.unlink(ino, Buffer.from(`f${i + 100}`), CALLER));
      }
      t.same(await list(b, ino), NEITHER, "the reader began before");
      const fresh = await open(b, ino);
      const expected = await entries(fresh.handle, cookie);
      t.same(await entries(handle, cookie), expected, `${files} ${isOwn ? "own" : "others'"}`);
      await b.run(b.vfs.releasedir(ino, fresh.handle));
      await b.run(b.vfs.releasedir(ino, handle));
      t.same(await list(b, ino), DROPPED);
      t.same(await list(b, ino), KEPT);
    }
  }
});

t.test("names are dropped when the kernel must have taken those it was given", async (t) => {
  const { world, a, b, ino } = await two(250);
  const { handle } = await open(b, ino);
  const { cookie } = await read(b, ino, handle, { answers: 1 });
  let before = world.clock.now;
  await a.create(ino, "waits");
  t.ok(world.clock.now - before > 15, `${world.clock.now - before} ms`);
  await read(b, ino, handle, { cookie, answers: 1 });
  await b.run(b.vfs.releasedir(ino, handle));
  await b.run(b.vfs.getattr(ino));
  before = world.clock.now;
  await a.create(ino, "need not");
  t.ok(world.clock.now - before < 5, `${world.clock.now - before} ms`);
});

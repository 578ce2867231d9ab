/**
 * Recalls that meet what is under way on the mount that must give back: truncations, and writes
 * whose pages the kernel has locked.
 */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { OWN_FOLDER } from "../../../../client-fs/file-system.js";
import { CALLER, LOOKER, newWorld, OBJECT_SIZE, type TestMount } from "./world.js";

const PAGE = 4096;
const O_RDWR_APPEND = 2 | 0o2000;

/** A file that `a` has made and both have open; the kernel of `a` knows it, empty as it is. */
async function shared() {
  const world = await newWorld(1);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  const ino = await b.lookup(1, "a");
  const other = { ino, handle: await b.open(ino) };
  await a.run(a.vfs.lookup(1, Buffer.from("a")));
  return { world, a, b, file, ino, other };
}

t.test("a size looked at beside a truncation is the one before or the one after", async (t) => {
  const sizes = [5 * PAGE, 3 * PAGE + 5];
  for (let seed = 1; seed <= 20; seed++) {
    const world = await newWorld(seed);
    const [a, b] = [await world.mount(), await world.mount()];
    const file = await a.create(1, "a");
    const ino = await b.lookup(1, "a");
    const handle = await b.open(ino);
    await a.write(file, 0, Buffer.alloc(4 * OBJECT_SIZE, 1));
    await a.run(a.vfs.fsync(file.ino, file.handle));
    // What this cuts must be gone before a longer size is cut again: that one waits a little.
    world.objects.delayMs = { min: 2, max: 10 };
    await a.run(a.vfs.setattr(file.ino, { size: PAGE }, CALLER));
    await a.write(file, 0, Buffer.alloc(sizes[0]!, 7));
    const cut = a.vfs.setattr(file.ino, { size: sizes[1]! }, CALLER);
    await world.clock.advance(world.random.float() * 20);
    const found = await b.read({ ino, handle }, 0, 10 * PAGE);
    t.ok(sizes.includes(found.length), `seed ${seed}: ${found.length} bytes`);
    t.notOk(found.includes(0), `seed ${seed}: no hole where data were`);
    await world.run(cut);
    t.equal(await b.size(ino), sizes[1]);
  }
});

t.test("before its pages are dropped the kernel has the size of a file", async (t) => {
  const { a, b, file, ino, other } = await shared();
  /** Sizes that the kernel was made to take. */
  const recalled = async (text: string, offset = 0): Promise<number[]> => {
    a.looked.length = 0;
    let before: number[] | undefined;
    a.onInvalidate = () => {
      before ??= [...a.looked];
      return Promise.resolve();
    };
    await b.write(other, offset, text);
    a.onInvalidate = undefined;
    t.ok(before, "it had to drop its pages");
    t.same(before, a.looked, "before they are dropped");
    return [...a.looked];
  };
  await a.write(file, 0, "own");
  t.same(await recalled("b"), [], "what it wrote itself it knows");
  await a.run(a.vfs.setattr(ino, { size: 5 }, CALLER));
  t.same(await recalled("c"), [], "and what it cut");
  await a.run(a.vfs.fallocate(ino, file.handle, 0, 9, 0, CALLER));
  t.same(await recalled("d"), [9], "of what it allocated it takes the longer one");

  await b.write(other, 9, "longer");
  t.equal(await a.size(ino), 15, "an answer that the kernel may not have taken");
  t.same(await recalled("e"), [15]);
  t.equal(await a.size(ino), 15);
  t.same(await recalled("f"), [], "once is enough");
  await b.write(other, 15, "er");
  await a.read(file, 0, 3);
  t.same(await recalled("g"), [17], "a size that it was not told at all");
  await b.run(b.vfs.setattr(ino, { size: 5 }, CALLER));
  await a.read(file, 0, 3);
  t.same(await recalled("h"), [5], "it had been longer");
  await b.write(other, 5, "and more");
  await a.write(file, 3, "own", O_RDWR_APPEND);
  t.equal(a.looked.at(-1), 16, "it took its own append to be elsewhere");
  t.same(await recalled("i"), []);

  await b.write(other, 16, "longer");
  await a.run(a.vfs.release(ino, file.handle));
  t.equal(await a.size(ino), 22);
  t.same(await recalled("j"), [], "nobody reads what nobody has open");
});

t.test("a look whose answer was thrown away is repeated, but not for ever", async (t) => {
  const { a, b, file, ino, other } = await shared();
  let lost = 1;
  a.onLook = async () => {
    if (lost-- > 0) await a.vfs.getattr(ino, undefined, LOOKER);
  };
  await b.write(other, 0, "longer");
  await a.read(file, 0, 3);
  await b.write(other, 0, "b");
  t.same(a.looked, [6, 6]);
  lost = Infinity;
  await b.write(other, 6, "er");
  await a.read(file, 0, 3);
  await b.write(other, 0, "c");
  t.same(a.looked, [6, 6, 8, 8, 8]);
  // Others may look at any time.
  lost = 0;
  a.onLook = async () => void (await a.vfs.getattr(ino, undefined, CALLER));
  await a.read(file, 0, 3);
  await b.write(other, 0, "d");
  t.same(a.looked, [6, 6, 8, 8, 8, 8]);
});

t.test("a mount that cannot see itself gives back what is asked for", async (t) => {
  const { world, a, b, file, ino, other } = await shared();
  let looks = 0;
  const recalledIn = async (text: string): Promise<number> => {
    await b.write(other, await b.size(ino), text);
    await a.read(file, 0, 3);
    const begin = world.clock.now;
    await b.write(other, 0, text);
    return world.clock.now - begin;
  };
  a.onLook = () => {
    looks++;
    return new Promise(() => undefined);
  };
  const first = await recalledIn("a");
  t.ok(first >= 1_000 && first < 1_500, `${first} ms`);
  t.equal(looks, 1);
  t.ok((await recalledIn("b")) < 100, "it does without for a while");
  t.equal(looks, 1);
  a.onLook = () => {
    looks++;
    return Promise.reject(new DssError("Disk", "hidden"));
  };
  await world.clock.advance(15_000);
  t.ok((await recalledIn("c")) < 100);
  t.equal(looks, 2);
  a.onLook = undefined;
  await world.clock.advance(15_000);
  await recalledIn("d");
  t.same(a.looked, [4]);
});

t.test("only a look of the mount itself finds an inode by its number", async (t) => {
  const { a, b, file, ino, other } = await shared();
  const names: string[] = [];
  const { lookForOwn } = a;
  a.lookForOwn = (name) => {
    names.push(name);
    return lookForOwn.call(a, name);
  };
  await b.write(other, 0, "longer");
  await a.read(file, 0, 3);
  await b.write(other, 0, "b");
  t.equal(names.length, 1);
  for (const name of [...names, `${ino}`]) {
    await t.rejects(a.run(a.vfs.lookup(OWN_FOLDER, Buffer.from(name))), { code: "NotFound" });
  }
});

t.test("who looks and reads all the time does not hold a recall up", async (t) => {
  const { world, a, b, file, ino, other } = await shared();
  await b.write(other, 0, "longer");
  let isOver = false;
  const polling = async (): Promise<void> => {
    while (!isOver) {
      await a.vfs.getattr(ino);
      a.vfs.readDone(await a.vfs.read(ino, file.handle, 0, 10));
      await world.clock.advance(0);
    }
  };
  const beside = Promise.all([polling(), polling()]);
  for (let i = 0; i < 20; i++) {
    const begin = world.clock.now;
    await b.write(other, 6 * i, "longer");
    t.ok(world.clock.now - begin < 1_000, `${world.clock.now - begin} ms`);
  }
  isOver = true;
  await world.run(beside);
});

/** As the kernel: pages of a write that were not cached stay locked until it is answered. */
class LockedPages {
  private readonly writes: { start: number; end: number; done: Promise<unknown> }[] = [];
  /** How often it dropped pages and found none of them locked. */
  dropped = 0;

  constructor(private readonly mount: TestMount) {
    mount.onInvalidate = async (_, offset, length) => {
      const end = length === 0 ? Infinity : offset + length;
      const held = this.writes.filter((each) => each.start < end && each.end > offset);
      await Promise.all(held.map(({ done }) => done));
      this.dropped++;
    };
  }
  async write(file: { ino: number; handle: number }, at: number, data: Buffer): Promise<void> {
    const start = at + data.length - 1 - ((at + data.length - 1) % PAGE);
    const done = this.mount.vfs.write(file.ino, file.handle, at, data, {
      ...{ flags: 2, killPrivileges: false, fromPageCache: false },
    });
    const write = { start, end: start + PAGE, done };
    this.writes.push(write);
    await done.finally(() => this.writes.splice(this.writes.indexOf(write), 1));
  }
}

t.test("both have read a file and write to it at once: no kernel waits for ever", async (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const world = await newWorld(seed);
    const mounts = [await world.mount(), await world.mount()];
    const [a, b] = mounts as [TestMount, TestMount];
    const file = await a.create(1, "a");
    await a.write(file, 0, Buffer.alloc(2 * PAGE, 1));
    const ino = await b.lookup(1, "a");
    const files = [file, { ino, handle: await b.open(ino) }];
    const kernels = mounts.map((mount) => new LockedPages(mount));
    for (let round = 0; round < 5; round++) {
      for (const [i, mount] of mounts.entries()) await mount.read(files[i]!, 0, 3 * PAGE);
      const begin = world.clock.now;
      await world.run(
        Promise.all(
          kernels.map(async (kernel, i) => {
            await world.clock.advance(0);
            await kernel.write(files[i]!, 1000 + i * 500, Buffer.alloc(300, 16 * (i + 1) + round));
          }),
        ),
      );
      t.ok(world.clock.now - begin < 1_000, `seed ${seed}: ${world.clock.now - begin} ms`);
      for (const [i, mount] of mounts.entries()) {
        const found = await mount.read(files[i]!, 0, 3 * PAGE);
        t.equal(found.length, 2 * PAGE);
        t.equal(found[1000], 16 + round);
        t.equal(found[1500], 32 + round);
      }
    }
    t.ok(kernels.every(({ dropped }) => dropped > 0));
    t.equal(world.failures.length, 0);
  }
});

t.test("a mapped page that was changed under a shared capability is written back", async (t) => {
  const world = await newWorld(1);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.write(file, 0, Buffer.alloc(3 * PAGE, 1));
  const ino = await b.lookup(1, "a");
  const other = { ino, handle: await b.open(ino) };
  for (const [mount, opened] of [[a, file] as const, [b, other] as const]) {
    await mount.read(opened, 0, 3 * PAGE);
  }
  // The kernel does not tell that a page is changed, only that it is written back; whoever drops
  // that page waits for this.
  let writing: Promise<unknown> | undefined;
  a.onInvalidate = async (_, offset, length) => {
    writing ??= a.vfs.write(ino, file.handle, PAGE, Buffer.alloc(PAGE, 2), {
      ...{ flags: 2, killPrivileges: false, fromPageCache: true },
    });
    const end = length === 0 ? Infinity : offset + length;
    if (offset < 2 * PAGE && end > PAGE) await writing;
  };
  const begin = world.clock.now;
  await b.write(other, 0, Buffer.alloc(PAGE, 3));
  t.ok(world.clock.now - begin < 1_000, `${world.clock.now - begin} ms`);
  await world.run(writing!);
  for (const [mount, opened] of [[a, file] as const, [b, other] as const]) {
    const found = await mount.read(opened, 0, 3 * PAGE);
    t.same([found[0], found[PAGE], found[2 * PAGE]], [3, 2, 1]);
  }
});

t.test(
  "dropped caches: what was written is durable, and everything is asked for again",
  async (t) => {
    const { world, a, b, file, ino, other } = await shared();
    const folder = await a.run(a.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
    const own = await a.create(folder.attributes.ino, "own");
    await a.write(file, 0, "shared");
    await a.write(own, 0, "own");
    const before = world.objects.writes;
    await a.run(a.vfs.dropCaches());
    t.equal(world.objects.writes, before + 2, "both are written back");
    t.same(a.vfs.report(), { ...a.vfs.report(), cacheBytes: 0, dirtyBytes: 0 });
    const { reads } = world.objects;
    t.equal((await a.read(own, 0, 9)).toString(), "own");
    t.equal((await a.read(file, 0, 9)).toString(), "shared");
    t.equal(world.objects.reads, reads + 2, "from the objects");
    t.equal(await a.lookup(folder.attributes.ino, "own"), own.ino);
    t.equal((await b.read(other, 0, 9)).toString(), "shared");
    await b.write(other, 0, "S");
    t.equal((await a.read({ ino, handle: file.handle }, 0, 9)).toString(), "Shared");
  },
);

t.test("many given back at once share the kernel; slow ones hold nothing up", async (t) => {
  const world = await newWorld(77);
  const mount = await world.mount();
  const files = 300;
  const inos: number[] = [];
  for (let i = 0; i < files; i++) {
    const file = await mount.create(1, `f${i}`);
    await mount.run(mount.vfs.release(file.ino, file.handle));
    inos.push(file.ino);
  }
  const slow = new Set(inos.slice(0, 100));
  let most = 0;
  let underWay = 0;
  let isOver = false;
  const ended = new Set<number>();
  mount.onInvalidate = async (ino) => {
    if (ino === 1) return; // The directory that they are in.
    if (!slow.has(ino)) most = Math.max(most, ++underWay);
    await new Promise<void>((resolve) => {
      world.clock.schedule(slow.has(ino) ? 10_000 : 5, resolve);
    });
    if (!slow.has(ino)) underWay--;
    ended.add(ino);
  };
  const dropped = mount.vfs.dropCaches().then(() => (isOver = true));
  await world.clock.advance(2_000);
  t.notOk(isOver);
  t.ok(most > 1 && most <= 64, `${most} at a time`);
  t.equal(ended.size, files - slow.size, "the others have ended");
  await mount.run(dropped);
  t.equal(ended.size, files);
});

t.test("the kernel is told of the root directory, though it never looked it up", async (t) => {
  const world = await newWorld(7);
  const [a, b] = [await world.mount({ inodesMax: 16 }), await world.mount()];
  const modeOnA = async (): Promise<number> => (await a.run(a.vfs.getattr(1))).attributes.mode;
  const before = await modeOnA();
  a.invalidated.length = 0;
  await b.run(b.vfs.setattr(1, { mode: 0o700 }, { ...CALLER, uid: 0 }));
  t.ok(a.invalidated.includes(1), "its attributes are dropped");
  t.not(await modeOnA(), before);
  // However long nobody has asked for it: what the kernel has is not forgotten here.
  for (let i = 0; i < 64; i++) {
    const { ino, handle } = await a.create(1, `f${i}`);
    await a.run(a.vfs.release(ino, handle));
    a.vfs.forget(ino, 1);
  }
  await modeOnA();
  await world.clock.advance(10_000);
  a.invalidated.length = 0;
  await b.run(b.vfs.setattr(1, { mode: 0o755 }, { ...CALLER, uid: 0 }));
  t.ok(a.invalidated.includes(1));
});

t.test("who asks for a size after the lease lapsed is answered after a look", async (t) => {
  const { world, a, b, file, ino, other } = await shared();
  await b.write(other, 0, "first");
  await b.run(b.vfs.fsync(ino, other.handle));
  world.crashLeader();
  await world.clock.advance(15_000);
  t.notOk(a.mds.trusted);
  const asked = a.vfs.getattr(ino, undefined, CALLER); // By a kernel that will not believe it.
  a.looked.length = 0;
  await world.lead();
  t.equal((await a.run(asked)).attributes.size, 5);
  t.same(a.looked, [5]);
  t.equal(await a.size(ino), 5);
  await a.read(file, 0, 10);
  t.same(a.looked, [5], "once");
});

t.test("a look that found the mount and no answer leaves those of other files alone", async (t) => {
  const { world, a, b, file, other } = await shared();
  const second = await a.create(1, "second");
  const theirs = { ino: second.ino, handle: await b.open(await b.lookup(1, "second")) };
  await a.run(a.vfs.lookup(1, Buffer.from("second")));
  const recalled = async (mine: typeof file, their: typeof file): Promise<void> => {
    await b.write(their, 0, "longer");
    await a.read(mine, 0, 3);
    await b.write(their, 0, "b");
  };
  a.onLook = () => new Promise(() => undefined);
  await recalled(file, other);
  a.onLook = undefined;
  await recalled(second, theirs);
  t.same(a.looked, [6]);
  await recalled(file, other);
  t.same(a.looked, [6], "not this one's");
  await world.clock.advance(10_000);
  await recalled(file, other);
  t.same(a.looked, [6, 6]);
});

/** A recall of a file that `a` has open, for which nobody else waits; and how its drop ends. */
async function askedBack(mode: "shared" | "exclusive") {
  const all = await shared();
  const { world, a, b, file, ino, other } = all;
  await a.write(file, 0, "text");
  await a.run(a.vfs.fsync(ino, file.handle));
  if (mode === "shared") await b.read(other, 0, 4);
  await world.lead({ capabilitiesMax: 8 });
  await a.read(file, 0, 4);
  let endDrop = (): void => undefined;
  const isDropping = new Promise<void>((resolve) => {
    a.onInvalidate = (dropped) => {
      if (dropped !== ino) return Promise.resolve();
      resolve();
      return new Promise((end) => (endDrop = end));
    };
  });
  for (let i = 0; i < 20; i++) await a.create(1, `more${i}`);
  await a.run(isDropping);
  a.onInvalidate = undefined;
  const said: boolean[] = [];
  const release = a.mds.release.bind(a.mds);
  a.mds.release = (released) => {
    const isSaid = release(released);
    if (released.ino === ino) said.push(isSaid);
    return isSaid;
  };
  return { ...all, endDrop, said };
}

t.test("what is given back while a session opens is known to the new leader", async (t) => {
  const { world, a, file, endDrop, said } = await askedBack("shared");
  const goOn: (() => void)[] = [];
  world.onOpening = () => new Promise((resolve) => void goOn.push(resolve));
  await world.lead();
  await world.clock.advance(100);
  endDrop();
  await world.clock.advance(100);
  t.same(said, [false], "between the list of what is held and the session");
  world.onOpening = undefined;
  for (const each of goOn) each();
  t.equal((await a.read(file, 0, 10)).toString(), "text");
  t.same(said, [false, true]);
});

t.test("what an earlier leader asked for can be given back to the next", async (t) => {
  const { world, a, file, endDrop, said } = await askedBack("exclusive");
  await world.lead();
  await world.clock.advance(100);
  endDrop();
  await world.clock.advance(100);
  t.same(said, [true]);
  t.equal((await a.read(file, 0, 10)).toString(), "text");
});

t.test("a file that is opened while the kernel drops its pages has a size looked at", async (t) => {
  const { a, b, file, ino, other } = await shared();
  await a.run(a.vfs.release(ino, file.handle));
  await b.write(other, 0, "longer");
  await b.run(b.vfs.fsync(ino, other.handle));
  await a.run(a.vfs.getattr(ino, undefined, CALLER));
  let asked: Promise<unknown> | undefined;
  a.onInvalidate = async () => {
    const handle = (await a.vfs.open(ino, 2, CALLER)).handle;
    asked ??= a.vfs.getattr(ino, handle, CALLER); // By a kernel that will not believe it.
  };
  await b.write(other, 0, "b");
  a.onInvalidate = undefined;
  await a.run(asked!);
  t.ok(a.looked.includes(6), `${a.looked.join()} were looked at`);
});

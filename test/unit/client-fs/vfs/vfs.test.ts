/**
 * What one mount and two mounts show, over a real MDS leader: names, data, sizes, recalls,
 * unlinked files, errors.
 */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { CALLER, newWorld, OBJECT_SIZE } from "./world.js";

const O_RDWR = 2;
const O_APPEND = 0o2000;
const O_TRUNC = 0o1000;
const O_DIRECT = 0o40000;
const O_DSYNC = 0o10000;

t.test("a file is written, read, listed and removed", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  t.equal(await mount.write(file, 0, "hello"), 5);
  t.equal(await mount.size(file.ino), 5);
  t.same(await mount.read(file, 0, 100), Buffer.from("hello"));
  t.equal(world.objects.writes, 0, "nothing was sent yet");
  await mount.run(mount.vfs.fsync(file.ino, file.handle));
  t.equal(world.objects.writes, 1);
  t.same(await mount.read(file, 1, 3), Buffer.from("ell"));
  t.same(await mount.names(1), ["a"]);
  await mount.run(mount.vfs.release(file.ino, file.handle));
  await mount.run(mount.vfs.unlink(1, Buffer.from("a"), CALLER));
  t.equal(await world.fails(mount.vfs.lookup(1, Buffer.from("a"))), "NotFound");
  t.same(await mount.names(1), []);
  await world.clock.advance(5_000);
  t.equal(world.objects.objects.size, 0, "its objects were purged");
  await mount.run(mount.vfs.destroy());
});

t.test("what one mount wrote and closed, another reads", async (t) => {
  const world = await newWorld(2);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  const data = world.random.bytes(3 * OBJECT_SIZE + 17);
  await a.write(file, 0, data);
  await a.run(a.vfs.release(file.ino, file.handle));
  const ino = await b.lookup(1, "a");
  t.equal(ino, file.ino);
  t.equal(await b.size(ino), data.length);
  const handle = await b.open(ino);
  t.same(await b.read({ ino, handle }, 0, data.length + 100), data);
  await b.write({ ino, handle }, 5, "later");
  const again = await a.open(file.ino);
  const expected = Buffer.from(data.subarray(3, 12));
  expected.write("later", 2);
  t.same(await a.read({ ino, handle: again }, 3, 9), expected);
  t.ok(a.invalidated.includes(ino), "the first mount's kernel was told");
});

t.test("names appear and disappear on the other mount", async (t) => {
  const world = await newWorld(3);
  const [a, b] = [await world.mount(), await world.mount()];
  t.equal(await world.fails(b.vfs.lookup(1, Buffer.from("d"))), "NotFound");
  const made = await a.run(a.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const d = made.attributes.ino;
  t.equal(await b.lookup(1, "d"), d);
  t.same(await b.names(d), []);
  await a.create(d, "x");
  t.same(await b.names(d), ["x"]);
  const flags = { noReplace: false, exchange: false };
  await b.run(b.vfs.rename(d, Buffer.from("x"), 1, Buffer.from("y"), flags, CALLER));
  t.equal(await world.fails(a.vfs.lookup(d, Buffer.from("x"))), "NotFound");
  t.ok(await a.lookup(1, "y"));
  await b.run(b.vfs.rmdir(1, Buffer.from("d"), CALLER));
  t.same(await a.names(1), ["y"]);
});

t.test("an empty new directory needs no look-up for names that are not there", async (t) => {
  const world = await newWorld(4);
  const mount = await world.mount();
  const d = (await mount.run(mount.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER))).attributes.ino;
  const before = world.network.messages;
  t.equal(await world.fails(mount.vfs.lookup(d, Buffer.from("x"))), "NotFound");
  t.equal(world.network.messages, before);
});

t.test("truncation cuts what is dirty and what is stored; growing shows zeros", async (t) => {
  const world = await newWorld(5);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  await mount.write(file, 0, Buffer.alloc(3 * OBJECT_SIZE, 1));
  await mount.run(mount.vfs.fsync(file.ino, file.handle));
  await mount.write(file, 3 * OBJECT_SIZE, Buffer.alloc(100, 2));
  await mount.run(mount.vfs.setattr(file.ino, { size: 10 }, CALLER));
  t.equal(await mount.size(file.ino), 10);
  await mount.run(mount.vfs.setattr(file.ino, { size: 2 * OBJECT_SIZE }, CALLER));
  const expected = Buffer.alloc(2 * OBJECT_SIZE);
  expected.fill(1, 0, 10);
  t.same(await mount.read(file, 0, 4 * OBJECT_SIZE), expected);
  const other = await world.mount();
  const handle = await other.open(await other.lookup(1, "a"));
  t.same(await other.read({ ino: file.ino, handle }, 0, 4 * OBJECT_SIZE), expected);
});

t.test("O_TRUNC, O_APPEND", async (t) => {
  const world = await newWorld(6);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "log");
  await a.write(file, 0, "first");
  const ino = await b.lookup(1, "log");
  const opened = await b.run(b.vfs.open(ino, O_RDWR | O_APPEND, CALLER));
  t.ok(opened.directIo, "appends go past the kernel's cache");
  // The kernel's idea of the end is old: the file system knows better.
  await b.write({ ino, handle: opened.handle }, 0, "second", O_RDWR | O_APPEND);
  await a.write(file, 5, "third", O_RDWR | O_APPEND);
  t.same(await a.read(file, 0, 100), Buffer.from("firstsecondthird"));
  const handle = await b.open(ino, O_RDWR | O_TRUNC);
  t.equal(await a.size(ino), 0);
  await b.write({ ino, handle }, 0, "x");
  t.same(await a.read(file, 0, 100), Buffer.from("x"));
});

t.test("small closed files wait to be written, but not those that replace others", async (t) => {
  const world = await newWorld(6);
  const mount = await world.mount();
  const save = async (name: string): Promise<number> => {
    const file = await mount.create(1, name);
    await mount.write(file, 0, name);
    await mount.run(mount.vfs.release(file.ino, file.handle));
    return file.ino;
  };
  const { objects } = world;
  await save("new");
  await world.clock.advance(1_000);
  t.equal(objects.writes, 0);
  const flags = { noReplace: false, exchange: false };
  const rename = (from: string, to: string): Promise<void> =>
    mount.run(mount.vfs.rename(1, Buffer.from(from), 1, Buffer.from(to), flags, CALLER));
  await rename("new", "other");
  t.equal(objects.writes, 0, "nothing was there before");
  const ino = await save("newer");
  await rename("newer", "other");
  t.equal(objects.writes, 1, "its bytes are there before it has the name");
  const handle = await mount.open(ino, O_RDWR | O_TRUNC);
  await mount.write({ ino, handle }, 0, "anew");
  await world.clock.advance(1_000);
  const before = objects.writes; // The leader has cut the object.
  await mount.run(mount.vfs.release(ino, handle));
  await world.clock.advance(1_000);
  t.equal(objects.writes, before + 1, "it was cut to nothing before");
  await mount.run(mount.vfs.destroy());
});

t.test("direct I/O is durable at once and agrees with buffered data", async (t) => {
  const world = await newWorld(7);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  await mount.write(file, 0, Buffer.alloc(10_000, 1));
  const opened = await mount.run(mount.vfs.open(file.ino, O_RDWR | O_DIRECT, CALLER));
  t.ok(opened.directIo);
  const direct = { ino: file.ino, handle: opened.handle };
  t.same(await mount.read(direct, 0, 20), Buffer.alloc(20, 1), "sees what is buffered");
  await mount.write(direct, 4096, Buffer.alloc(4096, 2), O_RDWR | O_DIRECT);
  t.ok(world.objects.writes >= 2, "the overlapped dirty data went first");
  const expected = Buffer.alloc(10_000, 1).fill(2, 4096, 8192);
  t.same(await mount.read(file, 0, 20_000), expected);
  const at = OBJECT_SIZE - 100;
  await mount.write(direct, at, Buffer.alloc(200, 3), O_RDWR | O_DIRECT);
  t.equal(await mount.size(file.ino), OBJECT_SIZE + 100);
  t.same(await mount.read(file, at, 500), Buffer.alloc(200, 3));
  await mount.write(file, 0, "sync", O_RDWR | O_DSYNC);
  const stored = world.objects.objects.get(`1/${file.ino.toString(16)}.0`)!;
  t.same(stored.data.subarray(0, 4), Buffer.from("sync"));
});

t.test("an unlinked file lives until its last close", async (t) => {
  const world = await newWorld(8);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.write(file, 0, "still here");
  const ino = await b.lookup(1, "a");
  const handle = await b.open(ino);
  t.same(await b.read({ ino, handle }, 0, 5), Buffer.from("still"));
  await a.run(a.vfs.unlink(1, Buffer.from("a"), CALLER));
  t.same(await a.read(file, 0, 100), Buffer.from("still here"));
  t.same(await b.read({ ino, handle }, 0, 100), Buffer.from("still here"));
  await a.run(a.vfs.release(file.ino, file.handle));
  await world.clock.advance(3_000);
  t.same(await b.read({ ino, handle }, 0, 100), Buffer.from("still here"));
  await b.run(b.vfs.release(ino, handle));
  await world.clock.advance(10_000);
  t.equal(world.objects.objects.size, 0);
});

t.test("a write-back that fails for good is reported once, by each handle", async (t) => {
  const world = await newWorld(9);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  const second = await mount.open(file.ino);
  world.objects.failureRate = 1;
  world.objects.failure = "NoSpace";
  await mount.write(file, 0, "lost");
  t.equal(await world.fails(mount.vfs.fsync(file.ino, file.handle)), "NoSpace");
  world.objects.failureRate = 0;
  t.equal(await world.fails(mount.vfs.fsync(file.ino, file.handle)), undefined);
  t.equal(await world.fails(mount.vfs.flush(file.ino, second, 0n)), "NoSpace");
  t.equal(await world.fails(mount.vfs.flush(file.ino, second, 0n)), undefined);
  t.equal(await world.fails(mount.vfs.syncfs()), "NoSpace");
  t.equal(await world.fails(mount.vfs.syncfs()), undefined);
});

t.test("a write-back that fails for now is repeated until the data are there", async (t) => {
  const world = await newWorld(10);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  world.objects.failureRate = 1;
  await mount.write(file, 0, "kept");
  t.equal(await world.fails(mount.vfs.fsync(file.ino, file.handle)), "TimedOut");
  await mount.write(file, 2, "PT");
  world.objects.failureRate = 0;
  await world.clock.advance(10_000);
  const stored = world.objects.objects.get(`1/${file.ino.toString(16)}.0`)!;
  t.same(stored.data.subarray(0, 4), Buffer.from("kePT"));
});

t.test("an evicted mount loses what was buffered, says so, and goes on", async (t) => {
  const world = await newWorld(11, { recallTimeoutMs: 3_000, leaseMs: 6_000 });
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.write(file, 0, "durable");
  await a.run(a.vfs.fsync(file.ino, file.handle));
  await a.write(file, 0, "BUFFERED");
  world.network.partition("mount1", "mds1");
  world.network.partition("mds1", "mount1");
  const ino = await b.lookup(1, "a");
  const handle = await b.open(ino);
  t.same(await b.read({ ino, handle }, 0, 100), Buffer.from("durable"), "the fence came first");
  world.network.heal();
  await world.clock.advance(30_000);
  t.equal(await world.fails(a.vfs.fsync(file.ino, file.handle)), "Disk", "reported");
  t.same(await a.read(file, 0, 100), Buffer.from("durable"));
  await a.write(file, 7, "!");
  t.same(await b.read({ ino, handle }, 0, 100), Buffer.from("durable!"));
});

t.test("mapped pages that the kernel writes back during a recall are not lost", async (t) => {
  const world = await newWorld(12);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.run(a.vfs.lookup(1, Buffer.from("a")));
  await a.write(file, 0, Buffer.alloc(4096, 1));
  let wrote = false;
  a.onInvalidate = async (ino) => {
    if (ino !== file.ino || wrote) return;
    wrote = true;
    await a.vfs.write(ino, file.handle, 0, Buffer.alloc(4096, 2), {
      flags: O_RDWR,
      killPrivileges: false,
      fromPageCache: true,
    });
  };
  const ino = await b.lookup(1, "a");
  const handle = await b.open(ino);
  t.same(await b.read({ ino, handle }, 0, 4096), Buffer.alloc(4096, 2));
  t.ok(wrote);
});

t.test("a read that holds a page which the kernel wants to drop is let through", async (t) => {
  const world = await newWorld(13);
  const [a, b] = [await world.mount(), await world.mount()];
  const file = await a.create(1, "a");
  await a.run(a.vfs.lookup(1, Buffer.from("a")));
  await a.write(file, 0, "page");
  let reads = 0;
  a.onInvalidate = async (ino) => {
    // The page is locked until its READ is answered.
    if (ino === file.ino && reads++ === 0) await a.vfs.read(ino, file.handle, 0, 4);
  };
  const ino = await b.lookup(1, "a");
  const handle = await b.open(ino, O_RDWR);
  const start = world.clock.now;
  await b.write({ ino, handle }, 0, "PAGE");
  t.ok(world.clock.now - start < 1_000, "no deadlock");
  t.ok(reads >= 2, "and the kernel dropped again what that read gave it");
});

t.test("hard links, symbolic links, attributes, times", async (t) => {
  const world = await newWorld(14);
  const mount = await world.mount();
  const { vfs } = mount;
  const file = await mount.create(1, "a");
  const linked = await mount.run(vfs.link(file.ino, 1, Buffer.from("b"), CALLER));
  t.equal(linked.attributes.nlink, 2);
  const link = await mount.run(vfs.symlink(1, Buffer.from("s"), Buffer.from("a"), CALLER));
  t.same(await mount.run(vfs.readlink(link.attributes.ino)), Buffer.from("a"));
  await mount.write(file, 0, "x");
  const changes = { mtimeNs: 123_456_789n, mode: 0o600 };
  const set = await mount.run(vfs.setattr(file.ino, changes, CALLER));
  t.equal(set.attributes.mtimeNs, 123_456_789n);
  t.equal(set.attributes.mode, 0o100600);
  t.equal(set.attributes.size, 1, "the local size stays");
  const other = await world.mount();
  const seen = await other.run(other.vfs.lookup(1, Buffer.from("b")));
  t.equal(seen.attributes.mtimeNs, 123_456_789n);
  t.equal(seen.attributes.size, 1);
  const key = Buffer.from("user.k");
  const create = { create: true, replace: false };
  await mount.run(vfs.setxattr(file.ino, key, Buffer.from("v"), create, CALLER));
  t.same(await other.run(other.vfs.getxattr(file.ino, key)), Buffer.from("v"));
  const again = vfs.setxattr(file.ino, key, Buffer.from("w"), create, CALLER);
  t.equal(await world.fails(again), "Exists");
  const missing = vfs.removexattr(file.ino, Buffer.from("user.x"), CALLER);
  t.equal(await world.fails(missing), "NoAttribute");
  t.same(await mount.run(vfs.listxattr(file.ino, CALLER)), Buffer.from("user.k\0"));
  const acl = vfs.getxattr(file.ino, Buffer.from("system.posix_acl_access"));
  t.equal(await world.fails(acl), "NoAttribute");
  const none = { create: false, replace: false };
  for (const [name, code] of [
    ["nonsense.x", "NotSupported"],
    ["user", "NotSupported"],
    ["user.", "InvalidArgument"],
    ["trusted.x", undefined],
    ["security.x", undefined],
  ] as const) {
    const set = vfs.setxattr(file.ino, Buffer.from(name), Buffer.from("v"), none, CALLER);
    t.equal(await world.fails(set), code, name);
  }
});

t.test("an open directory that was removed, here or elsewhere, has no links", async (t) => {
  const world = await newWorld(17);
  const [a, b] = [await world.mount(), await world.mount()];
  for (const remover of [a, b]) {
    const made = await a.run(a.vfs.mkdir(1, Buffer.from("d"), 0o750, CALLER));
    const { ino } = made.attributes;
    const { handle } = await a.run(a.vfs.opendir(ino));
    await remover.run(remover.vfs.rmdir(1, Buffer.from("d"), CALLER));
    const { attributes } = await a.run(a.vfs.getattr(ino));
    t.match(attributes, { ino, nlink: 0, mode: 0o040750 });
    await a.run(a.vfs.releasedir(ino, handle));
    t.match((await a.run(a.vfs.getattr(ino))).attributes, { nlink: 0 }, "a working directory");
    a.vfs.forget(ino, 1);
    t.equal(await world.fails(a.vfs.getattr(ino)), "StaleHandle", "gone when nobody can have it");
  }
});

t.test("a pipe that somebody may have open outlives its name, removed here or there", async (t) => {
  const world = await newWorld(17);
  const [a, b] = [await world.mount(), await world.mount()];
  for (const [remover, pipe] of [
    [a, "p"],
    [b, "q"],
  ] as const) {
    const name = Buffer.from(pipe);
    const made = await a.run(a.vfs.mknod(1, name, 0o010644, 0, CALLER));
    const { ino } = made.attributes;
    await remover.run(remover.vfs.unlink(1, name, CALLER));
    const gone = { ino, nlink: 0, mode: 0o010644, uid: CALLER.uid };
    t.match((await a.run(a.vfs.getattr(ino))).attributes, gone);
    await a.run(a.vfs.setattr(ino, { mode: 0o4711, mtimeNs: 5n }, CALLER));
    await a.run(a.vfs.setattr(ino, { uid: 7 }, CALLER));
    const { attributes } = await a.run(a.vfs.getattr(ino));
    t.match(attributes, { ...gone, mode: 0o010711, uid: 7, mtimeNs: 5n });
    t.equal(await world.fails(a.vfs.lookup(1, name)), "NotFound");
    a.vfs.forget(ino, 1);
    t.equal(await world.fails(a.vfs.getattr(ino)), "StaleHandle", "gone when nobody can have it");
  }
  const file = await a.create(1, "f");
  await a.run(a.vfs.release(file.ino, file.handle));
  await b.run(b.vfs.unlink(1, Buffer.from("f"), CALLER));
  t.equal(await world.fails(a.vfs.getattr(file.ino)), "StaleHandle", "the kernel opens a file");
});

t.test("a kernel that can be told nothing is given nothing to keep", async (t) => {
  const world = await newWorld(18);
  const mount = await world.mount();
  mount.onInvalidate = () => Promise.reject(new DssError("NotSupported", "no notifications"));
  mount.vfs.init(mount, { canInvalidateAllEntries: false });
  const file = await mount.create(1, "a");
  const entry = await mount.run(mount.vfs.lookup(1, Buffer.from("a")));
  t.match(entry, { entryValidMs: 0, attributesValidMs: 0 });
  const opened = await mount.run(mount.vfs.open(file.ino, 0, CALLER));
  t.equal(opened.keepCache, false);
  const other = await world.mount();
  await other.write({ ino: file.ino, handle: await other.open(file.ino) }, 0, "x");
  t.equal(await mount.size(file.ino), 1, "and recalls go on without it");
});

t.test(
  "a request without an answer does not keep a new leader from what it waits for",
  async (t) => {
    const world = await newWorld(20);
    const [a, b] = [await world.mount(), await world.mount()];
    const file = await a.create(1, "a");
    await b.lookup(1, "a");
    await a.write(file, 0, "data");
    let goOn = (): void => undefined;
    world.objects.stalled = new Promise((resolve) => (goOn = resolve));
    const handle = b.open(file.ino); // Waits for what the other mount must write first.
    await world.clock.advance(1_000);
    await world.lead();
    await world.clock.advance(1_000);
    world.objects.stalled = undefined;
    goOn();
    const opened = await world.run(handle, 2_000);
    t.equal((await b.read({ ino: file.ino, handle: opened }, 0, 10)).toString(), "data");
  },
);

t.test("a direct write that failed leaves nothing for a longer file to show", async (t) => {
  const world = await newWorld(19);
  const mount = await world.mount();
  const direct = 0o40002;
  const file = await mount.create(1, "a");
  const handle = await mount.open(file.ino, direct);
  const data = Buffer.alloc(2 * OBJECT_SIZE, 7);
  // The second of the two objects is refused, the first is not.
  const { objects } = world;
  const chance = world.objects.failing;
  objects.failing = (address) => address.object.endsWith(".1");
  await t.rejects(mount.write({ ino: file.ino, handle }, 0, data, direct), { code: "TimedOut" });
  objects.failing = chance;
  const size = await mount.size(file.ino);
  const found = await mount.read({ ino: file.ino, handle }, 0, data.length);
  await mount.write({ ino: file.ino, handle: file.handle }, 2 * data.length, "x");
  const later = await mount.read({ ino: file.ino, handle }, 0, data.length);
  t.same(later.subarray(0, size), found, "what could be read is read again");
  t.ok(
    later.subarray(size).every((byte) => byte === 0),
    "and zeros follow",
  );
});

t.test("holes: punched, found, and sizes kept or grown", async (t) => {
  const world = await newWorld(15);
  const mount = await world.mount();
  const file = await mount.create(1, "a");
  await mount.write(file, 0, Buffer.alloc(2 * OBJECT_SIZE, 1));
  await mount.run(mount.vfs.fallocate(file.ino, file.handle, 4096, OBJECT_SIZE, 3, CALLER));
  const expected = Buffer.alloc(2 * OBJECT_SIZE, 1).fill(0, 4096, 4096 + OBJECT_SIZE);
  t.same(await mount.read(file, 0, 3 * OBJECT_SIZE), expected);
  t.equal(await mount.run(mount.vfs.lseek(file.ino, file.handle, 0, 4)), 4096);
  t.equal(await mount.run(mount.vfs.lseek(file.ino, file.handle, 4096, 3)), 4096 + OBJECT_SIZE);
  const end = 2 * OBJECT_SIZE;
  t.equal(await mount.run(mount.vfs.lseek(file.ino, file.handle, end - 1, 4)), end);
  await mount.run(mount.vfs.fallocate(file.ino, file.handle, 0, 3 * OBJECT_SIZE, 0, CALLER));
  t.equal(await mount.size(file.ino), 3 * OBJECT_SIZE);
});

t.test("idle inodes are given back, and a large directory is listed whole", async (t) => {
  const world = await newWorld(16);
  const mount = await world.mount({ inodesMax: 100 });
  const expected: string[] = [];
  for (let i = 0; i < 1_500; i++) {
    const name = `file-${String(i).padStart(5, "0")}`;
    expected.push(name);
    const file = await mount.create(1, name);
    await mount.run(mount.vfs.release(file.ino, file.handle));
    mount.vfs.forget(file.ino, 1);
  }
  await world.clock.advance(2_000);
  t.ok(mount.vfs.table.size < 200, `${mount.vfs.table.size} inodes are kept`);
  t.same(await mount.names(1), expected);
});

t.test("streams of large writes, rewritten under way, read back as written", async (t) => {
  const MiB = 2 ** 20;
  const world = await newWorld(17, { objectSize: 4 * MiB });
  const mount = await world.mount({ writeBackBytesMax: 6 * MiB });
  const file = await mount.create(1, "a");
  const model = world.random.bytes(20 * MiB);
  for (let at = 0; at < model.length; at += MiB) {
    await mount.write(file, at, model.subarray(at, at + MiB));
    if (at % (3 * MiB) !== 0) continue;
    const patch = world.random.bytes(5_000);
    const where = Math.max(at - 2_500, 0);
    patch.copy(model, where);
    await mount.write(file, where, patch);
    const some = Math.max(at - 3 * MiB, 0);
    t.ok((await mount.read(file, some, MiB)).equals(model.subarray(some, some + MiB)));
  }
  await mount.run(mount.vfs.fsync(file.ino, file.handle));
  t.ok(world.objects.writes < 40, `${world.objects.writes} object writes`);
  t.ok((await mount.read(file, 0, 30 * MiB)).equals(model));
  const other = await world.mount();
  const handle = await other.open(await other.lookup(1, "a"));
  t.ok((await other.read({ ino: file.ino, handle }, 0, 30 * MiB)).equals(model));
});

t.test("an access control list follows the mode, and the mode it", async (t) => {
  const world = await newWorld(32);
  const mount = await world.mount();
  const { ino } = await mount.create(1, "a");
  const name = Buffer.from("system.posix_acl_access");
  const list = (mask: number): Buffer =>
    Buffer.from(
      `0200000001000600ffffffff02000600e803000004000400ffffffff10000${mask}00ffffffff20000000ffffffff`,
      "hex",
    );
  const how = { create: false, replace: false };
  await mount.run(mount.vfs.setxattr(ino, name, list(6), how, CALLER));
  t.equal((await mount.run(mount.vfs.getattr(ino))).attributes.mode, 0o100660);
  t.same(await mount.run(mount.vfs.getxattr(ino, name)), list(6));
  await mount.run(mount.vfs.setattr(ino, { mode: 0o640 }, CALLER));
  t.same(await mount.run(mount.vfs.getxattr(ino, name)), list(4));
});

t.test("a file without a name", async (t) => {
  const world = await newWorld(31);
  const mount = await world.mount();
  const make = () => mount.run(mount.vfs.tmpfile(1, 0o666, O_RDWR, CALLER));
  const first = await make();
  const { ino } = first.attributes;
  t.match(first.attributes, { nlink: 0, mode: 0o100644 }, "under the caller's umask");
  await mount.write({ ino, handle: first.handle }, 0, "unseen");
  t.same(await mount.names(1), []);
  const linked = await mount.run(mount.vfs.link(ino, 1, Buffer.from("x"), CALLER));
  t.equal(linked.attributes.nlink, 1);
  await mount.run(mount.vfs.release(ino, first.handle));
  const other = await world.mount();
  t.equal(await other.lookup(1, "x"), ino);
  const handle = await other.open(ino);
  t.same(await other.read({ ino, handle }, 0, 100), Buffer.from("unseen"));

  const second = await make();
  const gone = second.attributes.ino;
  await mount.write({ ino: gone, handle: second.handle }, 0, "lost");
  await mount.run(mount.vfs.fsync(gone, second.handle));
  const kept = world.objects.objects.size;
  await mount.run(mount.vfs.release(gone, second.handle));
  await world.clock.advance(5_000);
  t.equal(world.objects.objects.size, kept - 1, "went with its last close");
});

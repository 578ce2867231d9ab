/**
 * Mounts below a quota: they make nothing there by themselves, what the leader refuses is refused
 * at once and never lost later, writers stop where the room ends; and whatever happens to leaders,
 * the totals are those of a walk and within the quota.
 */
import t from "tap";
import { Prng } from "../../../../cluster/base/prng.js";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

const ROOT = { ...CALLER, uid: 0, gid: 0 };
const KiB = 1_024;
/** Sizes of closed files are told half a second later. */
const TOLD_MS = 2_000;

async function mkdir(mount: TestMount, parent: number, name: string): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(parent, Buffer.from(name), 0o755, CALLER));
  return made.attributes.ino;
}
async function attribute(mount: TestMount, ino: number, name: string): Promise<number> {
  return Number((await mount.run(mount.vfs.getxattr(ino, Buffer.from(name)))).toString());
}
const HOW = { create: false, replace: false };
function setQuota(mount: TestMount, ino: number, name: string, value: number): Promise<void> {
  const [attr, text] = [Buffer.from(`dss.quota.${name}`), Buffer.from(String(value))];
  return mount.run(mount.vfs.setxattr(ino, attr, text, HOW, ROOT));
}
async function make(mount: TestMount, parent: number, name: string): Promise<number> {
  const file = await mount.create(parent, name);
  await mount.run(mount.vfs.release(file.ino, file.handle));
  return file.ino;
}
const refusal = (world: World, work: Promise<unknown>): Promise<string | undefined> =>
  world.fails(work);

t.test("a mount that had a directory for itself makes nothing there alone", async (t) => {
  const world = await newWorld(1);
  const mount = await world.mount();
  const top = await mkdir(mount, 1, "top");
  const sub = await mkdir(mount, top, "sub");
  for (let i = 0; i < 5; i++) await make(mount, sub, `f${i}`);
  await setQuota(mount, top, "max_inodes", 8);
  // Five files and a directory: the leader knows of all of them before it answers for the quota.
  t.equal(await attribute(mount, top, "dss.dir.rentries"), 6);
  await world.clock.advance(100);
  await make(mount, sub, "f5");
  await mkdir(mount, sub, "d");
  t.equal(await refusal(world, make(mount, sub, "f6")), "QuotaExceeded");
  t.equal(await refusal(world, mkdir(mount, sub, "d2")), "QuotaExceeded");
  await mount.run(mount.vfs.unlink(sub, Buffer.from("f0"), CALLER));
  await make(mount, sub, "f6");
  await mount.run(mount.vfs.syncfs());
  t.same(await mount.names(sub), ["d", "f1", "f2", "f3", "f4", "f5", "f6"], "nothing was lost");
  const name = Buffer.from("dss.quota.max_inodes");
  const [value, other] = [Buffer.from("9"), Buffer.from("nine")];
  t.equal(await refusal(world, mount.vfs.setxattr(top, name, value, HOW, CALLER)), "NotPermitted");
  t.equal(await refusal(world, mount.vfs.setxattr(top, name, other, HOW, ROOT)), "InvalidArgument");
  const read = Buffer.from("dss.dir.rfiles");
  t.equal(await refusal(world, mount.vfs.setxattr(top, read, value, HOW, ROOT)), "NotPermitted");
  const file = await mount.lookup(sub, "f1");
  t.equal(await refusal(world, mount.vfs.getxattr(file, read)), "NoAttribute", "of a file");
  t.equal((await mount.run(mount.vfs.listxattr(top, ROOT))).length, 0, "not listed");
  await mount.run(mount.vfs.removexattr(top, name, ROOT));
  t.equal(await refusal(world, mount.vfs.getxattr(top, name)), "NoAttribute");
  await make(mount, sub, "free");
  t.same(world.failures, []);
});

t.test("writers stop where the room ends", async (t) => {
  const world = await newWorld(2);
  const mount = await world.mount();
  const other = await world.mount();
  const top = await mkdir(mount, 1, "top");
  await setQuota(mount, top, "max_bytes", 300 * KiB);
  const fill = async (by: TestMount, name: string): Promise<number> => {
    const file = await by.create(top, name);
    for (let at = 0; ; at += 10 * KiB) {
      const work = by.write(file, at, Buffer.alloc(10 * KiB, 1));
      if ((await refusal(world, work)) === undefined) continue;
      t.equal(
        await refusal(world, by.write(file, at, "x")),
        at === 300 * KiB ? "QuotaExceeded" : undefined,
      );
      await by.run(by.vfs.fsync(file.ino, file.handle));
      await by.run(by.vfs.release(file.ino, file.handle));
      return at;
    }
  };
  t.equal(await fill(mount, "a"), 300 * KiB, "to the byte");
  await world.clock.advance(TOLD_MS);
  t.equal(await attribute(mount, top, "dss.dir.rbytes"), 300 * KiB);
  const ino = await mount.lookup(top, "a");
  await mount.run(mount.vfs.setattr(ino, { size: 100 * KiB }, CALLER));
  const [a, b] = [await mount.create(top, "b"), await other.create(top, "c")];
  let written = 100 * KiB;
  let refusals = 0;
  for (let at = 0; refusals < 2; at += 10 * KiB) {
    refusals = 0;
    const both = [
      { by: mount, file: a },
      { by: other, file: b },
    ];
    for (const { by, file } of both) {
      const outcome = await refusal(world, by.write(file, at, Buffer.alloc(10 * KiB, 2)));
      if (outcome === undefined) written += 10 * KiB;
      else refusals++;
    }
  }
  t.ok(written > 250 * KiB, "what is reserved for them is little");
  await mount.run(mount.vfs.release(a.ino, a.handle));
  await other.run(other.vfs.release(b.ino, b.handle));
  await world.clock.advance(TOLD_MS);
  const sum = await attribute(mount, top, "dss.dir.rbytes");
  t.equal(sum, written);
  t.ok(sum <= 300 * KiB, "two writers end there too");
  await mount.write({ ...a, handle: await mount.open(a.ino) }, 0, "x");
  t.pass("what is there can be overwritten");
  t.same(world.failures, []);
});

for (const seed of [1, 2, 3]) {
  t.test(`two mounts, leaders that die, seed ${seed}`, async (t) => {
    const world = await newWorld(seed, { leaseMs: 2_000 });
    const random = new Prng(seed);
    const mounts = [await world.mount(), await world.mount()];
    const [first] = mounts as [TestMount];
    const top = await mkdir(first, 1, "top");
    const directories = [1, top, await mkdir(first, top, "a"), await mkdir(first, 1, "outside")];
    await setQuota(first, top, "max_inodes", 12);
    await setQuota(first, top, "max_bytes", 200 * KiB);
    let refusals = 0;
    for (let step = 0; step < 250; step++) {
      const mount = random.pick(mounts);
      const { vfs } = mount;
      const parent = random.pick(directories);
      const name = Buffer.from(`n${random.int(0, 11)}`);
      const newParent = random.pick(directories);
      const newName = Buffer.from(`n${random.int(0, 11)}`);
      const roll = random.int(0, 9);
      let work: Promise<unknown>;
      if (roll < 4) work = write(mount, parent, name.toString(), random.int(0, 30) * KiB);
      else if (roll < 5) work = vfs.unlink(parent, name, CALLER);
      else if (roll < 6) work = link(mount, parent, name, { newParent, newName });
      else if (roll < 7) work = mkdir(mount, parent, name.toString());
      else if (roll < 8) work = vfs.rmdir(parent, name, CALLER);
      else {
        const flags = { noReplace: false, exchange: random.chance(0.3) };
        work = vfs.rename(parent, name, newParent, newName, flags, CALLER);
      }
      const outcome = await refusal(world, work);
      if (outcome === "QuotaExceeded") refusals++;
      if (random.chance(0.02)) await world.lead({ leaseMs: 2_000 });
      if (step % 50 === 49) {
        for (const each of mounts) await each.run(each.vfs.syncfs());
        await world.clock.advance(TOLD_MS);
        t.same(await totals(first, 1), await walk(first, 1));
        t.ok((await attribute(first, top, "dss.dir.rentries")) <= 12, "inodes are exact");
        t.ok((await attribute(first, top, "dss.dir.rbytes")) <= 350 * KiB, "and bytes nearly");
      }
    }
    t.ok(refusals > 0, `${refusals} refusals`);
    t.same(world.failures, []);
  });
}

async function write(mount: TestMount, parent: number, name: string, size: number): Promise<void> {
  const file = await mount.create(parent, name);
  try {
    const offset = await mount.size(file.ino);
    if (size > 0) await mount.write(file, offset > 100 * KiB ? 0 : offset, Buffer.alloc(size, 7));
    await mount.run(mount.vfs.fsync(file.ino, file.handle));
  } finally {
    await mount.run(mount.vfs.release(file.ino, file.handle));
  }
}
async function link(
  mount: TestMount,
  parent: number,
  name: Buffer,
  { newParent, newName }: { newParent: number; newName: Buffer },
): Promise<void> {
  const ino = await mount.lookup(parent, name.toString());
  await mount.run(mount.vfs.link(ino, newParent, newName, CALLER));
}
interface Sums {
  files: number;
  directories: number;
  bytes: number;
}
async function totals(mount: TestMount, ino: number): Promise<Sums> {
  return {
    files: await attribute(mount, ino, "dss.dir.rfiles"),
    directories: await attribute(mount, ino, "dss.dir.rsubdirs"),
    bytes: await attribute(mount, ino, "dss.dir.rbytes"),
  };
}
/** Each file once. */
async function walk(mount: TestMount, top: number): Promise<Sums> {
  const sums = { files: 0, directories: 0, bytes: 0 };
  const seen = new Set<number>();
  const visit = async (directory: number): Promise<void> => {
    for (const name of await mount.names(directory)) {
      const ino = await mount.lookup(directory, name);
      const { attributes } = await mount.run(mount.vfs.getattr(ino));
      if ((attributes.mode & 0o170000) === 0o040000) {
        sums.directories++;
        await visit(ino);
      } else if (!seen.has(ino)) {
        seen.add(ino);
        sums.files++;
        sums.bytes += attributes.size;
      }
    }
  };
  await visit(top);
  return sums;
}

/** The lossy test disk forgets, tears and keeps exactly what its contract says. */
import t from "tap";
import { Prng } from "../../../cluster/base/prng.js";
import type { Caller } from "../../../client-fs/file-system.js";
import { LossyFileSystem, Power } from "../../support/lossy-fs.js";
import type { Luck } from "../../support/lossy-fs.js";

const ROOT = 1;
const CALLER: Caller = { uid: 0, gid: 0, pid: 1, umask: 0 };
const O_DSYNC = 0o10000;
const SECTOR = 512;

async function disk(): Promise<LossyFileSystem> {
  return await LossyFileSystem.open(new Power(), new Prng(1));
}
async function create(files: LossyFileSystem, name: string, parent = ROOT): Promise<number> {
  return (await files.create(parent, Buffer.from(name), 0o644, 0, CALLER)).attributes.ino;
}
async function put(
  files: LossyFileSystem,
  ino: number,
  text: Buffer | string,
  position = 0,
  flags = 0,
): Promise<void> {
  const options = { flags, killPrivileges: false, fromPageCache: false };
  await files.write(ino, 0, position, Buffer.from(text), options);
}
async function cut(files: LossyFileSystem, luck: Luck, seed = 1): Promise<LossyFileSystem> {
  const { root } = files.survivors(new Prng(seed), luck);
  return await LossyFileSystem.open(new Power(), new Prng(1), root);
}
async function names(files: LossyFileSystem, ino = ROOT): Promise<string[]> {
  const entries = [...(await files.readdir(ino, 0, 0, { maxEntries: 100, plus: false }))];
  return entries.map(({ name }) => name.toString()).filter((name) => !name.startsWith("."));
}
async function contents(files: LossyFileSystem, name: string): Promise<Buffer> {
  const { ino, size } = (await files.lookup(ROOT, Buffer.from(name))).attributes;
  return Buffer.concat((await files.read(ino, 0, 0, size)).map((piece) => Buffer.from(piece)));
}

t.test("what was synced survives, what was not is lost", async (t) => {
  const files = await disk();
  const a = await create(files, "a");
  const d = await create(files, "d");
  await put(files, a, "synced");
  await files.fsync(a);
  await files.fsyncdir(ROOT);
  await put(files, a, "not yet");
  await put(files, d, "12345", 0, O_DSYNC);
  await put(files, d, "x", 2);
  await create(files, "no-name");
  const after = await cut(files, "all lost");
  t.same((await names(after)).sort(), ["a", "d"]);
  t.equal((await contents(after, "a")).toString(), "synced");
  t.equal((await contents(after, "d")).toString(), "12345", "O_DSYNC syncs its own write alone");
});

t.test("a sync covers what came before it only", async (t) => {
  const files = await disk();
  const a = await create(files, "a");
  await files.fsyncdir(ROOT);
  await put(files, a, "before");
  const syncing = files.fsync(a);
  await put(files, a, "AFTER!");
  await syncing;
  t.equal((await contents(await cut(files, "all lost"), "a")).toString(), "before");
  t.equal((await contents(await cut(files, "all kept"), "a")).toString(), "AFTER!");
});

t.test("a synced file without a synced name is gone; a rename is whole or not at all", async (t) => {
  const files = await disk();
  const a = await create(files, "a");
  await put(files, a, "a");
  await files.fsync(a);
  t.same(await names(await cut(files, "all lost")), []);
  await files.fsyncdir(ROOT);
  const flags = { noReplace: false, exchange: false };
  await files.rename(ROOT, Buffer.from("a"), ROOT, Buffer.from("b"), flags);
  const found = new Set<string>();
  for (let seed = 0; seed < 20; seed++) {
    found.add((await names(await cut(await replay(), "each by itself", seed))).join());
  }
  t.same([...found].sort(), ["a", "b"]);

  async function replay(): Promise<LossyFileSystem> {
    const again = await disk();
    await create(again, "a");
    await again.fsyncdir(ROOT);
    await again.rename(ROOT, Buffer.from("a"), ROOT, Buffer.from("b"), flags);
    return again;
  }
});

t.test("writes tear at sectors and nowhere else", async (t) => {
  let torn = 0;
  for (let seed = 0; seed < 40; seed++) {
    const files = await disk();
    const a = await create(files, "a");
    await put(files, a, Buffer.alloc(8 * SECTOR, "-"));
    await files.fsync(a);
    await files.fsyncdir(ROOT);
    await put(files, a, Buffer.alloc(6 * SECTOR, "x"), SECTOR);
    const after = await contents(await cut(files, "each by itself", seed), "a");
    t.equal(after.length, 8 * SECTOR);
    const sectors = Array.from({ length: 8 }, (_, i) =>
      new Set(after.subarray(i * SECTOR, (i + 1) * SECTOR)),
    );
    t.ok(sectors.every((bytes) => bytes.size === 1));
    t.same([after[0], after.at(-1)], [45, 45]);
    const written = sectors.filter((bytes) => bytes.has(120)).length;
    if (written > 0 && written < 6) torn++;
  }
  t.ok(torn > 3, `${torn} of 40 were torn`);
});

t.test("truncation and holes count as changes; directories come back with what is in them", async (t) => {
  const files = await disk();
  const d = (await files.mkdir(ROOT, Buffer.from("dir"), 0o700, CALLER)).attributes.ino;
  const a = await create(files, "a", d);
  await create(files, "b");
  const b = (await files.lookup(ROOT, Buffer.from("b"))).attributes.ino;
  await put(files, b, Buffer.alloc(3 * 4096, "b"));
  await put(files, a, "a");
  files.makeAllDurable();
  await files.fallocate(b, 0, 0, 4096, 3);
  await files.setattr(b, { size: 4096 });
  const lost = await cut(files, "all lost");
  t.same((await contents(lost, "b")).equals(Buffer.alloc(3 * 4096, "b")), true);
  const dir = (await lost.lookup(ROOT, Buffer.from("dir"))).attributes.ino;
  t.same(await names(lost, dir), ["a"]);
  const kept = await contents(await cut(files, "all kept"), "b");
  t.same(kept, Buffer.alloc(4096));
});

t.test("nothing that was not answered before the power failed ever is", async (t) => {
  const power = new Power();
  const files = await LossyFileSystem.open(power, new Prng(1));
  const a = await create(files, "a");
  await files.fsyncdir(ROOT);
  await put(files, a, "a");
  const syncing = files.fsync(a);
  power.fail();
  await new Promise((done) => setTimeout(done, 20));
  power.cut();
  await t.rejects(syncing, /power is off/);
  t.equal((await contents(await cut(files, "all lost"), "a")).length, 0);
});

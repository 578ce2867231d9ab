/** The real disk: files, errors by name, the kernel's lock, and LMDB as an ordered store. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { openNodeDisk, SyncPace } from "../../../../cluster/platform/node-disk.js";

const root = mkdtempSync(join(tmpdir(), "dss-disk-"));
t.teardown(() => rmSync(root, { recursive: true }));
const disk = await openNodeDisk(join(root, "deep", "er"));

void t.test("files hold what was written where it was written", async (t) => {
  const file = await disk.open("f", { create: true });
  const many = Array.from({ length: 2_500 }, (_, i) => Buffer.alloc(i % 3, i));
  await file.write(many, 10);
  await file.write([], 0);
  file.writeSync([Buffer.from("sync")], 3);
  file.writeSync(many, 5_000);
  file.writeSync([], 0);
  t.ok(file.trySync(), "nothing is known of this disk yet");
  await file.sync();
  const all = Buffer.concat([...many, Buffer.alloc(4_990 - 2_499), ...many]);
  t.equal(await file.size(), 10 + all.length);
  const buffer = Buffer.alloc(all.length + 50, 1);
  t.equal(await file.read(buffer, 10), all.length, "short only at the end");
  t.same(buffer.subarray(0, all.length), all);
  t.equal(file.readSync(buffer, 3), 7 + all.length);
  t.equal(buffer.toString("latin1", 0, 4), "sync");
  t.equal(await file.read(buffer, 1e6), 0);
  await file.truncate(20_000);
  t.equal(file.readSync(buffer, 19_000), 1000);
  t.ok(buffer.subarray(0, 1000).every((byte) => byte === 0));
  await file.close();
  await t.rejects(file.read(buffer, 0), { code: "Disk" });
  t.throws(() => file.writeSync([buffer], 0), { code: "Disk" });
  const other = await disk.open("f");
  await other.close();
  t.throws(() => other.trySync(), { code: "Disk" }, "of a disk that may be quick");
});

void t.test("a disk whose syncs are slow has them on another thread until they are quick", (t) => {
  const pace = new SyncPace();
  t.ok(pace.isQuick, "until it is known");
  for (let i = 0; i < 50; i++) pace.took(i % 10 === 0 ? 5 : 0.3);
  t.ok(pace.isQuick, "a slow one now and then");
  for (let i = 0; i < 50; i++) pace.took(4);
  t.notOk(pace.isQuick);
  let until = 0;
  while (!pace.isQuick) {
    pace.took(0.3);
    until++;
  }
  t.ok(until > 1 && until < 50, `${until} quick ones`);
  pace.took(40);
  t.notOk(pace.isQuick, "a very slow one");
  const slow = new SyncPace();
  slow.took(10);
  t.notOk(slow.isQuick, "the first one says it");
  t.end();
});

void t.test("whole blocks past the page cache, from any memory", async (t) => {
  const file = await disk.open("direct", { create: true });
  const direct = await disk.openDirect("direct");
  if (direct === undefined) {
    t.comment("this file system has no O_DIRECT");
    return;
  }
  const writes = [1, 300, 513, 1].map(async (blocks, i) => {
    const bytes = Buffer.alloc(blocks * 4096 + 1, `${i} abc`).subarray(1);
    const cuts = [0, 5, 4097, bytes.length].map((at) => Math.min(at, bytes.length));
    const chunks = cuts.slice(1).map((cut, k) => bytes.subarray(cuts[k], cut));
    await direct.write(chunks, i * 4 * 2 ** 20);
    const read = Buffer.alloc(bytes.length);
    t.equal(await file.read(read, i * 4 * 2 ** 20), bytes.length);
    t.ok(read.equals(bytes), `${blocks} blocks`);
    const past = Buffer.alloc(bytes.length + 3).subarray(3);
    t.equal(await direct.read(past, i * 4 * 2 ** 20), bytes.length);
    t.ok(past.equals(bytes), `${blocks} blocks, read past the page cache`);
  });
  await Promise.all(writes);
  const many = Array.from({ length: 40 }, (_, i) => {
    return direct.write([Buffer.alloc(8192, i)], 32 * 2 ** 20 + i * 8192);
  });
  await Promise.all(many);
  await file.write([Buffer.alloc(4096, "dirty")], 40 * 2 ** 20);
  const dirty = Buffer.alloc(8192);
  t.equal(await direct.read(dirty, 40 * 2 ** 20), 4096, "short only at the end");
  t.equal(dirty.toString("latin1", 0, 10), "dirtydirty", "what only the page cache has");
  await file.sync();
  const read = Buffer.alloc(40 * 8192);
  await file.read(read, 32 * 2 ** 20);
  t.ok(many.every((_, i) => read.subarray(i * 8192, (i + 1) * 8192).every((each) => each === i)));
  await direct.close();
  await t.rejects(direct.write([Buffer.alloc(4096)], 0), { code: "Disk" });
  await file.close();
  await t.rejects(disk.openDirect("none"), { code: "NotFound" });
});

void t.test("names are made, listed, moved and removed; errors say which", async (t) => {
  await disk.makeDirectory("a/b");
  await disk.makeDirectory("a/b");
  const file = await disk.open("a/b/one", { create: true, exclusive: true });
  await file.write([Buffer.from("1")], 0);
  await file.close();
  await t.rejects(disk.open("a/b/one", { exclusive: true }), { code: "Exists" });
  await t.rejects(disk.open("a/b/two"), { code: "NotFound", message: /a\/b\/two/ });
  await t.rejects(disk.readFile("none"), { code: "NotFound" });
  await t.rejects(disk.list("none"), { code: "NotFound" });
  await t.rejects(disk.remove("none"), { code: "NotFound" });
  await t.rejects(disk.rename("none", "other"), { code: "NotFound" });
  await t.rejects(disk.syncDirectory("none"), { code: "NotFound" });
  await disk.rename("a/b/one", "a/two");
  await disk.syncDirectory("a");
  t.same((await disk.list("a")).sort(), ["b", "two"]);
  t.equal((await disk.readFile("a/two")).toString(), "1");
  t.equal(await disk.exists("a/b/one"), false);
  await disk.remove("a/two");
  t.equal(await disk.exists("a/two"), false);
  const { total, available } = await disk.usage();
  t.ok(total >= available && available > 0);
  await t.rejects(disk.open("../outside", { create: true }), /leaves its disk/);
});

void t.test("a lock excludes others, names its holder, and ends with it", async (t) => {
  const lock = await disk.lock("lock");
  await t.rejects(disk.lock("lock"), {
    code: "Busy",
    message: new RegExp(`process ${process.pid}`),
  });
  await lock.release();
  await (await disk.lock("lock")).release();

  const script = `
    import { openNodeDisk } from ${JSON.stringify(new URL("../../../../cluster/platform/node-disk.js", import.meta.url).href)};
    const disk = await openNodeDisk(${JSON.stringify(join(root, "deep", "er"))});
    await disk.lock("lock");
    process.stdout.write("locked");
    setInterval(() => undefined, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise((resolve) => child.stdout.once("data", resolve));
  await t.rejects(disk.lock("lock"), { code: "Busy", message: new RegExp(`process ${child.pid}`) });
  child.kill("SIGKILL");
  await new Promise((resolve) => child.once("close", resolve));
  await (await disk.lock("lock")).release();
});

void t.test("LMDB keeps order, ranges and batches, and they survive", async (t) => {
  const key = (...bytes: number[]): Buffer => Buffer.from(bytes);
  let store = await disk.openStore("index");
  const puts = [1, 2, 3, 4, 5].map((i) => ({ key: key(i, 0, 255), value: Buffer.from(`v${i}`) }));
  await store.commit({ puts: [...puts].reverse(), deletes: [] });
  const long = Buffer.alloc(1900, 9);
  await store.commit({
    puts: [
      { key: long, value: Buffer.alloc(100_000, 1) },
      { key: key(8), value: Buffer.alloc(0) },
    ],
    deletes: [key(3, 0, 255), key(77)],
  });
  for (const when of ["at once", "after reopening"]) {
    const values = (options: Parameters<typeof store.range>[0]): string[] =>
      [...store.range(options)].map((entry) => entry.value.toString());
    t.equal(store.get(key(2, 0, 255))?.toString(), "v2", when);
    t.equal(store.get(key(3, 0, 255)), undefined);
    t.equal(store.get(key(8))?.length, 0);
    t.equal(store.get(long)?.length, 100_000);
    t.same(values({ start: key(2), end: key(5, 0, 255) }), ["v2", "v4"], "the end is outside");
    t.same(values({ start: key(2, 0, 255), end: key(5, 0, 255), reverse: true }), ["v4", "v2"]);
    t.same(values({ start: key(0), end: key(6), limit: 2 }), ["v1", "v2"]);
    t.same(values({ start: key(0), end: key(6), limit: 1, reverse: true }), ["v5"]);
    await store.close();
    store = await disk.openStore("index");
  }
  await t.rejects(
    store.commit({ puts: [{ key: Buffer.alloc(1901), value: key(1) }], deletes: [] }),
    /1901/,
  );
  await store.close();
});

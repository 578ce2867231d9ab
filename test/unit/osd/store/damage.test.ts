/** Damage is reported, never returned and never cut away; a failing disk stops the store. */
import t from "tap";
import { BLOCK_SIZE, blockChecksums, crc32 } from "../../../../cluster/base/checksum.js";
import { DssError } from "../../../../cluster/base/errors.js";
import { silentLogger } from "../../../../cluster/base/log.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { FileStore } from "../../../../osd/store/file-store.js";
import { durable, prngSource, SimHarness, TINY, transaction } from "./harness.js";

const PG = 65_536;
const block = (fill: number, count = 1): Buffer => Buffer.alloc(count * BLOCK_SIZE, fill);

async function harnessWith(options = {}, capacityBytes?: number): Promise<SimHarness> {
  const h = new SimHarness(
    new Prng(5),
    { ...TINY, checkpointMs: 1_000_000, ...options },
    capacityBytes,
  );
  await h.open();
  await h.wait(durable((done) => h.store.createPg(PG, Buffer.alloc(0), done)));
  return h;
}
let seq = 0;
const apply = (h: SimHarness, object: string, fields = {}): Promise<void> => {
  const change = transaction({ pg: PG, version: { interval: 1, seq: ++seq }, object, ...fields });
  return h.wait(durable((done) => h.store.apply(change, done)));
};
const read = (h: SimHarness, object: string, offset: number, length: number): Promise<unknown> =>
  h.wait(h.store.read(PG, object, offset, length));
/** Where in a file of the simulated disk a block of this content lies. */
function locate(h: SimHarness, fill: number): { path: string; position: number }[] {
  const found: { path: string; position: number }[] = [];
  for (const path of h.disk.paths) {
    const bytes = h.disk.file(path);
    for (let at = 0; at + BLOCK_SIZE <= bytes.length; at += BLOCK_SIZE) {
      if (bytes.compare(block(fill), 0, BLOCK_SIZE, at, at + BLOCK_SIZE) === 0)
        found.push({ path, position: at });
    }
  }
  return found;
}

void t.test(
  "a flipped bit in a data file is Corrupt, by name, and its neighbours still read",
  async (t) => {
    for (const [kind, count] of [
      ["small", 3],
      ["large", 30],
    ] as const) {
      const h = await harnessWith();
      await apply(h, "o", { data: [block(1), block(0x5a), block(2, count - 2)] });
      await h.reopen();
      const [place] = locate(h, 0x5a).filter(({ path }) => path.startsWith("data"));
      h.disk.flipBit(place!.path, place!.position + 77, 3);
      await t.rejects(
        read(h, "o", 0, count * BLOCK_SIZE),
        { code: "Corrupt", message: /1\.0 object o block 1/ },
        kind,
      );
      await t.rejects(h.wait(h.store.image(PG, "o")), { code: "Corrupt" });
      t.ok(await read(h, "o", 0, BLOCK_SIZE));
      t.ok(await read(h, "o", 2 * BLOCK_SIZE, BLOCK_SIZE));
      await apply(h, "o", { offset: BLOCK_SIZE, data: [block(3)], size: count * BLOCK_SIZE });
      t.ok(await read(h, "o", 0, count * BLOCK_SIZE), "a new write heals it");
      await h.end();
    }
  },
);

void t.test("damaged blocks are found, repaired in place, and stay right", async (t) => {
  for (const [kind, count] of [
    ["small", 3],
    ["large", 30],
  ] as const) {
    const h = await harnessWith();
    const data = [block(1), block(0x5a), block(2, count - 2)];
    await apply(h, "o", { data });
    await h.reopen();
    const [place] = locate(h, 0x5a).filter(({ path }) => path.startsWith("data"));
    h.disk.flipBit(place!.path, place!.position + 77, 3);
    const bad = [{ offset: BLOCK_SIZE, sum: crc32(block(0x5a)) }];
    t.match(await h.wait(h.store.check(PG, "o", 0, 1 << 20)), { bad }, kind);
    const spoiled = await h.wait(h.store.image(PG, "o", true));
    t.same(spoiled?.spoiled, bad, "a tolerant image names what is damaged");
    const right = { offset: BLOCK_SIZE, data: block(0x5a), sums: Uint32Array.of(bad[0]!.sum) };
    const stale = { offset: BLOCK_SIZE, data: block(0x5b), sums: blockChecksums(block(0x5b)) };
    await h.wait(durable((done) => void h.store.repair(PG, "o", [stale], done)));
    t.match(await h.wait(h.store.check(PG, "o", 0, 1 << 20)), { bad }, "other bytes are not taken");
    await h.wait(durable((done) => void h.store.repair(PG, "o", [right], done)));
    for (const when of ["at once", "after a crash", "after reopening"]) {
      const found = await h.wait(h.store.read(PG, "o", 0, count * BLOCK_SIZE));
      t.same(Buffer.concat(found!.data), Buffer.concat(data), `${kind} ${when}`);
      t.match(await h.wait(h.store.check(PG, "o", 0, 1 << 20)), { bad: [] });
      if (when === "at once") await h.crash();
      else await h.reopen();
    }
    await h.end();
  }
});

void t.test("a data file that is gone is damage, block by block", async (t) => {
  const h = await harnessWith();
  await apply(h, "o", { data: [block(1, 20)] });
  await h.end();
  const disk = h.disk.attach();
  for (const name of await h.wait(disk.list("data"))) await h.wait(disk.remove(`data/${name}`));
  await h.open();
  await t.rejects(read(h, "o", 0, BLOCK_SIZE), { code: "Corrupt" });
  const found = await h.wait(h.store.check(PG, "o", 0, 1 << 20));
  t.equal(found?.bad.length, 20);
  const run = { offset: 0, data: block(1, 20), sums: blockChecksums(block(1, 20)) };
  await h.wait(durable((done) => void h.store.repair(PG, "o", [run], done)));
  await h.reopen();
  t.ok(await read(h, "o", 0, 20 * BLOCK_SIZE));
  await h.end();
});

void t.test("a record that was durable is missed: the store refuses to open", async (t) => {
  const h = await harnessWith();
  await apply(h, "a", { data: [block(0x11)] });
  await apply(h, "b", { data: [block(0x22)] });
  await apply(h, "c", { data: [block(0x33)] });
  // The group's head page is the one before its data.
  const [place] = locate(h, 0x22).filter(({ path }) => path.startsWith("wal"));
  h.cut();
  h.disk.flipBit(place!.path, place!.position - BLOCK_SIZE + 100);
  await t.rejects(h.open(), { code: "Corrupt", message: /write-ahead log is damaged/ });
  h.cut();
  h.disk.flipBit(place!.path, place!.position - BLOCK_SIZE + 100);
  await h.open();
  t.equal(h.store.pgInfo(PG)!.objects, 3, "and opens when the bit is right again");
  await h.end();
});

void t.test("a damaged data block in the log costs that block only", async (t) => {
  const h = await harnessWith();
  await apply(h, "a", { data: [block(0x11), block(0x12)] });
  await apply(h, "b", { data: [block(0x22)] });
  const [place] = locate(h, 0x12).filter(({ path }) => path.startsWith("wal"));
  h.cut();
  h.disk.flipBit(place!.path, place!.position + 5);
  await h.open();
  await t.rejects(read(h, "a", 0, 2 * BLOCK_SIZE), { code: "Corrupt", message: /block 1/ });
  t.ok(await read(h, "a", 0, BLOCK_SIZE));
  t.ok(await read(h, "b", 0, BLOCK_SIZE));
  await h.end();
});

void t.test("any damaged value of the index keeps the store shut", async (t) => {
  for (const prefix of [2, 3, 5]) {
    const h = await harnessWith();
    await apply(h, "a", { data: [block(1)], client: 70_000, sequence: 1 });
    await h.end();
    h.disk.flipIndexBit("index", Buffer.from([prefix]));
    await t.rejects(h.open(), { code: "Corrupt" }, `prefix ${prefix}`);
  }
});

void t.test("an object lost from the index is noticed by the counts", async (t) => {
  const h = await harnessWith();
  await apply(h, "a", { data: [block(1)] });
  await h.end();
  const index = await h.wait(h.disk.attach().openStore("index"));
  const range = { start: Buffer.from([3]), end: Buffer.from([4]) };
  const keys = [...index.range(range)].map(({ key }) => key);
  t.equal(keys.length, 1);
  await h.wait(index.commit({ puts: [], deletes: keys }));
  await t.rejects(h.open(), { code: "Corrupt", message: /0 objects/ });
});

void t.test("a failed write or sync stops the store and tells every caller", async (t) => {
  for (const operation of ["write", "sync", "commit"] as const) {
    const h = await harnessWith({ checkpointMs: 1 });
    await apply(h, "a", { data: [block(1)] });
    h.disk.fault = (found, path) =>
      found === operation ? new DssError("Disk", `cannot ${found} ${path}`) : undefined;
    const outcomes: (Error | undefined)[] = [];
    for (let i = 0; i < 5; i++) {
      const data = [block(2, i === 3 ? 20 : 1)];
      const change = transaction({
        pg: PG,
        version: { interval: 1, seq: ++seq },
        object: "b",
        data,
        size: 20 * BLOCK_SIZE,
      });
      h.store.apply(change, (error) => outcomes.push(error));
    }
    await h.clock.advance(100);
    t.equal(outcomes.length, 5, `${operation}: each callback runs once`);
    if (operation !== "commit") for (const error of outcomes) t.match(error, { code: "Disk" });
    t.throws(
      () =>
        h.store.apply(
          transaction({ pg: PG, version: { interval: 1, seq: ++seq }, object: "b" }),
          () => undefined,
        ),
      /has failed/,
    );
    await t.rejects(read(h, "a", 0, 1), { code: "Disk" });
    h.disk.fault = undefined;
    await h.end();
    await h.open();
    t.ok(await read(h, "a", 0, 1), "what was durable is there after a restart");
    await h.end();
  }
});

void t.test("a full disk takes the reserve, and deletes still run", async (t) => {
  const h = await harnessWith({ reserveBytes: 256 * 1024 }, 2 * 1024 * 1024);
  const before = h.store.usage();
  t.ok(before.total < 2 * 1024 * 1024, "the log and the reserve are not for objects");
  let error: unknown;
  let count = 0;
  // A caller that ignores usage() altogether.
  for (; count < 100 && error === undefined && h.store.counters()["reserveUses"] === 0; count++) {
    await apply(h, `o${count}`, { data: [block(count, 20)] }).catch((e: unknown) => (error = e));
  }
  t.equal(error, undefined, "the reserve came first");
  t.ok(h.store.usage().used / h.store.usage().total > 0.95, "usage() had said so");
  for (let i = 0; i < count; i++) await apply(h, `o${i}`, { kind: 4, size: 0 });
  await h.reopen();
  t.equal(h.store.usage().used, 0);
  t.match(h.store.usage(), before.total ? { objects: 0 } : {});
  await h.end();
});

void t.test("a folder is opened by its owner only", async (t) => {
  const h = await harnessWith();
  const config = {
    osdId: 3,
    options: TINY,
    logger: silentLogger,
    clock: h.clock.forNode(() => true),
    random: prngSource(new Prng(1)),
  };
  const open = (fields = {}): Promise<FileStore> =>
    h.wait(FileStore.open(h.disk.attach(), { ...config, ...fields }));
  await t.rejects(open(), { code: "Busy" }, "in use");
  const { uuid } = h.store;
  t.match(uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  await h.end();
  await t.rejects(open({ osdId: 4 }), { code: "Conflict", message: /osd\.3/ });
  const adopted = await open({ clusterId: "red" });
  t.equal(adopted.uuid, uuid, "the identity stays");
  await h.wait(adopted.close());
  await t.rejects(open({ clusterId: "blue" }), { code: "Conflict", message: /red/ });
  await t.rejects(h.wait(FileStore.format(h.disk.attach(), config)), { code: "Conflict" });

  const rewrite = async (change: (text: string) => Buffer): Promise<void> => {
    const disk = h.disk.attach();
    const text = (await h.wait(disk.readFile("superblock"))).toString();
    const file = await h.wait(disk.open("superblock"));
    await h.wait(file.truncate(0));
    await h.wait(file.write([change(text)], 0));
  };
  const { crc32 } = await import("../../../../cluster/base/checksum.js");
  await rewrite((text) => {
    const json = `${text.split("\n")[0]!.replace('"version":1', '"version":2')}\n`;
    return Buffer.from(`${json}${crc32(Buffer.from(json)).toString(16).padStart(8, "0")}\n`);
  });
  await t.rejects(open(), { code: "IncompatibleVersion", message: /version 2/ });
  await rewrite((text) => Buffer.from(text.replace('"osd":3', '"osd":4')));
  await t.rejects(open({ osdId: 4 }), { code: "Corrupt" });

  const other = new SimHarness(new Prng(9));
  const disk = other.disk.attach();
  await other.wait(disk.open("thesis.doc", { create: true }));
  await t.rejects(other.open(), { code: "Conflict", message: /thesis\.doc/ });
});

void t.test("a crash during formatting leaves a folder that can be formatted", async (t) => {
  for (let ms = 0; ms < 12; ms += 0.7) {
    const h = new SimHarness(new Prng(ms * 10 + 1));
    void h.open().catch(() => undefined);
    await h.clock.advance(ms);
    h.cut();
    await h.open();
    await h.wait(durable((done) => h.store.createPg(PG, Buffer.alloc(0), done)));
    await h.crash();
    t.ok(h.store.hasPg(PG));
    await h.end();
  }
});

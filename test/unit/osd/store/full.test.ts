/** A full disk loses nothing, stops nothing that frees space, and heals by itself. */
import t from "tap";
import { BLOCK_SIZE } from "../../../../cluster/base/checksum.js";
import { DssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { OpKind } from "../../../../osd/store/chunk-store.js";
import { MemoryStore } from "../../../../osd/store/memory-store.js";
import { durable, SimHarness, TINY, transaction } from "./harness.js";

const PG = 65_536;
const MiB = 2 ** 20;
const block = (fill: number, count = 1): Buffer => Buffer.alloc(count * BLOCK_SIZE, fill);

async function harnessWith(options = {}, capacityBytes = 16 * MiB): Promise<SimHarness> {
  const h = new SimHarness(new Prng(9), { ...TINY, ...options }, capacityBytes);
  await h.open();
  await h.wait(durable((done) => h.store.createPg(PG, Buffer.alloc(0), done)));
  return h;
}
let seq = 0;
const change = (object: string, fields = {}): ReturnType<typeof transaction> =>
  transaction({ pg: PG, version: { interval: 1, seq: ++seq }, object, ...fields });
const apply = (h: SimHarness, object: string, fields = {}): Promise<void> =>
  h.wait(durable((done) => h.store.apply(change(object, fields), done)));
const remove = (h: SimHarness, object: string): Promise<void> =>
  apply(h, object, { kind: OpKind.remove, size: 0 });
const first = async (h: SimHarness, object: string): Promise<number | undefined> =>
  (await h.wait(h.store.read(PG, object, 0, 1)))?.data[0]?.[0];
const sleep = (h: SimHarness, ms: number): Promise<void> =>
  h.wait(new Promise<void>((resolve) => void h.clock.schedule(ms, resolve)));

void t.test("both stores say how much room there is, and have it back after deletes", async (t) => {
  const h = await harnessWith();
  const memory = new MemoryStore(
    h.clock.forNode(() => true),
    undefined,
    4 * MiB,
  );
  await h.wait(durable((done) => memory.createPg(PG, Buffer.alloc(0), done)));
  for (const store of [h.store, memory]) {
    const before = store.usage();
    t.equal(before.used, 0);
    t.ok(before.total > 0 && before.total < 16 * MiB, `${before.total} bytes`);
    const write = (count: number, seq: number): Promise<void> => {
      const version = { interval: 1, seq };
      const data = [block(1, count)];
      const op = transaction({ pg: PG, version, object: `o${seq}`, data });
      return h.wait(durable((done) => store.apply(op, done)));
    };
    await write(100, 1);
    await write(1, 2);
    t.equal(store.usage().used, 101 * BLOCK_SIZE);
    t.equal(store.usage().total, before.total, "used space is part of it");
    for (const seq of [3, 4]) {
      const version = { interval: 1, seq };
      const kind = OpKind.remove;
      const op = transaction({ pg: PG, version, object: `o${seq - 2}`, kind, size: 0 });
      await h.wait(durable((done) => store.apply(op, done)));
    }
    await sleep(h, 3_000);
    t.equal(store.usage().used, 0);
    t.equal(store.usage().total, before.total, "the room is back");
  }
  await h.end();
});

void t.test("usage tells the truth about others on the disk and after a restart", async (t) => {
  const h = await harnessWith();
  const empty = h.store.usage().total;
  for (let i = 0; i < 40; i++) await apply(h, `o${i}`, { data: [block(i, 32)] });
  for (let i = 0; i < 40; i++) if (i % 2 === 0) await remove(h, `o${i}`);
  const { used } = h.store.usage();
  t.equal(used, 20 * 32 * BLOCK_SIZE);
  await h.crash();
  await sleep(h, 2_000);
  t.equal(h.store.usage().used, used);
  t.equal(h.store.usage().total, empty, "free blocks inside the data files count");
  const other = await h.wait(h.disk.attach().open("other", { create: true }));
  await h.wait(other.write([Buffer.alloc(2 * MiB)], 0));
  await sleep(h, 2_000);
  h.store.usage(); // Who asks has the file system asked again.
  await sleep(h, 1_000);
  t.equal(h.store.usage().total, empty - 2 * MiB);
  await h.end();
});

void t.test("space of removed objects goes back to the file system on a crowded disk", async (t) => {
  const h = await harnessWith({ dataFileBytes: 4 * MiB });
  const available = async (): Promise<number> =>
    (await h.wait(h.disk.attach().usage())).available;
  const before = await available();
  let count = 0;
  for (; h.store.usage().used < h.store.usage().total * 0.9; count++) {
    await apply(h, `o${count}`, { data: [block(count, 128)] });
  }
  t.ok((await available()) < before / 4, "the disk is crowded");
  for (let i = 0; i < count; i++) await remove(h, `o${i}`);
  for (let i = 0; i < 20; i++) {
    await apply(h, "small", { data: [block(i)] });
    await sleep(h, 200);
  }
  t.ok((await available()) > before / 2, `${await available()} of ${before}`);
  t.ok(h.store.counters()["punchedBlocks"]! > 1_000);
  // What was punched is used again like any other block.
  for (let i = 0; i < 20; i++) await apply(h, `again${i}`, { data: [block(i + 1, 64)] });
  await h.reopen();
  for (let i = 0; i < 20; i++) t.equal(await first(h, `again${i}`), i + 1);
  await h.end();
});

void t.test("without a byte left nothing fails: work waits, reads go on, a restart too", async (t) => {
  const h = await harnessWith({ reserveBytes: 256 * 1024 });
  for (let i = 0; i < 10; i++) await apply(h, `o${i}`, { data: [block(i + 1, 8)] });
  const none = (operation: string, path: string): Error | undefined =>
    operation === "commit" || (operation === "write" && path.startsWith("data"))
      ? new DssError("NoSpace", `no space for ${path}`)
      : undefined;
  h.disk.fault = none;
  for (let i = 0; i < 10; i++) await apply(h, `s${i}`, { data: [block(i + 101)] });
  await sleep(h, 3_000);
  t.equal(h.store.counters()["reserveUses"], 1, "the reserve went first");
  t.ok(h.store.counters()["spaceWaits"]! > 0, "then it waits");
  t.equal(h.store.usage().total, h.store.usage().used, "and says that it is full");
  t.equal(await first(h, "s3"), 104);
  // Deletes are accepted as long as the log has room.
  for (let i = 0; i < 5; i++) await remove(h, `o${i}`);
  for (let round = 0; round < 3; round++) {
    await h.crash();
    t.equal(await first(h, "s3"), 104, "what was acknowledged is there after a power cut");
    t.equal(await first(h, "o7"), 8);
    t.equal(await first(h, "o3"), undefined);
    await apply(h, `r${round}`, { data: [block(round + 1)] });
  }
  h.disk.fault = undefined;
  await sleep(h, 5_000);
  await apply(h, "large", { data: [block(77, 64)] });
  t.ok(h.store.usage().total > h.store.usage().used + 4 * MiB, "normal again by itself");
  t.ok(h.disk.paths.includes("reserve"), "the reserve is set aside again");
  await h.reopen();
  for (let i = 0; i < 10; i++) t.equal(await first(h, `s${i}`), i + 101);
  t.equal(await first(h, "large"), 77);
  await h.end();
});

void t.test("a store that waits for space can be closed, and loses nothing", async (t) => {
  const h = await harnessWith();
  h.disk.fault = (operation) =>
    operation === "commit" ? new DssError("NoSpace", "no space") : undefined;
  for (let i = 0; i < 30; i++) await apply(h, `s${i}`, { data: [block(i + 1)] });
  await sleep(h, 3_000);
  await h.wait(h.store.close());
  h.disk.fault = undefined;
  await h.open();
  for (let i = 0; i < 30; i++) t.equal(await first(h, `s${i}`), i + 1);
  await h.end();
});

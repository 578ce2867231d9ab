/**
 * Damage of the structure where it is tolerated: what is lost is never taken for "not there", its
 * PG is marked in the same turn and for good, the rest is served, and the store works on.
 */
import t from "tap";
import { BLOCK_SIZE, blockChecksums } from "../../../../cluster/base/checksum.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { VERSION_ZERO, type StructureDamage } from "../../../../osd/store/chunk-store.js";
import { objectKey } from "../../../../osd/store/index-format.js";
import { durable, SimHarness, TINY, transaction } from "./harness.js";

const PG = 65_536;
const OTHER = 65_537;
const DAMAGED = Buffer.from("damaged");
const block = (fill: number, count = 1): Buffer => Buffer.alloc(count * BLOCK_SIZE, fill);

let seq = 0;
const apply = (h: SimHarness, object: string, fill: number, pg = PG): Promise<void> => {
  const version = { interval: 1, seq: ++seq };
  const change = transaction({ pg, version, object, data: [block(fill, 2)], client: 70_000 });
  return h.wait(durable((done) => h.store.apply({ ...change, sequence: seq }, done)));
};
const read = (h: SimHarness, object: string, pg = PG): Promise<unknown> =>
  h.wait(h.store.read(pg, object, 0, BLOCK_SIZE));
const meta = (h: SimHarness, pg = PG): string => h.store.pgInfo(pg)!.meta.toString();

/** Two PGs with five objects each, all of them in the index. */
async function filled(options = {}): Promise<SimHarness> {
  const h = new SimHarness(new Prng(7), { ...TINY, checkpointMs: 1_000_000, ...options });
  h.damagedMeta = DAMAGED;
  await h.open();
  for (const pg of [PG, OTHER]) {
    await h.wait(durable((done) => h.store.createPg(pg, Buffer.from("sound"), done)));
    for (let i = 0; i < 5; i++) await apply(h, `o${i}`, i + 1, pg);
  }
  await h.reopen();
  return h;
}
async function change(h: SimHarness, work: (keys: Buffer[]) => Buffer[]): Promise<void> {
  const index = await h.wait(h.disk.attach().openStore("index"));
  const all = { start: Buffer.from([0]), end: Buffer.from([255]) };
  const keys = [...index.range(all)].map(({ key }) => Buffer.from(key));
  await h.wait(index.commit({ puts: [], deletes: work(keys) }));
}

t.test("a damaged value costs its PG its trust, not the store its life", async (t) => {
  for (const prefix of [2, 3, 5]) {
    const h = await filled();
    await h.end();
    h.disk.flipIndexBit("index", Buffer.from([prefix]));
    for (const when of ["first", "again"]) {
      await h.open();
      const about = `prefix ${prefix}, ${when}`;
      t.equal(meta(h), "damaged", about);
      t.equal(meta(h, OTHER), "sound", about);
      t.equal(h.store.pgInfo(PG)!.objects, prefix === 3 ? 4 : 5, about);
      t.equal(h.store.list(PG, "", 9).length, prefix === 3 ? 4 : 5, about);
      t.ok(await read(h, "o4"), about);
      t.ok(await read(h, "o0", OTHER), about);
      t.equal(h.store.mayLackPgs, true);
      const found: StructureDamage[] = [];
      h.store.onDamage((damage) => found.push(damage));
      t.same(
        found.map(({ pg }) => pg),
        when === "first" ? [PG] : [PG, OTHER],
        "as long as nobody has noted what was lost, all is suspect",
      );
      if (when === "first") await h.wait(h.store.lackNoted());
      await h.crash();
      if (when === "first") {
        t.equal(h.store.mayLackPgs, false);
        h.store.onDamage((damage) => t.fail(damage.message));
      }
      await h.end();
      if (when === "first") break;
    }
  }
});

t.test("a lost object is damage, not absence, in a running store, too", async (t) => {
  for (const how of ["flipped", "gone"] as const) {
    const h = await filled({ cacheBytes: 0 });
    const found: StructureDamage[] = [];
    h.store.onDamage((damage) => found.push(damage));
    if (how === "flipped") h.disk.flipIndexBit("index", objectKey(PG, "o2"));
    else await change(h, () => [objectKey(PG, "o2")]);
    t.equal(h.store.stat(PG, "none"), undefined, "what never was is not there");
    t.throws(() => h.store.stat(PG, "o2"), { code: "Corrupt", pg: PG }, how);
    t.equal(h.store.stat(PG, "o2"), undefined, "from now on the mark says what is known");
    t.equal(meta(h), "damaged", "marked in the same turn");
    t.match(found, [{ pg: PG }]);
    t.equal(h.store.pgInfo(PG)!.objects, 4);
    t.equal(h.store.pgInfo(PG)!.bytes, 8 * BLOCK_SIZE, "counts are right again");
    t.ok(await read(h, "o3"));
    const version = { interval: 1, seq: 3 };
    const seqs = { truncateSeq: 0, snapSeq: 0 };
    const info = { size: BLOCK_SIZE, version, mtimeNs: 1n, ...seqs, allocated: BLOCK_SIZE };
    const extents = [{ offset: 0, data: block(3), sums: blockChecksums(block(3)) }];
    await h.wait(durable((done) => h.store.install(PG, "o2", { info, extents }, done)));
    await h.clock.advance(500);
    await h.crash();
    h.store.onDamage((damage) => t.fail(damage.message));
    t.equal(meta(h), "damaged");
    t.ok(await read(h, "o2"), "a copy takes its place");
    await h.reopen();
    t.equal(h.store.pgInfo(PG)!.objects, 5);
    await h.end();
  }
});

t.test("a write to a lost object changes nothing before the damage is known", async (t) => {
  const h = await filled({ cacheBytes: 0 });
  h.store.onDamage(() => undefined);
  const { last } = h.store.pgInfo(PG)!;
  h.disk.flipIndexBit("index", objectKey(PG, "o2"));
  await t.rejects(apply(h, "o2", 9), { code: "Corrupt", pg: PG });
  t.same(h.store.pgInfo(PG)!.last, last);
  await h.end();
});

t.test("scrub of the index rewrites what memory knows and finds what is lost", async (t) => {
  const h = await filled({ cacheBytes: 1 << 20 });
  t.match(await h.wait(h.store.verifyIndex(PG)), { damaged: 0, lost: false });
  t.ok(await read(h, "o1"), "now it is in memory");
  h.disk.flipIndexBit("index", objectKey(PG, "o1"));
  for (const prefix of [2, 5]) h.disk.flipIndexBit("index", Buffer.from([prefix]));
  t.match(await h.wait(h.store.verifyIndex(PG)), { damaged: 3, lost: false });
  t.match(
    await h.wait(h.store.verifyIndex(PG)),
    { damaged: 0 },
    "not found again: it is mended on disk",
  );
  await h.reopen();
  h.store.onDamage((damage) => t.fail(damage.message));
  t.match(await h.wait(h.store.verifyIndex(PG)), { damaged: 0, lost: false });
  t.equal(meta(h), "sound");
  h.store.onDamage(() => undefined);
  await change(h, () => [objectKey(PG, "o4")]);
  h.disk.flipIndexBit("index", objectKey(PG, "o3"));
  t.match(await h.wait(h.store.verifyIndex(PG)), { damaged: 1, lost: true });
  t.equal(meta(h), "damaged");
  t.equal(h.store.pgInfo(PG)!.objects, 3);
  t.match(await h.wait(h.store.verifyIndex(PG)), { damaged: 0, lost: false });
  await h.end();
});

t.test("a damaged piece of the log shortens the log", async (t) => {
  const h = await filled();
  const { last } = h.store.pgInfo(PG)!;
  h.disk.flipIndexBit("index", Buffer.from([4]));
  t.equal(h.store.log(PG, VERSION_ZERO, 99), undefined, "it does not reach back any more");
  t.same(h.store.log(PG, last, 99), []);
  t.equal(meta(h), "sound", "no object is affected");
  await apply(h, "o0", 9);
  t.equal(h.store.log(PG, last, 99)?.length, 1);
  await h.reopen();
  t.equal(h.store.log(PG, last, 99)?.length, 1);
  t.match(h.store.pgInfo(PG), { logTail: last });
  await h.end();
});

t.test("a lost group of the log: all PGs are suspect, and the log goes on", async (t) => {
  const h = await filled();
  for (const [i, fill] of [0x71, 0x72, 0x73].entries()) await apply(h, `o${i}`, fill);
  const [path, position] = h.disk.paths
    .filter((name) => name.startsWith("wal"))
    .flatMap((name) => {
      const bytes = h.disk.file(name);
      for (let at = 0; at + BLOCK_SIZE <= bytes.length; at += BLOCK_SIZE) {
        if (bytes.compare(block(0x72), 0, BLOCK_SIZE, at, at + BLOCK_SIZE) === 0) return [name, at];
      }
      return [];
    }) as [string, number];
  h.cut();
  h.disk.flipBit(path, position - BLOCK_SIZE + 100);
  await h.open();
  for (const pg of [PG, OTHER]) t.equal(meta(h, pg), "damaged");
  t.equal(h.store.mayLackPgs, true);
  await h.wait(h.store.lackNoted());
  const first = await h.wait(h.store.read(PG, "o0", 0, 1));
  t.same(first?.data[0], block(0x71), "what came before is there");
  seq += 10;
  await apply(h, "o3", 0x74);
  await h.crash();
  h.store.onDamage((damage) => t.equal(damage, undefined));
  t.same((await h.wait(h.store.read(PG, "o3", 0, 1)))?.data[0], block(0x74));
  t.equal(h.store.mayLackPgs, false, "the old groups are never looked at again");
  await h.end();
});

t.test("without a word on how far the index goes the store starts over, and says so", async (t) => {
  const h = await filled();
  const { uuid } = h.store;
  await h.end();
  h.disk.flipIndexBit("index", Buffer.from([1]), 0);
  await h.open();
  t.equal(h.store.listPgs().length, 2, "one of the two notes is enough");
  await h.end();
  h.disk.flipIndexBit("index", Buffer.from([1]), 1);
  await h.open();
  t.same(h.store.listPgs(), []);
  t.equal(h.store.uuid, uuid, "it is the same member");
  t.equal(h.store.mayLackPgs, true);
  await h.crash();
  t.equal(h.store.mayLackPgs, true, "until somebody has noted it");
  await h.wait(durable((done) => h.store.createPg(PG, DAMAGED, done)));
  await h.wait(h.store.lackNoted());
  await apply(h, "o1", 1);
  await h.reopen();
  t.equal(h.store.mayLackPgs, false);
  t.ok(await read(h, "o1"));
  await h.end();
});

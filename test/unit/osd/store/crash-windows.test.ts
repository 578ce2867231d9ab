/**
 * The narrow windows of the crash argument (docs/on-disk.md), each entered on purpose: the log's
 * last group is durable but not yet declared, and the blocks that recovery would verify change.
 */
import t, { type Test } from "tap";
import { BLOCK_SIZE } from "../../../../cluster/base/checksum.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { OpKind } from "../../../../osd/store/chunk-store.js";
import { durable, SimHarness, TINY, transaction } from "./harness.js";

const PG = 65_536;
const SEEDS = 60;
const block = (fill: number, count = 1): Buffer => Buffer.alloc(count * BLOCK_SIZE, fill);

/**
 * A store whose last group, just durable and not declared, did `changes`; then `after` and a power
 * cut.
 */
async function scenario(
  seed: number,
  changes: { object: string; fields: object }[],
  after: (h: SimHarness, random: Prng) => Promise<void>,
  cut = true,
): Promise<SimHarness> {
  const random = new Prng(seed);
  const h = new SimHarness(random.fork(), {
    ...TINY,
    checkpointMs: 1e6,
    overlayBytesMax: 96 * 1024,
  });
  await h.open();
  await h.wait(durable((done) => h.store.createPg(PG, Buffer.alloc(0), done)));
  await h.wait(
    Promise.all(
      changes.map(({ object, fields }, i) =>
        durable((done) =>
          h.store.apply(
            transaction({
              pg: PG,
              version: { interval: 1, seq: i + 1 },
              object,
              size: 1 << 20,
              ...fields,
            }),
            done,
          ),
        ),
      ),
    ),
  );
  await after(h, random);
  if (cut) h.cut();
  return h;
}

void t.test(
  "blocks freed in the last group are not written to before it is declared",
  async (t) => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const changes = [
        { object: "o", fields: { data: [block(1, 8)] } },
        { object: "o", fields: { kind: OpKind.remove, size: 0 } },
      ];
      const h = await scenario(seed, changes, async (store, random) => {
        const next = transaction({
          pg: PG,
          version: { interval: 1, seq: 9 },
          object: "p",
          data: [block(2, 8)],
        });
        store.store.apply(next, () => undefined);
        await store.clock.advance(random.float() * 0.9);
      });
      await h.open();
      const { last } = h.store.pgInfo(PG)!;
      t.ok(last.seq >= 2, `seed ${seed}: an acknowledged group stays`);
    }
  },
);

const directThenSmall = [
  { object: "o", fields: { data: [block(1, 20)] } },
  ...Array.from({ length: 15 }, (_, i) => ({
    object: "o",
    fields: { offset: i * BLOCK_SIZE, data: [block(100 + i)] },
  })),
];

async function check(t: Test, h: SimHarness, seed: number): Promise<boolean> {
  const last = h.store.pgInfo(PG)!.last.seq;
  const read = await h.wait(h.store.read(PG, "o", 0, 20 * BLOCK_SIZE));
  const found = Buffer.concat(read?.data ?? []);
  const good = Array.from({ length: 20 }, (_, i) => (i < 15 ? 100 + i : 1)).every(
    (fill, i) => found[i * BLOCK_SIZE + 9] === fill,
  );
  if (last < directThenSmall.length || !good) {
    t.fail(`seed ${seed}: at version ${last}, bytes ${good ? "right" : "wrong"}`);
    return false;
  }
  return true;
}

void t.test(
  "blocks written in the last group are not flushed over before it is declared",
  async (t) => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      // 15 small blocks crowd the overlay: a flush starts as soon as the group is durable.
      const h = await scenario(seed, directThenSmall, (store, random) =>
        store.clock.advance(random.float() * 2),
      );
      await h.open();
      if (!(await check(t, h, seed))) return;
    }
    t.pass();
  },
);

void t.test("a recovery that is cut short leaves what it found", async (t) => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const h = await scenario(seed, directThenSmall, async () => undefined);
    const random = new Prng(seed);
    for (let cuts = random.int(1, 3); cuts > 0; cuts--) {
      void h.open().catch(() => undefined);
      await h.clock.advance(random.float() * 12);
      h.cut();
    }
    await h.open();
    if (!(await check(t, h, seed))) return;
  }
  t.pass();
});

void t.test("what a store shows after its process was killed survives a power cut", async (t) => {
  let shown = 0;
  for (let seed = 1; seed <= 2 * SEEDS; seed++) {
    const h = await scenario(seed, directThenSmall.slice(0, 1), async () => undefined, false);
    const random = new Prng(seed);
    // Small writes are flushed, and synced with them whatever else is in their data file.
    const sizes = random.chance(0.5) ? [8] : [1, 8];
    for (let seq = 2; seq < 9; seq++) {
      const data = [block(seq, random.pick(sizes))];
      const version = { interval: 1, seq };
      h.store.apply(transaction({ pg: PG, version, object: `o${seq}`, data }), () => undefined);
      if (random.chance(0.5)) await h.clock.advance(random.float());
    }
    await h.clock.advance(random.float());
    h.kill();
    await h.open();
    const before = h.store.pgInfo(PG)!.last.seq;
    shown += before;
    h.cut();
    await h.open();
    if (h.store.pgInfo(PG)!.last.seq < before) {
      return void t.fail(`seed ${seed}: version ${before} was shown and is lost`);
    }
    for (let seq = 2; seq <= before; seq++) {
      const read = await h.wait(h.store.read(PG, `o${seq}`, 0, BLOCK_SIZE));
      const good = Buffer.concat(read?.data ?? [])[9] === seq;
      if (!good) return void t.fail(`seed ${seed}: the bytes of version ${seq} are lost`);
    }
  }
  t.ok(shown > 4 * SEEDS, "the kill came after some were written");
});

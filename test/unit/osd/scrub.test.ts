/** Scrub: the pure decisions, and what it finds and puts right under a simulated cluster. */
import t from "tap";
import { BLOCK_SIZE } from "../../../cluster/base/checksum.js";
import {
  compareCopies,
  judgeCopies,
  NEVER_SCRUBBED,
  scrubDue,
  type Copy,
  type CopyRow,
} from "../../../osd/core/scrub.js";
import { DamageWorld } from "../../support/damage-world.js";

const row = (object: string, seq = 1, digest = 7): CopyRow => {
  return { object, size: 10, version: { interval: 1, seq }, truncateSeq: 0, snapSeq: 0, digest };
};
const copies = (...rows: (CopyRow | undefined)[]): Copy[] =>
  rows.map((found, member) => ({ member, row: found }));

t.test("a chunk reaches as far as every listing does", (t) => {
  const all = [
    { member: 0, rows: [row("a"), row("b"), row("d")], complete: false },
    { member: 1, rows: [row("a"), row("c"), row("d")], complete: false },
    { member: 2, rows: [row("a", 2), row("b"), row("c"), row("d"), row("e")], complete: true },
  ];
  t.same(compareCopies(all), {
    objects: ["a", "b", "c", "d"],
    suspects: ["a", "b", "c"],
    cursor: "d",
  });
  const ended = all.map((listing) => ({ ...listing, complete: true }));
  t.match(compareCopies(ended), { suspects: ["a", "b", "c", "e"], cursor: undefined });
  t.same(compareCopies([{ member: 0, rows: [], complete: true }]), {
    objects: [],
    suspects: [],
    cursor: undefined,
  });
  t.end();
});

t.test("the newest version is right, then the content of most, then the primary's", (t) => {
  const judge = (found: Copy[], primary = 0) => judgeCopies(found, primary, undefined);
  t.same(judge(copies(row("o"), row("o"))), { verdict: "equal" });
  t.same(judge(copies(undefined, undefined)), { verdict: "equal" });
  t.same(judge(copies(row("o", 1), row("o", 2), row("o", 1))), {
    verdict: "copy",
    source: 1,
    wrong: [0, 2],
  });
  const digests = copies(row("o", 1, 1), row("o", 1, 2), row("o", 1, 2));
  t.match(judge(digests), { source: 1, wrong: [0] });
  t.match(judge(copies(row("o", 1, 1), row("o", 1, 2)), 1), { source: 1, wrong: [0] });
  t.match(judge(copies(row("o"), undefined, row("o"))), { source: 0, wrong: [1] });
  t.end();
});

t.test("a missing object was removed if the log says so, or most members", (t) => {
  const one = copies(undefined, row("o", 5), undefined);
  const removed = (seq: number) => ({ version: { interval: 1, seq }, removed: true });
  t.same(judgeCopies(one, 0, undefined), { verdict: "remove", wrong: [1] });
  t.same(judgeCopies(copies(undefined, row("o", 5)), 0, undefined).verdict, "copy", "a tie keeps");
  const two = copies(undefined, row("o", 5), row("o", 5));
  t.same(judgeCopies(two, 0, removed(6)), { verdict: "remove", wrong: [1, 2] });
  t.match(judgeCopies(two, 0, removed(4)), { verdict: "copy", wrong: [0] });
  const written = { version: { interval: 1, seq: 5 }, removed: false };
  t.match(judgeCopies(one, 0, written), { verdict: "copy", source: 1, wrong: [0, 2] });
  t.end();
});

t.test("scrubs come in their time, and the first ones are spread", (t) => {
  const intervals = { lightMs: 100, deepMs: 700 };
  const stamps = { ...NEVER_SCRUBBED, lightMs: 1_000, deepMs: 900 };
  const due = (nowMs: number) => scrubDue(stamps, { nowMs, knownMs: 0, pg: 9 }, intervals);
  t.equal(due(1_099), undefined);
  t.equal(due(1_100), "light");
  t.equal(due(1_600), "deep");
  const firsts = new Set<number>();
  for (let pg = 0; pg < 64; pg++) {
    let at = 0;
    while (scrubDue(NEVER_SCRUBBED, { nowMs: at, knownMs: 0, pg }, intervals) === undefined) at++;
    t.ok(at <= intervals.lightMs, `${at}`);
    firsts.add(at);
  }
  t.ok(firsts.size > 30, `${firsts.size} different instants`);
  t.end();
});

const bytes = (fill: number, blocks = 1): Buffer => Buffer.alloc(blocks * BLOCK_SIZE, fill);

t.test("a deep scrub repairs damage on every member that nobody has read", async (t) => {
  const world = new DamageWorld();
  await world.start();
  const names = Array.from({ length: 200 }, (_, i) => `${i}.0`);
  for (const name of names) await world.write(name, 0, bytes(1, 2));
  const [object] = names as [string];
  const { inSync } = world.entry(object);
  for (const [i, osd] of inSync.entries()) world.damage(object, (i % 2) * BLOCK_SIZE, [osd]);
  t.match(await world.scrub(object, false), { found: 0, left: 0 }, "a light one reads no bytes");
  t.match(await world.scrub(object, true), { found: 3, left: 0 });
  for (const osd of inSync) t.same(await world.badBlocks(object, osd), []);
  t.match(await world.scrub(object, true), { found: 0, left: 0 });
  const seen = inSync.map((osd) => world.world.running.get(osd)!.daemon.status().damageSeenMs);
  for (const ms of seen) t.type(ms, "number", "health can tell");
});

t.test("what every copy has damaged is told until it is overwritten", async (t) => {
  const world = new DamageWorld();
  await world.start();
  await world.write("1.0", 0, bytes(1, 2));
  const { inSync, primary } = world.entry("1.0");
  world.damage("1.0", BLOCK_SIZE, inSync);
  t.match(await world.scrub("1.0", true), { found: 3, left: 3 });
  for (const osd of inSync) t.same(world.damagedObjects("1.0", osd), ["1.0"]);
  await world.write("1.0", BLOCK_SIZE, bytes(2));
  await world.until("it is told no more", () =>
    inSync.every((osd) => world.damagedObjects("1.0", osd).length === 0),
  );
  t.match(await world.scrub("1.0", true), { found: 0, left: 0 });
  t.equal(world.counter(primary, "deepScrubs"), 2);
});

t.test("missing, stale and extra copies are put right, also on the primary", async (t) => {
  for (const onPrimary of [false, true]) {
    const world = new DamageWorld();
    await world.start();
    const pg = world.pgOf("1.0");
    const names = Array.from({ length: 40 }, (_, i) => `${i}.0`).filter(
      (name) => world.pgOf(name) === pg,
    );
    const [stale, missing, extra] = names as [string, string, string];
    for (const name of names) await world.write(name, 0, bytes(1));
    const { primary } = world.entry(stale);
    const victim = onPrimary ? primary : world.replicas(stale)[0]!;
    const store = world.stores.get(victim)!;
    const durably = (work: (done: (error?: Error) => void) => void) =>
      world.wait(new Promise<void>((resolve) => work(() => resolve())));
    const old = (await store.image(pg, stale))!;
    await world.write(stale, 0, bytes(2));
    await durably((done) => store.install(pg, stale, old, done));
    await durably((done) => store.discard(pg, missing, done));
    const leftover = { ...old, info: { ...old.info, version: { interval: 0, seq: 0 } } };
    await durably((done) => store.install(pg, `${extra}.left`, leftover, done));
    t.match(await world.scrub(stale, false), { found: 3, left: 0 }, `primary: ${onPrimary}`);
    t.equal(store.stat(pg, `${extra}.left`), undefined);
    t.same(await world.read(stale, 0, BLOCK_SIZE), bytes(2));
    t.same(await world.read(missing, 0, BLOCK_SIZE), bytes(1));
    const digests = world.entry(stale).inSync.map((osd) =>
      names.map((name) => world.stores.get(osd)!.digest(pg, name)),
    );
    for (const each of digests) t.same(each, digests[0]);
    t.match(await world.scrub(stale, true), { found: 0, left: 0 });
  }
});

t.test("writes go on during a scrub, and are no findings of it", async (t) => {
  const world = new DamageWorld();
  await world.start();
  const names = Array.from({ length: 100 }, (_, i) => `${i}.0`);
  for (const name of names) await world.write(name, 0, bytes(1));
  let isOver = false;
  let written = 0;
  const load = async (worker: number): Promise<void> => {
    for (let i = worker; !isOver; i = (i + 3) % names.length, written++) {
      const options = { truncation: { seq: 0, size: 0 }, minEpoch: 0, mtimeNs: 2n };
      const address = world.address(names[i]!);
      await world.client.objects.write(address, 0, [bytes((i % 250) + 1)], options);
    }
  };
  const loads = [0, 1, 2].map(load);
  for (let i = 0; i < 5; i++) t.match(await world.scrub("1.0", true), { found: 0, left: 0 });
  isOver = true;
  await world.wait(Promise.all(loads));
  t.ok(written > 20, `${written} writes`);
});

t.test("a scrub goes on under a new primary, and its stamp is known there", async (t) => {
  const world = new DamageWorld();
  await world.start();
  for (let i = 0; i < 50; i++) await world.write(`${i}.0`, 0, bytes(1));
  const before = await world.scrub("1.0", true);
  const { primary } = world.entry("1.0");
  world.world.crashOsd(primary);
  await world.until("another serves", () => world.entry("1.0").primary !== primary);
  const after = await world.scrub("1.0", false);
  t.equal(after.deepMs, before.deepMs);
});

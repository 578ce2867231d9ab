/** The block allocator and the quarantine of freed blocks. */
import t from "tap";
import { Prng } from "../../../../cluster/base/prng.js";
import { BlockAllocator, Quarantine } from "../../../../osd/store/extent-map.js";

void t.test("the allocator never gives a block twice and uses holes again", async (t) => {
  const random = new Prng(3);
  const allocator = new BlockAllocator();
  const held = new Set<number>();
  for (let step = 0; step < 3_000; step++) {
    if (random.chance(0.55)) {
      const count = random.int(1, 60);
      const near = held.size > 0 && random.chance(0.3) ? [...held][0]! : -1;
      const runs = allocator.allocate(count, near);
      if (runs.reduce((sum, run) => sum + run.count, 0) !== count) t.fail("a wrong amount");
      for (const run of runs) {
        for (let i = 0; i < run.count; i++) {
          if (held.has(run.start + i)) t.fail(`block ${run.start + i} twice`);
          held.add(run.start + i);
        }
      }
    } else {
      for (const block of [...held].slice(0, random.int(0, 80))) {
        allocator.release(block);
        held.delete(block);
      }
    }
    if (allocator.used !== held.size) t.fail("the count is wrong");
  }
  t.ok(allocator.highWater < 12_000, `grew to ${allocator.highWater} for ${held.size}`);
  t.throws(() => allocator.release(1e6), /freed twice/);
});

void t.test("a large request finds one run, a small one its neighbour", async (t) => {
  const allocator = new BlockAllocator();
  const [first] = allocator.allocate(100, -1);
  t.same(first, { start: 0, count: 100 });
  for (let block = 20; block < 40; block++) allocator.release(block);
  t.same(allocator.allocate(1, 19), [{ start: 20, count: 1 }]);
  t.same(allocator.allocate(50, -1), [{ start: 100, count: 50 }], "not in the gap of 19");
  t.notOk(allocator.claim(5));
  t.ok(allocator.claim(500));
  t.equal(allocator.highWater, 501);
});

void t.test("a freed block waits for the log and for its readers", async (t) => {
  const allocator = new BlockAllocator();
  allocator.allocate(10, -1);
  const quarantine = new Quarantine(allocator);
  const early = quarantine.beginUse();
  quarantine.add(3, 7);
  const late = quarantine.beginUse();
  quarantine.release(6);
  t.ok(allocator.isUsed(3));
  quarantine.release(7);
  t.ok(allocator.isUsed(3), "a reader that began before may still read it");
  quarantine.endUse(early);
  quarantine.release(6);
  t.ok(allocator.isUsed(3), "the log first");
  quarantine.release(7);
  t.notOk(allocator.isUsed(3), "a reader that began later cannot have seen it");
  quarantine.endUse(late);
  t.equal(quarantine.blocks, 0);
});

/** The OSD's pure parts: block merging, range locks, peering's decision, striping. */
import t from "tap";
import { BLOCK_SIZE, blockChecksums } from "../../../cluster/base/checksum.js";
import { Prng } from "../../../cluster/base/prng.js";
import {
  extentsOf,
  fileSizeProvedBy,
  objectCount,
  objectSizeWithin,
} from "../../../osd/client/striper.js";
import { edgesToRead, mergeBlocks } from "../../../osd/core/blocks.js";
import { planPeering, type MemberInfo } from "../../../osd/core/peering.js";
import { RangeLocks, WHOLE } from "../../../osd/core/range-locks.js";

t.test("merged blocks are the old object with the write on it", (t) => {
  const random = new Prng(5);
  for (let round = 0; round < 500; round++) {
    const size = random.int(0, 5 * BLOCK_SIZE);
    const old = Buffer.alloc(Math.ceil(size / BLOCK_SIZE) * BLOCK_SIZE);
    random.bytes(size).copy(old);
    const offset = random.int(0, 6 * BLOCK_SIZE);
    const data = random.bytes(random.int(1, 3 * BLOCK_SIZE));
    const { head, tail } = edgesToRead(offset, data.length, size);
    const edge = (block: number): Buffer | undefined =>
      block === head || block === tail ? old.subarray(block, block + BLOCK_SIZE) : undefined;
    const merged = mergeBlocks(offset, data, blockChecksums(data), edge);
    const end = offset + data.length;
    const wanted = Buffer.alloc(Math.ceil(Math.max(end, size) / BLOCK_SIZE) * BLOCK_SIZE);
    old.copy(wanted);
    data.copy(wanted, offset);
    const bytes = Buffer.concat(merged.data);
    t.equal(merged.offset % BLOCK_SIZE, 0);
    t.equal(bytes.length % BLOCK_SIZE, 0);
    t.ok(
      bytes.equals(wanted.subarray(merged.offset, merged.offset + bytes.length)),
      `size ${size}, ${offset}+${data.length}`,
    );
    t.same(merged.sums, blockChecksums(bytes));
  }
  t.end();
});

t.test("range locks: readers share, overlapping writers queue in order, none starves", (t) => {
  const locks = new RangeLocks();
  const order: string[] = [];
  const enter = (name: string) => (): void => void order.push(name);
  const w1 = locks.acquire(0, 10, false, enter("w1"));
  const r1 = locks.acquire(5, 15, true, enter("r1"));
  const w2 = locks.acquire(20, 30, false, enter("w2"));
  const w3 = locks.acquire(12, 22, false, enter("w3"));
  const r2 = locks.acquire(14, 15, true, enter("r2"));
  t.same(order, ["w1", "w2"], "r2 does not overtake w3, which waits for r1");
  locks.release(w1);
  t.same(order, ["w1", "w2", "r1"]);
  locks.release(r1);
  t.same(order, ["w1", "w2", "r1"], "w3 still waits for w2");
  locks.release(w2);
  t.same(order, ["w1", "w2", "r1", "w3"]);
  locks.release(w3);
  t.same(order, ["w1", "w2", "r1", "w3", "r2"]);
  locks.release(r2);
  t.ok(locks.idle);
  const whole = locks.acquire(0, WHOLE, false, enter("all"));
  locks.acquire(7, 8, true, enter("later"));
  t.notOk(order.includes("later"));
  locks.release(whole);
  t.ok(order.includes("later"));
  t.end();
});

function member(
  id: number,
  interval: number,
  seq: number,
  extra: Partial<MemberInfo> = {},
): MemberInfo {
  const last = { interval, seq };
  const logTail = { interval: 0, seq: 0 };
  const rest = { objects: 0, missing: [], base: last, unfinished: false };
  return { member: id, exists: true, last, logTail, ...rest, ...extra };
}

t.test("peering: the longest log wins and the others catch up", (t) => {
  t.same(planPeering([member(1, 3, 10), member(2, 3, 12), member(3, 4, 11)]), {
    plan: "catch-up",
    authority: 3,
    target: { interval: 4, seq: 11 },
    lagging: [
      { member: 1, after: { interval: 3, seq: 10 }, create: false },
      { member: 2, after: { interval: 3, seq: 12 }, create: false },
    ],
  });
  const nobody = [1, 2].map((id) => member(id, 0, 0, { exists: false }));
  t.same(planPeering(nobody), { plan: "create" });
  const halfCreated = planPeering([member(1, 0, 0), member(2, 0, 0, { exists: false })]);
  t.match(halfCreated, { plan: "catch-up", lagging: [{ member: 2, create: true }] });
  t.end();
});

t.test("peering: lost data and a log that does not reach back are never papered over", (t) => {
  const lost = planPeering([member(1, 3, 10), member(2, 0, 0, { exists: false })]);
  t.match(lost, { plan: "expel", members: [2], reason: /osd\.2 .* does not have/ });
  const short = planPeering([
    member(1, 3, 900, { logTail: { interval: 3, seq: 500 } }),
    member(2, 3, 4),
  ]);
  t.match(short, { plan: "incomplete", reason: /does not reach back/ });
  const holey = planPeering([member(1, 3, 5, { missing: ["x"] }), member(2, 3, 5)]);
  t.match(holey, { plan: "catch-up", authority: 2 });
  const unfilled = planPeering([member(1, 3, 5), member(2, 3, 5, { unfinished: true })]);
  t.match(unfilled, { plan: "expel", members: [2], reason: /osd\.2 .* must be compared/ });
  const nobody = planPeering([
    member(1, 3, 5, { unfinished: true }),
    member(2, 0, 0, { exists: false }),
  ]);
  t.match(nobody, { plan: "incomplete" });
  const longer = planPeering([member(1, 3, 9, { unfinished: true }), member(2, 3, 5)]);
  t.match(longer, { plan: "expel", members: [1] }, "whatever its log says");
  const cut = planPeering([member(1, 3, 9, { logTail: { interval: 3, seq: 9 } }), member(2, 3, 9)]);
  t.match(cut, { plan: "catch-up", authority: 2 }, "the longer log of two that end alike");
  t.end();
});

t.test("peering: an entry whose bytes are nowhere is rolled back", (t) => {
  const base = { interval: 3, seq: 4 };
  const both = [
    member(1, 5, 8, { missing: ["x"], base: { interval: 3, seq: 5 } }),
    member(2, 5, 8, { missing: ["x", "y"], base }),
  ];
  t.same(planPeering(both), { plan: "roll-back", authority: 1, common: base, missing: ["x", "y"] });
  const lagging = planPeering([member(1, 5, 8, { missing: ["x"], base }), member(2, 3, 4)]);
  t.match(lagging, { plan: "roll-back", common: base }, "who lags does not have them either");
  t.match(planPeering([...both, member(3, 5, 8, { missing: ["y"] })]), { plan: "catch-up" });
  t.end();
});

t.test("striping: extents cover the range once, sizes agree with a walk over every byte", (t) => {
  const layouts = [
    { objectSize: 4096, stripeUnit: 4096, stripeCount: 1 },
    { objectSize: 4096, stripeUnit: 1024, stripeCount: 3 },
    { objectSize: 8192, stripeUnit: 512, stripeCount: 4 },
  ];
  for (const layout of layouts) {
    const limit = 3 * layout.objectSize * layout.stripeCount;
    const home = new Map<string, number>();
    for (let at = 0; at < limit; at += 256) {
      const [extent] = extentsOf(layout, at, 256);
      const key = `${extent!.index}:${extent!.offset}`;
      t.notOk(home.has(key), `${key} is used once`);
      home.set(key, at);
    }
    const random = new Prng(9);
    for (let round = 0; round < 200; round++) {
      const offset = random.int(0, limit - 1);
      const length = random.int(1, limit - offset);
      const extents = extentsOf(layout, offset, length);
      const total = extents.reduce((sum, extent) => sum + extent.length, 0);
      t.equal(total, length);
      for (const extent of extents) {
        t.ok(extent.offset + extent.length <= layout.objectSize);
      }
      const size = offset;
      const within = new Map<number, number>();
      for (const extent of extentsOf(layout, 0, size)) {
        const end = Math.max(within.get(extent.index) ?? 0, extent.offset + extent.length);
        within.set(extent.index, end);
      }
      t.equal(objectCount(layout, size), size === 0 ? 0 : Math.max(...within.keys()) + 1);
      for (let index = 0; index < objectCount(layout, limit); index++) {
        t.equal(objectSizeWithin(layout, index, size), within.get(index) ?? 0, `object ${index}`);
      }
      const proved = [...within].map(([index, bytes]) => fileSizeProvedBy(layout, index, bytes));
      t.equal(Math.max(0, ...proved), size);
    }
  }
  t.end();
});

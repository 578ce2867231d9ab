/**
 * The pure parts of leases and of recovery: grants, common logs, what is missing, steps of
 * backfill.
 */
import t from "tap";
import { GrantBook, NOBODY_KNOWN, ReadLease } from "../../../osd/core/leases.js";
import {
  compareListings,
  lastCommon,
  legalPhase,
  MISSING_MAX,
  planRecovery,
  type LogPart,
} from "../../../osd/core/recover.js";
import { VERSION_ZERO, type Version } from "../../../osd/core/version.js";
import { Slots } from "../../../cluster/base/slots.js";

const v = (interval: number, seq: number): Version => ({ interval, seq });
/** "3.5x": object x was touched by entry 5 of interval 3. */
function log(tail: Version, ...entries: string[]): LogPart {
  return {
    tail,
    entries: entries.map((text) => {
      const [, interval, seq, object] = /^(\d+)\.(\d+)(.)$/.exec(text)!;
      return { version: v(Number(interval), Number(seq)), object: object! };
    }),
  };
}

t.test("a grantor's promise outlasts the primary's belief, and is told to others only", (t) => {
  const book = new GrantBook(0, 1_000);
  t.equal(book.remaining(7, 1, 400).ms, 600, "after a start, anyone may hold a grant");
  t.equal(book.remaining(7, 1, 1_000).ms, 0);
  const lease = new ReadLease();
  lease.require([2, 3]);
  const sentAt = 2_000;
  book.grant(7, 1, sentAt + 5);
  lease.granted(2, sentAt + 1_000);
  t.equal(lease.until, -Infinity, "all members must grant");
  lease.granted(3, sentAt + 400);
  t.equal(lease.until, sentAt + 400, "the first to end ends it");
  t.ok(sentAt + book.remaining(7, 9, sentAt).ms >= sentAt + 1_000);
  t.equal(book.remaining(7, 1, sentAt + 5).ms, 0, "the grantee need not wait for itself");
  t.equal(book.remaining(8, 9, sentAt).ms, 0, "another PG");
  t.end();
});

t.test("two grantees within one lease: neither is believed to be alone", (t) => {
  const book = new GrantBook(-1_000, 1_000);
  book.grant(7, 1, 0);
  book.grant(7, 2, 500);
  t.equal(book.remaining(7, 1, 600).ms, 900);
  t.equal(book.remaining(7, 2, 600).ms, 900);
  t.equal(book.remaining(7, 1, 600).holder, NOBODY_KNOWN, "there are two");
  book.grant(7, 2, 1_600);
  t.equal(book.remaining(7, 2, 1_700).ms, 0, "the first one's has ended meanwhile");
  t.same(book.remaining(7, 1, 1_700), { ms: 900, holder: 2 }, "who may be asked");
  t.end();
});

t.test("a lease ends with its interval, and needs a learner once it is required", (t) => {
  const lease = new ReadLease();
  lease.require([]);
  t.equal(lease.until, Infinity, "alone");
  lease.require([2]);
  lease.granted(2, 500);
  lease.granted(2, 300);
  t.equal(lease.until, 500, "a late answer takes nothing back");
  lease.require([2, 3]);
  t.equal(lease.until, -Infinity);
  lease.granted(3, 450);
  t.equal(lease.until, 450);
  lease.reset();
  t.equal(lease.until, -Infinity);
  t.end();
});

t.test("logs part after the last entry that both have", (t) => {
  const ours = log(v(2, 4), "2.5a", "4.6b", "4.7c");
  t.same(lastCommon(ours, log(v(1, 1), "2.4z", "2.5a", "3.6d")), v(2, 5));
  t.same(lastCommon(ours, log(v(2, 4))), v(2, 4), "the tail itself");
  t.same(lastCommon(ours, log(v(1, 1), "2.3a", "2.4b")), v(2, 4), "our tail in its log");
  t.same(lastCommon(ours, log(v(4, 6), "4.7c")), v(4, 7));
  t.equal(lastCommon(ours, log(v(1, 1), "1.2a")), undefined);
  t.same(lastCommon(log(VERSION_ZERO, "2.1a"), log(VERSION_ZERO)), VERSION_ZERO);
  t.end();
});

t.test("what is missing: touched by either since, or missing before", (t) => {
  const ours = log(v(2, 4), "2.5a", "4.6b", "4.7c");
  const theirs = log(v(2, 4), "2.5a", "3.6d");
  const learner = { exists: true, objects: 3, missing: ["m"], cursor: undefined, log: theirs };
  const plan = planRecovery(ours, learner);
  t.equal(plan.plan, "delta");
  if (plan.plan === "delta") {
    t.same(plan.common, v(2, 5));
    t.same([...plan.missing].sort(), ["b", "c", "d", "m"], "the divergent write is undone");
  }
  t.match(
    planRecovery(ours, { ...learner, cursor: "c" }),
    { plan: "delta", missing: ["b", "c"] },
    "beyond the cursor nothing is there yet anyway",
  );
  t.same(planRecovery(ours, { ...learner, exists: false }), { plan: "backfill" });
  t.same(planRecovery(ours, { ...learner, log: log(v(1, 1), "1.2a") }), { plan: "backfill" });
  const names = Array.from({ length: MISSING_MAX + 1 }, (_, i) => `o${i}`);
  t.same(planRecovery(ours, { ...learner, missing: names }), { plan: "backfill" });
  t.end();
});

t.test("a step of backfill covers what both listings cover", (t) => {
  const row = (object: string, seq: number) => ({ object, version: v(1, seq) });
  t.same(
    compareListings(
      { objects: [row("a", 1), row("b", 2), row("d", 4)], complete: false },
      { objects: [row("b", 3), row("c", 1), row("d", 4), row("e", 1)], complete: true },
    ),
    { differing: ["a", "b", "c"], cursor: "d" },
  );
  t.same(
    compareListings(
      { objects: [row("a", 1)], complete: true },
      { objects: [row("a", 1), row("x", 1)], complete: true },
    ),
    { differing: ["x"], cursor: undefined },
    "the end; what we do not have is to be discarded",
  );
  t.same(
    compareListings(
      { objects: [row("a", 1), row("m", 1)], complete: false },
      { objects: [row("a", 1), row("c", 1)], complete: false },
    ),
    { differing: ["c"], cursor: "c" },
  );
  t.end();
});

t.test("a learner's phases", (t) => {
  t.ok(legalPhase("asking", "adopting"));
  t.ok(legalPhase("recovering", "backfilling") && legalPhase("backfilling", "recovering"));
  t.ok(legalPhase("recovering", "joining"));
  t.notOk(legalPhase("adopting", "joining"), "nothing joins before it was compared");
  t.notOk(legalPhase("backfilling", "joining"));
  t.notOk(legalPhase("joining", "recovering"), "once asked for, only a new interval undoes it");
  t.end();
});

t.test("slots: never more than there are, first come first served", async (t) => {
  const slots = new Slots(2);
  const order: number[] = [];
  const frees = await Promise.all([slots.take(), slots.take()]);
  const third = slots.take().then((free) => {
    order.push(3);
    return free;
  });
  const fourth = slots.take().then((free) => {
    order.push(4);
    return free;
  });
  await Promise.resolve();
  t.same(order, []);
  frees[0]();
  (await third)();
  (await fourth)();
  t.same(order, [3, 4]);
});

/** Limits by token buckets, and the figures of an export. */
import t from "tap";
import { Meter } from "../../../nbd/meter.js";
import { NO_LIMITS, Throttle, type Limits } from "../../../nbd/throttle.js";

const MIB = 2 ** 20;

/** Requests of `bytes` that begin within `ms`, when there are always more of them. */
function begun(limits: Limits, bytes: number, ms: number, clock = { time: 0, now: () => 0 }) {
  clock.now = () => clock.time;
  const throttle = new Throttle(clock);
  let count = 0;
  for (const end = clock.time + ms; clock.time < end;) {
    const delay = throttle.delayMs(limits);
    if (delay > 0) {
      clock.time += delay;
      continue;
    }
    throttle.take(bytes);
    count++;
  }
  return { count, throttle, clock };
}

t.test("operations are limited after a burst of a second's worth", (t) => {
  const { count } = begun({ operations: 100, bytes: 0 }, 4096, 10_000);
  t.ok(count >= 1_090 && count <= 1_110, `${count} in 10 s`);
  t.end();
});

t.test("bytes are limited, whatever the size of requests", (t) => {
  for (const bytes of [4096, MIB, 32 * MIB]) {
    const { count } = begun({ operations: 0, bytes: 10 * MIB }, bytes, 60_000);
    const moved = (count * bytes) / MIB;
    t.ok(moved >= 600 && moved <= 650, `${moved} MiB in 60 s by ${bytes}`);
  }
  t.end();
});

t.test("the tighter limit counts", (t) => {
  const { count } = begun({ operations: 1_000, bytes: MIB }, MIB / 4, 10_000);
  t.ok(count >= 43 && count <= 46, String(count));
  t.end();
});

t.test("no limit, and limits that change, take effect at once", (t) => {
  const { throttle, clock } = begun({ operations: 10, bytes: 0 }, 0, 5_000);
  t.equal(throttle.delayMs(NO_LIMITS), 0);
  throttle.take(MIB);
  t.equal(throttle.delayMs({ operations: 0, bytes: MIB }), 0, "a new limit begins with its burst");
  throttle.take(100 * MIB);
  t.ok(throttle.delayMs({ operations: 0, bytes: MIB }) > 0);
  t.ok(throttle.delayMs({ operations: 0, bytes: MIB }) <= 50, "looks again soon");
  t.ok(throttle.delayMs({ operations: 0, bytes: MIB }) > 0);
  clock.time += 100;
  t.equal(throttle.delayMs({ operations: 0, bytes: 2000 * MIB }), 0, "a raised limit");
  t.equal(throttle.delayMs(NO_LIMITS), 0, "no limit any more");
  t.end();
});

t.test("an idle export saves no more than a burst", (t) => {
  const { throttle, clock } = begun({ operations: 10, bytes: 0 }, 0, 1_000);
  clock.time += 3_600_000;
  let count = 0;
  while (throttle.delayMs({ operations: 10, bytes: 0 }) === 0) {
    throttle.take(0);
    count++;
  }
  t.equal(count, 10);
  t.end();
});

t.test("figures are of the time since they were taken last", (t) => {
  let now = 1_000;
  const meter = new Meter({ now: () => now });
  for (let ms = 1; ms <= 100; ms++) meter.done("read", 4096, ms);
  meter.done("write", MIB, 3);
  meter.done("flush", 0, 0);
  meter.failed();
  meter.held(7);
  now += 2_000;
  const first = meter.take();
  t.match(first, {
    ...{ spanMs: 2_000, reads: 100, writes: 1, others: 1, failures: 1, heldMs: 7 },
    ...{ readBytes: 100 * 4096, writeBytes: MIB },
  });
  t.ok(Math.abs(first.read.p50Us - 50_000) < 1_000, `median ${first.read.p50Us}`);
  t.ok(Math.abs(first.read.p99Us - 99_000) < 1_000, `99th ${first.read.p99Us}`);
  t.ok(first.read.maxUs >= 100_000);
  now += 500;
  t.match(meter.take(), { spanMs: 500, reads: 0, heldMs: 0, read: { p50Us: 0, maxUs: 0 } });
  t.end();
});

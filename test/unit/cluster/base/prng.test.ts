/** Seeded randomness: the same seed always gives the same run, on every machine and version. */
import t from "tap";
import { Prng } from "../../../../cluster/base/prng.js";

/** The first numbers of seed 1. */
const KNOWN = [393288148, 2174103013, 3814759091, 2092745082];

t.test("a seed determines everything", (t) => {
  const draw = (seed: number): unknown[] => {
    const prng = new Prng(seed);
    const fork = prng.fork();
    return [prng.u32(), prng.float(), prng.int(5, 9), prng.bytes(7), fork.u32(), prng.chance(0.5)];
  };
  t.same(draw(42), draw(42));
  t.notSame(draw(42), draw(43));
  t.same(draw(-1), draw(2 ** 32 - 1), "seeds are taken modulo 2³²");
  t.end();
});

t.test("the stream never changes: stored seeds of failures depend on it", (t) => {
  const prng = new Prng(1);
  t.same([prng.u32(), prng.u32(), prng.u32(), prng.u32()], KNOWN);
  t.end();
});

t.test("ranges are kept and reached", (t) => {
  const prng = new Prng(5);
  const seen = new Map<number, number>();
  for (let i = 0; i < 60_000; i++) {
    const value = prng.int(-2, 3);
    seen.set(value, (seen.get(value) ?? 0) + 1);
  }
  t.same(
    [...seen.keys()].sort((a, b) => a - b),
    [-2, -1, 0, 1, 2, 3],
  );
  for (const [value, count] of seen) t.ok(Math.abs(count - 10_000) < 500, `${value}: ${count}`);
  let low = 1;
  let high = 0;
  for (let i = 0; i < 10_000; i++) {
    const value = prng.float();
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  t.ok(low >= 0 && low < 0.01 && high < 1 && high > 0.99, `${low} to ${high}`);
  t.equal(prng.int(4, 4), 4);
  t.equal(prng.chance(0), false);
  t.equal(prng.chance(1), true);
  t.end();
});

t.test("bytes has any length and forks are independent streams", (t) => {
  for (const length of [0, 1, 3, 4, 5, 4_096]) t.equal(new Prng(1).bytes(length).length, length);
  const parent = new Prng(9);
  const [a, b] = [parent.fork(), parent.fork()];
  t.notSame(a.bytes(32), b.bytes(32));
  t.end();
});

/**
 * Rounds about locks: of two mounts one holds what excludes the other, and what is read under a
 * lock is what was written under it before. See data-rounds.ts.
 */
import { expectBytes, expectEqual, expectError, Incoherence, type Call } from "./agent.js";
import { openBoth, type Kind } from "./data-rounds.js";

type How = "flock" | "fcntl";

/** Both count in one file, each step under the lock: every number is seen by exactly one. */
function counting(how: How): Kind {
  return async (pair) => {
    const { agents, random } = pair;
    const slot = `count-${how}`;
    await openBoth(pair, slot);
    let count = 0;
    return async (x, y) => {
      const steps = agents.map(() => random.int(1, 4));
      const seen = await Promise.all(
        agents.map((agent, side) => agent.call<number[]>("increment", slot, how, steps[side])),
      );
      const all = seen.flat().sort((a, b) => a - b);
      expectEqual(
        `numbers seen under ${how}`,
        all,
        all.map((_, i) => count + i),
      );
      count += all.length;
      const wanted = Buffer.from(String(count).padStart(20, "0"));
      for (const agent of [x, y]) {
        expectBytes(`${agent.name}: counter`, await agent.pread(slot, 0, 30), wanted);
      }
    };
  };
}
export const countingByFlock = counting("flock");
export const countingByFcntl = counting("fcntl");

/** One holds a lock, and what the other asks for is refused, granted or waits as it must. */
export const locking: Kind = async (pair) => {
  const { random } = pair;
  await openBoth(pair, "locked");
  return async (x, y) => {
    const how = random.pick(["flock", "fcntl"] as const);
    const [held, wanted] = [random.pick(["ex", "sh"]), random.pick(["ex", "sh"])];
    // Of fcntl locks: ranges that overlap or not.
    const [from, length] = [random.int(0, 20), random.int(1, 10)];
    const [at, count] = [random.int(0, 20), random.int(1, 10)];
    const overlap = how === "flock" || (at < from + length && from < at + count);
    const isExcluded = overlap && (held === "ex" || wanted === "ex");
    const lock = (kind: string, start: number, bytes: number, wait = false): Call =>
      how === "flock"
        ? ["flock", "locked", kind, wait]
        : ["lockf", "locked", kind, start, bytes, wait];
    await x.call(...lock(held, from, length));
    if (isExcluded) {
      await expectError(y, "EAGAIN", ...lock(wanted, at, count));
      if (random.chance(0.4)) {
        const waiting = y.outcome(...lock(wanted, at, count, true));
        await new Promise((done) => setTimeout(done, random.int(0, 6)));
        const freed = await x.outcome(...lock("un", from, length));
        const granted = await waiting;
        expectEqual(
          "errors of unlocking and of waiting",
          [freed.error, granted.error],
          [null, null],
        );
        if (granted.end < freed.begin) {
          throw new Incoherence(`${y.name} has the lock before ${x.name} gave it back`);
        }
      } else {
        await x.call(...lock("un", from, length));
        await y.call(...lock(wanted, at, count));
      }
    } else {
      await y.call(...lock(wanted, at, count));
      await x.call(...lock("un", from, length));
    }
    // Now `y` alone holds one.
    if (wanted === "ex") await expectError(x, "EAGAIN", ...lock("sh", at, count));
    await y.call(...lock("un", at, count));
    await x.call(...lock("ex", 0, 100));
    await x.call(...lock("un", 0, 100));
  };
};

/** Two ways to write one file: many of one way at a time, never both, nobody waits for ever. */
import t from "tap";
import { WayTurns, type Way } from "../../../../osd/store/way-turns.js";
import { Prng } from "../../../../cluster/base/prng.js";

t.test("one way at a time, first come, first served", async (t) => {
  const turns = new WayTurns();
  const order: string[] = [];
  const enter = (way: Way, name: string): void => {
    const wait = turns.enter(way);
    if (wait === undefined) order.push(name);
    else void wait.then(() => order.push(name));
  };
  enter("direct", "d1");
  enter("direct", "d2");
  enter("cached", "c1");
  enter("direct", "d3"); // Does not overtake c1.
  t.same(order, ["d1", "d2"]);
  t.ok(turns.isDirect);
  turns.leave();
  await Promise.resolve();
  t.same(order, ["d1", "d2"], "one of them is still under way");
  turns.leave();
  await Promise.resolve();
  t.same(order, ["d1", "d2", "c1"]);
  t.notOk(turns.isDirect);
  turns.leave();
  await Promise.resolve();
  t.same(order, ["d1", "d2", "c1", "d3"]);
  turns.leave();
  t.notOk(turns.isDirect);
});

t.test("at random", async (t) => {
  const random = new Prng(1);
  const turns = new WayTurns();
  const active = { direct: 0, cached: 0 };
  let ended = 0;
  let collisions = 0;
  const work = async (way: Way): Promise<void> => {
    await turns.enter(way);
    active[way]++;
    if (active.direct > 0 && active.cached > 0) collisions++;
    for (let i = random.int(0, 5); i > 0; i--) await Promise.resolve();
    active[way]--;
    turns.leave();
    ended++;
  };
  const all: Promise<void>[] = [];
  for (let i = 0; i < 2_000; i++) {
    all.push(work(random.pick(["direct", "cached"] as const)));
    if (random.chance(0.3)) await Promise.resolve();
  }
  await Promise.all(all);
  t.same([ended, collisions], [2_000, 0]);
});

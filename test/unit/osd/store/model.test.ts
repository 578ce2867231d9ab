/**
 * The seeded model test: random operations on a store on a simulated disk whose power is cut at
 * random moments, also during recovery. `DSS_STORE_SEED` and `DSS_STORE_ROUNDS` repeat or extend a
 * run.
 */
import t from "tap";
import { Prng } from "../../../../cluster/base/prng.js";
import { SimHarness, TINY } from "./harness.js";
import { Model } from "./model.js";

const seeds = process.env["DSS_STORE_SEED"]
  ? [Number(process.env["DSS_STORE_SEED"])]
  : Array.from({ length: Number(process.env["DSS_STORE_ROUNDS"] ?? 6) }, (_, i) => i + 1);

t.setTimeout(600_000);
for (const seed of seeds) {
  void t.test(`seed ${seed}: a prefix survives every power cut`, async (t) => {
    const random = new Prng(seed);
    // Even seeds leave small writes in the overlay longer; every third one syncs reads seldom.
    const harness = new SimHarness(random.fork(), {
      ...TINY,
      checkpointMs: seed % 2 === 0 ? 400 : 5,
      syncReadBytes: seed % 3 === 0 ? 0 : 8192,
    });
    await harness.open();
    const model = new Model(random.fork(), 3);
    const replay = `DSS_STORE_SEED=${seed}`;
    let steps = 0;
    const failure = (where: string, difference: string | undefined): boolean => {
      if (difference) t.fail(`${replay} step ${steps}, ${where}: ${difference}`);
      return difference !== undefined;
    };
    for (let round = 0; round < 12; round++) {
      const rounds = random.int(5, 200);
      let burst = 0;
      for (let i = 0; i < rounds; i++, steps++) {
        model.step(harness.store);
        // Bursts outgrow the WAL, so that a checkpoint has to stand in for it.
        if (burst-- > 0) continue;
        if (random.chance(0.01)) burst = random.int(20, 200);
        if (random.chance(0.5)) await harness.clock.advance(random.float() * 2);
        if (random.chance(0.02)) {
          if (failure("live", await harness.wait(model.checkLive(harness.store)))) return;
        }
      }
      if (random.chance(0.15)) {
        await harness.reopen();
      } else {
        harness.cut();
        // Recovery itself is cut short now and then, at any moment.
        while (random.chance(0.4)) {
          void harness.open().catch(() => undefined);
          await harness.clock.advance(random.float() * 40);
          harness.cut();
        }
        await harness.open();
      }
      const adopted = await harness.wait(model.adopt(harness.store));
      if (failure(`after the cut of round ${round}`, adopted)) return;
    }
    await harness.end();
    t.pass(`${steps} operations, ${harness.disk.counts.crashes} power cuts`);
  });
}

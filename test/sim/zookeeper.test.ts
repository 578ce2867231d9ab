/**
 * The modelled ZooKeeper behaves as the port promises (the suite that the real one passes, too),
 * and its faults do what they say.
 */
import t from "tap";
import { isDssError } from "../../cluster/base/errors.js";
import { coordinationSuite, coordinationTrace } from "../support/coordination-suite.js";
import { ModelledZooKeeper } from "./modelled-zookeeper.js";

for (const seed of [1, 2, 3]) {
  t.test(`the port's promises, seed ${seed}`, async (t) => {
    coordinationSuite(t, new ModelledZooKeeper(t, seed));
  });
}

t.test("the same requests give the same answers with any delays", async (t) => {
  const traces = [];
  for (const seed of [1, 2]) {
    const model = new ModelledZooKeeper(t, seed);
    const sessions = [await model.join(t), await model.join(t)];
    traces.push(await coordinationTrace(sessions, { seed: 7, steps: 200 }));
  }
  t.same(traces[0], traces[1]);
});

t.test("an outage: requests wait, nobody expires, unknown outcomes are said to be", async (t) => {
  const model = new ModelledZooKeeper(t, 5);
  const session = await model.join(t);
  const id = session.sessionId;
  await session.create("/e", Buffer.from("0"), { ephemeral: true });
  const outcomes = await Promise.all(
    Array.from({ length: 20 }, async (_, i) => {
      if (i === 10) model.zk.outage(60_000);
      await model.pause(0);
      return session.set("/e", Buffer.from(String(i)), i).then(
        () => "done",
        (error: unknown) => (isDssError(error) ? error.code : String(error)),
      );
    }),
  );
  t.ok(outcomes.includes("ConnectionLost"), outcomes.join());
  const parked = session.get("/e").catch((error: unknown) => error);
  t.ok(isDssError(await parked, "Unreachable"), "not executed: said after its deadline");
  await model.pause(60_000);
  await session.sync();
  t.equal(session.sessionId, id, "longer than the session time-out, and still alive");
  t.ok((await session.get("/e")) !== undefined);
});

t.test("a client never goes back in time when its server dies", async (t) => {
  const model = new ModelledZooKeeper(t, 6);
  model.zk.lagMs = 2_000;
  const session = await model.join(t);
  await session.create("/time", Buffer.from("0"));
  for (let i = 0; i < 30; i++) {
    const version = await session.set("/time", Buffer.from(String(i)), -1).catch(() => undefined);
    const before = version ?? (await session.get("/time").catch(() => undefined))?.version ?? 0;
    model.zk.crashServer(i % 3, 1_500);
    const after = await session.get("/time").catch(() => undefined);
    if (after !== undefined && before !== undefined) t.ok(after.version >= before);
  }
});

t.test("a frozen client finds its session expired when it wakes", async (t) => {
  const model = new ModelledZooKeeper(t, 8);
  const session = await model.join(t, 2_000);
  const observer = await model.join(t);
  await session.create("/frozen", Buffer.alloc(0), { ephemeral: true });
  const events: string[] = [];
  session.onEvent((event) => events.push(event));
  model.host(session).freeze();
  await model.pause(4_000);
  t.equal(await observer.get("/frozen"), undefined, "gone while it sleeps");
  t.same(events, []);
  model.host(session).thaw();
  await model.pause(2_000);
  t.same(events, ["suspended", "expired", "connected"]);
});

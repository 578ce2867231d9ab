/** Which server process there is: every way in which one can end. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import { ServerKeeper, type KeeperEffect, type KeeperEvent } from "../../../nbd/server-keeper.js";

const gone: KeeperEvent = { on: "exited" };
const because = (code: "StaleHandle" | "NotFound" | "Unreachable" | "Busy"): KeeperEvent => ({
  on: "exited",
  failure: new DssError(code, "why"),
});
const dos = (effects: readonly KeeperEffect[]): string[] => effects.map((each) => each.do);

function serving(): ServerKeeper {
  const keeper = new ServerKeeper();
  keeper.step({ on: "start" }, 0);
  keeper.step({ on: "connected" }, 10);
  return keeper;
}

t.test("a first server that does not start is the end", (t) => {
  for (const event of [gone, because("Busy"), because("Unreachable")]) {
    const keeper = new ServerKeeper();
    t.same(keeper.step({ on: "start" }, 0), [{ do: "spawn", continues: false }]);
    t.same(dos(keeper.step(event, 5)), ["giveUp", "over"]);
    t.equal(keeper.state, "over");
  }
  t.end();
});

t.test("a server that dies is succeeded at once, by one that continues", (t) => {
  const keeper = serving();
  t.same(keeper.step(gone, 10_000), [{ do: "disconnect" }, { do: "spawn", continues: true }]);
  t.same(keeper.step({ on: "connected" }, 10_500), []);
  t.end();
});

t.test("servers that end soon after their start are waited for, longer and longer", (t) => {
  const keeper = serving();
  t.same(dos(keeper.step(gone, 20)), ["disconnect", "pause"]);
  const pauses: number[] = [];
  for (let i = 0; i < 8; i++) {
    t.same(dos(keeper.step({ on: "paused" }, 100)), ["spawn"]);
    for (const effect of keeper.step(because("Unreachable"), 200)) {
      if (effect.do === "pause") pauses.push(effect.ms);
    }
  }
  t.same(pauses, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000], "without end");
  t.end();
});

t.test("what no repetition changes is the end of the export", (t) => {
  for (const code of ["StaleHandle", "NotFound"] as const) {
    const keeper = serving();
    keeper.step(gone, 10_000);
    const effects = keeper.step(because(code), 11_000);
    t.same(dos(effects), ["giveUp", "over"]);
    t.match(effects[0], { error: { code } });
  }
  t.end();
});

t.test("a server that breaks is killed, and succeeded only when it has ended", (t) => {
  const keeper = serving();
  t.same(dos(keeper.step({ on: "broken", reason: "r" }, 9_000)), ["disconnect", "kill"]);
  t.same(keeper.step({ on: "broken", reason: "again" }, 9_001), []);
  t.same(dos(keeper.step(gone, 9_100)), ["spawn"]);
  t.same(dos(keeper.step({ on: "broken", reason: "at once" }, 9_200)), ["disconnect", "kill"]);
  t.same(dos(keeper.step(gone, 9_300)), ["pause"]);
  t.end();
});

t.test("stop ends whatever there is", (t) => {
  const idle = new ServerKeeper();
  t.same(dos(idle.step({ on: "stop" }, 0)), ["over"]);
  const running = serving();
  t.same(dos(running.step({ on: "stop" }, 1)), ["disconnect", "askToEnd"]);
  t.same(running.step({ on: "stop" }, 2), []);
  t.same(dos(running.step(gone, 3)), ["over"]);
  const broken = serving();
  broken.step({ on: "broken", reason: "r" }, 1);
  t.same(broken.step({ on: "stop" }, 2), [], "it is being killed");
  t.same(dos(broken.step(gone, 3)), ["over"]);
  const pausing = serving();
  pausing.step(gone, 20);
  t.same(dos(pausing.step({ on: "stop" }, 30)), ["over"]);
  t.same(pausing.step({ on: "paused" }, 40), []);
  t.end();
});

t.test("any order of events keeps at most one server", (t) => {
  for (let seed = 1; seed <= 300; seed++) {
    const prng = new Prng(seed);
    const keeper = new ServerKeeper();
    let running = 0;
    let over = 0;
    let now = 0;
    const events: KeeperEvent[] = [
      { on: "connected" },
      { on: "broken", reason: "r" },
      gone,
      because("Unreachable"),
      because("StaleHandle"),
      { on: "paused" },
      { on: "stop" },
    ];
    const play = (event: KeeperEvent): void => {
      if (event.on === "exited") {
        if (running === 0) return; // Only what runs can end.
        running--;
      }
      if (event.on === "connected" && running === 0) return;
      for (const effect of keeper.step(event, (now += prng.int(0, 3_000)))) {
        if (effect.do === "spawn") running++;
        if (effect.do === "over") over++;
      }
      if (running > 1 || over > 1) t.fail(`seed ${seed}: ${running} servers, ${over} ends`);
    };
    play({ on: "start" });
    for (let i = 0; i < 60; i++) play(prng.pick(events));
  }
  t.pass("300 seeds");
  t.end();
});

/**
 * The weighted scheduler on simulated time: shares of a saturated OSD, reservations and limits, no
 * waiting while nobody competes.
 */
import t from "tap";
import { WORK_PROFILES } from "../../../cluster/map/cluster-map.js";
import type { Incoming, Link } from "../../../cluster/messenger/messenger.js";
import {
  COST_BASE,
  PROFILES,
  WORK_CLASSES,
  WorkShares,
  type Shares,
  type WorkClass,
} from "../../../osd/core/work-shares.js";
import { WorkQueue } from "../../../osd/work-queue.js";
import { SimClock } from "../../sim/sim-clock.js";

const MiB = 2 ** 20;
const RATE = 100 * MiB; // Bytes per second that the disk under test does.

/** A disk that does one thing after the other. */
class Disk {
  private freeAt = 0;
  constructor(
    private readonly clock: SimClock,
    private readonly rate = RATE,
  ) {}
  work(bytes: number, done: () => void): void {
    const start = Math.max(this.freeAt, this.clock.now);
    this.freeAt = start + ((COST_BASE + bytes) / this.rate) * 1000;
    this.clock.schedule(this.freeAt - this.clock.now, done);
  }
}

function request(done: () => void): Incoming<unknown, unknown> {
  return {
    message: {},
    data: Buffer.alloc(0),
    sums: new Uint32Array(0),
    sender: 70_000,
    epoch: 1,
    link: undefined as unknown as Link,
    reply: done,
    fail: done,
    recycle: () => undefined,
  };
}

/** A client that always has `depth` requests open, with a pause before each new one. */
function client(
  world: { queue: WorkQueue; clock: SimClock; disk: Disk },
  load: { depth: number; bytes: number; thinkMs?: number },
): { bytes: number; longestMs: number } {
  const { queue, clock, disk } = world;
  const done = { bytes: 0, longestMs: 0 };
  const next = (): void => {
    const since = clock.now;
    const asked = request(() => {
      done.bytes += load.bytes;
      done.longestMs = Math.max(done.longestMs, clock.now - since);
      clock.schedule(load.thinkMs ?? 0, next);
    });
    const run = (counted: Incoming<unknown, unknown>): void => {
      disk.work(load.bytes, () => counted.reply({}));
    };
    if (queue.contended) queue.admit(asked, load.bytes, run);
    else run(asked);
  };
  for (let i = 0; i < load.depth; i++) next();
  return done;
}

/** Workers that always want another turn. */
function background(
  world: { queue: WorkQueue; disk: Disk },
  work: Exclude<WorkClass, "client">,
  load: { workers: number; bytes: number },
): { bytes: number } {
  const done = { bytes: 0 };
  const loop = async (): Promise<void> => {
    for (;;) {
      const turn = await world.queue.turn(work, load.bytes);
      await new Promise<void>((resolve) => world.disk.work(load.bytes, resolve));
      done.bytes += load.bytes;
      turn.end();
    }
  };
  for (let i = 0; i < load.workers; i++) void loop();
  return done;
}

function world(shares: Shares): { clock: SimClock; queue: WorkQueue; disk: Disk } {
  const clock = new SimClock();
  const queue = new WorkQueue(
    clock.forNode(() => true),
    shares,
  );
  return { clock, queue, disk: new Disk(clock) };
}

/** Each class's part of the cost that was served, of the profile's weights. */
function parts(queue: WorkQueue): Record<WorkClass, number> {
  const all = WORK_CLASSES.reduce((sum, work) => sum + queue.done[work], 0);
  const part = (work: WorkClass): number => queue.done[work] / all;
  return { client: part("client"), recovery: part("recovery"), scrub: part("scrub") };
}

for (const profile of WORK_PROFILES) {
  t.test(`a saturated OSD is shared as the profile ${profile} says`, async (t) => {
    for (const bytes of [4096, MiB]) {
      const w = world(PROFILES[profile]);
      background(w, "recovery", { workers: 8, bytes: 4 * MiB });
      background(w, "scrub", { workers: 2, bytes: MiB });
      client(w, { depth: bytes > 65_536 ? 32 : 512, bytes });
      await w.clock.advance(10_000);
      const got = parts(w.queue);
      const weights = PROFILES[profile];
      const sum = WORK_CLASSES.reduce((total, work) => total + weights[work].weight, 0);
      for (const work of WORK_CLASSES) {
        const due = weights[work].weight / sum;
        const text = `${work} with requests of ${bytes} bytes: ${got[work].toFixed(3)} of ${due}`;
        t.ok(Math.abs(got[work] - due) <= 0.1 * due, text);
      }
    }
  });
}

t.test("a profile can be changed while everybody works", async (t) => {
  const w = world(PROFILES.client);
  background(w, "recovery", { workers: 8, bytes: 4 * MiB });
  client(w, { depth: 512, bytes: 4096 });
  await w.clock.advance(10_000);
  const before = { ...w.queue.done };
  w.queue.setShares(PROFILES.recovery);
  await w.clock.advance(10_000);
  const ratio = (w.queue.done.recovery - before.recovery) / (w.queue.done.client - before.client);
  t.ok(Math.abs(ratio - 65 / 25) < 0.26, `recovery has ${ratio.toFixed(2)} times the client's`);
});

t.test("one client request at a time is not outrun, and alone nobody is held up", async (t) => {
  const w = world(PROFILES.client);
  const alone = background(w, "recovery", { workers: 8, bytes: 4 * MiB });
  await w.clock.advance(10_000);
  t.ok(alone.bytes > 0.95 * 10 * RATE, `alone ${alone.bytes / MiB} MiB in 10 s`);
  const before = alone.bytes;
  const done = client(w, { depth: 1, bytes: 4096, thinkMs: 0.1 });
  await w.clock.advance(10_000);
  const recovery = (alone.bytes - before) / 10;
  const clients = (done.bytes * (1 + COST_BASE / 4096)) / 10;
  t.ok(recovery > 4 * MiB, `recovery goes on: ${recovery / MiB} MiB/s`);
  t.ok(recovery < 0.3 * clients, `and leaves room: ${recovery / clients} of the client's`);
});

t.test("in the gaps of an active client recovery rests as its weight says", async (t) => {
  for (const profile of WORK_PROFILES) {
    const w = world(PROFILES[profile]);
    const recovery = background(w, "recovery", { workers: 8, bytes: 4 * MiB });
    client(w, { depth: 1, bytes: 4096, thinkMs: 100 });
    await w.clock.advance(20_000);
    const { weight, reservation } = PROFILES[profile].recovery;
    const part = (recovery.bytes / 20 - reservation) / RATE;
    const due = weight / (weight + PROFILES[profile].client.weight);
    t.ok(part < 1.3 * due && part > 0.5 * due, `${profile}: ${part.toFixed(2)} of ${due}`);
  }
});

t.test("clients do not wait for the rests of recovery behind a scrub", async (t) => {
  for (const profile of WORK_PROFILES) {
    const w = world(PROFILES[profile]);
    background(w, "scrub", { workers: 4, bytes: MiB });
    void (async (): Promise<void> => {
      for (;;) {
        const turn = await w.queue.turn("recovery", 4 * MiB);
        await new Promise<void>((resolve) => w.disk.work(4 * MiB, resolve));
        turn.release();
        await new Promise<void>((resolve) => w.clock.schedule(300, resolve));
        turn.end();
      }
    })();
    const done = client(w, { depth: 192, bytes: 65_536 });
    await w.clock.advance(10_000);
    t.ok(done.longestMs < 350, `${profile}: the longest took ${done.longestMs.toFixed(0)} ms`);
  }
});

t.test(
  "who waits for the end of a burst goes on when it is over, and clients are quiet",
  async (t) => {
    const w = world(PROFILES.client);
    const first = await w.queue.turn("recovery", 64 * MiB);
    first.release();
    w.queue.admit(
      request(() => undefined),
      4096,
      (counted) => counted.reply({}),
    );
    await w.clock.advance(50);
    let began = -1;
    void w.queue.turn("recovery", 4 * MiB).then((turn) => {
      began = w.clock.now;
      turn.end();
    });
    await w.clock.advance(100);
    const ended = w.clock.now;
    first.end();
    await w.clock.advance(30_000);
    t.ok(began >= 0 && began - ended <= 1_100, `${(began - ended).toFixed(0)} ms after the end`);
  },
);

t.test("a reservation is kept and a limit holds, whatever the weights", async (t) => {
  const shares: Shares = {
    client: { weight: 1000, reservation: 0, limit: Infinity },
    recovery: { weight: 1, reservation: 20 * MiB, limit: Infinity },
    scrub: { weight: 1000, reservation: 0, limit: 10 * MiB },
  };
  const w = world(shares);
  const recovery = background(w, "recovery", { workers: 4, bytes: 4 * MiB });
  const scrub = background(w, "scrub", { workers: 4, bytes: MiB });
  client(w, { depth: 512, bytes: 4096 });
  await w.clock.advance(10_000);
  t.ok(recovery.bytes >= 0.9 * 10 * 20 * MiB, `reserved: ${recovery.bytes / 10 / MiB} MiB/s`);
  t.ok(recovery.bytes <= 1.1 * 10 * 20 * MiB, "and not more than that by its weight");
  t.ok(scrub.bytes <= 1.1 * 10 * 10 * MiB, `limited: ${scrub.bytes / 10 / MiB} MiB/s`);
});

t.test(
  "clients alone: no queue, no timer, and the same again after others have gone",
  async (t) => {
    const w = world(PROFILES.client);
    t.notOk(w.queue.contended);
    const turn = await w.queue.turn("recovery", 4 * MiB);
    t.ok(w.queue.contended);
    turn.release();
    turn.end();
    turn.end();
    await w.clock.advance(1_000);
    t.notOk(w.queue.contended, "a moment after the last turn");
    const events = w.clock.events;
    await w.clock.advance(60_000);
    t.equal(w.clock.events, events, "nothing ticks");
  },
);

t.test(
  "a turn that is ended twice ends once: who works and who waits is not forgotten",
  async (t) => {
    const w = world(PROFILES.client);
    const first = await w.queue.turn("recovery", 8 * MiB);
    const others = [1, 2, 3].map(() => w.queue.turn("recovery", 8 * MiB));
    for (let i = 0; i < 4; i++) first.end();
    const second = await others[0]!;
    await w.clock.advance(1_000);
    t.ok(w.queue.contended, "the second is still at work");
    second.end();
    second.end();
    let served = 0;
    for (const other of others.slice(1)) {
      void other.then((turn) => {
        served++;
        turn.end();
        turn.end();
      });
    }
    await w.clock.advance(10_000);
    t.equal(served, 2);
    t.notOk(w.queue.contended);
  },
);

t.test("a client that waits is told of a failure when its turn comes", async (t) => {
  const w = world(PROFILES.client);
  const turn = await w.queue.turn("recovery", 8 * MiB);
  const second = w.queue.turn("recovery", 4 * MiB);
  let failure: unknown;
  const asked = { ...request(() => undefined), fail: (error: unknown) => (failure = error) };
  w.queue.admit(asked, 4096, () => {
    throw new Error("no");
  });
  t.equal(failure, undefined, "the OSD has enough to do");
  turn.end();
  await w.clock.advance(10);
  (await second).end();
  t.match(failure, /no/);
});

t.test("who was idle claims nothing afterwards", (t) => {
  const even = { weight: 1, reservation: 0, limit: Infinity };
  const shares = new WorkShares({ client: even, recovery: even, scrub: even });
  const serve = (work: WorkClass): void => {
    shares.started(work, MiB, 0);
    shares.ended(work, MiB, 0);
  };
  for (let i = 0; i < 1000; i++) {
    shares.arrived("client");
    serve("client");
  }
  for (let i = 0; i < 20; i++) {
    shares.arrived("client");
    shares.arrived("recovery");
  }
  const served = { client: 0, recovery: 0, scrub: 0 };
  for (let i = 0; i < 20; i++) {
    const choice = shares.next(0);
    if (!("work" in choice)) throw new Error("everybody waits");
    served[choice.work]++;
    serve(choice.work);
  }
  t.same(served, { client: 10, recovery: 10, scrub: 0 });
  t.end();
});

/**
 * Locks over two mounts on simulated time: the whole protocol, with leaders that die, mounts that
 * die, sessions that are evicted, and a counter that must not lose a step.
 */
import t from "tap";
import { Prng } from "../../../../cluster/base/prng.js";
import type { Caller, FileLock } from "../../../../client-fs/file-system.js";
import { LOCK_END } from "../../../../mds/proto.js";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

interface Open {
  mount: TestMount;
  ino: number;
  handle: number;
}
type Mode = FileLock["mode"];

function lockOf(owner: number, mode: Mode, range: Partial<FileLock> = {}): FileLock {
  return { kind: "posix", owner: BigInt(owner), mode, start: 0n, end: LOCK_END, pid: 1, ...range };
}
/** Begins a request; the world must run for it to end. */
async function ask(
  file: Open,
  lock: FileLock,
  wait = false,
  caller: Caller = { ...CALLER },
): Promise<void> {
  await file.mount.vfs.setlk(file.ino, file.handle, lock, { wait }, caller);
}
async function attempt(world: World, file: Open, lock: FileLock): Promise<string> {
  return (await world.fails(ask(file, lock))) ?? "granted";
}
const flock = { kind: "flock" } as const;

async function begin(seed: number): Promise<{ world: World; a: Open; b: Open }> {
  const world = await newWorld(seed, { leaseMs: 4_000 });
  const [one, two] = [await world.mount(), await world.mount()];
  const made = await one.create(1, "f");
  const handle = await two.open(await two.lookup(1, "f"));
  return { world, a: { mount: one, ...made }, b: { mount: two, ino: made.ino, handle } };
}

t.test("flock and ranges exclude the other mount; tests name who is in the way", async (t) => {
  const { world, a, b } = await begin(1);
  t.equal(await attempt(world, a, lockOf(1, "exclusive", { start: 10n, end: 19n })), "granted");
  t.equal(await attempt(world, b, lockOf(1, "shared", { start: 19n, end: 30n })), "WouldBlock");
  t.equal(await attempt(world, b, lockOf(1, "shared", { start: 20n, end: 30n })), "granted");
  t.equal(await attempt(world, b, lockOf(1, "exclusive", flock)), "granted", "another matter");
  t.equal(await attempt(world, a, lockOf(9, "shared", flock)), "WouldBlock");
  const seen = await world.run(b.mount.vfs.getlk(b.ino, b.handle, lockOf(5, "shared")));
  t.match(seen, { mode: "exclusive", start: 10n, end: 19n, pid: 0 }, "no process of this mount");
  const own = await world.run(
    a.mount.vfs.getlk(a.ino, a.handle, lockOf(2, "shared", { end: 15n, pid: 7 })),
  );
  t.match(own, { mode: "exclusive", start: 10n, pid: 1 });
  const free = await world.run(a.mount.vfs.getlk(a.ino, a.handle, lockOf(1, "shared")));
  t.equal(free.mode, "unlocked");
});

t.test("a waiter gets it when it is given back, also by a close", async (t) => {
  const { world, a, b } = await begin(2);
  await world.run(ask(a, lockOf(1, "exclusive")));
  const first = ask(b, lockOf(1, "exclusive"), true);
  await world.clock.advance(50);
  await world.run(ask(a, lockOf(1, "unlocked")));
  await world.run(first);
  const back = ask(a, lockOf(1, "exclusive"), true);
  // Any close by the owner, through whatever handle.
  const other = await b.mount.open(b.ino);
  await world.run(b.mount.vfs.flush(b.ino, other, 1n));
  await world.run(back);
  t.equal(await attempt(world, b, lockOf(1, "shared")), "WouldBlock");
});

t.test("what belongs to an open file goes with its release, not with a close", async (t) => {
  const { world, a, b } = await begin(3);
  const handle = await a.mount.open(a.ino);
  const copy = { ...a, handle };
  await world.run(ask(copy, lockOf(77, "exclusive", flock)));
  await world.run(ask(copy, lockOf(78, "exclusive", { start: 5n, end: 5n }))); // F_OFD_SETLK
  await world.run(a.mount.vfs.flush(a.ino, handle, 1n));
  t.equal(await attempt(world, b, lockOf(1, "shared", flock)), "WouldBlock");
  t.equal(await attempt(world, b, lockOf(1, "shared")), "WouldBlock");
  await world.run(a.mount.vfs.release(a.ino, handle));
  t.equal(await attempt(world, b, lockOf(1, "shared", flock)), "granted");
  t.equal(await attempt(world, b, lockOf(1, "shared")), "granted");
});

t.test("an interrupted wait ends, and leaves nothing behind", async (t) => {
  const { world, a, b } = await begin(4);
  await world.run(ask(a, lockOf(1, "exclusive")));
  const caller: Caller = { ...CALLER };
  const waiting = ask(b, lockOf(1, "exclusive"), true, caller);
  await world.clock.advance(50);
  caller.interrupted = true;
  caller.onInterrupt!();
  t.equal(await world.fails(waiting), "Interrupted");
  t.equal(caller.onInterrupt, undefined);
  await world.run(ask(a, lockOf(1, "unlocked")));
  t.equal(await attempt(world, a, lockOf(2, "exclusive")), "granted", "nobody else has it");
  const early: Caller = { ...CALLER, interrupted: true };
  t.equal(await world.fails(ask(b, lockOf(1, "exclusive"), true, early)), "Interrupted");
});

t.test("a circle over two mounts is refused", async (t) => {
  const { world, a, b } = await begin(5);
  const [first, second] = [
    { start: 0n, end: 0n },
    { start: 1n, end: 1n },
  ];
  await world.run(ask(a, lockOf(1, "exclusive", first)));
  await world.run(ask(b, lockOf(1, "exclusive", second)));
  const waiting = ask(a, lockOf(1, "exclusive", second), true);
  await world.clock.advance(50);
  t.equal(await world.fails(ask(b, lockOf(1, "exclusive", first), true)), "Deadlock");
  await world.run(b.mount.vfs.flush(b.ino, b.handle, 1n));
  await world.run(waiting);
});

t.test("locks and waits outlive their leader", async (t) => {
  const { world, a, b } = await begin(6);
  await world.run(ask(a, lockOf(1, "exclusive", { start: 0n, end: 9n })));
  await world.run(ask(a, lockOf(3, "exclusive", flock)));
  await world.run(ask(a, lockOf(1, "shared", { start: 5n, end: 7n })));
  const ranges = ask(b, lockOf(1, "exclusive", { start: 0n, end: 0n }), true);
  const whole = ask(b, lockOf(1, "exclusive", flock), true);
  const caller: Caller = { ...CALLER };
  const given = ask(b, lockOf(2, "exclusive", { start: 3n, end: 3n }), true, caller);
  await world.clock.advance(50);
  world.crashLeader();
  caller.interrupted = true;
  caller.onInterrupt!();
  await world.clock.advance(500);
  await world.lead({ leaseMs: 4_000 });
  t.equal(await world.fails(given), "Interrupted");
  t.equal(await attempt(world, b, lockOf(5, "shared", { start: 6n, end: 6n })), "granted");
  t.equal(await attempt(world, b, lockOf(5, "shared", { start: 4n, end: 4n })), "WouldBlock");
  await world.run(ask(a, lockOf(1, "unlocked", { start: 0n, end: 2n })));
  await world.run(ranges);
  await world.run(a.mount.vfs.release(a.ino, a.handle));
  await world.run(whole);
  t.same(world.failures, []);
});

t.test("a dead mount's locks go with its lease, also for who only tries", async (t) => {
  for (const wait of [true, false]) {
    const { world, a, b } = await begin(7);
    await world.run(ask(a, lockOf(1, "exclusive")));
    a.mount.host.crash();
    const started = world.clock.now;
    if (wait) await world.run(ask(b, lockOf(1, "exclusive"), true));
    else {
      while ((await attempt(world, b, lockOf(1, "exclusive"))) !== "granted") {
        await world.clock.advance(500);
      }
    }
    t.ok(world.clock.now - started < 15_000, "within a lease and a little");
    t.equal(world.objects.fenced.size, 1, "and nothing that it had sent can be written any more");
  }
});

t.test("an evicted mount knows that its locks are lost", async (t) => {
  const { world, a, b } = await begin(8);
  await world.run(ask(a, lockOf(1, "exclusive")));
  const other = await a.mount.open(a.ino);
  await a.mount.write(a, 0, "mine");
  await world.run(a.mount.vfs.fsync(a.ino, a.handle));
  const never = ask(a, lockOf(8, "exclusive", { kind: "posix" }), true);
  world.network.partition("mount1", "mds1");
  world.network.partition("mds1", "mount1");
  await world.run(ask(b, lockOf(1, "exclusive"), true));
  await b.mount.write(b, 0, "his");
  world.network.heal();
  t.equal(await world.fails(never), "NoSession");
  t.equal(await world.fails(a.mount.read(a, 0, 4)), "Disk");
  await t.rejects(a.mount.write(a, 0, "x"), { code: "Disk" });
  t.equal(await attempt(world, a, lockOf(1, "shared")), "Disk");
  t.equal(await attempt(world, a, lockOf(1, "unlocked")), "granted");
  t.same(
    await a.mount.read({ ...a, handle: other }, 0, 4),
    Buffer.from("hise"),
    "it locked nothing",
  );
  await world.run(a.mount.vfs.release(a.ino, a.handle));
  await world.run(b.mount.vfs.flush(b.ino, b.handle, 1n));
  const again = { ...a, handle: await a.mount.open(a.ino) };
  t.equal(await attempt(world, again, lockOf(1, "exclusive")), "granted");
});

/** Programs on both mounts add one to a number under a lock, again and again. */
async function count(
  files: readonly Open[],
  rounds: number,
  lockFor: (who: number) => { mode: FileLock; free: FileLock },
): Promise<void> {
  const work = files.map(async (file, who) => {
    const { vfs } = file.mount;
    const { mode, free } = lockFor(who);
    for (let round = 0; round < rounds; round++) {
      await ask(file, mode, true);
      const pieces = await vfs.read(file.ino, file.handle, 0, 8);
      const text = Buffer.concat(pieces).toString();
      vfs.readDone(pieces);
      const next = Buffer.from(String(Number(text) + 1).padStart(8, "0"));
      const options = { flags: 2, killPrivileges: false, fromPageCache: false };
      await vfs.write(file.ino, file.handle, 0, next, options);
      await ask(file, free);
    }
  });
  await Promise.all(work);
}
async function total(file: Open): Promise<number> {
  return Number((await file.mount.read(file, 0, 8)).toString());
}

t.test("what the holder wrote, the next holder reads", async (t) => {
  for (const kind of ["flock", "posix"] as const) {
    const { world, a, b } = await begin(9);
    await a.mount.write(a, 0, "00000000");
    const more = { ...b, handle: await b.mount.open(b.ino) };
    const counting = count([a, b, more], 20, (who) => ({
      mode: lockOf(who + 1, "exclusive", { kind }),
      free: lockOf(who + 1, "unlocked", { kind }),
    }));
    await world.run(counting);
    t.equal(await total(a), 60, kind);
  }
});

t.test("not a step is lost while leaders die", async (t) => {
  for (let seed = 20; seed < 22; seed++) {
    const { world, a, b } = await begin(seed);
    const random = new Prng(seed);
    await a.mount.write(a, 0, "00000000");
    let over = false;
    const counting = count([a, b], 60, (who) => ({
      mode: lockOf(who + 1, "exclusive", seed % 2 === 0 ? flock : {}),
      free: lockOf(who + 1, "unlocked", seed % 2 === 0 ? flock : {}),
    })).finally(() => (over = true));
    for (let kills = 0; !over && kills < 6; kills++) {
      await world.clock.advance(random.int(20, 300));
      await world.lead({ leaseMs: 4_000 });
    }
    await world.run(counting);
    t.equal(await total(b), 120, `seed ${seed}`);
    t.same(world.failures, []);
  }
});

/**
 * Locks of random programs on several mounts, on simulated time, while messages are lost, mounts
 * are cut off or die and leaders change. Checked whenever a lock is granted: nobody else believes
 * to hold what conflicts with it, unless his session was fenced first. At the end all who waited
 * have had their turn.
 */
import t from "tap";
import { isDssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import type { Caller, FileLock } from "../../../../client-fs/file-system.js";
import { LOCK_END } from "../../../../mds/proto.js";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

const LEASE_MS = 3_000;
const MOUNTS = 3;
const PROGRAMS = 3;
const BYTES = 6;

interface Belief {
  mount: Place;
  /** The session under which it was granted. */
  client: number;
  owner: number;
  lock: FileLock;
}
interface Place {
  mount: TestMount;
  ino: number;
  dead: boolean;
}
interface Opened {
  handle: number;
}

class Run {
  readonly random: Prng;
  readonly counts = new Map<string, number>();
  private beliefs: Belief[] = [];
  stopping = false;

  constructor(
    readonly world: World,
    readonly places: readonly Place[],
    readonly seed: number,
  ) {
    this.random = new Prng(seed);
  }
  private note(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }
  private granted(mount: Place, owner: number, lock: FileLock): void {
    const client = mount.mount.mds.client;
    for (const other of this.beliefs) {
      if (other.mount === mount && other.owner === owner) continue;
      if (other.lock.kind !== lock.kind || !overlap(other.lock, lock)) continue;
      if (other.lock.mode === "shared" && lock.mode === "shared") continue;
      if (this.world.objects.fenced.has(other.client)) continue;
      throw new Error(
        `seed ${this.seed}: ${name(mount, owner)} has ${show(lock)}, and so has ` +
          `${name(other.mount, other.owner)} ${show(other.lock)}`,
      );
    }
    this.beliefs.push({ mount, client, owner, lock });
  }
  /** From the moment when it is asked for: nobody relies on it any more. */
  private given(mount: Place, owner: number, { kind, start, end }: FileLock): void {
    const kept: Belief[] = [];
    for (const belief of this.beliefs) {
      const { lock } = belief;
      const mine = belief.mount === mount && belief.owner === owner && lock.kind === kind;
      if (!mine || !overlap(lock, { start, end })) {
        kept.push(belief);
        continue;
      }
      if (lock.start < start) kept.push({ ...belief, lock: { ...lock, end: start - 1n } });
      if (lock.end > end) kept.push({ ...belief, lock: { ...lock, start: end + 1n } });
    }
    this.beliefs = kept;
  }

  /** One program: locks, works, unlocks, gets interrupted, closes. */
  async program(place: Place, owner: number): Promise<void> {
    const { random, world } = this;
    const pause = (ms: number): Promise<void> =>
      new Promise((resolve) => void world.clock.schedule(ms, resolve));
    const file: Opened = await place.mount.vfs.open(place.ino, 2, CALLER);
    while (!this.stopping && !place.dead) {
      await pause(random.int(1, 60));
      const lock = this.randomLock(owner);
      if (random.chance(0.35)) {
        await this.unlock(place, file, owner, { ...lock, mode: "unlocked" });
        continue;
      }
      const wait = random.chance(0.6);
      const caller: Caller = { ...CALLER };
      if (wait && random.chance(0.3)) {
        world.clock.schedule(random.int(1, 400), () => {
          caller.interrupted = true;
          caller.onInterrupt?.();
        });
      }
      // What becomes less is given up at once; a flock is whatever becomes of its conversion.
      if (lock.kind === "flock") this.given(place, owner, lock);
      else if (lock.mode === "shared") this.lessen(place, owner, lock);
      const outcome = await this.outcome(place, file, lock, wait, caller);
      if (place.dead) return;
      this.note(outcome);
      if (outcome === "granted") {
        this.given(place, owner, lock);
        this.granted(place, owner, lock);
      } else if (outcome === "Disk") await this.reopen(place, file);
      if (outcome === "Deadlock" || random.chance(0.1)) {
        this.given(place, owner, { ...lock, kind: "posix", start: 0n, end: LOCK_END });
        await place.mount.vfs.flush(place.ino, file.handle, BigInt(owner)).catch(ignore);
      }
    }
    if (place.dead) return;
    for (const kind of ["posix", "flock"] as const) {
      await this.unlock(place, file, owner, {
        ...this.randomLock(owner),
        ...{ kind, mode: "unlocked", start: 0n, end: LOCK_END },
      });
    }
  }
  private lessen(place: Place, owner: number, lock: FileLock): void {
    const before = this.beliefs.filter(
      (each) => each.mount === place && each.owner === owner && overlap(each.lock, lock),
    );
    this.given(place, owner, lock);
    for (const { client, lock: held } of before) {
      if (held.kind !== lock.kind) continue;
      const start = held.start > lock.start ? held.start : lock.start;
      const end = held.end < lock.end ? held.end : lock.end;
      this.beliefs.push({ mount: place, client, owner, lock: { ...lock, start, end } });
    }
  }
  private async unlock(place: Place, file: Opened, owner: number, lock: FileLock): Promise<void> {
    this.given(place, owner, lock);
    const outcome = await this.outcome(place, file, lock, false, { ...CALLER });
    if (outcome === "granted") this.note("unlocked");
  }
  private async outcome(
    place: Place,
    file: Opened,
    lock: FileLock,
    wait: boolean,
    caller: Caller,
  ): Promise<string> {
    try {
      await place.mount.vfs.setlk(place.ino, file.handle, lock, { wait }, caller);
      return "granted";
    } catch (error) {
      if (!isDssError(error)) throw error;
      return error.code;
    }
  }
  /** After an eviction: the old handle is of no use. */
  private async reopen(place: Place, file: Opened): Promise<void> {
    const old = file.handle;
    file.handle = (await place.mount.vfs.open(place.ino, 2, CALLER)).handle;
    await place.mount.vfs.release(place.ino, old);
  }
  private randomLock(owner: number): FileLock {
    const { random } = this;
    const mode = random.chance(0.5) ? "shared" : "exclusive";
    // Who waits with both kinds at once can hang: nobody looks for circles through a flock.
    if (owner % PROGRAMS === 0) {
      return { kind: "flock", owner: BigInt(owner), mode, start: 0n, end: LOCK_END, pid: 1 };
    }
    const start = random.int(0, BYTES - 1);
    const end = random.int(start, BYTES - 1);
    const range = { start: BigInt(start), end: BigInt(end) };
    return { kind: "posix", owner: BigInt(owner), mode, ...range, pid: 1 };
  }
}

const ignore = (): void => undefined;
function overlap(a: { start: bigint; end: bigint }, b: { start: bigint; end: bigint }): boolean {
  return a.start <= b.end && b.start <= a.end;
}
function show({ kind, mode, start, end }: FileLock): string {
  return `${kind} ${mode} ${start}-${end}`;
}
function name(place: Place, owner: number): string {
  return `${place.mount.host.name}:${owner}`;
}

async function runSeed(seed: number): Promise<Map<string, number>> {
  const random = new Prng(seed + 1_000);
  const options = { leaseMs: LEASE_MS, recallTimeoutMs: 2_000 };
  const world = await newWorld(seed, options);
  const places: Place[] = [];
  for (let i = 0; i < MOUNTS; i++) {
    const mount = await world.mount();
    const ino = i === 0 ? (await mount.create(1, "f")).ino : places[0]!.ino;
    places.push({ mount, ino, dead: false });
  }
  const run = new Run(world, places, seed);
  let failure: Error | undefined;
  const programs: Promise<void>[] = [];
  for (const [at, place] of places.entries()) {
    for (let owner = 1; owner <= PROGRAMS; owner++) {
      const program = run.program(place, at * PROGRAMS + owner).catch((error: unknown) => {
        failure ??= error as Error;
      });
      programs.push(program);
    }
  }
  world.network.faults = { delayMs: { min: 0.05, max: 20 }, loss: 0.002 };
  let leaders = 1;
  for (let step = 0; step < 8 && failure === undefined; step++) {
    await world.clock.advance(random.int(100, 1_500));
    const dice = random.float();
    if (dice < 0.5) {
      await world.lead(options);
      leaders++;
    } else if (dice < 0.75) {
      const { mount } = random.pick(places);
      const ends = [
        world.network.partition(mount.host.name, `mds${leaders}`),
        world.network.partition(`mds${leaders}`, mount.host.name),
      ];
      await world.clock.advance(random.int(100, 2 * LEASE_MS));
      for (const end of ends) end();
    } else if (dice < 0.85 && places.filter((place) => !place.dead).length > 2) {
      const place = random.pick(places);
      place.dead = true;
      place.mount.host.crash();
    }
  }
  world.network.heal();
  world.network.faults = { delayMs: { min: 0.05, max: 5 }, loss: 0 };
  run.stopping = true;
  // Programs on dead mounts wait for ever; the others must come to their end.
  const living = programs.filter((_, at) => !places[Math.floor(at / PROGRAMS)]!.dead);
  if (failure === undefined) await world.run(Promise.all(living), 120_000);
  if (failure !== undefined) throw failure;
  if (world.failures.length > 0) throw new Error(`seed ${seed}: ${String(world.failures[0])}`);
  return run.counts;
}

t.test("no two hold what excludes each other, whatever fails", async (t) => {
  const seeds = Number(process.env["SEEDS"] ?? 3);
  const first = Number(process.env["SEED"] ?? 1);
  const total = new Map<string, number>();
  for (let seed = first; seed < first + seeds; seed++) {
    for (const [what, count] of await runSeed(seed)) {
      total.set(what, (total.get(what) ?? 0) + count);
    }
  }
  t.comment(JSON.stringify([...total]));
  for (const what of ["granted", "WouldBlock", "Interrupted", "Deadlock", "unlocked"]) {
    t.ok((total.get(what) ?? 0) > 3, `${what}: ${total.get(what)}`);
  }
});

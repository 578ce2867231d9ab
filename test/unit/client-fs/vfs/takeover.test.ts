/**
 * A mount whose worker dies and is followed by another one, on simulated time: what was answered
 * stays, what was not is done once, what was lost is said once.
 */
import t from "tap";
import type { Caller } from "../../../../client-fs/file-system.js";
import type { Vfs } from "../../../../client-fs/vfs/vfs.js";
import { WorkerRecord, type RecordStore } from "../../../../client-fs/vfs/worker-record.js";
import { isDssError } from "../../../../cluster/base/errors.js";
import { Takeovers } from "../../../../mds/takeover.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { CALLER, newWorld, type TestMount, type World } from "./world.js";

const O_SYNC_APPEND = 0o4012002;
const S_IFREG = 0o100000;

const ROOM = 2 ** 30;
class MemoryRecord implements RecordStore {
  bytes = Buffer.alloc(0);
  room(): number {
    return ROOM;
  }
  read(): Buffer {
    return Buffer.from(this.bytes);
  }
  append(parts: readonly Buffer[]): void {
    this.bytes = Buffer.concat([this.bytes, ...parts]);
  }
  replace(parts: readonly Buffer[]): void {
    this.bytes = Buffer.concat(parts);
  }
}

interface Pending {
  cause: number;
  run: (vfs: Vfs, caller: Caller) => Promise<unknown>;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
}
/** The kernel's side: asks again whatever was not answered when the worker died. */
class Kernel {
  readonly store = new MemoryRecord();
  record = new WorkerRecord(this.store);
  mount!: TestMount;
  private nextCause = 2;
  private readonly pending = new Map<number, Pending>();

  constructor(private readonly world: World) {}

  async start(): Promise<this> {
    this.mount = await this.world.worker(this.record, "k");
    return this;
  }
  ask<T>(run: (vfs: Vfs, caller: Caller) => Promise<T>): Promise<T> {
    const cause = (this.nextCause += 2);
    return new Promise<T>((resolve, reject) => {
      const pending = { cause, run, resolve: resolve as (value: unknown) => void, reject };
      this.pending.set(cause, pending);
      this.give(pending);
    });
  }
  private give(pending: Pending): void {
    const { mount, record } = this;
    const { cause } = pending;
    // As the connection does: what was noted is kept before the answer leaves.
    const answer = (tell: () => void): void => {
      if (!mount.host.alive) return;
      record.commit();
      this.pending.delete(cause);
      tell();
      record.replied(cause);
    };
    pending.run(mount.vfs, { ...CALLER, cause }).then(
      (value) => answer(() => pending.resolve(value)),
      (error: unknown) => answer(() => pending.reject(error)),
    );
  }
  kill(): void {
    this.mount.host.crash();
  }
  async restart(): Promise<void> {
    this.record = new WorkerRecord(this.store);
    this.mount = await this.world.worker(this.record, "k");
    for (const pending of [...this.pending.values()]) this.give(pending);
  }
  run<T>(ask: (vfs: Vfs, caller: Caller) => Promise<T>): Promise<T> {
    return this.world.run(this.ask(ask));
  }
}
const name = (text: string): Buffer => Buffer.from(text);
const plain = { flags: 2, killPrivileges: false, fromPageCache: false };

t.test("what a killed worker had answered is there, told or not", async (t) => {
  const world = await newWorld(1);
  const kernel = await new Kernel(world).start();
  const { mount } = kernel;
  const dir = await kernel.run((vfs, caller) => vfs.mkdir(1, name("d"), 0o755, caller));
  const parent = dir.attributes.ino;
  for (let i = 0; i < 20; i++) {
    const made = await kernel.run((vfs, caller) =>
      vfs.create(parent, name(`f${i}`), S_IFREG | 0o644, 2, caller),
    );
    await kernel.run((vfs) => vfs.release(made.attributes.ino, made.handle));
  }
  await kernel.run((vfs, caller) => vfs.unlink(parent, name("f3"), caller));
  await kernel.run((vfs, caller) =>
    vfs.rename(parent, name("f4"), 1, name("g4"), NO_FLAGS, caller),
  );
  await kernel.run((vfs, caller) => vfs.unlink(parent, name("f5"), caller));
  kernel.kill();
  await kernel.restart();
  t.not(kernel.mount, mount);
  const names = await kernel.mount.names(parent);
  t.equal(names.length, 17);
  t.notOk(names.includes("f3") || names.includes("f4") || names.includes("f5"));
  const other = await world.mount();
  t.same(await other.names(1), ["d", "g4"], "others see the same");
  t.same(world.failures, []);
});
const NO_FLAGS = { noReplace: false, exchange: false };

t.test("an open file: what was synced is there, what was not is reported once", async (t) => {
  const world = await newWorld(2);
  const kernel = await new Kernel(world).start();
  const made = await kernel.run((vfs, caller) =>
    vfs.create(1, name("f"), S_IFREG | 0o644, 2, caller),
  );
  const other = await kernel.run((vfs, caller) =>
    vfs.create(1, name("g"), S_IFREG | 0o644, 2, caller),
  );
  const file = { ino: made.attributes.ino, handle: made.handle };
  const clean = { ino: other.attributes.ino, handle: other.handle };
  const write = (to: typeof file, at: number, text: string): Promise<number> =>
    kernel.run((vfs) => vfs.write(to.ino, to.handle, at, Buffer.from(text), plain));
  await write(file, 0, "synced");
  await write(clean, 0, "synced too");
  await kernel.run((vfs) => vfs.fsync(file.ino, file.handle));
  await kernel.run((vfs) => vfs.fsync(clean.ino, clean.handle));
  await write(file, 6, " and lost");
  kernel.kill();
  await kernel.restart();
  t.ok(kernel.mount.invalidated.includes(file.ino), "the kernel drops its pages");
  t.same(kernel.mount.looked, []);
  t.equal(String(await kernel.mount.read(file, 0, 100)), "synced");
  t.same(kernel.mount.looked, [6], "before a read is answered the kernel has its end");
  t.equal(String(await kernel.mount.read(file, 0, 100)), "synced");
  t.same(kernel.mount.looked, [6]);
  t.equal(await kernel.mount.size(file.ino), 6);
  const syncer = await kernel.run((vfs, caller) => vfs.open(file.ino, 2, caller));
  const elsewhere = kernel.ask((vfs) => vfs.fsync(file.ino, syncer.handle));
  t.equal(await world.fails(elsewhere), "Disk", "who syncs what others wrote hears of it");
  await kernel.run((vfs) => vfs.release(file.ino, syncer.handle));
  const syncing = kernel.ask((vfs) => vfs.fsync(file.ino, file.handle));
  t.equal(await world.fails(syncing), "Disk");
  await kernel.run((vfs) => vfs.fsync(file.ino, file.handle));
  await kernel.run((vfs) => vfs.fsync(clean.ino, clean.handle));
  t.equal(String(await kernel.mount.read(clean, 0, 100)), "synced too");
  await write(file, 6, "!");
  await kernel.run((vfs) => vfs.fsync(file.ino, file.handle));
  kernel.kill();
  await kernel.restart();
  t.equal(String(await kernel.mount.read(file, 0, 100)), "synced!", "and again");
  await kernel.run((vfs) => vfs.flush(file.ino, file.handle, 0n));
  await kernel.run((vfs) => vfs.release(file.ino, file.handle));
});

/** Nothing of it is written back. */
async function writtenAndClosed(kernel: Kernel, text: string): Promise<number> {
  const made = await kernel.run((vfs, caller) =>
    vfs.create(1, name("f"), S_IFREG | 0o644, 2, caller),
  );
  const { ino } = made.attributes;
  await kernel.run((vfs) => vfs.write(ino, made.handle, 0, Buffer.from(text), plain));
  await kernel.run((vfs) => vfs.release(ino, made.handle));
  return ino;
}

t.test("lost data of a file that is closed is reported to the next writer", async (t) => {
  const world = await newWorld(3);
  const kernel = await new Kernel(world).start();
  const ino = await writtenAndClosed(kernel, "gone");
  kernel.kill();
  await kernel.restart();
  kernel.kill();
  await kernel.restart(); // Nobody has heard of it yet.
  const reader = await kernel.run((vfs, caller) => vfs.open(ino, 0, caller));
  await kernel.run((vfs) => vfs.flush(ino, reader.handle, 0n));
  const writer = await kernel.run((vfs, caller) => vfs.open(ino, 2, caller));
  t.equal(await world.fails(kernel.ask((vfs) => vfs.fsync(ino, writer.handle))), "Disk");
  await kernel.run((vfs) => vfs.fsync(ino, writer.handle));
  const next = await kernel.run((vfs, caller) => vfs.open(ino, 2, caller));
  await kernel.run((vfs) => vfs.fsync(ino, next.handle));
  t.equal(await world.fails(kernel.ask((vfs) => vfs.syncfs())), "Disk", "sync(2) hears of it too");
});

t.test("small files that were closed outlive the worker, as they were last", async (t) => {
  const world = await newWorld(5);
  const kernel = await new Kernel(world).start();
  const O_TRUNC = 0o1000;
  const inos = new Map<string, number>();
  const open = async (path: string, flags = 2): Promise<{ ino: number; handle: number }> => {
    const known = inos.get(path);
    if (known !== undefined) {
      const { handle } = await kernel.run((vfs, caller) => vfs.open(known, flags, caller));
      return { ino: known, handle };
    }
    const made = await kernel.run((vfs, caller) =>
      vfs.create(1, name(path), S_IFREG | 0o644, flags, caller),
    );
    inos.set(path, made.attributes.ino);
    return { ino: made.attributes.ino, handle: made.handle };
  };
  const write = async (path: string, at: number, text: string, flags = 2): Promise<void> => {
    const { ino, handle } = await open(path, flags);
    await kernel.run((vfs) => vfs.write(ino, handle, at, Buffer.from(text), plain));
    await kernel.run((vfs) => vfs.flush(ino, handle, 0n));
    await kernel.run((vfs) => vfs.release(ino, handle));
  };
  const content = async (path: string): Promise<string> => {
    const { ino, handle } = await open(path, 0);
    const text = String(await kernel.mount.read({ ino, handle }, 0, 100));
    await kernel.run((vfs) => vfs.release(ino, handle));
    return text;
  };
  await write("once", 0, "once");
  await write("twice", 0, "12");
  await write("twice", 1, "wice");
  await write("holes", 6, "end");
  await write("holes", 0, "in");
  await write("replaced", 0, "something long");
  await write("replaced", 0, "new", 2 | O_TRUNC);
  await write("cut", 0, "something long");
  await kernel.run((vfs, caller) => vfs.setattr(inos.get("cut")!, { size: 4 }, caller));
  await kernel.run((vfs, caller) => vfs.setattr(inos.get("cut")!, { size: 6 }, caller));
  await write("moved", 0, "moved");
  await kernel.run((vfs, caller) => vfs.rename(1, name("moved"), 1, name("to"), NO_FLAGS, caller));
  await write("removed", 0, "removed");
  await kernel.run((vfs, caller) => vfs.unlink(1, name("removed"), caller));
  await write("taken", 0, "taken");
  const other = await world.mount();
  const taken = inos.get("taken")!;
  const { handle: theirs } = await world.run(other.vfs.open(taken, 2, CALLER));
  await world.run(other.vfs.write(taken, theirs, 0, Buffer.from("TAK"), plain));
  const { ino, handle } = await open("more");
  await kernel.run((vfs) => vfs.write(ino, handle, 0, Buffer.from("closed"), plain));
  await kernel.run((vfs) => vfs.flush(ino, handle, 0n));
  await kernel.run((vfs) => vfs.write(ino, handle, 6, Buffer.from(" more"), plain));
  await write("dated", 0, "dated");
  const past = 1_000_000_000n;
  await kernel.run((vfs, caller) => vfs.setattr(inos.get("dated")!, { mtimeNs: past }, caller));
  kernel.kill();
  // What the record says when the leader lets others have the files.
  const store = new MemoryRecord();
  const { end } = Takeovers.prototype;
  t.teardown(() => (Takeovers.prototype.end = end));
  Takeovers.prototype.end = function (...args) {
    store.replace([kernel.store.bytes]);
    return end.apply(this, args);
  };
  await kernel.restart();
  t.same(new WorkerRecord(store).inherited?.kept, [], "a later worker must not write it again");
  kernel.kill(); // The next one begins anew with what is left.
  await kernel.restart();
  t.equal(await content("once"), "once");
  t.equal(await content("twice"), "1wice");
  t.equal(await content("holes"), "in\0\0\0\0end");
  t.equal(await content("replaced"), "new");
  t.equal(await content("cut"), "some\0\0");
  t.equal(await content("moved"), "moved");
  t.equal(await content("taken"), "TAKen");
  const dated = await kernel.run((vfs) => vfs.getattr(inos.get("dated")!));
  t.equal(dated.attributes.mtimeNs, past);
  const syncing = kernel.ask((vfs) => vfs.fsync(ino, handle));
  t.equal(await world.fails(syncing), "Disk", "what came after the close is lost, and told");
  const names = (await kernel.mount.names(1)).sort().join(" ");
  t.equal(names, "cut dated holes more once replaced taken to twice");
  t.same(world.failures, []);
});

t.test("nobody hears of lost data that were to be replaced", async (t) => {
  const world = await newWorld(3);
  const kernel = await new Kernel(world).start();
  const ino = await writtenAndClosed(kernel, "gone");
  kernel.kill();
  await kernel.restart();
  const O_TRUNC = 0o1000;
  const writer = await kernel.run((vfs, caller) => vfs.open(ino, 2 | O_TRUNC, caller));
  await kernel.run((vfs) => vfs.write(ino, writer.handle, 0, Buffer.from("new"), plain));
  await kernel.run((vfs) => vfs.fsync(ino, writer.handle));
  await kernel.run((vfs) => vfs.flush(ino, writer.handle, 0n));
  t.equal(String(await kernel.mount.read({ ino, handle: writer.handle }, 0, 100)), "new");
});

t.test("data that became durable just before the worker died are not lost", async (t) => {
  const world = await newWorld(3);
  const kernel = await new Kernel(world).start();
  const ino = await writtenAndClosed(kernel, "there");
  await world.clock.advance(300); // It is written back, and nobody is told of anything.
  kernel.kill();
  await kernel.restart();
  const writer = await kernel.run((vfs, caller) => vfs.open(ino, 2, caller));
  await kernel.run((vfs) => vfs.fsync(ino, writer.handle));
  t.equal(String(await kernel.mount.read({ ino, handle: writer.handle }, 0, 100)), "there");
});

t.test("an unlinked open file goes on, and goes with its last close", async (t) => {
  const world = await newWorld(4);
  const kernel = await new Kernel(world).start();
  const other = await world.mount();
  const files: { ino: number; handle: number }[] = [];
  for (const each of ["mine", "theirs"]) {
    const made = await kernel.run((vfs, caller) =>
      vfs.create(1, name(each), S_IFREG | 0o644, 2, caller),
    );
    const file = { ino: made.attributes.ino, handle: made.handle };
    await kernel.run((vfs) => vfs.write(file.ino, file.handle, 0, Buffer.from("data"), plain));
    await kernel.run((vfs) => vfs.fsync(file.ino, file.handle));
    files.push(file);
  }
  await kernel.run((vfs, caller) => vfs.unlink(1, name("mine"), caller));
  kernel.kill();
  const removing = other.vfs.unlink(1, name("theirs"), CALLER);
  await kernel.restart();
  await world.run(removing);
  for (const file of files) {
    t.equal(String(await kernel.mount.read(file, 0, 10)), "data");
    await kernel.run((vfs) => vfs.release(file.ino, file.handle));
  }
  await world.clock.runUntil(() => world.objects.objects.size === 0, 60_000);
  t.equal(world.objects.objects.size, 0, "and their space is free");
});

t.test("locks outlive the worker, and who waits goes on waiting", async (t) => {
  const world = await newWorld(5);
  const kernel = await new Kernel(world).start();
  const other = await world.mount();
  const made = await kernel.run((vfs, caller) =>
    vfs.create(1, name("f"), S_IFREG | 0o644, 2, caller),
  );
  const { ino } = made.attributes;
  const lock = (owner: bigint, start: bigint, end: bigint, mode = "exclusive" as const) => ({
    ...{ kind: "posix" as const, owner, start, end, mode, pid: Number(owner) },
  });
  const now = { wait: false };
  await kernel.run((vfs, caller) => vfs.setlk(ino, made.handle, lock(1n, 0n, 9n), now, caller));
  await other.lookup(1, "f");
  const theirs = await other.open(ino);
  await other.run(other.vfs.setlk(ino, theirs, lock(7n, 20n, 29n), now, { ...CALLER }));
  let got = false;
  const waiting = kernel
    .ask((vfs, caller) => vfs.setlk(ino, made.handle, lock(2n, 20n, 29n), { wait: true }, caller))
    .then(() => (got = true));
  await world.clock.runUntil(() => false, 100);
  kernel.kill();
  const taking = other.vfs.setlk(ino, theirs, lock(7n, 0n, 0n), now, { ...CALLER });
  t.equal(await world.fails(taking), "WouldBlock", "held while nobody is there");
  await kernel.restart();
  await world.clock.runUntil(() => false, 100);
  t.notOk(got);
  await other.run(other.vfs.release(ino, theirs));
  await world.run(waiting);
  t.ok(got);
  await kernel.run((vfs) => vfs.flush(ino, made.handle, 1n));
  const again = await other.open(ino);
  await other.run(other.vfs.setlk(ino, again, lock(8n, 0n, 9n), now, { ...CALLER }));
  const still = other.vfs.setlk(ino, again, lock(8n, 20n, 20n), now, { ...CALLER });
  t.equal(await world.fails(still), "WouldBlock", "the other owner's stays");
});

t.test("a synchronous append that is sent again is there once", async (t) => {
  for (let seed = 10; seed < 22; seed++) {
    const world = await newWorld(seed);
    const kernel = await new Kernel(world).start();
    const made = await kernel.run((vfs, caller) =>
      vfs.create(1, name("log"), S_IFREG | 0o644, O_SYNC_APPEND, caller),
    );
    const { ino } = made.attributes;
    const append = (text: string): Promise<number> =>
      kernel.ask((vfs, { cause = 0 }) =>
        vfs.write(ino, made.handle, 0, Buffer.from(text), {
          ...plain,
          flags: O_SYNC_APPEND,
          cause,
        }),
      );
    await world.run(append("first "));
    const second = append("second ");
    const random = new Prng(seed);
    await world.clock.runUntil(() => false, random.float() * 6);
    kernel.kill();
    await kernel.restart();
    await world.run(second);
    await world.run(append("third"));
    const read = await kernel.mount.read({ ino, handle: made.handle }, 0, 100);
    t.equal(String(read), "first second third", `seed ${seed}`);
  }
});

t.test("what was done is known even when its session has ended meanwhile", async (t) => {
  for (let seed = 40; seed < 72; seed++) {
    const world = await newWorld(seed, { leaseMs: 3_000 });
    const kernel = await new Kernel(world).start();
    const other = await world.mount();
    for (const each of ["a", "b"]) {
      await kernel.run((vfs, caller) => vfs.mkdir(1, name(each), 0o755, caller));
    }
    await other.names(1); // The mount has to ask from now on.
    const asked = [
      kernel.ask((vfs, caller) => vfs.mkdir(1, name("c"), 0o755, caller)),
      kernel.ask((vfs, caller) => vfs.rmdir(1, name("a"), caller)),
      kernel.ask((vfs, caller) => vfs.rename(1, name("b"), 1, name("d"), NO_FLAGS, caller)),
    ];
    await world.clock.runUntil(() => false, (seed - 40) * 0.03);
    kernel.kill();
    await world.clock.runUntil(() => false, 50);
    await world.lead({ leaseMs: 3_000 });
    await world.clock.runUntil(() => false, 20_000); // Nobody waits so long for a worker.
    await kernel.restart();
    await world.run(Promise.all(asked));
    t.same(await other.names(1), ["c", "d"], `seed ${seed}`);
  }
});

/** Names by path; every operation must succeed, because it does in the model. */
async function storm(seed: number): Promise<{ kills: number; operations: number }> {
  const world = await newWorld(seed, { leaseMs: 3_000 });
  const random = new Prng(seed);
  const kernel = await new Kernel(world).start();
  const model = new Map<string, number>();
  const contents = new Map<number, string>();
  let next = 0;
  let operations = 0;
  let kills = 0;
  const failures: string[] = [];
  const one = async (slot: number): Promise<void> => {
    // Each slot has names of its own: what happens to them is certain.
    const mine = [...model.keys()].filter((each) => each.startsWith(`s${slot}.`));
    const existing = mine.length === 0 ? undefined : random.pick(mine);
    const fresh = `s${slot}.${next++}`;
    const what = existing === undefined ? 0 : random.int(0, 4);
    operations++;
    if (what <= 1) {
      if (random.chance(0.5)) {
        await kernel.ask((vfs, caller) => vfs.mkdir(1, name(fresh), 0o755, caller));
        model.set(fresh, 2);
      } else {
        const made = await kernel.ask((vfs, caller) =>
          vfs.create(1, name(fresh), S_IFREG | 0o644, 2 | 0o200, caller),
        );
        model.set(fresh, 1);
        const { ino } = made.attributes;
        await kernel.ask((vfs) => vfs.write(ino, made.handle, 0, Buffer.from(fresh), plain));
        await kernel
          .ask((vfs) => vfs.flush(ino, made.handle, 0n))
          .then(
            () => contents.set(ino, fresh),
            (error: unknown) => {
              if (!isDssError(error, "Disk")) throw error; // Lost between the two, and told.
            },
          );
        await kernel.ask((vfs) => vfs.release(ino, made.handle));
      }
    } else if (what === 2) {
      const remove = model.get(existing!) === 2 ? "rmdir" : "unlink";
      await kernel.ask((vfs, caller) => vfs[remove](1, name(existing!), caller));
      model.delete(existing!);
    } else if (what === 3) {
      await kernel.ask((vfs, caller) =>
        vfs.rename(1, name(existing!), 1, name(fresh), { ...NO_FLAGS, noReplace: true }, caller),
      );
      model.set(fresh, model.get(existing!)!);
      model.delete(existing!);
    } else {
      const entry = await kernel.ask((vfs) => vfs.lookup(1, name(existing!)));
      await kernel.ask((vfs, caller) => vfs.setattr(entry.attributes.ino, { mode: 0o700 }, caller));
    }
  };
  let ending = false;
  const slots = [0, 1, 2].map(async (slot) => {
    for (let i = 0; i < 40 && !ending; i++) {
      try {
        await new Promise<void>((go) => void world.clock.schedule(random.float() * 12, go));
        await one(slot);
      } catch (error) {
        failures.push(`slot ${slot}, operation ${i}: ${String(error)}`);
        ending = true;
        if (!isDssError(error)) throw error;
      }
    }
  });
  const all = Promise.all(slots);
  let over = false;
  void all.finally(() => (over = true)).catch(() => undefined);
  const other = await world.mount();
  while (!over) {
    await world.clock.runUntil(() => over, 2 + random.float() * 40);
    if (over) break;
    if (random.chance(0.5)) {
      await other.names(1); // Takes away what the mount holds alone: it has to ask.
      await world.clock.runUntil(() => over, random.float() * 10);
    }
    if (random.chance(0.3)) await world.lead({ leaseMs: 3_000 });
    kernel.kill();
    kills++;
    await kernel.restart();
  }
  await world.run(all);
  const expected = [...model.keys()].sort().join(" ");
  for (const mount of [kernel.mount, other]) {
    const found = (await mount.names(1)).join(" ");
    if (found !== expected) failures.push(`names are ${found}, not ${expected}`);
  }
  for (const each of model.keys()) {
    const { ino } = (await kernel.run((vfs) => vfs.lookup(1, name(each)))).attributes;
    const expects = contents.get(ino);
    if (expects === undefined) continue;
    const { handle } = await kernel.run((vfs, caller) => vfs.open(ino, 0, caller));
    const found = String(await kernel.mount.read({ ino, handle }, 0, 100));
    if (found !== expects) failures.push(`${each} has ${found}, not ${expects}`);
  }
  if (world.failures.length > 0) failures.push(String(world.failures[0]));
  if (failures.length > 0) throw new Error(`seed ${seed}: ${failures.join("; ")}`);
  return { kills, operations };
}

t.test("whatever is sent again is done once, wherever the worker dies", async (t) => {
  const first = Number(process.env["SEED"] ?? 1);
  const seeds = Number(process.env["SEEDS"] ?? 3);
  let kills = 0;
  let operations = 0;
  for (let seed = first; seed < first + seeds; seed++) {
    const done = await storm(seed);
    kills += done.kills;
    operations += done.operations;
  }
  t.ok(kills > seeds, `${kills} workers killed in ${operations} operations`);
});

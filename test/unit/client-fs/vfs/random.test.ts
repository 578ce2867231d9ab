/**
 * Seeded operations by two mounts on a few files, one at a time, compared with a model that knows
 * nothing of caches: whatever one call has completed, every later call on either mount sees.
 * Meanwhile write-backs fail, capabilities go back and forth, leaders die and connections break.
 *
 * `SEED=7 SEEDS=100 node …/random.test.js` runs others.
 */
import t from "tap";
import { isDssError } from "../../../../cluster/base/errors.js";
import type { Prng } from "../../../../cluster/base/prng.js";
import { CALLER, OBJECT_SIZE, newWorld, type TestMount, type World } from "./world.js";

const O_RDWR = 2;
const O_APPEND = 0o2000;
const O_DIRECT = 0o40000;
const O_DSYNC = 0o10000;
const FILE_MAX = 5 * OBJECT_SIZE;

interface ModelFile {
  ino: number;
  data: Buffer;
  linked: boolean;
}
interface Open {
  mount: TestMount;
  file: ModelFile;
  handle: number;
  flags: number;
}
interface Faults {
  failures: boolean;
  leaders: boolean;
  loss: number;
}

class Scenario {
  private readonly names = new Map<string, ModelFile>();
  private opens: Open[] = [];
  readonly log: string[] = [];

  constructor(
    private readonly world: World,
    private readonly mounts: TestMount[],
    private readonly random: Prng,
    private readonly faults: Faults,
  ) {}

  private get someName(): string {
    return `f${this.random.int(0, 5)}`;
  }

  async step(): Promise<void> {
    const { random, world } = this;
    if (this.faults.failures) world.objects.failureRate = random.chance(0.3) ? 0.2 : 0;
    if (this.faults.leaders && random.chance(0.01)) {
      this.log.push("a new leader");
      await world.lead();
    }
    if (random.chance(0.02)) await world.clock.advance(random.int(1, 20_000));
    const mount = random.pick(this.mounts);
    const choice = random.int(0, 99);
    if (choice < 10) await this.create(mount);
    else if (choice < 18) await this.reopen(mount);
    else if (choice < 24) await this.close();
    else if (choice < 50) await this.write();
    else if (choice < 72) await this.read();
    else if (choice < 80) await this.truncate(mount);
    else if (choice < 84) await this.rename(mount);
    else if (choice < 87) await this.unlink(mount);
    else if (choice < 92) await this.list(mount);
    else if (choice < 95) await this.sync();
    else if (choice < 97) await this.punch();
    else await this.parallelWrites();
  }

  private async create(mount: TestMount): Promise<void> {
    const name = this.someName;
    this.log.push(`create ${name}`);
    const known = this.names.get(name);
    const made = await mount.create(1, name);
    if (known !== undefined) {
      same(made.ino, known.ino, `create of ${name} that exists`);
      this.opens.push({ mount, file: known, handle: made.handle, flags: O_RDWR });
      return;
    }
    const file = { ino: made.ino, data: Buffer.alloc(0), linked: true };
    this.names.set(name, file);
    this.log.push(`${name} is ${made.ino} on ${mount.host.name}`);
    this.opens.push({ mount, file, handle: made.handle, flags: O_RDWR });
  }
  private async reopen(mount: TestMount): Promise<void> {
    const name = this.someName;
    const file = this.names.get(name);
    this.log.push(`open ${name} (${file?.ino ?? 0}) on ${mount.host.name}`);
    if (file === undefined) {
      const code = await this.world.fails(mount.vfs.lookup(1, Buffer.from(name)));
      same(code, "NotFound", `look-up of ${name}`);
      return;
    }
    same(await mount.lookup(1, name), file.ino, `look-up of ${name}`);
    const flags = O_RDWR | this.random.pick([0, 0, O_APPEND, O_DIRECT, O_DSYNC]);
    this.opens.push({ mount, file, handle: await mount.open(file.ino, flags), flags });
  }
  private async close(): Promise<void> {
    const open = this.takeOpen();
    if (open === undefined) return;
    this.log.push(`close ${open.file.ino} on ${open.mount.host.name}`);
    await open.mount.run(open.mount.vfs.release(open.file.ino, open.handle));
  }
  private takeOpen(): Open | undefined {
    if (this.opens.length === 0) return undefined;
    const [open] = this.opens.splice(this.random.int(0, this.opens.length - 1), 1);
    return open;
  }
  private someOpen(): Open | undefined {
    return this.opens.length === 0 ? undefined : this.random.pick(this.opens);
  }
  private range(): { offset: number; length: number } {
    const { random } = this;
    const length = random.pick([
      random.int(1, 100),
      random.int(1, 9_000),
      4096,
      random.int(1, 2 * OBJECT_SIZE),
    ]);
    const near = OBJECT_SIZE * random.int(0, 3) + random.int(-50, 50);
    const anywhere = random.int(0, FILE_MAX - length);
    const offset = random.pick([anywhere, Math.max(near, 0), 4096 * random.int(0, 60)]);
    return { offset: Math.min(offset, FILE_MAX - length), length };
  }

  private async write(): Promise<void> {
    const open = this.someOpen();
    if (open === undefined) return;
    const { file, flags } = open;
    const { offset, length } = this.range();
    const data = this.random.bytes(length);
    const at = (flags & O_APPEND) !== 0 ? file.data.length : offset;
    if (at + length > FILE_MAX) return;
    const { name } = open.mount.host;
    this.log.push(`write ${file.ino} ${at}+${length} flags ${flags.toString(8)} on ${name}`);
    try {
      await open.mount.write({ ino: file.ino, handle: open.handle }, offset, data, flags);
      apply(file, at, data);
    } catch (error) {
      await this.uncertain(open, error, at, data);
    }
  }
  /**
   * A synchronous write failed: its bytes are there or not; the file system must agree with itself
   * from now on.
   */
  private async uncertain(open: Open, error: unknown, at: number, data: Buffer): Promise<void> {
    if (!isDssError(error) || !this.faults.failures) throw error;
    this.world.objects.failureRate = 0;
    const { file, mount } = open;
    for (;;) {
      const code = await this.world.fails(mount.vfs.fsync(file.ino, open.handle));
      if (code === undefined) break;
    }
    const size = await mount.size(file.ino);
    const found = await mount.read({ ino: file.ino, handle: open.handle }, 0, FILE_MAX);
    same(found.length, size, "size after a failed write");
    const before = Buffer.alloc(size);
    file.data.copy(before);
    const outside = (buffer: Buffer): Buffer =>
      Buffer.concat([buffer.subarray(0, at), buffer.subarray(Math.min(at + data.length, size))]);
    same(outside(found).equals(outside(before)), true, "bytes outside a failed write");
    file.data = found;
  }

  private async read(): Promise<void> {
    const open = this.someOpen();
    if (open === undefined) return;
    const { offset, length } = this.range();
    const { file, mount } = open;
    this.log.push(`read ${file.ino} ${offset}+${length} on ${mount.host.name}`);
    const found = await mount.read({ ino: file.ino, handle: open.handle }, offset, length);
    compare(found, file.data.subarray(offset, offset + length), `read of ${file.ino} at ${offset}`);
    same(await mount.size(file.ino), file.data.length, `size of ${file.ino}`);
  }

  private async truncate(mount: TestMount): Promise<void> {
    const name = this.someName;
    const file = this.names.get(name);
    if (file === undefined) return;
    const size = this.random.pick([0, this.range().offset, OBJECT_SIZE * this.random.int(0, 4)]);
    this.log.push(`truncate ${file.ino} to ${size} on ${mount.host.name}`);
    await mount.lookup(1, name);
    for (;;) {
      // Growing flushes first, which may fail for now.
      const code = await this.world.fails(mount.vfs.setattr(file.ino, { size }, CALLER));
      if (code === undefined) break;
      if (!this.faults.failures) throw new Error(`truncate: ${code}`);
    }
    const data = Buffer.alloc(size);
    file.data.copy(data, 0, 0, size);
    file.data = data;
  }

  private async rename(mount: TestMount): Promise<void> {
    const [from, to] = [this.someName, this.someName];
    const file = this.names.get(from);
    const over = this.names.get(to)?.ino ?? 0;
    this.log.push(`rename ${from} ${to} (${file?.ino ?? 0} over ${over}) on ${mount.host.name}`);
    const how = { noReplace: false, exchange: false };
    const names = [Buffer.from(from), Buffer.from(to)] as const;
    for (;;) {
      const work = mount.vfs.rename(1, names[0], 1, names[1], how, CALLER);
      const code = await this.world.fails(work);
      if (file === undefined) {
        same(code, "NotFound", `rename of ${from}`);
        return;
      }
      if (code === undefined) break;
      // What takes another one's place is flushed before: an injected failure refuses it.
      if (!this.faults.failures || over === 0) throw new Error(`rename: ${code}`);
    }
    if (from === to) return;
    const replaced = this.names.get(to);
    if (replaced !== undefined) replaced.linked = false;
    this.names.delete(from);
    this.names.set(to, file);
  }
  private async unlink(mount: TestMount): Promise<void> {
    const name = this.someName;
    const file = this.names.get(name);
    this.log.push(`unlink ${name} (${file?.ino ?? 0}) on ${mount.host.name}`);
    const work = mount.vfs.unlink(1, Buffer.from(name), CALLER);
    if (file === undefined) {
      same(await this.world.fails(work), "NotFound", `unlink of ${name}`);
      return;
    }
    await mount.run(work);
    file.linked = false;
    this.names.delete(name);
  }
  private async list(mount: TestMount): Promise<void> {
    this.log.push(`list on ${mount.host.name}`);
    same((await mount.names(1)).join(), [...this.names.keys()].sort().join(), "listing");
  }
  private async sync(): Promise<void> {
    const open = this.someOpen();
    if (open === undefined) return;
    this.log.push(`fsync ${open.file.ino} on ${open.mount.host.name}`);
    const code = await this.world.fails(open.mount.vfs.fsync(open.file.ino, open.handle));
    if (code !== undefined && !this.faults.failures) throw new Error(`fsync: ${code}`);
  }
  private async punch(): Promise<void> {
    const open = this.someOpen();
    if (open === undefined || this.faults.failures) return;
    const { offset, length } = this.range();
    const { file, mount } = open;
    this.log.push(`punch ${file.ino} ${offset}+${length} on ${mount.host.name}`);
    await mount.run(mount.vfs.fallocate(file.ino, open.handle, offset, length, 3, CALLER));
    file.data.fill(0, offset, Math.min(offset + length, file.data.length));
  }
  /** Several writes at once that do not overlap, by all who have the file open. */
  private async parallelWrites(): Promise<void> {
    const open = this.someOpen();
    if (open === undefined || this.faults.failures) return;
    const { file } = open;
    const same = this.opens.filter((each) => each.file === file && (each.flags & O_APPEND) === 0);
    if (same.length === 0) return;
    this.log.push(`parallel writes to ${file.ino}`);
    const work: Promise<unknown>[] = [];
    for (let i = 0; i < 8; i++) {
      const by = this.random.pick(same);
      const data = this.random.bytes(this.random.int(1, 8_000));
      const at = i * 8_192;
      const { flags } = by;
      work.push(
        by.mount.vfs.write(file.ino, by.handle, at, data, {
          flags,
          killPrivileges: false,
          fromPageCache: false,
        }),
      );
      apply(file, at, data);
    }
    await this.world.run(Promise.all(work));
  }

  /** Everything closed and unmounted: a fresh mount sees all of it. */
  async finish(): Promise<void> {
    const { world } = this;
    world.objects.failureRate = 0;
    while (this.opens.length > 0) await this.close();
    for (const mount of this.mounts) await mount.run(mount.vfs.destroy());
    const last = await world.mount();
    for (const [name, file] of this.names) {
      const ino = await last.lookup(1, name);
      same(ino, file.ino, name);
      same(await last.size(ino), file.data.length, `size of ${name} in the end`);
      const handle = await last.open(ino);
      compare(await last.read({ ino, handle }, 0, FILE_MAX), file.data, `${name} in the end`);
      await last.run(last.vfs.release(ino, handle));
    }
    await last.run(last.vfs.destroy());
    await world.clock.advance(60_000);
    const alive = new Set([...this.names.values()].map((file) => file.ino.toString(16)));
    for (const object of world.objects.objects.keys()) {
      const ino = object.split("/")[1]!.split(".")[0]!;
      same(alive.has(ino), true, `object ${object} of a removed file was purged`);
    }
    same(world.failures.length, 0, "the leader did not fail");
  }
}

function apply(file: ModelFile, at: number, data: Buffer): void {
  if (at + data.length > file.data.length) {
    const grown = Buffer.alloc(at + data.length);
    file.data.copy(grown);
    file.data = grown;
  }
  data.copy(file.data, at);
}
function same(found: unknown, wanted: unknown, what: string): void {
  if (found !== wanted) throw new Error(`${what}: ${String(found)} instead of ${String(wanted)}`);
}
function compare(found: Buffer, wanted: Buffer, what: string): void {
  if (found.equals(wanted)) return;
  let at = 0;
  while (found[at] === wanted[at] && at < found.length) at++;
  throw new Error(
    `${what}: ${found.length} bytes instead of ${wanted.length}, first difference at ${at}: ` +
      `${found[at]} instead of ${wanted[at]}`,
  );
}

async function run(seed: number, steps: number, faults: Faults): Promise<string> {
  const world = await newWorld(seed);
  if (process.env["TRACE"] !== undefined) {
    const trace = (fields: object, message: string): void => {
      console.error(Math.round(world.clock.now), message, JSON.stringify(fields));
    };
    const logger = { debug: () => undefined, info: trace, warn: trace, error: trace };
    world.logger = { ...logger, child: () => world.logger };
  }
  world.network.faults.loss = faults.loss;
  const options = { writeBackBytesMax: 256 * 1024, cacheBytes: 2 ** 20, inodesMax: 8 };
  const mounts = [await world.mount(options), await world.mount()];
  const scenario = new Scenario(world, mounts, world.random.fork(), faults);
  try {
    for (let i = 0; i < steps; i++) await scenario.step();
    world.network.faults.loss = 0;
    await scenario.finish();
    return "";
  } catch (error) {
    const wanted = process.env["GREP"];
    const { log } = scenario;
    const lines = wanted === undefined ? log.slice(-25) : log.filter((line) => line.match(wanted));
    const recent = lines.join("\n");
    return `SEED=${seed} (${JSON.stringify(faults)}) after ${scenario.log.length} operations:\n${
      (error as Error).stack
    }\n${recent}`;
  }
}

const first = Number(process.env["SEED"] ?? 1);
const seeds = Number(process.env["SEEDS"] ?? 4);
const STEPS = Number(process.env["STEPS"] ?? 250);

t.setTimeout(Math.max(120, seeds * 60) * 1_000);
for (const [name, faults] of Object.entries<Faults>({
  "two mounts agree": { failures: false, leaders: false, loss: 0 },
  "also when write-backs fail": { failures: true, leaders: false, loss: 0 },
  "also when leaders die": { failures: false, leaders: true, loss: 0 },
  "also when connections break": { failures: false, leaders: true, loss: 0.002 },
})) {
  if (!name.match(process.env["ONLY"] ?? "")) continue;
  t.test(name, { timeout: Math.max(120, seeds * 60) * 1_000 }, async (t) => {
    for (let seed = first; seed < first + seeds; seed++) {
      t.equal(await run(seed, STEPS, faults), "", `seed ${seed}`);
    }
  });
}

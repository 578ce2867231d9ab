/**
 * Rounds about bytes: what one mount has written, cut or mapped, the other reads. Each function
 * makes the files of its kind and returns what one round does; files live on from round to round,
 * so that what a mount has cached of them is put to the test by the next.
 */
import { constants } from "node:fs";
import { expectBytes, expectEqual, Incoherence, type Agent, type Pair } from "./agent.js";
import type { Call, Outcome } from "./agent.js";

/** One round; `x` changes something and `y` looks, whichever they are this time. */
export type Round = (x: Agent, y: Agent) => Promise<void>;
export type Kind = (pair: Pair) => Promise<Round>;

const { O_RDWR, O_RDONLY, O_WRONLY, O_CREAT, O_TRUNC, O_APPEND } = constants;
const BLOCK = 4096;
const OBJECT = 4 * 2 ** 20;
/** A local file system takes its times from a clock that ticks this slowly. */
const CLOCK_MS = 10;
/** As uapi/linux/falloc.h. */
const [PUNCH_HOLE, ZERO_RANGE] = [3, 16];

const base64 = (data: Buffer): string => data.toString("base64");
const bytesOf = ({ value }: Outcome): Buffer => Buffer.from(value as string, "base64");

/** Bytes that name their version: no two of a file are equal. */
function stamped(version: number, length: number): Buffer {
  const text = `<${version}>`;
  return Buffer.alloc(length, text);
}

export async function openBoth({ agents: [a, b] }: Pair, slot: string): Promise<void> {
  await a.call("open", slot, slot, O_RDWR | O_CREAT);
  await b.call("open", slot, slot, O_RDWR);
}

/** Writes, holes, copies and cuts by one, read by the other; around the border of two objects. */
export const pingPong: Kind = async (pair) => {
  const { random } = pair;
  const base = OBJECT - 64 * 1024;
  const sizeMax = 128 * 1024;
  let model: Buffer = Buffer.alloc(0);
  let version = 0;
  await openBoth(pair, "ping");
  await pair.agents[0].call("ftruncate", "ping", base);
  const put = (at: number, data: Buffer): void => {
    const size = Math.max(model.length, at + data.length);
    const next = Buffer.alloc(size);
    model.copy(next);
    data.copy(next, at);
    model = next;
  };
  const change = async (x: Agent): Promise<{ at: number; length: number }> => {
    const whole = random.chance(0.5);
    const at = whole ? random.int(0, 30) * BLOCK : random.int(0, sizeMax - 1);
    const room = Math.min(sizeMax - at, 20_000);
    const length = whole ? BLOCK * random.int(1, 2) : random.int(1, room);
    const which = random.float();
    if (which < 0.1) {
      const size = random.int(0, sizeMax);
      const next = Buffer.alloc(size);
      model.copy(next);
      model = next;
      await x.call("ftruncate", "ping", base + size);
      return { at: Math.max(0, size - 1_000), length: 2_000 };
    }
    if (which < 0.2) {
      const mode = random.pick([PUNCH_HOLE, ZERO_RANGE]);
      if (mode === ZERO_RANGE) put(at, Buffer.alloc(length));
      else model.subarray(at, at + length).fill(0);
      await x.call("fallocate", "ping", mode, base + at, length);
    } else if (which < 0.25 && model.length > 20) {
      const count = random.int(1, Math.min(model.length >> 1, 9_000));
      const from = random.int(0, (model.length >> 1) - count);
      const to = model.length >> 1;
      const data = Buffer.from(model.subarray(from, from + count));
      put(to, data);
      await x.call("copy", "ping", base + from, base + to, count);
      return { at: to, length: count };
    } else {
      const data = stamped(++version, length);
      put(at, data);
      await x.pwrite("ping", base + at, data);
    }
    return { at, length };
  };
  const look = async (y: Agent, at: number, length: number): Promise<void> => {
    const wanted = model.subarray(at, at + length);
    expectBytes(
      `${y.name} reads "ping" at ${base + at}`,
      await y.pread("ping", base + at, length),
      wanted,
    );
  };
  return async (x, y) => {
    for (const [writer, reader] of random.chance(0.4)
      ? [[x, y] as const, [y, x] as const]
      : [[x, y] as const]) {
      const { at, length } = await change(writer);
      if (random.chance(0.1)) await writer.call("fsync", "ping");
      const slack = random.int(0, 5_000);
      const from = Math.max(0, at - slack);
      await look(reader, from, at + length + slack - from);
      if (random.chance(0.2)) await look(writer, from, at + length + slack - from);
    }
  };
};

interface Versioned {
  readonly begin: number;
  readonly end: number;
  readonly version: number;
}

/**
 * Reads under way beside writes: each must show the newest version whose write had returned before
 * the read began, or one whose write was under way; and no read an older one than the read before.
 */
function checkRegister(
  what: string,
  writes: readonly Versioned[],
  reads: readonly Versioned[],
  before: number,
): void {
  let last = before;
  for (const { begin, end, version } of reads) {
    let [low, high] = [before, before];
    for (const write of writes) {
      if (write.end < begin) low = write.version;
      if (write.begin <= end) high = write.version;
    }
    if (version >= Math.max(low, last) && version <= high) {
      last = version;
      continue;
    }
    throw new Incoherence(
      `${what}: version ${version} from ${begin} to ${end}, expected ${Math.max(low, last)} to ` +
        `${high} (the read before showed ${last}); writes ${JSON.stringify(writes)}`,
    );
  }
}

/** Both write blocks of their own and read the other's at the same time. */
export const register: Kind = async (pair) => {
  const { random, isOneCache } = pair;
  const newest = [0, 0];
  await openBoth(pair, "register");
  await pair.agents[0].call("ftruncate", "register", 4 * BLOCK);
  const versionIn = (data: Buffer): number => {
    const version = Number(data.readBigUInt64LE(0));
    for (let at = 8; at < data.length; at += 8) {
      // Of one page cache a reader may see the half of a copy that is under way.
      if (isOneCache || Number(data.readBigUInt64LE(at)) === version) continue;
      throw new Incoherence(
        `a block of "register" is mixed of two writes: ${data.toString("hex")}`,
      );
    }
    return version;
  };
  const blockOf = (version: number): string => {
    const data = Buffer.alloc(BLOCK);
    for (let at = 0; at < BLOCK; at += 8) data.writeBigUInt64LE(BigInt(version), at);
    return base64(data);
  };
  return async () => {
    const count = random.int(2, 6);
    const before = [...newest];
    const plans = pair.agents.map((_, side) => {
      const calls: Call[] = [];
      for (let i = 0; i < count; i++) {
        const write: Call = ["pwrite", "register", side * 2 * BLOCK, blockOf(++newest[side]!)];
        const read: Call = ["pread", "register", (1 - side) * 2 * BLOCK, BLOCK];
        calls.push(
          ...random.pick([
            [write, read],
            [read, write],
            [read, write, read],
          ]),
        );
      }
      return calls;
    });
    const done = await Promise.all(pair.agents.map((agent, side) => agent.all(plans[side]!)));
    const writes = done.map((outcomes, side) => {
      let version = before[side]!;
      const own = outcomes.filter((_, i) => plans[side]![i]![0] === "pwrite");
      return own.map(({ begin, end }) => ({ begin, end, version: ++version }));
    });
    for (const [side, outcomes] of done.entries()) {
      const reads = outcomes
        .filter((_, i) => plans[side]![i]![0] === "pread")
        .map((outcome) => ({ ...outcome, version: versionIn(bytesOf(outcome)) }));
      const what = `${pair.agents[side]!.name} reads "register"`;
      checkRegister(what, writes[1 - side]!, reads, before[1 - side]!);
    }
    for (const agent of pair.agents) {
      for (const side of [0, 1]) {
        const found = versionIn(await agent.pread("register", side * 2 * BLOCK, BLOCK));
        expectEqual(`${agent.name}: version in "register"`, found, newest[side]);
      }
    }
  };
};

/** Both append at the same time: nothing overlaps, nothing is missing, each in its order. */
export const appends: Kind = async (pair) => {
  const { random, agents } = pair;
  await agents[0].call("open", "log", "log", O_RDWR | O_CREAT | O_APPEND);
  await agents[1].call("open", "log", "log", O_RDWR | O_APPEND);
  const next = [0, 0];
  let known: Buffer = Buffer.alloc(0);
  const record = (side: number): string =>
    `${side} ${next[side]!++} ${".".repeat(random.int(0, random.chance(0.1) ? 6_000 : 150))}\n`;
  return async (x, y) => {
    if (known.length > 60_000) {
      known = Buffer.alloc(0);
      await x.call("ftruncate", "log", 0);
      expectEqual(`${y.name}: size of "log"`, (await y.stat("log")).size, 0);
    }
    const records = agents.map((_, side) => {
      // At times only one of them does.
      const count = random.chance(0.15) ? 0 : random.int(1, 5);
      return Array.from({ length: count }, () => record(side));
    });
    await Promise.all(
      agents.map((agent, side) =>
        agent.all(records[side]!.map((each) => ["append", "log", base64(Buffer.from(each))])),
      ),
    );
    const bytes = records.flat().reduce((sum, each) => sum + each.length, 0);
    const found = await y.pread("log", 0, 200_000);
    expectEqual(`${y.name}: size of "log"`, found.length, known.length + bytes);
    expectBytes(`${y.name}: beginning of "log"`, found.subarray(0, known.length), known);
    expectBytes(`${x.name} reads "log"`, await x.pread("log", 0, 200_000), found);
    const added = found
      .subarray(known.length)
      .toString()
      .split(/(?<=\n)/);
    for (const side of [0, 1]) {
      const own = added.filter((line) => line.startsWith(`${side} `));
      expectEqual(`${y.name}: appended by ${agents[side]!.name}`, own, records[side]);
    }
    known = found;
  };
};

/** Whole files by open, write and close; read by opening them. */
export const rewriting: Kind = async ({ random }) => {
  let version = 0;
  const contents = new Map<string, Buffer>();
  return async (x, y) => {
    const name = `whole${random.int(0, 3)}`;
    const data = stamped(++version, random.int(0, random.chance(0.1) ? 90_000 : 9_000));
    await x.write(name, data, O_WRONLY | O_CREAT | O_TRUNC);
    contents.set(name, data);
    expectBytes(`${y.name} reads "${name}"`, await y.read(name), data);
    const other = random.pick([...contents.keys()]);
    expectBytes(`${y.name} reads "${other}"`, await y.read(other), contents.get(other)!);
    if (random.chance(0.3)) expectEqual(name, (await x.stat(name)).size, data.length);
  };
};

/** One cuts, extends and writes while the other reads on; afterwards it reads what there is. */
export const truncation: Kind = async (pair) => {
  const { random } = pair;
  const sizeMax = 10 * BLOCK;
  await openBoth(pair, "cut");
  let model: Buffer = Buffer.alloc(0);
  let version = 0;
  const resized = (data: Buffer, size: number): Buffer => {
    const next = Buffer.alloc(size);
    data.copy(next);
    return next;
  };
  const changes = (): { calls: Call[]; states: Buffer[] } => {
    const calls: Call[] = [];
    const states: Buffer[] = [];
    for (let i = random.int(2, 4); i > 0; i--) {
      if (random.chance(0.6)) {
        const size = random.int(0, sizeMax);
        model = resized(model, size);
        calls.push(["ftruncate", "cut", size]);
      } else {
        const at = random.int(0, sizeMax - 1);
        const data = stamped(++version, random.int(1, Math.min(2 * BLOCK, sizeMax - at)));
        model = resized(model, Math.max(model.length, at + data.length));
        data.copy(model, at);
        calls.push(["pwrite", "cut", at, base64(data)]);
      }
      states.push(Buffer.from(model));
    }
    return { calls, states };
  };
  return async (x, y) => {
    if (model.length < BLOCK || random.chance(0.3)) {
      model = stamped(++version, sizeMax);
      await x.pwrite("cut", 0, model);
    }
    const before = Buffer.from(model);
    const { calls, states } = changes();
    // Beyond what the kernel takes for the end it asks for the size; before that it does not.
    const length = random.chance(0.5) ? sizeMax + BLOCK : random.int(1, sizeMax);
    const reading = Array.from({ length: random.int(2, 5) }, (): Call => [
      "pread",
      "cut",
      0,
      length,
    ]);
    const [made, reads] = await Promise.all([x.all(calls), y.all(reading)]);
    for (const read of reads) {
      // What was there at some moment of this read: from the last change that had returned on.
      const ended = made.filter(({ end }) => end < read.begin).length;
      const begun = made.filter(({ begin }) => begin <= read.end).length;
      const possible = [before, ...states]
        .slice(ended, begun + 1)
        .map((state) => state.subarray(0, length));
      checkPieces(`${y.name} reads "cut"`, bytesOf(read), possible);
    }
    for (const agent of [y, x]) {
      const part = await agent.pread("cut", 0, length);
      expectBytes(`${agent.name} reads a part of "cut"`, part, model.subarray(0, length));
      const found = await agent.pread("cut", 0, sizeMax + BLOCK);
      expectBytes(`${agent.name} reads "cut"`, found, model);
      const { size } = await agent.call<{ size: number }>("fstat", "cut");
      expectEqual(`${agent.name}: size of "cut"`, size, model.length);
    }
  };
};

/**
 * A read beside changes: a length between those of the states, and each block as in one of them
 * (a read of several blocks is not atomic, as on a local file system).
 */
function checkPieces(what: string, found: Buffer, states: readonly Buffer[]): void {
  const sizes = states.map(({ length }) => length);
  if (found.length < Math.min(...sizes) || found.length > Math.max(...sizes)) {
    throw new Incoherence(`${what}: ${found.length} bytes, expected one of ${sizes.join(", ")}`);
  }
  for (let at = 0; at < found.length; at += BLOCK) {
    const piece = found.subarray(at, at + BLOCK);
    const matches = states.some((state) => {
      const wanted = Buffer.alloc(piece.length);
      if (at < state.length) state.copy(wanted, 0, at, at + piece.length);
      return wanted.equals(piece);
    });
    if (matches) continue;
    const shown = piece.subarray(0, 60).toString("latin1");
    throw new Incoherence(`${what}: the block at ${at} is of no state: ${JSON.stringify(shown)}`);
  }
}

/**
 * Mapped files: a mapping shows what the other mount wrote, and what is written through a mapping
 * is there for the other after msync. Each file is mapped writable on one mount only: two writable
 * mappings are the documented exception (docs/posix.md).
 */
export const mapping: Kind = async (pair) => {
  const { random, agents } = pair;
  const blocks = 6;
  const length = blocks * BLOCK;
  const files: { name: string; owner: Agent; model: Buffer }[] = [];
  for (const [side, owner] of agents.entries()) {
    const name = `map${side}`;
    await openBoth(pair, name);
    await owner.call("ftruncate", name, length);
    for (const agent of agents) {
      await agent.call("map", name, name, length, agent === owner ? "w" : "r");
    }
    files.push({ name, owner, model: Buffer.alloc(length) });
  }
  let version = 0;
  /** Before a page changed through the mapping is synced, the other mount writes another one. */
  const unsynced = async ({ name, owner, model }: (typeof files)[number]): Promise<void> => {
    const other = agents.find((agent) => agent !== owner)!;
    const first = random.int(0, blocks - 1);
    const second = (first + random.int(1, blocks - 1)) % blocks;
    const put = (page: number): [at: number, data: Buffer] => {
      const data = stamped(++version, random.int(1, BLOCK));
      data.copy(model, page * BLOCK);
      return [page * BLOCK, data];
    };
    const [at, data] = put(first);
    await owner.call("mwrite", name, at, base64(data));
    await other.pwrite(name, ...put(second));
    await owner.call("msync", name);
    for (const agent of random.chance(0.5) ? agents : [other, owner]) {
      expectBytes(`${agent.name} reads "${name}"`, await agent.pread(name, 0, length), model);
    }
  };
  return async (x, y) => {
    if (random.chance(0.2)) return await unsynced(random.pick(files));
    const { name, owner, model } = random.pick(files);
    const at = random.int(0, blocks - 1) * BLOCK + random.pick([0, 0, random.int(0, BLOCK - 1)]);
    const data = stamped(++version, random.int(1, Math.min(BLOCK, length - at)));
    const isMapped = random.chance(0.5);
    const [writer, reader] = isMapped ? [owner, agents.find((each) => each !== owner)!] : [x, y];
    data.copy(model, at);
    if (isMapped) {
      await writer.call("mwrite", name, at, base64(data));
      await writer.call("msync", name);
    } else {
      await writer.pwrite(name, at, data);
    }
    const from = random.chance(0.5) ? 0 : at;
    const wanted = model.subarray(from, at + data.length);
    const mapped = async (agent: Agent): Promise<void> => {
      const found = await agent.call<string>("mread", name, from, wanted.length);
      const what = `${agent.name}: mapping of "${name}" at ${from}`;
      expectBytes(what, Buffer.from(found, "base64"), wanted);
    };
    await mapped(reader);
    const read = await reader.pread(name, from, wanted.length);
    expectBytes(`${reader.name} reads "${name}" at ${from}`, read, wanted);
    await mapped(writer);
  };
};

/**
 * A file is made longer and its end written through a mapping; the other mount looks at it before
 * that is synced, by which the first has to give it back.
 */
export const growing: Kind = async (pair) => {
  const { random } = pair;
  const name = "grown";
  await openBoth(pair, name);
  let model: Buffer = Buffer.alloc(0);
  let version = 0;
  return async (x, y) => {
    if (model.length > 50 * BLOCK) {
      await y.call("ftruncate", name, 0);
      model = Buffer.alloc(0);
    }
    model = Buffer.concat([model, Buffer.alloc(random.int(1, 2 * BLOCK))]);
    const { length } = model;
    await x.call("ftruncate", name, length);
    await x.call("map", name, name, length, "w");
    const data = stamped(++version, random.int(1, Math.min(BLOCK, length)));
    data.copy(model, length - data.length);
    await x.call("mwrite", name, length - data.length, base64(data));
    expectEqual(`${y.name}: size of "${name}"`, (await y.stat(name)).size, length);
    await x.call("msync", name);
    await x.call("unmap", name);
    for (const agent of random.chance(0.5) ? [x, y] : [y, x]) {
      const found = await agent.pread(name, 0, length);
      expectBytes(`${agent.name} reads "${name}"`, found, model);
    }
  };
};

/** Size and time of modification after writes, and times that are set. */
export const sizes: Kind = async (pair) => {
  const { random } = pair;
  await openBoth(pair, "stat");
  let size = 0;
  let mtimeMs = 0;
  return async (x, y) => {
    const now = Date.now();
    if (random.chance(0.2)) {
      mtimeMs = random.int(1, 2_000_000_000) * 1_000 + random.int(0, 999);
      await x.call("utime", "stat", mtimeMs);
      expectEqual(`${y.name}: times set`, (await y.stat("stat")).mtimeMs, mtimeMs);
      return;
    }
    if (random.chance(0.1)) {
      size = random.int(0, 5_000);
      await x.call("ftruncate", "stat", size);
    } else {
      const at = random.chance(0.6) ? size : random.int(0, size);
      const data = stamped(now, random.int(1, 3_000));
      size = Math.max(size, at + data.length);
      await x.pwrite("stat", at, data);
    }
    const [seen, own] = [await y.stat("stat"), await x.stat("stat")];
    const open = await y.call<{ size: number; mtimeMs: number }>("fstat", "stat");
    for (const [who, found] of [[y, seen] as const, [x, own] as const, [y, open] as const]) {
      expectEqual(`${who.name}: size of "stat"`, found.size, size);
      expectEqual(`${who.name}: mtime of "stat" as the other shows`, found.mtimeMs, seen.mtimeMs);
      if (found.mtimeMs < now - CLOCK_MS) {
        throw new Incoherence(`${who.name}: mtime ${found.mtimeMs} is before the write at ${now}`);
      }
    }
    mtimeMs = seen.mtimeMs;
    if (size > 200_000) {
      size = 0;
      await y.write("stat", "", O_WRONLY | O_TRUNC);
      expectEqual(`${x.name}: size of "stat"`, (await x.stat("stat")).size, 0);
    }
  };
};

/** A name gets another file while the other mount has the old one open. */
export const replacing: Kind = async ({ random }) => {
  let version = 0;
  let current: Buffer = stamped(0, 100);
  let isThere = false;
  return async (x, y) => {
    if (!isThere) await x.write("over", current, O_WRONLY | O_CREAT);
    isThere = true;
    await y.call("open", "held", "over", random.pick([O_RDONLY, O_RDWR]));
    if (random.chance(0.5)) expectBytes("held", await y.pread("held", 0, 20_000), current);
    const old = current;
    current = stamped(++version, random.int(1, 9_000));
    await x.write("over.new", current, O_WRONLY | O_CREAT | O_TRUNC);
    await x.call("rename", "over.new", "over");
    const held = await y.call<{ nlink: number; size: number }>("fstat", "held");
    expectEqual(`${y.name}: links of the file that was replaced`, held.nlink, 0);
    const kept = await y.pread("held", 0, 20_000);
    expectBytes(`${y.name}: the file that was replaced`, kept, old);
    expectBytes(`${y.name} reads "over"`, await y.read("over"), current);
    await y.call("close", "held");
    expectEqual(`${x.name}: size of "over"`, (await x.stat("over")).size, current.length);
  };
};

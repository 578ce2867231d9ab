/**
 * Feeds the NBD state machines and the whole server garbage, mutated and re-split frames. Nothing
 * may throw, hang, grow without bound, or hand the image a request outside its limits.
 * `FUZZ_SEED` repeats a run, `FUZZ_FRAMES` (of each of the two machines) lengthens it; the campaign
 * nbd-fuzz does both.
 */
import v8 from "node:v8";
import { runInNewContext } from "node:vm";
import t from "tap";
import type { Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { silentLogger } from "../../cluster/base/log.js";
import type { ExportFacts, Session } from "../../nbd/abi.js";
import { BACKLOG_BYTES_MAX, Handshake, type HandshakeEffect } from "../../nbd/handshake.js";
import {
  Transmission,
  WRITE_BYTES_MAX,
  type StartRequest,
  type TransmissionEffect,
} from "../../nbd/transmission.js";
import { NbdServer } from "../../nbd/server.js";
import {
  contextData,
  FLAGS,
  infoData,
  option,
  parseChunks,
  request,
  u32,
  u64,
  wideRequest,
} from "../unit/nbd/client-bytes.js";
import { FakeClock, FakeNetwork } from "../unit/nbd/fake-platform.js";
import { MemoryDirectory, MemoryImage } from "../unit/nbd/memory-image.js";

const seed = Number(process.env["FUZZ_SEED"] ?? 20_240_611);
const frames = Number(process.env["FUZZ_FRAMES"] ?? 10_000);
const rounds = Math.ceil(frames / 100);
const FACTS: ExportFacts = {
  name: "disk",
  description: "fuzzed",
  size: 1 << 20,
  readOnly: false,
  blockSize: { minimum: 1, preferred: 4096, maximum: WRITE_BYTES_MAX },
};

v8.setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
/** Bytes that are still in use. Buffers are given back by another thread, some time after. */
async function memory(): Promise<number> {
  let least = Infinity;
  for (let round = 0; round < 5; round++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 20));
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    least = Math.min(least, heapUsed + arrayBuffers);
  }
  return least;
}
const GROWTH_MAX = 8 * 2 ** 20;

/** What a long run is judged by: figures of it stand beside the assertion. */
async function checkMemory(t: Test, before: number, fed: string, begin: number): Promise<void> {
  const after = await memory();
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(2);
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  t.comment(`${fed}, ${seconds} s, ${mib(before)} MiB in use before, ${mib(after)} MiB after`);
  t.ok(after - before < GROWTH_MAX, "memory is flat");
}

function mutate(random: Prng, frame: Buffer): Buffer {
  const out = Buffer.from(frame);
  const kind = random.int(0, 30);
  if (kind === 0 && out.length > 0) {
    for (let i = random.int(1, 3); i > 0; i--) {
      out[random.int(0, out.length - 1)] = random.u32() & 0xff;
    }
  } else if (kind === 1 && out.length >= 4) {
    // An extreme number somewhere is what length fields fear most.
    const extreme = random.pick([0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 65_536, 1 << 25]);
    out.writeUInt32BE(extreme, random.int(0, out.length - 4));
  } else if (kind === 2) {
    return out.subarray(0, random.int(0, out.length));
  } else if (kind === 3) {
    return Buffer.concat([out, random.bytes(random.int(0, 40))]);
  }
  return out; // As it is, so that what follows is understood.
}

function* split(random: Prng, bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at < bytes.length;) {
    const size = random.chance(0.5) ? bytes.length : random.int(1, 40);
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

function someOption(random: Prng): Buffer {
  const name = random.pick(["disk", "", "nope", "é"]);
  const queries = ["base:allocation", "base:", "x-a:b", "none"];
  switch (random.int(0, 8)) {
    case 0:
      return option(random.int(0, 12), random.bytes(random.int(0, 60)));
    case 1:
      return option(random.pick([3, 5, 8, 8, 11]));
    case 6:
      return option(random.pick([9, 10]), contextData(name, [random.pick(queries)]));
    case 7:
      return option(random.pick([9, 10]), contextData(name, random.chance(0.5) ? [] : queries));
    case 8:
      return option(random.pick([9, 10]), random.bytes(random.int(0, 60)));
    case 2:
      return option(random.pick([6, 7]), infoData(name, [random.int(0, 4), random.int(0, 4)]));
    case 3:
      return option(random.pick([1, 2]), Buffer.from(name));
    case 4:
      return random.bytes(random.int(0, 64));
    default:
      return option(random.pick([6, 7]), random.bytes(random.int(0, 30)));
  }
}

function someRequest(random: Prng, extended = false): Buffer {
  const type = random.chance(0.01) ? 2 : random.pick([0, 1, 1, 1, 3, 4, 5, 6, 7, 7, 300]);
  const offset = BigInt(random.pick([0, 0, 1, 4096, FACTS.size - 1, 2 ** 53]));
  const flags = random.pick([0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 0xffff]);
  if (extended) return someWideRequest(random, { type, offset, flags });
  if (type === 1) return request({ type, offset, flags, data: random.bytes(random.int(0, 300)) });
  const length = random.pick([0, 1, 512, FACTS.size, 0xffffffff]);
  return request({ type, offset, flags, length });
}

const PAYLOAD_LEN = 32;

function someWideRequest(
  random: Prng,
  head: { type: number; offset: bigint; flags: number },
): Buffer {
  const { type, flags } = head;
  const carries = (flags & PAYLOAD_LEN) !== 0 || (type === 1 && random.chance(0.9));
  if (carries) {
    const selection = Buffer.concat([u64(BigInt(random.pick([0, 4096, 2 ** 53]))), u32(1)]);
    const data = type === 7 && random.chance(0.8) ? selection : random.bytes(random.int(0, 300));
    return wideRequest({ ...head, flags: flags | PAYLOAD_LEN, data });
  }
  const length = random.pick([0n, 1n, 512n, BigInt(FACTS.size), 1n << 32n, (1n << 64n) - 1n]);
  return wideRequest({ ...head, length });
}

t.test("negotiation", async (t) => {
  const random = new Prng(seed);
  let fed = 0;
  let entered = 0;
  let closed = 0;
  const before = await memory();
  const begin = performance.now();
  while (fed < frames) {
    const handshake = new Handshake(random.pick(["off", "off", "allow", "require"]));
    let over = false;
    const run = (effects: HandshakeEffect[]): void => {
      for (const effect of effects) {
        if (effect.do === "enter") entered++;
        if (effect.do === "close") closed++;
        if (effect.do === "enter" || effect.do === "close") over = true;
        else if (effect.do === "list") run(handshake.onListed([{ name: "disk", description: "" }]));
        else if (effect.do === "open") run(handshake.onOpened(FACTS));
        else if (effect.do === "secure") run(handshake.onSecured());
        else if (effect.bytes.length > 2 * BACKLOG_BYTES_MAX) t.fail("a reply beyond all bounds");
      }
    };
    run(handshake.start());
    for (const chunk of split(random, random.chance(0.9) ? FLAGS : mutate(random, u32(3)))) {
      run(handshake.onBytes(chunk));
    }
    for (let i = 0; i < 20 && !over; i++, fed++) {
      for (const chunk of split(random, mutate(random, someOption(random)))) {
        run(handshake.onBytes(chunk));
      }
    }
    fed++;
  }
  await checkMemory(t, before, `${fed} frames of negotiation`, begin);
  t.ok(entered > frames / 500, `${entered} got through`);
  t.ok(closed > frames / 500, `${closed} were closed`);
});

const SESSIONS: readonly Session[] = [
  { structured: false, extended: false, allocation: false },
  { structured: true, extended: false, allocation: true },
  { structured: true, extended: true, allocation: true },
];

/** One reply, good or bad; of a session with chunks it must parse and end. */
function answer(random: Prng, machine: Transmission, request: StartRequest): Buffer[] {
  const out: Buffer[] = [];
  const { length, command } = request;
  const failure = { error: random.pick([1, 5, 22, 28, 75, 95, 108, 999]), message: "fuzzed" };
  if (random.chance(0.2)) machine.fail(request, failure, out);
  else if (command === "read") {
    const cut = random.int(0, length);
    const first = random.chance(0.5) ? Buffer.alloc(cut) : random.bytes(cut);
    const rest = { length: length - cut, pieces: [Buffer.alloc(length - cut, random.int(0, 1))] };
    const bad = { length: length - cut, ...failure };
    const whole = cut === length ? [] : [machine.partial && random.chance(0.2) ? bad : rest];
    machine.finishRead(request, [{ length: cut, pieces: [first] }, ...whole], out);
  } else if (command === "status") {
    machine.finishStatus(request, [{ length: 2 ** random.int(0, 50), flags: 3 }], out);
  } else machine.finish(request, out);
  return out;
}

t.test("transmission", async (t) => {
  const random = new Prng(seed + 1);
  let fed = 0;
  let started = 0;
  let closed = 0;
  const before = await memory();
  const begin = performance.now();
  while (fed < frames) {
    const session = random.pick(SESSIONS);
    const transmission = new Transmission(FACTS, session);
    let over = false;
    const check = (effect: TransmissionEffect): void => {
      if (effect.do === "close" || effect.do === "disconnect") {
        over = true;
        closed++;
      } else if (effect.do === "start") {
        started++;
        const { offset, length, data, command } = effect;
        const dataFits = command !== "write" || data.length === length;
        if (offset < 0 || offset + length > FACTS.size || !dataFits) {
          t.fail(`${command} ${offset}+${length} with ${data.length} bytes`);
        }
        const reply = Buffer.concat(answer(random, transmission, effect));
        if (session.extended && parseChunks(reply).at(-1)?.last !== true) t.fail("no last chunk");
      }
    };
    for (let i = 0; i < 20 && !over; i++, fed++) {
      const frame = mutate(random, someRequest(random, session.extended));
      for (const chunk of split(random, frame)) {
        transmission.push(chunk);
        for (;;) {
          const effect = transmission.next(FACTS.size);
          if (!effect || effect.do === "wait") break;
          check(effect);
        }
        if (transmission.assembling > FACTS.size) t.fail("more allocated than granted");
      }
    }
  }
  await checkMemory(t, before, `${fed} frames of transmission`, begin);
  t.ok(started > frames / 10, `${started} requests got through`);
  t.ok(closed > frames / 500, `${closed} connections were closed`);
});

t.test("the server survives, gives everything back and serves the next client", async (t) => {
  const random = new Prng(seed + 2);
  const clock = new FakeClock();
  const network = new FakeNetwork();
  const image = new MemoryImage({ name: "disk", size: FACTS.size });
  const directory = new MemoryDirectory([image]);
  const server = new NbdServer({ network, clock, log: silentLogger, directory });
  await server.listen({ path: "/fuzz" });
  const before = await memory();
  const begin = performance.now();
  for (let round = 0; round < rounds; round++) {
    const link = network.client();
    const choose = option(7, infoData(random.chance(0.9) ? "disk" : "nope"));
    const form = random.int(0, 2); // As SESSIONS.
    const select = option(10, contextData("disk", ["base:allocation"]));
    link.push(FLAGS, ...(form === 0 ? [] : [option(form === 1 ? 8 : 11), select]));
    link.push(random.chance(0.9) ? choose : mutate(random, choose));
    if (random.chance(0.8)) await clock.settle();
    for (let i = random.int(0, 30); i > 0; i--) {
      link.push(...split(random, mutate(random, someRequest(random, form === 2))));
      if (random.chance(0.1)) await clock.settle();
    }
    if (random.chance(0.5)) await clock.settle();
    link.hangUp();
  }
  await clock.settle();
  await checkMemory(t, before, `${rounds} connections to a server`, begin);
  t.same(server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
  t.equal(directory.opens, directory.closes);
  t.ok(directory.opens > rounds / 3, `${directory.opens} times attached`);
  const good = network.client();
  good.push(FLAGS, option(7, infoData("disk")));
  await clock.settle();
  good.take();
  good.push(request({ type: 0, length: 4096 }));
  await clock.settle();
  t.equal(good.take().length, 16 + 4096);
  good.hangUp();
  await server.stop();
});

/**
 * Mutated FUSE requests: the connection never throws, answers every request that it can identify
 * exactly once, and gives every buffer back. `FUZZ_SEED` repeats a run, `FUZZ_ROUNDS` lengthens it.
 */
import t from "tap";
import { DssError } from "../../cluster/base/errors.js";
import { Prng } from "../../cluster/base/prng.js";
import * as abi from "../../client-fs/fuse/abi.js";
import { OPCODE, OPCODES } from "../../client-fs/fuse/opcodes.js";
import { MemoryFileSystem } from "../integration/memory-fs.js";
import { fields, INIT, initBody, Kernel, requestBytes } from "../unit/client-fs/fuse/wire.js";

const seed = Number(process.env["FUZZ_SEED"] ?? Date.now() % 2 ** 31);
const rounds = Number(process.env["FUZZ_ROUNDS"] ?? 60_000);

/** A fresh file system, with the forgets of ids that were never looked up made harmless. */
function fileSystem(): MemoryFileSystem {
  const files = new MemoryFileSystem();
  const forget = files.forget.bind(files);
  files.forget = (ino, count) => {
    if ((files.inodes.get(ino)?.lookups ?? 0) >= count) forget(ino, count);
  };
  const write = files.write.bind(files);
  files.write = (ino, handle, offset, data, options) =>
    offset > 2 ** 24
      ? Promise.reject(new DssError("FileTooLarge", "fuzz"))
      : write(ino, handle, offset, data, options);
  return files;
}

function body(random: Prng): Buffer {
  const name = random.pick(["a\0", "b\0", "dir\0", ".\0", "..\0", "no end", "\0", "x\0y\0"]);
  switch (random.int(0, 4)) {
    case 0:
      return fields(name);
    case 1:
      return fields(BigInt(random.int(0, 9)), BigInt(random.int(0, 9999)), random.int(0, 9999),
        random.int(0, 7), 0n, random.u32(), 0, random.bytes(random.int(0, 200))); // prettier-ignore
    case 2:
      return fields(random.int(0, 0o7777), random.u32(), random.int(0, 0o777), 0, name, name);
    case 3:
      return random.bytes(random.int(0, 300));
    default:
      return fields(BigInt(random.int(0, 5)), name, name);
  }
}

function hasReply(opcode: number): boolean {
  const silent: number[] = [OPCODE.FORGET, OPCODE.BATCH_FORGET, OPCODE.NOTIFY_REPLY];
  return !silent.includes(opcode) && opcode !== OPCODE.INTERRUPT;
}

t.test(`mutated requests, FUZZ_SEED=${seed}`, async (t) => {
  const random = new Prng(seed);
  const opcodes = [...OPCODES.map((row) => row.opcode), 0, 7, 54, 63, 64, 0xffff_ffff];
  let kernel = new Kernel(fileSystem());
  kernel.init();
  let expected = new Map<bigint, number>();
  for (let round = 0; round < rounds; round++) {
    const opcode = random.pick(opcodes);
    const unique = BigInt(round + 1) * 2n;
    const message = requestBytes(opcode, body(random), { unique, ino: random.int(0, 6) });
    // Flip bytes anywhere behind `unique`, so that the answer can be told.
    for (let flips = random.int(0, 3); flips > 0; flips--) {
      const at = random.int(abi.IN_NODE_ID, message.length - 1);
      message[at] = random.pick([0, 0xff, 0x7f, 0x80, random.u32() & 0xff]);
    }
    let length = message.length;
    if (random.chance(0.05)) {
      length = random.int(0, message.length);
      if (random.chance(0.5)) message.writeUInt32LE(length, 0);
    }
    const stated = message.length >= 4 ? message.readUInt32LE(0) : 0;
    if (hasReply(opcode) && length >= abi.IN_HEADER_SIZE && stated === length) {
      expected.set(unique, opcode);
    }
    kernel.send(message, length);
    if (round % 500 === 499) {
      await kernel.connection.idle();
      await new Promise((resolve) => setImmediate(resolve)); // DESTROY answers a little later.
      for (const { unique: answered } of kernel.replies) {
        const known = expected.delete(answered);
        if (!known && (answered & 1n) === 0n) {
          const interrupted = kernel.replies.filter((r) => r.unique === answered).length === 1;
          if (!interrupted) t.fail(`round ${round}: request ${answered} was answered twice`);
        }
      }
      const missing = [...expected.values()];
      if (missing.length > 0) t.fail(`round ${round}: no answer to opcodes ${missing.join()}`);
      if (kernel.leased !== kernel.released) t.fail(`round ${round}: a buffer was not given back`);
      if (kernel.crashes.length > 0) t.fail(`round ${round}: ${String(kernel.crashes[0])}`);
      expected = new Map();
      kernel = new Kernel(fileSystem());
      kernel.init();
    }
  }
  t.pass(`${rounds} requests`);
});

t.test(`mutated INIT, FUZZ_SEED=${seed}`, (t) => {
  const random = new Prng(seed ^ 0x1217);
  for (let round = 0; round < 2_000; round++) {
    const kernel = new Kernel({});
    const init = initBody(random.pick([7, 7, 7, 6, 8, random.u32()]), random.int(0, 60));
    init.writeUInt32LE(random.u32(), 12);
    const message = requestBytes(INIT, init.subarray(0, random.int(0, init.length)));
    kernel.send(message);
    t.equal(kernel.replies.length, 1, `round ${round}`, { diagnostic: false });
    t.equal(kernel.released, 1);
  }
  t.end();
});

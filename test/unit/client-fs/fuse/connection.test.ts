/** The FUSE connection: negotiation, errors, forgets, interrupts, listings, buffers. */
import { constants } from "node:os";
import t from "tap";
import { AssertionFailure } from "../../../../cluster/base/assert.js";
import { DssError, isDssError } from "../../../../cluster/base/errors.js";
import type {
  Attributes,
  Caller,
  DirEntry,
  Entry,
  FileLock,
  SetAttributes,
} from "../../../../client-fs/file-system.js";
import * as abi from "../../../../client-fs/fuse/abi.js";
import { fields, INIT, initBody, Kernel, requestBytes } from "./wire.js";

const { EIO, ENOSYS, ENOENT, EPROTO, EAGAIN, EINVAL, EFBIG, ENAMETOOLONG, ERANGE } =
  constants.errno;

function entry(ino: number): Entry {
  const attributes: Attributes = {
    ino, mode: 0o100644, nlink: 1, uid: 0, gid: 0, rdev: 0, size: 0, blocks: 0, blksize: 4096,
    atimeNs: 0n, mtimeNs: 0n, ctimeNs: 0n, btimeNs: 0n,
  }; // prettier-ignore
  return { attributes, generation: 0, entryValidMs: 0, attributesValidMs: 0 };
}
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

t.test("INIT", (t) => {
  t.test("negotiates what both sides have", (t) => {
    let told: object | undefined;
    const getxattr = (): Promise<Buffer> => Promise.resolve(Buffer.alloc(0));
    const kernel = new Kernel({ init: (_n, about) => void (told = about), getxattr });
    kernel.send(requestBytes(INIT, initBody(7, 45)));
    const { errno, body } = kernel.replies[0]!;
    t.equal(errno, 0);
    t.equal(body.length, 64);
    t.same([body.readUInt32LE(0), body.readUInt32LE(4)], [7, 45]);
    const flags = body.readUInt32LE(12);
    for (const name of ["MAX_PAGES", "PARALLEL_DIROPS", "POSIX_ACL", "DONT_MASK"] as const) {
      t.ok(flags & abi.INIT_FLAG[name], name);
    }
    for (const name of [
      "POSIX_LOCKS",
      "FLOCK_LOCKS",
      "WRITEBACK_CACHE",
      "NO_OPEN_SUPPORT",
    ] as const) {
      t.notOk(flags & abi.INIT_FLAG[name], `not ${name}`);
    }
    t.ok(body.readUInt16LE(16) >= 64, "max_background");
    t.equal(body.readUInt32LE(20), 1024 * 1024, "max_write");
    t.equal(body.readUInt16LE(28), 256, "max_pages");
    t.equal(body.readUInt32LE(32), 0x90, "flags2: DIRECT_IO_ALLOW_MMAP and HAS_RESEND");
    t.same(told, { canInvalidateAllEntries: true });
    t.end();
  });
  t.test("asks an old kernel for nothing it did not offer", (t) => {
    let told: object | undefined;
    const kernel = new Kernel({ init: (_n, about) => void (told = about) });
    kernel.send(requestBytes(INIT, fields(7, 31, 131_072, abi.INIT_FLAG.ASYNC_READ)));
    const { errno, body } = kernel.replies[0]!;
    t.equal(errno, 0);
    t.equal(body.readUInt32LE(12), abi.INIT_FLAG.ASYNC_READ);
    t.equal(body.readUInt32LE(20), 128 * 1024, "32 pages without MAX_PAGES");
    t.equal(body.readUInt32LE(32), 0);
    t.same(told, { canInvalidateAllEntries: false });
    t.end();
  });
  t.test("refuses versions before 7.31 with a clear error", (t) => {
    const kernel = new Kernel({});
    kernel.send(requestBytes(INIT, initBody(7, 30)));
    t.equal(kernel.replies[0]!.errno, EPROTO);
    t.ok(isDssError(kernel.outcome, "IncompatibleVersion"));
    t.match((kernel.outcome as DssError).message, /7\.30.*7\.31/);
    t.end();
  });
  t.test("offers its own major version to a newer kernel and waits", (t) => {
    const kernel = new Kernel({});
    kernel.send(requestBytes(INIT, initBody(8, 0)));
    t.equal(kernel.replies[0]!.errno, 0);
    t.equal(kernel.replies[0]!.body.readUInt32LE(0), 7);
    t.equal(kernel.outcome, undefined);
    kernel.send(requestBytes(INIT, initBody(7, 45)));
    t.match(kernel.outcome, { kernelMinor: 45 });
    t.end();
  });
  t.test("nothing is served before it", async (t) => {
    const kernel = new Kernel({ lookup: () => Promise.resolve(entry(2)) });
    t.equal((await kernel.ask(1, fields("a\0"))).errno, EIO);
  });
  t.end();
});

t.test("a lookup goes to the file system and its entry comes back", async (t) => {
  const seen: unknown[] = [];
  const kernel = new Kernel({
    lookup: (parent: number, name: Buffer, caller: Caller) => {
      seen.push(parent, name.toString(), { ...caller });
      return Promise.resolve(entry(77));
    },
  });
  kernel.init();
  const unique = (1n << 63n) | 6n; // A re-sent request: the high bit comes back.
  const reply = await kernel.ask(1, fields("hello\0"), { unique, ino: 9 });
  t.equal(reply.errno, 0);
  t.equal(reply.unique, unique);
  t.equal(reply.body.length, abi.ENTRY_OUT_SIZE);
  t.equal(reply.body.readBigUInt64LE(0), 77n);
  t.same(seen, [9, "hello", { uid: 1000, gid: 100, pid: 4242, umask: 0, cause: 6 }]);
  t.equal(kernel.released, kernel.leased, "the buffer is free again");
});

t.test("errors become errnos", async (t) => {
  let failure: () => Promise<Entry>;
  const kernel = new Kernel({ lookup: () => failure() });
  kernel.init();
  const errnoFor = async (work: () => Promise<Entry>): Promise<number> => {
    failure = work;
    return (await kernel.ask(1, fields("a\0"))).errno;
  };
  t.equal(await errnoFor(() => Promise.reject(new DssError("NotFound", "x"))), ENOENT);
  t.equal(await errnoFor(() => Promise.reject(new DssError("Corrupt", "x"))), EIO);
  t.equal(await errnoFor(() => Promise.reject(new TypeError("x"))), EIO);
  t.equal(
    await errnoFor(() => {
      throw new DssError("NotPermitted", "thrown at once");
    }),
    constants.errno.EPERM,
  );
  t.same(kernel.crashes, []);
  await errnoFor(() => Promise.reject(new AssertionFailure("bug")));
  t.equal(kernel.crashes.length, 1, "a bug ends the process");
  t.equal(kernel.released, kernel.leased);
});

t.test("locks are asked for, and their requests are understood", async (t) => {
  const seen: { lock: FileLock; wait: boolean }[] = [];
  const kernel = new Kernel({
    getlk: (_ino, _handle, lock) => Promise.resolve({ ...lock, mode: "shared", start: 5n, pid: 9 }),
    setlk: (_ino, _handle, lock, { wait }, caller) => {
      seen.push({ lock, wait });
      if (!wait) return Promise.resolve();
      return new Promise((_, reject) => {
        caller.onInterrupt = () => reject(new DssError("Interrupted", "x"));
      });
    },
  });
  kernel.send(requestBytes(INIT, initBody(7, 45)));
  const flags = kernel.replies[0]!.body.readUInt32LE(12);
  t.ok(flags & abi.INIT_FLAG.POSIX_LOCKS && flags & abi.INIT_FLAG.FLOCK_LOCKS);
  const body = (type: number, flock = 0): Buffer =>
    fields(3n, 0x1234_5678_9abc_def0n, 2n, 2n ** 63n - 1n, type, 77, flock, 0);
  const lock = { owner: 0x1234_5678_9abc_def0n, start: 2n, end: 2n ** 63n - 1n, pid: 77 };
  t.equal((await kernel.ask(32, body(1))).errno, 0);
  t.equal((await kernel.ask(32, body(2, 1))).errno, 0);
  t.same(seen, [
    { lock: { ...lock, kind: "posix", mode: "exclusive" }, wait: false },
    { lock: { ...lock, kind: "flock", mode: "unlocked" }, wait: false },
  ]);
  const answer = await kernel.ask(31, body(1));
  t.same(answer.body, fields(5n, 2n ** 63n - 1n, 0, 9));
  t.equal((await kernel.ask(32, body(3))).errno, EINVAL, "an unknown type");
  t.equal((await kernel.ask(32, fields(3n, 1n, 9n, 8n, 0, 1, 0, 0))).errno, EINVAL);
  const replies = kernel.replies.length;
  kernel.send(requestBytes(33, body(0), { unique: 500n }));
  await tick();
  t.equal(kernel.replies.length, replies, "waits");
  kernel.send(requestBytes(36, fields(500n), { unique: 501n }));
  await tick();
  t.match(kernel.replies.at(-1), { unique: 500n, errno: constants.errno.EINTR });
  kernel.send(requestBytes(33, body(0), { unique: 502n }));
  kernel.connection.interruptAll();
  await kernel.connection.idle();
  t.match(kernel.replies.at(-1), { unique: 502n, errno: constants.errno.EINTR }, "at the end too");
});

t.test("a copied range: both requests, and no more than one answer can say", async (t) => {
  const seen: unknown[] = [];
  const kernel = new Kernel({
    copyFileRange: (source, target, length) => {
      seen.push([source, target, length]);
      return Promise.resolve(length);
    },
  });
  kernel.init();
  const body = Buffer.alloc(56);
  const fields = [7n, 4_096n, 9n, 8n, 100n, 50n, 0n];
  fields.forEach((value, index) => body.writeBigUInt64LE(value, index * 8));
  t.equal((await kernel.ask(47, body)).body.readUInt32LE(0), 50);
  body.writeBigUInt64LE(2n ** 63n - 4_096n, 40);
  t.equal((await kernel.ask(53, body)).body.readBigUInt64LE(0), 2n ** 26n);
  t.match(seen[0], [{ handle: 7, offset: 4_096 }, { ino: 9, handle: 8, offset: 100 }, 50]);
});

t.test("what dss does not serve", async (t) => {
  const kernel = new Kernel({});
  kernel.init();
  const body = Buffer.alloc(64);
  t.equal((await kernel.ask(31, body)).errno, ENOSYS, "GETLK of a file system without it");
  t.equal((await kernel.ask(39, body)).errno, constants.errno.ENOTTY, "IOCTL");
  t.equal((await kernel.ask(47, body)).errno, ENOSYS, "COPY_FILE_RANGE without it");
  t.equal((await kernel.ask(51, body)).errno, ENOSYS, "TMPFILE of a file system without it");
  t.equal((await kernel.ask(43, body)).errno, ENOSYS, "FALLOCATE of a file system without it");
  t.equal((await kernel.ask(22, body)).errno, ENOSYS, "GETXATTR of a file system without them");
  t.equal((await kernel.ask(21, body)).errno, ENOSYS, "SETXATTR of a file system without them");
  t.equal((await kernel.ask(1234, body)).errno, ENOSYS, "an opcode from the future");
  t.equal((await kernel.ask(4096, body)).errno, EPROTO, "CUSE");
});

t.test("malformed requests", async (t) => {
  const kernel = new Kernel({ lookup: () => Promise.resolve(entry(2)) });
  kernel.init();
  t.equal((await kernel.ask(1, fields("no end"))).errno, EIO, "a name without its NUL");
  t.equal((await kernel.ask(16, fields(1n, 0n))).errno, EIO, "a WRITE without its body");
  const long = `${"x".repeat(256)}\0`;
  t.equal((await kernel.ask(1, fields(long))).errno, ENAMETOOLONG);
  t.equal((await kernel.ask(45, fields(1n, 4, 0, "a\0b\0"))).errno, EINVAL, "RENAME_WHITEOUT");
  const write = fields(1n, 0n, 100, 0, 0n, 0, 0, "short");
  t.equal((await kernel.ask(16, write)).errno, EIO, "less data than promised");
  const far = fields(1n, 1n << 60n, 1, 0, 0n, 0, 0, "x");
  t.equal((await kernel.ask(16, far)).errno, EFBIG, "an offset beyond 2^53");
  kernel.replies.length = 0;
  kernel.send(requestBytes(1, fields("a\0")), 41);
  kernel.send(Buffer.alloc(10));
  t.same(kernel.replies, [], "a length that does not match cannot be answered");
  t.equal(kernel.released, kernel.leased);
});

t.test("forgets have no reply", (t) => {
  const forgotten: [number, number][] = [];
  const kernel = new Kernel({ forget: (ino, count) => forgotten.push([ino, count]) });
  kernel.init();
  kernel.send(requestBytes(2, fields(3n), { ino: 5 }));
  kernel.send(requestBytes(42, fields(2, 0, 6n, 1n, 7n, 2n)));
  kernel.send(requestBytes(42, fields(9, 0, 6n, 1n)));
  t.same(forgotten, [
    [5, 3],
    [6, 1],
    [7, 2],
  ]);
  t.same(kernel.replies, []);
  t.end();
});

t.test("an interrupt marks its request, or asks the kernel to try again", async (t) => {
  let caller: Caller | undefined;
  let answer: (value: Entry) => void = () => undefined;
  const kernel = new Kernel({
    lookup: (_parent, _name, from) => {
      caller = from;
      return new Promise((resolve) => (answer = resolve));
    },
  });
  kernel.init();
  kernel.send(requestBytes(1, fields("a\0"), { unique: 10n }));
  kernel.send(requestBytes(36, fields(10n), { unique: 11n }));
  t.equal(caller?.interrupted, true);
  t.same(kernel.replies, [], "the request itself is the answer");
  answer(entry(2));
  await kernel.connection.idle();
  t.equal(kernel.replies[0]?.unique, 10n);
  kernel.send(requestBytes(36, fields(10n), { unique: 11n }));
  t.match(kernel.replies[1], { unique: 11n, errno: EAGAIN });
});

t.test("WRITE keeps its buffer until it has settled; READ passes pieces on", async (t) => {
  let finish: (value: number) => void = () => undefined;
  const seen: unknown[] = [];
  const pieces = [Buffer.from("abc"), Buffer.from("de")];
  const kernel = new Kernel({
    write: (ino, handle, offset, data, options) => {
      seen.push(ino, handle, offset, data.toString(), options);
      return new Promise((resolve) => (finish = resolve));
    },
    read: () => Promise.resolve(pieces),
  });
  kernel.init();
  kernel.send(requestBytes(16, fields(7n, 4096n, 4, 5, 0n, 0o2, 0, "data"), { ino: 3 }));
  await tick();
  t.equal(kernel.released, kernel.leased - 1, "in use");
  t.same(seen, [
    3,
    7,
    4096,
    "data",
    { flags: 2, killPrivileges: true, fromPageCache: true, cause: 2 },
  ]);
  finish(4);
  await kernel.connection.idle();
  t.equal(kernel.released, kernel.leased);
  t.equal(kernel.replies[0]?.body.readUInt32LE(0), 4);
  const read = (size: number) => kernel.ask(15, fields(7n, 0n, size, 0, 0n, 0, 0));
  t.equal((await read(10)).body.toString(), "abcde");
  t.equal((await read(4)).errno, EIO, "more than was asked for never reaches the kernel");
});

t.test("SETATTR changes exactly what is marked valid", async (t) => {
  const all: SetAttributes[] = [];
  const kernel = new Kernel({
    setattr: (_ino, changes) => {
      all.push(changes);
      return Promise.resolve(entry(2));
    },
  });
  kernel.init();
  const body = (valid: number) =>
    fields(valid, 0, 8n, 77n, 0n, 1n, 2n, 3n, 10, 20, 30, 0o640, 0, 501, 502, 0);
  await kernel.ask(4, body(0));
  await kernel.ask(4, body(abi.FATTR.SIZE | abi.FATTR.FH | abi.FATTR.KILL_SUIDGID));
  await kernel.ask(4, body(abi.FATTR.ATIME | abi.FATTR.MTIME | abi.FATTR.MTIME_NOW));
  await kernel.ask(4, body(abi.FATTR.MODE | abi.FATTR.UID | abi.FATTR.GID | abi.FATTR.CTIME));
  t.same(all, [
    {},
    { size: 77, handle: 8, killPrivileges: true },
    { atimeNs: 1_000_000_010n, mtimeNs: "now" },
    { mode: 0o640, uid: 501, gid: 502, ctimeNs: 3_000_000_030n },
  ]);
});

t.test("OPEN and CREATE pass flags and answer with cache modes", async (t) => {
  const seen: unknown[] = [];
  let open = { handle: 5, directIo: false, keepCache: true };
  const kernel = new Kernel({
    open: (_ino, flags, _caller, options) => {
      seen.push(flags, options);
      return Promise.resolve(open);
    },
    create: (_parent, name, mode, flags, caller) => {
      seen.push(name.toString(), mode, flags, caller.umask);
      return Promise.resolve({ ...entry(9), ...open });
    },
  });
  kernel.init();
  const first = await kernel.ask(14, fields(0o1002, 1));
  t.same([first.body.readBigUInt64LE(0), first.body.readUInt32LE(8)], [5n, abi.FOPEN.KEEP_CACHE]);
  open = { handle: 6, directIo: true, keepCache: false };
  const second = await kernel.ask(35, fields(0o2, 0o100600, 0o022, 0, "new\0"));
  t.equal(second.body.length, abi.ENTRY_OUT_SIZE + abi.OPEN_OUT_SIZE);
  t.equal(second.body.readUInt32LE(abi.ENTRY_OUT_SIZE + 8), 0x41, "direct and parallel");
  t.same(seen, [0o1002, { killPrivileges: true }, "new", 0o100600, 0o2, 0o022]);
});

t.test("listings hold what fits and count lookups for what was taken", async (t) => {
  const taken: number[][] = [];
  const given: number[] = [];
  function* entries(plus: boolean): Iterable<DirEntry> {
    const names = [".", "..", "a", "bb", "ccc"];
    for (const [i, name] of names.entries()) {
      given.push(i);
      const plain = { name: Buffer.from(name), ino: i + 1, type: 0o100000, cookie: i + 1 };
      yield plus ? { ...plain, entry: entry(i + 1) } : plain;
    }
  }
  const kernel = new Kernel({
    readdir: (_ino, _handle, _cookie, { plus }) => Promise.resolve(entries(plus)),
    entriesTaken: (inos) => void taken.push([...inos]),
  });
  kernel.init();
  const ask = (opcode: number, size: number) =>
    kernel.ask(opcode, fields(1n, 0n, size, 0, 0n, 0, 0));
  const plain = await ask(28, 3 * 32 + 31);
  t.equal(plain.body.length, 3 * 32, "the fourth does not fit");
  t.equal(plain.body.readBigUInt64LE(64), 3n, "ino of the third");
  t.equal(plain.body.readUInt32LE(64 + 16), 1, "its name's length");
  t.equal(plain.body.readUInt32LE(64 + 20), 8, "DT_REG");
  t.same(given, [0, 1, 2, 3], "the iterable is not drained");
  t.same(taken, []);
  const plus = await ask(44, 4 * 160);
  t.equal(plus.body.length, 4 * 160);
  t.equal(plus.body.readBigUInt64LE(0), 0n, '"." has no node id');
  t.equal(plus.body.readBigUInt64LE(2 * 160), 3n);
  t.same(taken, [[3, 4]]);
  t.equal((await ask(28, 16)).errno, EINVAL, "no room for a single entry");
  t.equal((await ask(44, 100_000)).body.length, 5 * 160);
});

t.test("extended attributes: size query, value, too small a buffer", async (t) => {
  const kernel = new Kernel({
    getxattr: () => Promise.resolve(Buffer.from("value")),
    listxattr: () => Promise.resolve(Buffer.from("user.a\0")),
  });
  kernel.init();
  const get = (size: number) => kernel.ask(22, fields(size, 0, "user.a\0"));
  t.equal((await get(0)).body.readUInt32LE(0), 5);
  t.equal((await get(5)).body.toString(), "value");
  t.equal((await get(4)).errno, ERANGE);
  t.equal((await kernel.ask(23, fields(100, 0))).body.toString(), "user.a\0");
});

t.test("an answer nobody wants is undone", async (t) => {
  const undone: unknown[] = [];
  const kernel = new Kernel({
    lookup: () => Promise.resolve(entry(4)),
    create: () => Promise.resolve({ ...entry(5), handle: 50, directIo: false, keepCache: false }),
    forget: (ino, count) => undone.push(["forget", ino, count]),
    release: (ino, handle) => {
      undone.push(["release", ino, handle]);
      return Promise.resolve();
    },
  });
  kernel.init();
  kernel.wants = false;
  await kernel.ask(1, fields("a\0"));
  await kernel.ask(35, fields(2, 0o100600, 0, 0, "b\0"));
  t.same(undone, [
    ["forget", 4, 1],
    ["release", 5, 50],
    ["forget", 5, 1],
  ]);
});

t.test("destroy runs once; the observer sees every request", async (t) => {
  let destroyed = 0;
  const observed: unknown[] = [];
  let clock = 0;
  const kernel = new Kernel(
    {
      destroy: () => Promise.resolve(void destroyed++),
      lookup: () => Promise.reject(new DssError("NotFound", "x")),
      read: () => Promise.resolve([Buffer.alloc(3)]),
    },
    { now: () => (clock += 2), observer: (...about) => void observed.push(about) },
  );
  kernel.init();
  await kernel.ask(1, fields("a\0"));
  await kernel.ask(15, fields(7n, 0n, 10, 0, 0n, 0, 0));
  t.same(observed, [
    ["LOOKUP", 2, 0, ENOENT],
    ["READ", 2, 3, 0],
  ]);
  kernel.send(requestBytes(38, Buffer.alloc(0)));
  await kernel.connection.destroy();
  t.equal(destroyed, 1);
  const early = new Kernel({ destroy: () => Promise.resolve(void destroyed++) });
  await early.connection.destroy();
  t.equal(destroyed, 1, "a file system that never began is not ended");
});

/** The server around the state machines: limits, stalls, stop. */
import t from "tap";
import { BufferPool } from "../../../cluster/base/buffer-pool.js";
import { DssError } from "../../../cluster/base/errors.js";
import type { Logger } from "../../../cluster/base/log.js";
import type { ServerTls } from "../../../nbd/connection.js";
import { NbdServer, type NbdLimits } from "../../../nbd/server.js";
import {
  contextData,
  FLAGS,
  infoData,
  option,
  parseChunks,
  parseOptionReplies,
  parseReply,
  request,
  u32,
  u64,
  wideRequest,
} from "./client-bytes.js";
import { FakeClock, FakeNetwork, type FakeLink } from "./fake-platform.js";
import { MemoryDirectory, MemoryImage } from "./memory-image.js";

const [READ, WRITE, DISC, FLUSH] = [0, 1, 2, 3] as const;
const MIB = 1024 * 1024;

interface Setting {
  server: NbdServer;
  clock: FakeClock;
  network: FakeNetwork;
  directory: MemoryDirectory;
  disk: MemoryImage;
  lines: string[];
  /** A client that has chosen "disk". */
  attach(): Promise<FakeLink>;
}

async function setting(
  limits: Partial<NbdLimits> = {},
  size = 40 * MIB,
  tls?: ServerTls,
): Promise<Setting> {
  const clock = new FakeClock();
  const network = new FakeNetwork();
  const disk = new MemoryImage({ name: "disk", size });
  disk.recording = true;
  const directory = new MemoryDirectory([disk, new MemoryImage({ name: "other", size: 512 })]);
  const lines: string[] = [];
  const log: Logger = {
    debug: () => undefined,
    info: () => undefined,
    warn: (fields, message) => lines.push(`warn ${message} ${JSON.stringify(fields)}`),
    error: (fields, message) => lines.push(`error ${message} ${JSON.stringify(fields)}`),
    child: () => log,
  };
  const server = new NbdServer({
    ...{ network, clock, log, directory, limits },
    defaultExport: "disk",
    ...(tls && { tls }),
  });
  await server.listen({ host: "127.0.0.1", port: 0 });
  const attach = async (): Promise<FakeLink> => {
    const link = network.client();
    link.push(FLAGS, option(7, infoData("disk")));
    await clock.settle();
    link.take();
    return link;
  };
  return { server, clock, network, directory, disk, lines, attach };
}
function replies(link: FakeLink): { error: number; cookie: bigint }[] {
  return link.received.filter((chunk) => chunk.length === 16).map(parseReply);
}
/** A promise and the function that resolves it. */
function latch(): { wait: Promise<void>; open: () => void } {
  let open = (): void => undefined;
  const wait = new Promise<void>((resolve) => (open = resolve));
  return { wait, open };
}

BufferPool.overwrites = true;

t.test("replies of one turn leave together", async (t) => {
  const s = await setting();
  const link = await s.attach();
  link.sends = [];
  const reads = [1n, 2n, 3n, 4n].map((cookie) => request({ type: READ, length: 512, cookie }));
  link.push(Buffer.concat(reads));
  await s.clock.settle();
  t.same(link.sends, [8], "four heads and four pieces in one send");
  t.same(
    replies(link).map((reply) => reply.cookie),
    [1n, 2n, 3n, 4n],
  );
});

t.test("commands and their flags reach the image", async (t) => {
  const s = await setting();
  const link = await s.attach();
  const [TRIM, ZERO, FUA, NO_HOLE] = [4, 6, 1, 2];
  link.push(request({ type: WRITE, data: Buffer.from("ab"), flags: FUA }));
  link.push(request({ type: WRITE, offset: 2n, data: Buffer.from("c") }));
  link.push(request({ type: READ, offset: 1n, length: 2, flags: FUA }));
  link.push(request({ type: TRIM, length: 3 }), request({ type: TRIM, length: 4, flags: FUA }));
  link.push(request({ type: ZERO, length: 5, flags: FUA }));
  link.push(request({ type: ZERO, length: 6, flags: NO_HOLE }), request({ type: FLUSH }));
  await s.clock.settle();
  t.same(s.disk.calls, [
    "write 0+2 fua",
    "write 2+1",
    "read 1+2",
    "trim 0+3",
    "trim 0+4 fua",
    "zero 0+5 fua",
    "zero 0+6 no-hole",
    "flush",
  ]);
  t.equal(link.received.filter((chunk) => chunk.equals(Buffer.from("bc"))).length, 1);
  t.ok(replies(link).every((reply) => reply.error === 0));
});

t.test("answers leave in the order in which the image finishes", async (t) => {
  const s = await setting();
  const slow = latch();
  s.disk.gate = (call) => (call.startsWith("read 0") ? slow.wait : Promise.resolve());
  const link = await s.attach();
  link.push(request({ type: READ, length: 512, cookie: 1n }));
  link.push(request({ type: READ, offset: 512n, length: 512, cookie: 2n }));
  await s.clock.settle();
  t.same(
    replies(link).map((reply) => reply.cookie),
    [2n],
  );
  slow.open();
  await s.clock.settle();
  t.same(
    replies(link).map((reply) => reply.cookie),
    [2n, 1n],
  );
});

t.test("the image's errors become NBD errors, logged once per kind", async (t) => {
  const s = await setting();
  const link = await s.attach();
  const cases: [Error, number][] = [
    [new DssError("NoSpace", "full"), 28],
    [new DssError("NoSpace", "full"), 28],
    [new DssError("Fenced", "taken over"), 108],
    [new DssError("Corrupt", "bad block"), 5],
    [new Error("surprise"), 5],
  ];
  for (const [fault, expected] of cases) {
    s.disk.fault = fault;
    link.push(request({ type: WRITE, data: Buffer.alloc(512), cookie: 9n }));
    await s.clock.settle();
    t.same(replies(link), [{ error: expected, cookie: 9n }]);
    link.take();
  }
  t.equal(s.lines.filter((line) => line.includes("request failed")).length, 4);
  s.disk.fault = undefined;
  link.push(request({ type: READ, length: 1 }));
  await s.clock.settle();
  t.same(replies(link), [{ error: 0, cookie: 1n }], "the connection lives on");
  t.equal(s.server.figures.bytes, 0);
});

t.test("an export is opened once for all connections and closed after a flush", async (t) => {
  const s = await setting();
  const first = await s.attach();
  const second = await s.attach();
  t.equal(s.directory.opens, 1);
  first.push(request({ type: WRITE, data: Buffer.from("abc") }));
  second.push(request({ type: FLUSH }));
  first.hangUp();
  await s.clock.settle();
  t.equal(s.directory.closes, 0);
  t.same(s.disk.calls, ["write 0+3", "flush"]);
  second.push(request({ type: DISC }));
  await s.clock.settle();
  t.ok(second.ended, "DISC closes our side");
  second.hangUp();
  await s.clock.settle();
  t.same(s.disk.calls, ["write 0+3", "flush", "flush"]);
  t.equal(s.directory.closes, 1);
  t.same(s.server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
  await s.attach();
  t.equal(s.directory.opens, 2, "and can be opened again");
});

t.test("one who comes while the export is being closed gets it opened anew", async (t) => {
  const s = await setting();
  const link = await s.attach();
  const flushing = latch();
  s.disk.gate = () => flushing.wait;
  link.hangUp();
  await s.clock.settle();
  const next = s.network.client();
  next.push(FLAGS, option(7, infoData("disk")));
  await s.clock.settle();
  t.equal(s.directory.opens, 1, "not while the first is being flushed");
  flushing.open();
  await s.clock.settle();
  t.equal(s.directory.opens, 2);
  t.equal(s.directory.opened.length, 1);
});

t.test("INFO then GO opens once; INFO of another export gives the first back", async (t) => {
  const s = await setting();
  const link = s.network.client();
  link.push(FLAGS, option(6, infoData("disk")), option(7, infoData("")));
  await s.clock.settle();
  t.equal(s.directory.opens, 1, "the default export is the same one");
  const other = s.network.client();
  other.push(FLAGS, option(6, infoData("other")), option(6, infoData("disk")));
  await s.clock.settle();
  t.same(s.directory.opened, ["disk"]);
  t.equal(s.directory.closes, 1);
});

t.test("requests in flight when the client vanishes run out before the image closes", async (t) => {
  const s = await setting();
  const link = await s.attach();
  const slow = latch();
  s.disk.gate = (call) => (call.startsWith("write") ? slow.wait : Promise.resolve());
  link.push(request({ type: WRITE, data: Buffer.alloc(4096) }));
  link.push(request({ type: WRITE, data: Buffer.alloc(70_000) }).subarray(0, 9999));
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 74_096);
  link.hangUp(new Error("reset"));
  await s.clock.settle();
  t.equal(s.directory.closes, 0);
  t.same(s.server.figures, { connections: 1, requests: 1, bytes: 4096, exports: 1 });
  slow.open();
  await s.clock.settle();
  t.equal(s.directory.closes, 1);
  t.same(s.server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
});

t.test("a silent client is dropped, one that waits for the server is not", async (t) => {
  const s = await setting({ handshakeMs: 1000 });
  const silent = s.network.client();
  const slow = s.network.client();
  const opening = latch();
  const open = s.directory.open.bind(s.directory);
  s.directory.open = (name) => opening.wait.then(() => open(name));
  slow.push(FLAGS, option(7, infoData("disk")));
  await s.clock.advance(999);
  t.notOk(silent.destroyed);
  await s.clock.advance(1001);
  t.ok(silent.destroyed);
  t.notOk(slow.destroyed);
  opening.open();
  await s.clock.advance(60_000);
  t.notOk(slow.destroyed, "transmission may be idle for ever");
  t.equal(s.lines.length, 1, "one line per drop");
});

t.test("garbage ends one connection with one line and nobody else's", async (t) => {
  const s = await setting();
  const good = await s.attach();
  const bad = await s.attach();
  bad.push(Buffer.alloc(100, 0x47));
  const worse = s.network.client();
  worse.push(Buffer.from("GET / HTTP/1.1\r\n\r\n"));
  await s.clock.settle();
  t.ok(bad.destroyed);
  t.ok(worse.destroyed);
  t.equal(s.lines.length, 2);
  good.push(request({ type: READ, length: 4 }));
  await s.clock.settle();
  t.equal(replies(good).length, 1);
  t.equal(s.server.figures.connections, 1);
});

t.test("too many connections are refused with one line", async (t) => {
  const s = await setting({ connectionsMax: 2 });
  const first = await s.attach();
  await s.attach();
  const refused = [s.network.client(), s.network.client()];
  t.ok(refused.every((link) => link.destroyed));
  t.equal(s.lines.length, 1);
  first.hangUp();
  await s.clock.settle();
  t.notOk(s.network.client().destroyed);
});

t.test("requests in flight are limited per connection by pausing it", async (t) => {
  const s = await setting({ connectionRequestsMax: 4 });
  const link = await s.attach();
  const slow = latch();
  s.disk.gate = () => slow.wait;
  const reads = Array.from({ length: 50 }, (_, i) =>
    request({ type: READ, length: 10, cookie: BigInt(i) }),
  );
  link.push(Buffer.concat(reads));
  await s.clock.settle();
  t.equal(s.disk.calls.length, 4);
  t.ok(link.paused);
  slow.open();
  await s.clock.settle();
  t.equal(replies(link).length, 50, "and none is lost");
  t.notOk(link.paused);
});

t.test("requests in flight are limited over all connections", async (t) => {
  const s = await setting({ requestsMax: 3 });
  const [a, b] = [await s.attach(), await s.attach()];
  const slow = latch();
  s.disk.gate = () => slow.wait;
  for (const link of [a, b]) {
    for (let i = 0; i < 5; i++) link.push(request({ type: FLUSH, cookie: BigInt(i) }));
  }
  await s.clock.settle();
  t.equal(s.server.figures.requests, 3);
  slow.open();
  await s.clock.settle();
  t.equal(replies(a).length, 5);
  t.equal(replies(b).length, 5);
});

t.test("bytes in flight are limited over all connections, first come first served", async (t) => {
  const s = await setting({ inFlightBytesMax: 32 * MIB });
  const [a, b, c] = [await s.attach(), await s.attach(), await s.attach()];
  const slow = latch();
  s.disk.gate = () => slow.wait;
  a.push(request({ type: READ, length: 20 * MIB }));
  b.push(request({ type: READ, length: 20 * MIB }));
  c.push(request({ type: READ, offset: 1n, length: MIB }));
  await s.clock.settle();
  t.same(s.disk.calls, [`read 0+${20 * MIB}`], "the small one does not overtake");
  t.ok(b.paused && c.paused);
  c.push(request({ type: FLUSH }));
  slow.open();
  await s.clock.settle();
  t.same(s.disk.calls.slice(1), [`read 0+${20 * MIB}`, `read 1+${MIB}`, "flush"]);
  t.equal(s.server.figures.bytes, 0);
});

t.test("a waiter that goes away does not block those behind it", async (t) => {
  const s = await setting({ inFlightBytesMax: 32 * MIB });
  const [a, b, c] = [await s.attach(), await s.attach(), await s.attach()];
  const slow = latch();
  s.disk.gate = () => slow.wait;
  a.push(request({ type: READ, length: 20 * MIB }));
  b.push(request({ type: READ, length: 20 * MIB }));
  c.push(request({ type: READ, offset: 1n, length: MIB }));
  await s.clock.settle();
  b.hangUp();
  await s.clock.settle();
  t.equal(s.disk.calls.length, 2);
  slow.open();
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 0);
});

t.test("a client that does not read its data stops being served, not being charged", async (t) => {
  const s = await setting({ connectionBytesMax: 32 * MIB });
  const link = await s.attach();
  link.reading = false;
  link.push(Buffer.concat(Array<Buffer>(8).fill(request({ type: READ, length: 8 * MIB }))));
  await s.clock.settle();
  t.equal(s.disk.calls.length, 4);
  t.equal(s.server.figures.bytes, 32 * MIB);
  link.drain();
  await s.clock.settle();
  t.equal(s.disk.calls.length, 8);
  t.equal(s.server.figures.bytes, 0);

  link.reading = false;
  link.push(request({ type: READ, length: 8 * MIB }));
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 8 * MIB);
  link.hangUp();
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 0, "what it never read is given back");
});

t.test("nor can it make answers without data pile up", async (t) => {
  const s = await setting();
  const link = await s.attach();
  link.reading = false;
  const garbage = Buffer.concat(Array<Buffer>(2000).fill(request({ type: 99 })));
  for (let i = 0; i < 100; i++) {
    link.push(garbage);
    await s.clock.settle();
  }
  t.ok(link.paused);
  t.ok(link.bufferedBytes < 1.2 * MIB, `${link.bufferedBytes} bytes`);
});

t.test("who holds memory and does not move is dropped when others need it", async (t) => {
  const s = await setting({ inFlightBytesMax: 32 * MIB, stallMs: 5000 });
  const [holder, needy] = [await s.attach(), await s.attach()];
  holder.push(request({ type: WRITE, length: 30 * MIB }));
  await s.clock.advance(60_000);
  t.notOk(holder.destroyed, "nobody needs it");
  needy.push(request({ type: READ, length: 8 * MIB }));
  holder.push(Buffer.alloc(10)); // Still alive.
  await s.clock.advance(4000);
  t.notOk(holder.destroyed);
  await s.clock.advance(3000);
  t.ok(holder.destroyed);
  t.equal(replies(needy).length, 1);
  t.equal(s.lines.length, 1);
  t.equal(s.server.figures.bytes, 0);
});

t.test("no more clients are dropped than the memory needed takes", async (t) => {
  const s = await setting({ inFlightBytesMax: 40 * MIB, stallMs: 5000 });
  const holders = [await s.attach(), await s.attach()];
  for (const holder of holders) holder.push(request({ type: WRITE, length: 20 * MIB }));
  const needy = await s.attach();
  needy.push(request({ type: READ, length: 8 * MIB }));
  await s.clock.advance(60_000);
  t.same(
    holders.map((holder) => holder.destroyed),
    [true, false],
  );
  t.equal(replies(needy).length, 1);
});

t.test("stop lets requests in flight finish, flushes and closes", async (t) => {
  const s = await setting();
  const link = await s.attach();
  const negotiating = s.network.client();
  const slow = latch();
  s.disk.gate = (call) => (call.startsWith("write") ? slow.wait : Promise.resolve());
  link.push(request({ type: WRITE, data: Buffer.alloc(512), cookie: 5n }));
  await s.clock.settle();
  let stopped = false;
  const stop = s.server.stop().then(() => (stopped = true));
  link.push(request({ type: FLUSH }));
  await s.clock.settle();
  t.ok(negotiating.ended);
  t.notOk(link.ended);
  t.equal(s.network.closed, 1);
  t.ok(s.network.client().destroyed, "no new clients");
  slow.open();
  await s.clock.settle();
  t.same(replies(link), [
    { error: 108, cookie: 1n },
    { error: 0, cookie: 5n },
  ]);
  t.ok(link.ended);
  negotiating.hangUp();
  link.hangUp();
  await s.clock.settle();
  await stop;
  t.ok(stopped);
  t.same(s.disk.calls, ["write 0+512", "flush"]);
  t.equal(s.directory.closes, 1);
  t.equal(s.clock.timerCount, 0, "no timer is left");
  await t.rejects(s.server.listen({ path: "/x" }), { code: "ShuttingDown" });
});

t.test("stop is bounded, and says what it could not do", async (t) => {
  const s = await setting({ stopMs: 1000 });
  const link = await s.attach();
  s.disk.gate = () => new Promise(() => undefined);
  link.push(request({ type: WRITE, data: Buffer.alloc(512) }));
  const stop = s.server.stop();
  const result = t.rejects(stop, { code: "TimedOut" });
  await s.clock.advance(2000);
  await result;
  t.ok(link.destroyed);
});

t.test("stop reports a flush that failed", async (t) => {
  const s = await setting();
  const link = await s.attach();
  s.disk.fault = new DssError("Unreachable", "no cluster");
  link.hangUp();
  await s.clock.settle();
  await t.rejects(s.server.stop(), { code: "Unreachable" });
  t.equal(s.directory.closes, 1, "the image is closed all the same");
});

const [CACHE, STATUS, BLOCK] = [5, 7, 65_536];
/** A client past GO with chunks and the allocation context. */
async function attachWithChunks(s: Awaited<ReturnType<typeof setting>>): Promise<FakeLink> {
  const link = s.network.client();
  const select = option(10, contextData("disk", ["base:allocation"]));
  link.push(FLAGS, option(8), select, option(7, infoData("disk")));
  await s.clock.settle();
  link.take();
  return link;
}

t.test("a read that fails halfway tells where, and gives the rest", async (t) => {
  const s = await setting();
  const link = await attachWithChunks(s);
  s.disk.bytes.fill(7);
  s.disk.badBlock = 1;
  const length = 3 * BLOCK;
  link.push(request({ type: READ, length, cookie: 4n }));
  await s.clock.settle();
  const chunks = parseChunks(link.take());
  t.same(
    chunks.map(({ type, last, cookie }) => [type, last, cookie]),
    [
      [1, false, 4n],
      [0x8002, false, 4n],
      [1, true, 4n],
    ],
  );
  const [before, error, after] = chunks.map(({ payload }) => payload);
  t.equal(before!.length, 8 + BLOCK);
  t.equal(error!.readUInt32BE(0), 5);
  t.equal(error!.readBigUInt64BE(error!.length - 8), BigInt(BLOCK));
  t.equal(after!.readBigUInt64BE(0), BigInt(2 * BLOCK));
  const DF = 4;
  link.push(request({ type: READ, length, flags: DF }));
  await s.clock.settle();
  t.same(
    parseChunks(link.take()).map(({ type }) => type),
    [0x8002],
    "no content when it must be in one piece",
  );
  t.match(s.lines.join("\n"), /request failed/);
  t.equal(s.server.figures.requests, 0);
  link.hangUp();
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 0, "every byte is given back");
});

t.test("block status and cache reach the image", async (t) => {
  const s = await setting();
  const link = await attachWithChunks(s);
  s.disk.bytes.fill(1, BLOCK, 2 * BLOCK);
  const [FAST, REQ_ONE, ZERO] = [16, 8, 6];
  link.push(request({ type: STATUS, length: 3 * BLOCK }));
  link.push(request({ type: STATUS, length: 3 * BLOCK, flags: REQ_ONE }));
  await s.clock.settle();
  const [all, one] = parseChunks(link.take()).map(({ payload }) => payload);
  const extent = (length: number, flags: number) => Buffer.concat([u32(length), u32(flags)]);
  t.same(all, Buffer.concat([u32(1), extent(BLOCK, 3), extent(BLOCK, 0), extent(BLOCK, 3)]));
  t.same(one, Buffer.concat([u32(1), extent(BLOCK, 3)]));
  link.push(request({ type: CACHE, offset: 512n, length: 1024 }));
  link.push(request({ type: ZERO, length: 4096, flags: FAST }));
  await s.clock.settle();
  t.same(replies(link), [
    { error: 0, cookie: 1n },
    { error: 0, cookie: 1n },
  ]);
  link.take();
  link.push(request({ type: ZERO, offset: 1n, length: 4096, flags: FAST }));
  await s.clock.settle();
  const [slow] = parseChunks(link.take());
  t.equal(slow!.payload.readUInt32BE(0), 95);
  t.same(s.disk.calls.slice(-3), ["cache 512+1024", "zero 0+4096 fast", "zero 1+4096 fast"]);
  t.same(
    s.lines.filter((line) => /failed/.test(line)),
    [],
    "a slow zero is no failure",
  );
  link.hangUp();
  await s.clock.settle();
  t.equal(s.server.figures.bytes, 0);
});

t.test("a client with extended headers writes, trims, reads and asks for the status", async (t) => {
  const s = await setting();
  const link = s.network.client();
  const select = option(10, contextData("disk", ["base:allocation"]));
  link.push(FLAGS, option(11), select, option(7, infoData("disk")));
  await s.clock.settle();
  const info = parseOptionReplies(link.take().subarray(18)).find(({ type }) => type === 3);
  t.ok(info!.data.readUInt16BE(10) & 0x1000, "block status may name its contexts");
  const [PAYLOAD, TRIM] = [32, 4];
  const size = BigInt(s.disk.size);
  const data = Buffer.alloc(BLOCK, 1);
  link.push(wideRequest({ type: TRIM, length: size, cookie: 1n }));
  link.push(wideRequest({ type: WRITE, offset: 4096n, flags: PAYLOAD, data, cookie: 2n }));
  await s.clock.settle();
  link.push(wideRequest({ type: READ, length: 8192n, cookie: 3n }));
  const selection = Buffer.concat([u64(size), u32(1)]);
  link.push(wideRequest({ type: STATUS, flags: PAYLOAD, data: selection, cookie: 4n }));
  await s.clock.settle();
  t.match(parseChunks(link.take()), [
    { type: 0, cookie: 1n, offset: 0n, last: true },
    { type: 0, cookie: 2n, offset: 4096n, last: true },
    { type: 2, cookie: 3n, offset: 0n, last: false },
    { type: 1, cookie: 3n, offset: 0n, last: true },
    { type: 6, cookie: 4n, offset: 0n, last: true },
  ]);
  link.hangUp();
  await s.clock.settle();
  t.same(s.server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
});

t.test("the bytes of a read are the image's again once the link has sent them", async (t) => {
  const s = await setting();
  s.disk.bytes.fill(7);
  const link = await s.attach();
  const length = 3 * 64 * 1024;
  link.push(request({ type: READ, length }));
  await s.clock.settle();
  t.equal(s.disk.recycled, length);
  t.same(link.take().subarray(16), Buffer.alloc(length, 7), "none was used again before");
  s.disk.badBlock = 1;
  link.push(request({ type: READ, length }));
  await s.clock.settle();
  t.match(parseReply(link.take()), { error: 5 }, "a simple reply cannot fail in part");
});

const IDENTITY = { certificate: "a certificate", key: "a key" };

t.test("the link is encrypted after the ACK", async (t) => {
  const s = await setting({}, MIB, { identity: IDENTITY, policy: "require" });
  const link = s.network.client();
  link.push(FLAGS, option(5));
  await s.clock.settle();
  t.equal(parseOptionReplies(link.take().subarray(18))[0]!.type, 1);
  t.equal(link.tls?.identity, IDENTITY);
  link.tls!.agree();
  await s.clock.settle();
  link.push(option(7, infoData("disk")));
  await s.clock.settle();
  t.equal(parseOptionReplies(link.take()).at(-1)!.type, 1);
  link.hangUp();
  await s.clock.settle();
  t.same(s.server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
});

t.test("a client that does not agree on encryption is dropped", async (t) => {
  const s = await setting({ handshakeMs: 500 }, MIB, { identity: IDENTITY, policy: "allow" });
  const refusing = s.network.client();
  const silent = s.network.client();
  for (const link of [refusing, silent]) link.push(FLAGS, option(5));
  await s.clock.settle();
  refusing.tls!.refuse(new DssError("NotPermitted", "bad certificate"));
  await s.clock.settle();
  t.ok(refusing.destroyed);
  t.match(s.lines.join("\n"), /bad certificate/);
  await s.clock.advance(600);
  t.ok(silent.destroyed, "encryption counts as the client's time");
  silent.tls!.refuse(new DssError("NotPermitted", "closed"));
  await s.clock.settle();
  t.equal(s.server.figures.connections, 0);
});

t.test("a volume's limits hold its connections back together", async (t) => {
  const { clock, disk, attach, server } = await setting();
  let operations = 10;
  Object.defineProperty(disk, "limits", { get: () => ({ operations, bytes: 0 }) });
  const flood = Array.from({ length: 50 }, () => request({ type: READ, length: 512 }));
  for (const link of [await attach(), await attach()]) link.push(Buffer.concat(flood));
  await clock.settle();
  t.equal(disk.calls.length, 10, "the burst");
  await clock.advance(2_000);
  t.ok(disk.calls.length >= 28 && disk.calls.length <= 32, `${disk.calls.length} after 2 s`);
  const { activity } = server.activity().find(({ image }) => image === disk)!;
  t.equal(activity.reads, disk.calls.length);
  t.ok(activity.heldMs > 0);
  operations = 0;
  await clock.advance(100);
  t.equal(disk.calls.length, 100, "without a limit the rest goes at once");
});

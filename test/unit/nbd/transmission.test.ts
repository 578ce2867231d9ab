/** Transmission: every command, its errors, and answers out of order. */
import t from "tap";
import type { ExportFacts, Session } from "../../../nbd/abi.js";
import {
  CACHE_PIECE_BYTES,
  Transmission,
  WRITE_BYTES_MAX,
  type StartRequest,
  type TransmissionEffect,
} from "../../../nbd/transmission.js";
import {
  parseChunks,
  parseReply,
  request,
  u32,
  u64,
  wideRequest,
  type RequestFields,
} from "./client-bytes.js";

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS] = [0, 1, 2, 3, 4, 5, 6, 7];
const [FUA, NO_HOLE, DF, FAST] = [1, 2, 4, 16];
const [EPERM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP] = [1, 22, 28, 75, 95];
const MIB = 1024 * 1024;

const FACTS: ExportFacts = {
  name: "disk",
  description: "",
  size: 64 * MIB,
  readOnly: false,
  blockSize: { minimum: 1, preferred: 4096, maximum: WRITE_BYTES_MAX },
};

function effectsOf(bytes: Buffer | Buffer[], facts = FACTS): TransmissionEffect[] {
  const transmission = new Transmission(facts);
  for (const chunk of Array.isArray(bytes) ? bytes : [bytes]) transmission.push(chunk);
  return drain(transmission);
}
function drain(transmission: Transmission): TransmissionEffect[] {
  const effects: TransmissionEffect[] = [];
  for (;;) {
    const effect = transmission.next(Infinity);
    if (!effect) return effects;
    effects.push(effect);
  }
}
/** The only effect of one request. */
function one(fields: RequestFields, facts = FACTS): TransmissionEffect {
  const effects = effectsOf(request(fields), facts);
  if (effects.length !== 1) throw new Error(`${effects.length} effects`);
  return effects[0]!;
}
/** The error value that answers one request; "start" when it goes to the image. */
function verdict(fields: RequestFields, facts = FACTS): number | string {
  const effect = one({ cookie: 0xfedcba9876543210n, ...fields }, facts);
  if (effect.do !== "send") return effect.do;
  const reply = parseReply(effect.bytes);
  if (reply.cookie !== 0xfedcba9876543210n || effect.bytes.length !== 16) return "bad reply";
  return reply.error;
}

t.test("valid requests reach the image as they were sent", (t) => {
  const data = Buffer.from("hello");
  t.match(one({ type: READ, offset: 4096n, length: 512, cookie: 0x1_0000_0002n }), {
    do: "start",
    command: "read",
    cookieHigh: 1,
    cookieLow: 2,
    offset: 4096,
    length: 512,
    flags: 0,
  });
  t.match(one({ type: WRITE, offset: 7n, data, flags: FUA }), {
    command: "write",
    offset: 7,
    length: 5,
    flags: FUA,
    data,
  });
  t.match(one({ type: FLUSH }), { command: "flush", length: 0 });
  t.match(one({ type: TRIM, offset: 1n, length: 2, flags: FUA }), { command: "trim", flags: FUA });
  t.match(one({ type: ZERO, length: 64 * MIB }), { command: "zero", flags: 0 });
  t.match(one({ type: ZERO, length: 1, flags: FUA | NO_HOLE }), { flags: FUA | NO_HOLE });
  t.end();
});

t.test("offsets above 4 GiB are exact", (t) => {
  const facts = { ...FACTS, size: Number.MAX_SAFE_INTEGER };
  const offset = BigInt(Number.MAX_SAFE_INTEGER) - 8n;
  t.match(one({ type: READ, offset, length: 8 }, facts), { offset: Number(offset) });
  t.equal(verdict({ type: READ, offset: offset + 1n, length: 8 }, facts), EINVAL);
  t.end();
});

t.test("requests outside the export", (t) => {
  const end = BigInt(FACTS.size);
  for (const [offset, length] of [
    [end, 1],
    [end - 1n, 2],
    [0xffffffffffffffffn, 1],
    [0xfffffffffffffff8n, 16],
    [1n << 53n, 1],
    [0x7fffffffffffffffn, 0x1000],
  ] as [bigint, number][]) {
    t.equal(verdict({ type: READ, offset, length }), EINVAL);
    t.equal(verdict({ type: TRIM, offset, length }), EINVAL);
    t.equal(verdict({ type: ZERO, offset, length }), ENOSPC);
    t.equal(verdict({ type: WRITE, offset, data: Buffer.alloc(length) }), ENOSPC);
  }
  t.equal(verdict({ type: READ, offset: end - 1n, length: 1 }), "start");
  t.end();
});

t.test("requests without length do nothing, successfully", (t) => {
  for (const type of [READ, WRITE, TRIM, ZERO]) t.equal(verdict({ type: type, length: 0 }), 0);
  t.equal(verdict({ type: READ, offset: BigInt(FACTS.size), length: 0 }), 0);
  t.equal(verdict({ type: READ, offset: BigInt(FACTS.size) + 1n, length: 0 }), EINVAL);
  t.end();
});

t.test("a read-only export refuses what would change it", (t) => {
  const facts = { ...FACTS, readOnly: true };
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(4096) }, facts), EPERM);
  t.equal(verdict({ type: TRIM, length: 4096 }, facts), EPERM);
  t.equal(verdict({ type: ZERO, length: 4096 }, facts), EPERM);
  t.equal(verdict({ type: WRITE, offset: 1n << 60n, data: Buffer.alloc(1) }, facts), EPERM);
  t.equal(verdict({ type: READ, length: 4096 }, facts), "start");
  t.equal(verdict({ type: FLUSH }, facts), "start");
  t.end();
});

t.test("unknown commands and flags", (t) => {
  for (const type of [STATUS, 8, 99, 0xffff]) t.equal(verdict({ type, length: 512 }), EINVAL);
  const length = 512;
  t.equal(verdict({ type: READ, length, flags: DF }), EINVAL);
  t.equal(verdict({ type: READ, length, flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(9), flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(9), flags: 0x8000 }), EINVAL);
  t.equal(verdict({ type: TRIM, length, flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: ZERO, length, flags: 0x20 }), EINVAL);
  t.equal(verdict({ type: ZERO, length, flags: FAST }), "start");
  t.equal(verdict({ type: ZERO, length, flags: FAST | NO_HOLE }), ENOTSUP);
  t.equal(verdict({ type: FLUSH, flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: FLUSH, length: 1 }), EINVAL);
  t.equal(verdict({ type: FLUSH, offset: 1n }), EINVAL);
  for (const type of [READ, FLUSH]) {
    t.equal(verdict({ type: type, length: type === READ ? 9 : 0, flags: FUA }), "start");
  }
  t.end();
});

t.test("block size constraints", (t) => {
  const facts = { ...FACTS, blockSize: { minimum: 512, preferred: 4096, maximum: MIB } };
  t.equal(verdict({ type: READ, offset: 512n, length: 1024 }, facts), "start");
  t.equal(verdict({ type: READ, offset: 511n, length: 512 }, facts), EINVAL);
  t.equal(verdict({ type: READ, offset: 512n, length: 511 }, facts), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(100) }, facts), EINVAL);
  t.equal(verdict({ type: TRIM, offset: 1n, length: 512 }, facts), EINVAL);
  t.equal(verdict({ type: READ, length: MIB + 512 }, facts), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(MIB + 512) }, facts), EINVAL);
  t.equal(verdict({ type: ZERO, length: 2 * MIB }, facts), "start", "no data, no limit");
  t.equal(verdict({ type: READ, length: WRITE_BYTES_MAX }), "start");
  t.equal(verdict({ type: READ, length: WRITE_BYTES_MAX + 1 }), EINVAL);
  t.end();
});

t.test("a refused write's payload is read past, then it is answered", (t) => {
  const transmission = new Transmission({ ...FACTS, readOnly: true });
  const bytes = request({ type: WRITE, data: Buffer.alloc(100_000, 1) });
  transmission.push(bytes.subarray(0, 50_000));
  t.same(drain(transmission), []);
  t.notOk(transmission.idle);
  transmission.push(Buffer.concat([bytes.subarray(50_000), request({ type: FLUSH })]));
  const [refused, flush] = drain(transmission);
  t.match(refused, { do: "send" });
  t.match(flush, { do: "start", command: "flush" });
  t.ok(transmission.idle);
  t.end();
});

t.test("DISC ends the requests, silently", (t) => {
  const goodbye = request({ type: DISC });
  const bytes = Buffer.concat([request({ type: FLUSH }), goodbye, Buffer.alloc(99)]);
  t.match(effectsOf(bytes), [{ do: "start" }, { do: "disconnect" }]);
  const transmission = new Transmission(FACTS);
  transmission.push(request({ type: DISC, flags: 0xffff, length: 7 }));
  t.match(drain(transmission), [{ do: "disconnect" }]);
  transmission.push(request({ type: FLUSH }));
  t.same(drain(transmission), []);
  t.end();
});

t.test("garbage and oversized writes close the connection before anything is allocated", (t) => {
  t.match(effectsOf(Buffer.alloc(28)), [{ do: "close", fault: /magic/ }]);
  const old = request({ type: READ, length: 1 });
  old.writeUInt32BE(0x12560953);
  t.match(effectsOf(old), [{ do: "close", fault: /magic/ }]);
  const huge = request({ type: WRITE, length: WRITE_BYTES_MAX + 1 });
  t.match(effectsOf(huge), [{ do: "close", fault: /33554433/ }]);
  t.match(effectsOf(huge, { ...FACTS, readOnly: true }), [{ do: "close" }]);
  t.end();
});

t.test("a request waits until its bytes fit, and is not lost", (t) => {
  const transmission = new Transmission(FACTS);
  transmission.push(request({ type: READ, length: 8192 }));
  transmission.push(request({ type: WRITE, data: Buffer.alloc(4096, 5) }));
  transmission.push(request({ type: TRIM, length: 1 << 20 }));
  t.same(transmission.next(8191), { do: "wait", bytes: 8192 });
  t.same(transmission.next(0), { do: "wait", bytes: 8192 });
  t.match(transmission.next(8192), { do: "start", command: "read" });
  t.same(transmission.next(100), { do: "wait", bytes: 4096 });
  t.equal(transmission.assembling, 0, "nothing is allocated while waiting");
  t.match(transmission.next(4096), { do: "start", data: Buffer.alloc(4096, 5) });
  t.match(transmission.next(0), { do: "start", command: "trim" }, "carries no data");
  t.equal(transmission.next(0), undefined);
  t.end();
});

t.test("a payload in one chunk is not copied, one in many is copied once", (t) => {
  const whole = request({ type: WRITE, data: Buffer.alloc(4096, 1) });
  const start = effectsOf(whole)[0] as StartRequest;
  t.equal(start.data.buffer, whole.buffer);

  const data = Buffer.alloc(32 * MIB);
  for (let i = 0; i < data.length; i += 4096) data.writeUInt32BE(i, i);
  const bytes = request({ type: WRITE, data });
  const transmission = new Transmission(FACTS);
  let effect: TransmissionEffect | undefined;
  for (let at = 0; at < bytes.length; at += 65_536) {
    transmission.push(bytes.subarray(at, at + 65_536));
    effect = transmission.next(Infinity);
    if (at + 65_536 < bytes.length) {
      if (effect || transmission.assembling !== data.length) t.fail("ends too early");
    }
  }
  t.ok((effect as StartRequest).data.equals(data));
  t.equal(transmission.assembling, 0);
  t.end();
});

/** Without where the bytes lie. */
const text = (effects: TransmissionEffect[]): string =>
  JSON.stringify(effects, (key, value: unknown) => (key === "memory" ? undefined : value));

t.test("the requests do not depend on how the bytes are split", (t) => {
  const bytes = Buffer.concat([
    request({ type: READ, offset: 512n, length: 100, cookie: 7n }),
    request({ type: WRITE, offset: 9n, data: Buffer.from("payload of a write"), flags: FUA }),
    request({ type: WRITE, offset: 1n << 40n, data: Buffer.from("refused") }),
    request({ type: WRITE, length: 0 }),
    request({ type: ZERO, length: 5, flags: NO_HOLE }),
    request({ type: FLUSH }),
    request({ type: DISC }),
  ]);
  const whole = text(effectsOf(bytes));
  t.equal((JSON.parse(whole) as unknown[]).length, 7);
  for (let cut = 1; cut < bytes.length; cut++) {
    const split = effectsOf([bytes.subarray(0, cut), bytes.subarray(cut)]);
    if (text(split) !== whole) t.fail(`split at ${cut}`);
  }
  const single: TransmissionEffect[] = [];
  const transmission = new Transmission(FACTS);
  for (const byte of bytes) {
    transmission.push(Buffer.from([byte]));
    single.push(...drain(transmission));
  }
  t.equal(text(single), whole, "byte by byte");
  t.end();
});

t.test("nothing of what was lent is kept, wherever it ends", (t) => {
  const requests = [300, 1, 700].map((length) => ({ type: WRITE, data: Buffer.alloc(length, 5) }));
  const bytes = Buffer.concat([...requests, { type: FLUSH }].map((each) => request(each)));
  const whole = text(effectsOf(bytes));
  for (let cut = 1; cut < bytes.length; cut++) {
    const transmission = new Transmission(FACTS);
    const effects: TransmissionEffect[] = [];
    for (const part of [bytes.subarray(0, cut), bytes.subarray(cut)]) {
      const lent = Buffer.from(part);
      transmission.push(lent, true);
      // What does not fit waits, and is taken when the chunk is no longer there.
      const refused = transmission.next(0);
      if (refused !== undefined && refused.do !== "wait") effects.push(refused);
      if (cut % 2 === 0) effects.push(...drain(transmission));
      transmission.keep();
      lent.fill(0xdd);
      effects.push(...drain(transmission));
    }
    if (text(effects) !== whole) t.fail(`cut at ${cut}`);
  }
  t.end();
});

t.test("a resize counts from the next request on", (t) => {
  const facts = { ...FACTS };
  const transmission = new Transmission(facts);
  transmission.push(request({ type: READ, offset: BigInt(FACTS.size), length: 512 }));
  facts.size += 512;
  t.match(transmission.next(Infinity), { do: "start" });
  t.end();
});

const CHUNKS: Session = { structured: true, extended: false, allocation: true };
const WIDE: Session = { structured: true, extended: true, allocation: true };
const [REQ_ONE, PAYLOAD_LEN] = [8, 32];
const [DATA, HOLE, STATUS32, STATUS64, ERROR, ERROR_OFFSET] = [1, 2, 5, 6, 0x8001, 0x8002];

function effectOf(bytes: Buffer, session: Session, facts = FACTS): TransmissionEffect {
  const transmission = new Transmission(facts, session);
  transmission.push(bytes);
  const [effect, more] = drain(transmission);
  if (!effect || more) throw new Error("not one effect");
  return effect;
}
/** The error in the chunk that answers a request; 0 when there is none, "start" for the image. */
function chunkVerdict(bytes: Buffer, session: Session, facts = FACTS): number | string {
  const effect = effectOf(bytes, session, facts);
  if (effect.do !== "send") return effect.do;
  if (effect.bytes.length === 16) return parseReply(effect.bytes).error;
  const [chunk, more] = parseChunks(effect.bytes);
  if (!chunk || more || !chunk.last) return "bad reply";
  return chunk.type === ERROR ? chunk.payload.readUInt32BE(0) : chunk.type;
}

t.test("with structured replies refusals are chunks with a reason", (t) => {
  const outside = request({ type: READ, offset: 1n << 60n, length: 1, cookie: 9n });
  const effect = effectOf(outside, CHUNKS);
  const [chunk] = parseChunks(effect.do === "send" ? effect.bytes : Buffer.alloc(0));
  t.match(chunk, { last: true, type: ERROR, cookie: 9n });
  const { payload } = chunk!;
  t.equal(payload.readUInt16BE(4), payload.length - 6);
  t.match(payload.subarray(6).toString(), /beyond the end/);
  t.equal(chunkVerdict(request({ type: READ, length: 0 }), CHUNKS), 0, "a chunk without content");
  t.equal(chunkVerdict(request({ type: TRIM, length: 0 }), CHUNKS), 0);
  const long = request({ type: READ, length: WRITE_BYTES_MAX + 1 });
  t.equal(chunkVerdict(long, CHUNKS), EOVERFLOW);
  t.equal(chunkVerdict(request({ type: READ, length: 512, flags: DF }), CHUNKS), "start");
  t.equal(verdict({ type: READ, length: 512, flags: DF }), EINVAL, "not without chunks");
  t.end();
});

t.test("block status needs a context, a range and nothing else", (t) => {
  const length = 512;
  const status = request({ type: STATUS, length, flags: REQ_ONE });
  t.match(effectOf(status, CHUNKS), { command: "status", flags: REQ_ONE, length });
  t.equal(chunkVerdict(status, { ...CHUNKS, allocation: false }), EINVAL);
  t.equal(verdict({ type: STATUS, length }), EINVAL);
  t.equal(chunkVerdict(request({ type: STATUS, length: 0 }), CHUNKS), EINVAL);
  const outside = { type: STATUS, offset: BigInt(FACTS.size), length };
  t.equal(chunkVerdict(request(outside), CHUNKS), EINVAL);
  for (const flags of [DF, NO_HOLE, PAYLOAD_LEN]) {
    t.equal(chunkVerdict(request({ type: STATUS, length, flags }), CHUNKS), EINVAL);
  }
  const transmission = new Transmission(FACTS, CHUNKS);
  transmission.push(status);
  t.match(transmission.next(1000), { do: "wait" }, "its answer needs memory");
  t.end();
});

t.test("cache takes a range and holds little of it", (t) => {
  t.match(one({ type: CACHE, length: 512 }), { command: "cache", charge: 512 });
  t.match(one({ type: CACHE, length: 64 * MIB }), { charge: CACHE_PIECE_BYTES });
  t.equal(verdict({ type: CACHE, length: 512, flags: DF }), EINVAL);
  t.equal(verdict({ type: CACHE, offset: BigInt(FACTS.size), length: 1 }), EINVAL);
  t.equal(verdict({ type: CACHE, length: 512 }, { ...FACTS, readOnly: true }), "start");
  t.end();
});

t.test("extended headers: lengths of 64 bits, and the flag says whose they are", (t) => {
  const facts = { ...FACTS, size: 2 ** 45 };
  const length = 2n ** 40n;
  t.match(effectOf(wideRequest({ type: TRIM, length }), WIDE, facts), { length: 2 ** 40 });
  t.match(effectOf(wideRequest({ type: ZERO, length }), WIDE, facts), { command: "zero" });
  t.match(effectOf(wideRequest({ type: STATUS, length }), WIDE, facts), { length: 2 ** 40 });
  const provision = wideRequest({ type: ZERO, length, flags: NO_HOLE });
  t.equal(chunkVerdict(provision, WIDE, facts), EOVERFLOW);
  t.equal(chunkVerdict(wideRequest({ type: READ, length }), WIDE, facts), EOVERFLOW);
  t.equal(chunkVerdict(wideRequest({ type: TRIM, length: 2n ** 64n - 1n }), WIDE), EINVAL);
  const data = Buffer.from("hello");
  const write = wideRequest({ type: WRITE, data, flags: PAYLOAD_LEN | FUA });
  t.match(effectOf(write, WIDE), { command: "write", data, length: 5 });
  t.equal(chunkVerdict(wideRequest({ type: WRITE, length: 5n }), WIDE), EINVAL, "no payload");
  const compact = request({ type: FLUSH });
  t.match(effectOf(Buffer.concat([compact, Buffer.alloc(4)]), WIDE), { do: "close" });
  t.match(effectOf(wideRequest({ type: FLUSH }).subarray(0, 28), CHUNKS), { do: "close" });
  t.end();
});

t.test("an unexpected payload is read past, an oversized one ends the connection", (t) => {
  const data = Buffer.alloc(100, 1);
  for (const type of [READ, TRIM, ZERO, CACHE, FLUSH, 99]) {
    const bytes = Buffer.concat([
      wideRequest({ type, data, flags: PAYLOAD_LEN }),
      wideRequest({ type: FLUSH }),
    ]);
    const transmission = new Transmission(FACTS, WIDE);
    for (const byte of bytes) transmission.push(Buffer.from([byte]));
    t.match(drain(transmission), [{ do: "send" }, { do: "start", command: "flush" }]);
  }
  const length = BigInt(WRITE_BYTES_MAX) + 1n;
  const huge = wideRequest({ type: READ, length, flags: PAYLOAD_LEN });
  t.match(effectOf(huge, WIDE), { do: "close", fault: /payload/ });
  t.end();
});

t.test("a block status may name its context", (t) => {
  const named = (length: bigint, ...ids: number[]) =>
    wideRequest({
      type: STATUS,
      flags: PAYLOAD_LEN,
      data: Buffer.concat([u64(length), ...ids.map(u32)]),
    });
  t.match(effectOf(named(4096n, 1), WIDE), { command: "status", length: 4096, offset: 0 });
  t.equal(chunkVerdict(named(4096n, 2), WIDE), EINVAL, "unknown");
  t.equal(chunkVerdict(named(4096n, 1, 1), WIDE), EINVAL, "twice");
  t.equal(chunkVerdict(named(4096n), WIDE), EINVAL, "none");
  t.equal(chunkVerdict(named(1n << 60n, 1), WIDE), EINVAL, "outside");
  t.equal(chunkVerdict(named(0n, 1), WIDE), EINVAL);
  const empty = wideRequest({ type: STATUS, flags: PAYLOAD_LEN });
  t.equal(chunkVerdict(empty, WIDE), EINVAL);
  t.equal(chunkVerdict(named(4096n, 1), { ...WIDE, allocation: false }), EINVAL);
  const split = new Transmission(FACTS, WIDE);
  for (const byte of named(4096n, 1)) split.push(Buffer.from([byte]));
  t.match(drain(split), [{ do: "start", command: "status" }]);
  t.end();
});

t.test("a server that stops refuses what still comes", (t) => {
  const transmission = new Transmission(FACTS);
  transmission.stop();
  transmission.push(request({ type: WRITE, data: Buffer.alloc(512) }));
  transmission.push(request({ type: READ, length: 512 }));
  const effects = drain(transmission);
  t.same(
    effects.map((effect) => (effect.do === "send" ? parseReply(effect.bytes).error : effect.do)),
    [108, 108],
  );
  t.end();
});

function started(session: Session, fields: RequestFields): [Transmission, StartRequest] {
  const transmission = new Transmission(FACTS, session);
  const { length, ...rest } = fields;
  const wide = length === undefined ? rest : { ...rest, length: BigInt(length) };
  transmission.push(session.extended ? wideRequest(wide) : request(fields));
  const effect = transmission.next(Infinity);
  if (effect?.do !== "start") throw new Error("not started");
  return [transmission, effect];
}
const BASE: Session = { structured: false, extended: false, allocation: false };

t.test("simple replies", (t) => {
  const fields = { type: READ, length: 3, cookie: 0xfedcba9876543210n };
  const [transmission, read] = started(BASE, fields);
  const out: Buffer[] = [];
  const pieces = [Buffer.from("ab"), Buffer.from("c")];
  transmission.finishRead(read, [{ length: 3, pieces }], out);
  transmission.fail(read, { error: 5, message: "for a log" }, out);
  transmission.finish(read, out);
  t.equal(out.length, 5);
  t.same(parseReply(out[0]!), { error: 0, cookie: 0xfedcba9876543210n });
  t.same(Buffer.concat(out.slice(1, 3)).toString(), "abc");
  t.same(parseReply(out[3]!), { error: 5, cookie: 0xfedcba9876543210n });
  t.equal(out[3]!.length, 16);
  t.same(parseReply(out[4]!), { error: 0, cookie: 0xfedcba9876543210n });
  t.end();
});

t.test("reads in chunks: holes where there are whole blocks of zeros", (t) => {
  for (const session of [CHUNKS, WIDE]) {
    const fields = { type: READ, offset: 512n, length: 5 * 4096, cookie: 3n };
    const [transmission, read] = started(session, fields);
    const bytes = Buffer.alloc(5 * 4096);
    bytes.fill(1, 0, 4096 - 512); // The first block, which is cut off.
    bytes[3 * 4096] = 9; // In the fourth.
    // Pieces that end anywhere.
    const pieces = [bytes.subarray(0, 1000), bytes.subarray(1000, 9000), bytes.subarray(9000)];
    const out: Buffer[] = [];
    transmission.finishRead(read, [{ length: bytes.length, pieces }], out);
    const chunks = parseChunks(Buffer.concat(out));
    t.same(
      chunks.map(({ type, last }) => [type, last]),
      [
        [DATA, false],
        [HOLE, false],
        [DATA, false],
        [HOLE, true],
      ],
    );
    const whole = Buffer.alloc(bytes.length, 0xee);
    for (const { type, payload, cookie, offset } of chunks) {
      t.equal(cookie, 3n);
      t.equal(offset, session.extended ? 512n : undefined);
      const at = Number(payload.readBigUInt64BE(0)) - 512;
      if (type === DATA) payload.copy(whole, at, 8);
      else whole.fill(0, at, at + payload.readUInt32BE(8));
      t.equal(type === HOLE ? payload.length : 12, 12);
    }
    t.ok(whole.equals(bytes), "together they are the range");
  }
  t.end();
});

t.test("reads that must not be fragmented, or failed in part", (t) => {
  const zeros = Buffer.alloc(8192);
  const [transmission, whole] = started(CHUNKS, { type: READ, length: 16_384, flags: DF });
  const parts = [
    { length: 8192, pieces: [zeros] },
    { length: 8192, pieces: [Buffer.alloc(8192, 1)] },
  ];
  let out: Buffer[] = [];
  transmission.finishRead(whole, parts, out);
  t.match(parseChunks(Buffer.concat(out)), [{ type: DATA, last: true }]);
  out = [];
  const bad = { length: 8192, error: 5, message: "é".repeat(3000) };
  transmission.finishRead(whole, [parts[0]!, bad], out);
  t.match(parseChunks(Buffer.concat(out)), [{ type: ERROR_OFFSET, last: true }]);

  const [split, read] = started(WIDE, { type: READ, length: 24_576 });
  out = [];
  split.finishRead(read, [bad, ...parts], out);
  const chunks = parseChunks(Buffer.concat(out));
  t.same(
    chunks.map(({ type }) => type),
    [ERROR_OFFSET, HOLE, DATA],
  );
  const { payload } = chunks[0]!;
  t.equal(payload.readUInt16BE(4), 4096, "a string of the protocol is that long at most");
  t.equal(payload.length, 4 + 2 + 4096 + 8);
  t.equal(payload.readBigUInt64BE(payload.length - 8), 0n);
  t.end();
});

t.test("block status replies", (t) => {
  const [compact, request32] = started(CHUNKS, { type: STATUS, length: 4096 });
  let out: Buffer[] = [];
  const extents = [
    { length: 512, flags: 0 },
    { length: 2 ** 33, flags: 3 },
    { length: 512, flags: 0 },
  ];
  compact.finishStatus(request32, extents, out);
  const [small] = parseChunks(Buffer.concat(out));
  t.match(small, { type: STATUS32, last: true });
  const fitting = [u32(1), u32(512), u32(0), u32(2 ** 32 - 65_536), u32(3)];
  t.same(small!.payload, Buffer.concat(fitting), "what fits into 32 bits");

  const [wide, request64] = started(WIDE, { type: STATUS, length: 4096 });
  out = [];
  wide.finishStatus(request64, extents, out);
  const [large] = parseChunks(Buffer.concat(out));
  t.match(large, { type: STATUS64, last: true });
  const all = extents.flatMap(({ length, flags }) => [u64(BigInt(length)), u64(BigInt(flags))]);
  t.same(large!.payload, Buffer.concat([u32(1), u32(3), ...all]));
  t.end();
});

t.test("errors that the protocol names for certain requests stay there", (t) => {
  const told = (fields: RequestFields, error: number): number => {
    const [transmission, start] = started(BASE, fields);
    const out: Buffer[] = [];
    transmission.fail(start, { error, message: "" }, out);
    return parseReply(out[0]!).error;
  };
  const write = { type: WRITE, data: Buffer.alloc(512) };
  for (const error of [1, 5, 22, 28, 108]) t.equal(told(write, error), error);
  t.equal(told(write, ENOTSUP), EINVAL);
  t.equal(told({ type: ZERO, length: 512, flags: FAST }, ENOTSUP), ENOTSUP);
  t.equal(told(write, EOVERFLOW), EINVAL);
  t.equal(told({ type: READ, length: 512 }, EOVERFLOW), EOVERFLOW);
  t.equal(told(write, 17), 5, "anything else is an I/O error");
  t.end();
});

t.test("with extended headers every reply is a chunk that repeats the offset", (t) => {
  const [transmission, trim] = started(WIDE, { type: TRIM, offset: 8192n, length: 512 });
  const out: Buffer[] = [];
  transmission.finish(trim, out);
  transmission.fail(trim, { error: 28, message: "full" }, out);
  t.match(parseChunks(Buffer.concat(out)), [
    { type: 0, last: true, offset: 8192n },
    { type: ERROR, last: true, offset: 8192n },
  ]);
  const far = 0xfedcba9876543210n;
  const refused = effectOf(wideRequest({ type: READ, offset: far, length: 1n }), WIDE);
  t.match(parseChunks(refused.do === "send" ? refused.bytes : Buffer.alloc(0)), [{ offset: far }]);
  t.end();
});

t.test("offsets beyond 2^53 are blocks, and nothing is rounded to one", (t) => {
  const blockSize = { ...FACTS.blockSize, minimum: 4096 };
  const facts = { ...FACTS, size: 2 ** 64 - 4096, blockSize };
  const from = 2n ** 63n;
  t.match(one({ type: READ, offset: from, length: 4096 }, facts), {
    ...{ do: "start", offset: 2 ** 63, length: 4096 },
  });
  const last = { type: READ, offset: 2n ** 64n - 8192n, length: 4096 };
  t.match(one(last, facts), { do: "start", offset: 2 ** 64 - 8192 });
  for (const offset of [from + 1n, from + 512n, from - 1n, 2n ** 53n + 1n]) {
    t.equal(verdict({ type: READ, offset, length: 4096 }, facts), EINVAL, String(offset));
  }
  t.equal(verdict({ type: READ, offset: from, length: 512 }, facts), EINVAL);
  for (const offset of [2n ** 64n - 4096n, 2n ** 64n - 1n, 2n ** 64n - 512n]) {
    t.equal(verdict({ type: READ, offset, length: 4096 }, facts), EINVAL, String(offset));
  }
  t.equal(
    verdict({ type: WRITE, offset: 2n ** 64n - 4096n, length: 0, data: Buffer.alloc(0) }, facts),
    0,
  );
  t.end();
});

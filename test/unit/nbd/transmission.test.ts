/** Transmission: every command, its errors, and answers out of order. */
import t from "tap";
import type { ExportFacts } from "../../../nbd/abi.js";
import {
  Transmission,
  WRITE_BYTES_MAX,
  type StartRequest,
  type TransmissionEffect,
} from "../../../nbd/transmission.js";
import { parseReply, request, type RequestFields } from "./client-bytes.js";

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO] = [0, 1, 2, 3, 4, 5, 6];
const [FUA, NO_HOLE, DF] = [1, 2, 4];
const [EPERM, EINVAL, ENOSPC] = [1, 22, 28];
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
    fua: false,
  });
  t.match(one({ type: WRITE, offset: 7n, data, flags: FUA }), {
    command: "write",
    offset: 7,
    length: 5,
    fua: true,
    data,
  });
  t.match(one({ type: FLUSH }), { command: "flush", length: 0 });
  t.match(one({ type: TRIM, offset: 1n, length: 2, flags: FUA }), { command: "trim", fua: true });
  t.match(one({ type: ZERO, length: 64 * MIB }), { command: "zero", noHole: false });
  t.match(one({ type: ZERO, length: 1, flags: FUA | NO_HOLE }), { fua: true, noHole: true });
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
  for (const type of [CACHE, 7, 8, 99, 0xffff]) t.equal(verdict({ type, length: 512 }), EINVAL);
  const length = 512;
  t.equal(verdict({ type: READ, length, flags: DF }), EINVAL);
  t.equal(verdict({ type: READ, length, flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(9), flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: WRITE, data: Buffer.alloc(9), flags: 0x8000 }), EINVAL);
  t.equal(verdict({ type: TRIM, length, flags: NO_HOLE }), EINVAL);
  t.equal(verdict({ type: ZERO, length, flags: 0x10 }), EINVAL);
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
  const text = (effects: TransmissionEffect[]): string => JSON.stringify(effects);
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

t.test("a resize counts from the next request on", (t) => {
  const facts = { ...FACTS };
  const transmission = new Transmission(facts);
  transmission.push(request({ type: READ, offset: BigInt(FACTS.size), length: 512 }));
  facts.size += 512;
  t.match(transmission.next(Infinity), { do: "start" });
  t.end();
});

t.test("replies", (t) => {
  const transmission = new Transmission(FACTS);
  const out: Buffer[] = [];
  const cookie = { cookieHigh: 0xfedcba98, cookieLow: 0x76543210 };
  transmission.finish(cookie, 0, [Buffer.from("ab"), Buffer.from("c")], out);
  transmission.finish(cookie, 5, [Buffer.from("not sent")], out);
  t.equal(out.length, 4);
  t.same(parseReply(out[0]!), { error: 0, cookie: 0xfedcba9876543210n });
  t.same(Buffer.concat(out.slice(1, 3)).toString(), "abc");
  t.same(parseReply(out[3]!), { error: 5, cookie: 0xfedcba9876543210n });
  t.end();
});

/**
 * Frames and structs: what is sent is what arrives, however the bytes are cut, and nothing else
 * does.
 */
import t from "tap";
import { blockChecksums } from "../../../../cluster/base/checksum.js";
import { DssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import { FrameParser, HEADER_SIZE, encodeFrame } from "../../../../cluster/wire/frame.js";
import type { Frame } from "../../../../cluster/wire/frame.js";
import {
  ascii,
  bytes,
  i64,
  list,
  struct,
  u16,
  u32,
  u53,
  u8,
} from "../../../../cluster/wire/struct.js";
import { OsdRead, OsdRepOp, OsdWrite } from "../../../../osd/proto.js";

const HEADER = { type: 100, sequence: 7, sender: 70_000, receiver: 2, epoch: 12 };

function parse(chunks: readonly Buffer[]): Frame[] {
  const frames: Frame[] = [];
  const parser = new FrameParser((frame) => frames.push(frame));
  for (const chunk of chunks) parser.push(chunk);
  return frames;
}

t.test("a frame survives every way of cutting it", (t) => {
  const random = new Prng(1);
  const body = random.bytes(33);
  const data = [random.bytes(4096), random.bytes(1000)];
  const whole = Buffer.concat(encodeFrame(HEADER, body, data));
  for (let cut = 0; cut <= whole.length; cut += cut < 100 ? 1 : 97) {
    const [frame, ...rest] = parse([whole.subarray(0, cut), whole.subarray(cut)]);
    t.equal(rest.length, 0);
    t.match(frame, HEADER);
    t.same(frame!.body, body);
    t.same(frame!.data, Buffer.concat(data));
    t.same(frame!.sums, blockChecksums(Buffer.concat(data)));
  }
  t.end();
});

t.test("known block checksums give the same frame as computed ones", (t) => {
  const data = new Prng(2).bytes(3 * 4096 + 17);
  const sums = blockChecksums(data);
  const body = Buffer.from("body");
  t.same(
    Buffer.concat(encodeFrame(HEADER, body, [data], sums)),
    Buffer.concat(encodeFrame(HEADER, body, [data])),
  );
  t.end();
});

t.test("many frames in one chunk, some without data", (t) => {
  const all = Buffer.concat([
    ...encodeFrame(HEADER, Buffer.from("a")),
    ...encodeFrame(HEADER, Buffer.alloc(0)),
    ...encodeFrame(HEADER, Buffer.from("b"), [Buffer.alloc(5000, 1)]),
  ]);
  const frames = parse([all]);
  t.same(
    frames.map((frame) => frame.body.toString()),
    ["a", "", "b"],
  );
  t.same(
    frames.map((frame) => frame.data.length),
    [0, 0, 5000],
  );
  t.end();
});

t.test("every flipped bit is noticed", (t) => {
  const random = new Prng(3);
  const whole = Buffer.concat(encodeFrame(HEADER, random.bytes(20), [random.bytes(300)]));
  for (let bit = 0; bit < whole.length * 8; bit++) {
    const bad = Buffer.from(whole);
    bad[bit >> 3]! ^= 1 << (bit & 7);
    t.throws(() => parse([bad]), DssError);
  }
  t.end();
});

t.test("lengths are checked before anything is allocated", (t) => {
  const huge = encodeFrame(HEADER, Buffer.alloc(0))[0]!;
  t.equal(huge.length, HEADER_SIZE);
  const parser = new FrameParser(() => t.fail("no frame"), { bodyBytesMax: 10, dataBytesMax: 10 });
  const big = Buffer.concat(encodeFrame(HEADER, Buffer.alloc(11)));
  t.throws(() => parser.push(big.subarray(0, HEADER_SIZE)), { code: "TooLarge" });
  t.throws(() => parse([Buffer.alloc(100, "GET / HTTP")]), { code: "Malformed" });
  t.end();
});

t.test("structs: every field comes back; damage is Malformed", (t) => {
  const Row = struct("Row", {
    a: u8,
    b: u16,
    c: u32,
    d: u53,
    e: i64,
    name: ascii,
    raw: bytes(10),
    items: list(struct("Item", { x: u32, y: u8 }), 3),
  });
  const value = {
    a: 255,
    b: 65_535,
    c: 2 ** 32 - 1,
    d: 2 ** 53 - 1,
    e: -(2n ** 63n),
    name: "1f.3a",
    raw: Buffer.from("raw"),
    items: [
      { x: 1, y: 2 },
      { x: 3, y: 4 },
    ],
  };
  const encoded = Row.encode(value);
  t.same(Row.decode(encoded), value);
  for (let cut = 0; cut < encoded.length; cut++) {
    t.throws(() => Row.decode(encoded.subarray(0, cut)), { code: "Malformed" });
  }
  t.throws(() => Row.decode(Buffer.concat([encoded, Buffer.alloc(1)])), { code: "Malformed" });
  t.throws(() => Row.encode({ ...value, raw: Buffer.alloc(11) }), { code: "TooLarge" });
  const aboveSafe = Buffer.from(encoded);
  aboveSafe.writeUInt32LE(0x20_0000, 11);
  t.throws(() => Row.decode(aboveSafe), { code: "Malformed" });
  t.end();
});

t.test("published layouts are frozen: add a new message instead", (t) => {
  const object = "ff.0";
  const name = 1 + object.length;
  const bare = { pg: 1, interval: 1, client: 1, offset: 0, length: 0, truncateSeq: 0, object };
  const write = { ...bare, minEpoch: 0, sequence: 1, floor: 1, kind: 1, flags: 0 };
  const snaps = { snapSeq: 0, snapNewest: 0, snap: 0 };
  const cut = { truncateSize: 0, mtimeNs: 0n };
  t.equal(OsdWrite.encode({ ...write, ...snaps, ...cut, parents: [] }).length, 74 + name);
  const read = { ...bare, minEpoch: 0, truncateSize: 0, snap: 0, parents: [] };
  t.equal(OsdRead.encode(read).length, 40 + name);
  const log = { seq: 1, sequence: 1, floor: 1, kind: 1, size: 0, mtimeNs: 0n };
  t.equal(OsdRepOp.encode({ ...bare, ...log, snapSeq: 0, source: "" }).length, 66 + name);
  t.end();
});

/** Structs: what was put is got again, limits hold, what a peer sends is at most Malformed. */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import { Prng } from "../../../../cluster/base/prng.js";
import {
  Cursor,
  ascii,
  bool,
  bytes,
  i64,
  list,
  struct,
  u16,
  u32,
  u53,
  u64,
  u8,
  type Struct,
} from "../../../../cluster/wire/struct.js";
import * as osdMessages from "../../../../osd/proto.js";

const Inner = struct("Inner", { id: u32, name: ascii });
const All = struct("All", {
  a: u8,
  b: u16,
  text: ascii,
  c: u32,
  d: u53,
  many: list(Inner, 3),
  e: u64,
  raw: bytes(8),
  f: i64,
  g: bool,
});
const sample = {
  a: 255,
  b: 65_535,
  text: "10000000001.3f",
  c: 2 ** 32 - 1,
  d: Number.MAX_SAFE_INTEGER,
  many: [
    { id: 1, name: "" },
    { id: 2, name: "x".repeat(255) },
  ],
  e: 2n ** 64n - 1n,
  raw: Buffer.from("12345678"),
  f: -(2n ** 63n),
  g: true,
};

t.test("a message comes back as it was, its fields in the order of the row", (t) => {
  const encoded = All.encode(sample);
  t.same(All.decode(encoded), sample);
  t.same(Object.keys(All.decode(encoded)), Object.keys(sample));
  t.equal(All.sizeOf(sample), encoded.length);
  t.equal(All.size, -1);
  const fixed = struct("Fixed", { a: u8, b: u53, c: bool });
  t.equal(fixed.size, 10);
  t.same(fixed.decode(fixed.encode({ a: 1, b: 2, c: false })), { a: 1, b: 2, c: false });
  const empty = struct("Nothing", {});
  t.equal(empty.size, 0);
  t.same(empty.decode(empty.encode({})), {});
  t.end();
});

t.test("the layout: little-endian, without gaps, lengths before what they count", (t) => {
  const { encode } = struct("Layout", { a: u8, b: u32, s: ascii, l: list(u16, 9), d: u53 });
  const encoded = encode({ a: 1, b: 0x05040302, s: "ab", l: [7, 8], d: 2 ** 32 + 9 });
  t.equal(encoded.toString("hex"), "0102030405026162020000000700080009000000" + "01000000");
  t.end();
});

t.test("a struct within another goes on where the other stands", (t) => {
  const Pair = struct("Pair", { first: Inner, second: Inner, end: u8 });
  const pair = { first: { id: 7, name: "a" }, second: { id: 8, name: "bc" }, end: 9 };
  t.same(Pair.decode(Pair.encode(pair)), pair);
  const cursor = new Cursor(Buffer.concat([Buffer.alloc(3), Inner.encode(pair.second)]), 3);
  t.same(Inner.get(cursor), pair.second);
  t.equal(cursor.offset, cursor.buffer.length);
  t.end();
});

t.test("limits hold on both sides", (t) => {
  const { many } = sample;
  const tooLarge = { code: "TooLarge" };
  t.throws(() => All.encode({ ...sample, text: "x".repeat(256) }), tooLarge);
  t.throws(() => All.encode({ ...sample, many: [...many, ...many] }), tooLarge);
  t.throws(() => All.encode({ ...sample, raw: Buffer.alloc(9) }), tooLarge);
  t.throws(() => All.encode({ ...sample, c: 2 ** 32 }), RangeError);
  t.throws(() => All.encode({ ...sample, a: -1 }), RangeError);
  const Long = struct("Long", { raw: bytes(99), many: list(Inner, 99) });
  const Short = struct("Short", { raw: bytes(9), many: list(Inner, 1) });
  const malformed = { code: "Malformed" };
  t.throws(() => Short.decode(Long.encode({ raw: Buffer.alloc(10), many: [] })), malformed);
  t.throws(() => Short.decode(Long.encode({ raw: Buffer.alloc(9), many })), malformed);
  const above = struct("Above", { d: u64 }).encode({ d: 2n ** 53n });
  t.throws(() => struct("Counts", { d: u53 }).decode(above), malformed);
  t.throws(() => struct("Bad", { "a-b": u8 }).encode({ "a-b": 1 }), /field "a-b"/);
  t.end();
});

t.test("every shorter or longer message is Malformed", (t) => {
  const encoded = All.encode(sample);
  for (let length = 0; length < encoded.length; length++) {
    t.throws(() => All.decode(encoded.subarray(0, length)), { code: "Malformed" });
  }
  const longer = Buffer.concat([encoded, Buffer.alloc(1)]);
  t.throws(() => All.decode(longer), { code: "Malformed", message: /1 bytes too many/ });
  t.end();
});

t.test("garbage for every message of the OSDs is decoded or Malformed, never a crash", (t) => {
  const random = new Prng(7);
  const rows = Object.values<unknown>(osdMessages).filter(
    (each): each is Struct<unknown> => typeof each === "object" && "sizeOf" in each!,
  );
  t.ok(rows.length > 15, `${rows.length} structs`);
  let decoded = 0;
  for (const row of rows) {
    for (let i = 0; i < 300; i++) {
      const length = row.size >= 0 && i % 2 === 0 ? row.size : random.u32() % 200;
      const garbage = Buffer.from(Array.from({ length }, () => random.u32() & 255));
      // Small numbers, so that lists and texts often fit.
      if (i % 3 === 0) for (let at = 0; at < length; at++) garbage[at]! &= 3;
      try {
        const value = row.decode(garbage);
        t.same(row.decode(row.encode(value)), value, row.name);
        decoded++;
      } catch (error) {
        if (!(error instanceof DssError) || error.code !== "Malformed") throw error;
      }
    }
  }
  t.ok(decoded > 500, `${decoded} decoded`);
  t.end();
});

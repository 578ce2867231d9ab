/** Checksums of blocks, and sums of a whole derived from sums of its parts. */
import { crc32 as zlibCrc32 } from "node:zlib";
import t from "tap";
import { AssertionFailure } from "../../../../cluster/base/assert.js";
import {
  BLOCK_SIZE,
  blockChecksums,
  crc32,
  crc32Combine,
  crc32OfBlocks,
  ZERO_BLOCK_CRC,
} from "../../../../cluster/base/checksum.js";
import { Prng } from "../../../../cluster/base/prng.js";

t.test("crc32 of any length and seed is zlib's", (t) => {
  const random = new Prng(11);
  const data = random.bytes(8_192);
  const wrong: string[] = [];
  for (let i = 0; i < 2_000; i++) {
    const length = i < 200 ? i : random.int(0, data.length - 1);
    const start = random.int(0, data.length - length - 1);
    const piece = data.subarray(start, start + length);
    const seed = i % 3 === 0 ? 0 : random.u32();
    if (crc32(piece, seed) === zlibCrc32(piece, seed)) continue;
    wrong.push(`${length} bytes at ${start}, continuing from ${seed}`);
  }
  t.same(wrong, []);
  t.end();
});

t.test("crc32 is the standard one and can be continued", (t) => {
  t.equal(crc32(Buffer.from("123456789")), 0xcbf43926, "the check value of the zlib polynomial");
  t.equal(crc32(Buffer.alloc(0)), 0);
  t.equal(crc32(Buffer.from("6789"), crc32(Buffer.from("12345"))), 0xcbf43926);
  t.equal(ZERO_BLOCK_CRC, crc32(Buffer.alloc(BLOCK_SIZE)));
  t.end();
});

t.test("combining equals summing the concatenation", (t) => {
  const prng = new Prng(1);
  const lengths = [0, 1, 2, 3, 4, 7, 8, 255, 4_095, 4_096, 4_097, 65_536, 100_003];
  for (const a of lengths) {
    for (const b of lengths) {
      const left = prng.bytes(a);
      const right = prng.bytes(b);
      const combined = crc32Combine(crc32(left), crc32(right), b);
      const direct = crc32(Buffer.concat([left, right]));
      if (combined !== direct) t.equal(combined, direct, `${a} and ${b} bytes`);
    }
  }
  t.throws(() => crc32Combine(1, 1, -1), AssertionFailure);
  t.throws(() => crc32Combine(1, 1, 2 ** 32), AssertionFailure);
  // Lengths with the topmost bit: 2³¹ zero bytes in two different splits.
  const half = crc32Combine(5, 0, 2 ** 30);
  t.equal(crc32Combine(half, 0, 2 ** 30), crc32Combine(5, 0, 2 ** 31));
  t.end();
});

t.test("the sum of a whole follows from the sums of its blocks", (t) => {
  const prng = new Prng(2);
  for (const length of [0, 1, 100, 4_095, 4_096, 4_097, 8_192, 12_289, 1_048_576, 1_048_577]) {
    const data = prng.bytes(length);
    const sums = blockChecksums(data);
    t.equal(sums.length, Math.ceil(length / BLOCK_SIZE));
    t.equal(crc32OfBlocks(sums, length), crc32(data), `${length} bytes`);
    for (let i = 0; i < sums.length; i += 37) {
      const block = data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
      t.equal(sums[i], crc32(block), `block ${i} of ${length} bytes`);
    }
  }
  t.end();
});

t.test("a flipped bit anywhere changes the sum of its block and of the whole", (t) => {
  const data = new Prng(3).bytes(3 * BLOCK_SIZE);
  const before = blockChecksums(data);
  for (const position of [0, 4_095, 4_096, 9_000, 12_287]) {
    data[position]! ^= 0x10;
    const after = blockChecksums(data);
    const block = Math.floor(position / BLOCK_SIZE);
    const changed = [...after.keys()].filter((i) => after[i] !== before[i]);
    t.same(changed, [block], `byte ${position}`);
    t.not(crc32OfBlocks(after, data.length), crc32OfBlocks(before, data.length));
    data[position]! ^= 0x10;
  }
  t.end();
});

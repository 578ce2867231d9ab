/** Buffers that are used again: which ones, and how many are kept. */
import t from "tap";
import { BufferPool } from "../../../../cluster/base/buffer-pool.js";

const KiB = 1024;

t.test("a large buffer is used again for what fits into it without much waste", (t) => {
  const pool = new BufferPool(8 * 1024 * KiB);
  const first = pool.take(1024 * KiB + 57);
  t.ok(first.length >= 1024 * KiB + 57 && first.length <= 1152 * KiB, `${first.length} bytes`);
  pool.give(first);
  t.equal(pool.take(1024 * KiB + 100), first);
  t.not(pool.take(1024 * KiB + 100), first, "it is in use");
  t.equal(pool.take(64 * KiB).length, 64 * KiB);
  t.equal(pool.take(1024 * KiB).length, 1024 * KiB, "powers of two fit exactly");
  t.end();
});

t.test("the frame of a small write is used again", (t) => {
  const pool = new BufferPool(256 * KiB);
  const frame = pool.copyOf(Buffer.alloc(4_222, 7));
  t.ok(frame.length >= 4_222 && frame.length <= 4_608, `${frame.length} bytes`);
  t.same(frame.subarray(0, 4_222), Buffer.alloc(4_222, 7));
  pool.give(frame);
  const next = pool.copyOf(Buffer.alloc(4_250, 8));
  t.equal(next.buffer, frame.buffer);
  t.same(next.subarray(0, 4_250), Buffer.alloc(4_250, 8));
  const other = pool.copyOf(Buffer.alloc(4_250, 9));
  t.not(other.buffer, next.buffer, "it is in use");
  t.end();
});

t.test("small ones, strangers and what is too much are left to the garbage collector", (t) => {
  const pool = new BufferPool(256 * KiB);
  const small = pool.take(1000);
  t.equal(small.length, 1000);
  pool.give(small);
  t.not(pool.take(1000), small);
  const stranger = Buffer.alloc(100_001);
  pool.give(stranger);
  const [a, b] = [pool.take(200 * KiB), pool.take(200 * KiB)];
  pool.give(a);
  pool.give(b);
  t.equal(pool.take(200 * KiB), a);
  t.not(pool.take(200 * KiB), b, "there was no room for the second");
  t.equal(pool.take(1024 * KiB).length, 1024 * KiB, "larger than the pool");
  t.end();
});

t.test("what nobody has had need of for a while is let go", (t) => {
  let said = 0;
  const pool = new BufferPool(1024 * KiB, () => said++);
  const buffers = [64, 64, 128, 256].map((size) => pool.take(size * KiB));
  for (const buffer of buffers) pool.give(buffer);
  t.equal(said, 1, "it is said once that there is something");
  t.equal(pool.kept, 512 * KiB);
  pool.trim();
  t.equal(pool.kept, 512 * KiB, "it was in use since");
  const used = [pool.take(64 * KiB), pool.take(128 * KiB)];
  for (const buffer of used) pool.give(buffer);
  pool.trim();
  t.ok(pool.kept >= 192 * KiB && pool.kept <= 256 * KiB, `${pool.kept / KiB} KiB are kept`);
  pool.trim();
  pool.trim();
  t.equal(pool.kept, 0);
  pool.give(pool.take(64 * KiB));
  t.equal(said, 2);
  t.end();
});

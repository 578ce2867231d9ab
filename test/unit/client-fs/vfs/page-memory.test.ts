/** Memory of cached pages: used again, and never while a read may still look at it. */
import t from "tap";
import { ExtentCache, PAGE_BYTES, type Fetched } from "../../../../client-fs/vfs/extent-cache.js";

interface Source {
  recycled: number[];
  fetch(index: number): Promise<Fetched>;
}
function source(): Source {
  const recycled: number[] = [];
  return {
    recycled,
    fetch: (index) =>
      Promise.resolve({
        pieces: [Buffer.alloc(PAGE_BYTES, index)],
        recycle: () => recycled.push(index),
      }),
  };
}

t.test("a page that left is given back when the reads of before have ended", async (t) => {
  const cache = new ExtentCache(2 * PAGE_BYTES);
  const { recycled, fetch } = source();
  for (const index of [0, 1]) await cache.fetch(1, index, PAGE_BYTES, fetch(index)).ready;
  const early = cache.begin();
  const answer = [...cache.get(1, 0)!.pieces!];
  cache.answer(early, answer);
  await cache.fetch(1, 2, PAGE_BYTES, fetch(2)).ready; // Pushes out page 1: 0 was used later.
  cache.drop(1, 0, PAGE_BYTES);
  const late = cache.begin();
  t.same(recycled, [], "the early read may have both");
  cache.end(late);
  t.same(recycled, [], "and only its own end counts");
  cache.done(answer);
  t.same(recycled, [1, 0]);
  cache.done(answer);
  t.same(recycled, [1, 0], "once");
});

t.test("a read that begins after a page has left does not keep it", async (t) => {
  const cache = new ExtentCache(4 * PAGE_BYTES);
  const { recycled, fetch } = source();
  await cache.fetch(1, 0, PAGE_BYTES, fetch(0)).ready;
  const before = cache.begin();
  cache.dropAll(1);
  const after = cache.begin();
  cache.end(before);
  t.same(recycled, [0]);
  cache.end(after);
});

t.test("a page that was dropped while it was fetched is nobody's to give back", async (t) => {
  const cache = new ExtentCache(4 * PAGE_BYTES);
  const { recycled, fetch } = source();
  const reading = cache.begin();
  const page = cache.fetch(1, 0, PAGE_BYTES, fetch(0));
  cache.dropAll(1);
  await page.ready;
  cache.end(reading);
  t.same(recycled, []);
  t.equal(page.pieces?.[0]?.length, PAGE_BYTES, "who waited for it has it");
});

t.test("a read that never ends costs memory of a bounded number of pages", async (t) => {
  const cache = new ExtentCache(2 * PAGE_BYTES);
  const { recycled, fetch } = source();
  const stuck = cache.begin();
  for (let index = 0; index < 100; index++) {
    await cache.fetch(1, index, PAGE_BYTES, fetch(index)).ready;
  }
  t.same(recycled, []);
  cache.end(stuck);
  t.ok(recycled.length >= 60 && recycled.length <= 64, `${recycled.length} pages waited`);
});

t.test("what was fetched past the cache is given back with the answer", async (t) => {
  const cache = new ExtentCache(0);
  const { recycled, fetch } = source();
  const reading = cache.begin();
  const { pieces, recycle } = await fetch(7);
  reading.recycle = recycle;
  cache.answer(reading, pieces);
  t.same(recycled, []);
  cache.done(pieces);
  t.same(recycled, [7]);
});

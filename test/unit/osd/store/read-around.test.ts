/** Which places are fetched around small reads, and that what it costs is bounded. */
import t from "tap";
import { ReadAround } from "../../../../osd/store/read-around.js";

const BLOCKS = 64;

/** Uniform random reads of `places`: blocks fetched, and reads that came to what was fetched. */
function reads(places: number, count: number): { blocks: number; hits: number } {
  const around = new ReadAround(BLOCKS);
  const fetched = new Set<number>();
  let blocks = 0;
  let hits = 0;
  let random = 12_345;
  for (let i = 0; i < count; i++) {
    random = (Math.imul(random, 1_103_515_245) + 12_345) >>> 0;
    const place = Math.floor((random / 2 ** 32) * places);
    if (fetched.has(place)) hits++;
    if (!around.noteRead(place)) continue;
    blocks += BLOCKS;
    fetched.add(place);
  }
  return { blocks, hits };
}

void t.test("a place is fetched with its second read, once", (t) => {
  const around = new ReadAround(BLOCKS);
  t.notOk(around.noteRead(7));
  t.notOk(around.noteRead(8), "another place");
  t.ok(around.noteRead(7));
  for (let i = 0; i < 100; i++) t.notOk(around.noteRead(7));
  t.ok(around.noteRead(8));
  t.end();
});

void t.test("what is read here and there is soon fetched as a whole", (t) => {
  const places = 2_048;
  const { blocks, hits } = reads(places, 32 * places);
  t.equal(blocks, places * BLOCKS);
  t.ok(hits > 28 * places, `${hits} reads came to what was fetched`);
  t.end();
});

void t.test("where reads hardly ever come again, little is fetched", (t) => {
  t.equal(reads(2 ** 31, 200_000).blocks, 0, "a disk full, read evenly");
  // More than is remembered, by a little: places are forgotten and come again all the time.
  const count = 1_000_000;
  const { blocks } = reads(24_576, count);
  t.ok(blocks > 262_144 / 2, "at first it is tried");
  t.ok(blocks <= 262_144 + 4 * count, "then four blocks for each read at most");
  t.end();
});

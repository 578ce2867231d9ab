/**
 * What recovery sends: objects as patches to an old copy, and logs in pages. Random pairs of images
 * and logs must arrive as they were.
 */
import t from "tap";
import { BLOCK_SIZE, blockChecksums } from "../../../cluster/base/checksum.js";
import { Prng } from "../../../cluster/base/prng.js";
import { imageFromWire, imageToWire } from "../../../osd/image-wire.js";
import { differingRuns, digestBlocks } from "../../../osd/image-patch.js";
import { inParallel } from "../../../cluster/base/parallel.js";
import { adoptionPages, fetchLog } from "../../../osd/log-transfer.js";
import type {
  PgAdoptRequest,
  PgLogReply,
  WireLogEntry,
  WireRetry,
} from "../../../osd/proto.js";
import type { ObjectImage } from "../../../osd/store/chunk-store.js";

const BLOCKS = 64;

/** Block contents by number; absent: a hole. */
type Content = Map<number, number>;
function imageOf(content: Content): ObjectImage {
  const extents: ObjectImage["extents"] = [];
  for (let at = 0; at < BLOCKS; at++) {
    let end = at;
    while (end < BLOCKS && content.has(end)) end++;
    if (end === at) continue;
    const data = Buffer.concat(
      Array.from({ length: end - at }, (_, i) => Buffer.alloc(BLOCK_SIZE, content.get(at + i))),
    );
    extents.push({ offset: at * BLOCK_SIZE, data, sums: blockChecksums(data) });
    at = end;
  }
  const allocated = content.size * BLOCK_SIZE;
  const version = { interval: 3, seq: 9 };
  const size = BLOCKS * BLOCK_SIZE;
  return { info: { size, version, mtimeNs: 5n, truncateSeq: 2, snapSeq: 0, allocated }, extents };
}
const header = { pg: 7, interval: 3, attempt: 1, asOf: 9, object: "a" };

t.test("a patch and the old copy make the new object, whatever both are", (t) => {
  const random = new Prng(1);
  let patches = 0;
  for (let round = 0; round < 300; round++) {
    const before: Content = new Map();
    const after: Content = new Map();
    const changes = random.float() * 0.6;
    for (let at = 0; at < BLOCKS; at++) {
      if (random.chance(0.8)) before.set(at, random.int(0, 3));
      const old = before.get(at);
      if (!random.chance(changes) && old !== undefined) after.set(at, old);
      else if (random.chance(0.7)) after.set(at, random.int(0, 3));
    }
    const [old, wanted] = [imageOf(before), imageOf(after)];
    const patch = differingRuns(wanted, digestBlocks(old.extents));
    if (patch === undefined) continue;
    patches++;
    const differing = [...after].filter(([at, value]) => before.get(at) !== value).length;
    const wire = imageToWire(header, wanted, patch);
    const data = Buffer.concat(wire.data);
    const got = imageFromWire(wire.message, data, wire.sums, old)!;
    const isSame =
      data.length === differing * BLOCK_SIZE &&
      got.info.allocated === wanted.info.allocated &&
      got.extents.length === wanted.extents.length &&
      got.extents.every((run, i) => {
        const other = wanted.extents[i]!;
        const sums = Buffer.from(run.sums.buffer, run.sums.byteOffset, run.sums.byteLength);
        const right = Buffer.from(other.sums.slice().buffer);
        return run.offset === other.offset && run.data.equals(other.data) && sums.equals(right);
      });
    if (!isSame) t.fail(`round ${round}: the object is another one`);
  }
  t.ok(patches > 100, `${patches} patches`);
  t.end();
});

t.test("a patch that does not fit is refused, and so are bad extents", (t) => {
  const old = imageOf(new Map([[0, 1]]));
  const wanted = imageOf(new Map(Array.from({ length: 16 }, (_, i) => [i, i % 2])));
  const theirs = imageOf(new Map(Array.from({ length: 15 }, (_, i) => [i, i % 2])));
  const patch = differingRuns(wanted, digestBlocks(theirs.extents))!;
  const { message, data, sums } = imageToWire(header, wanted, patch);
  const came = Buffer.concat(data);
  t.throws(() => imageFromWire(message, came, sums, old), { code: "NotActive" });
  t.throws(() => imageFromWire(message, came, sums), { code: "NotActive" });
  const bad = { ...message, extents: [{ offset: 0, length: 2 ** 31 }] };
  t.throws(() => imageFromWire(bad, came, sums, old), { code: "Malformed" });
  t.throws(() => differingRuns(wanted, Buffer.alloc(7)), { code: "Malformed" });
  const all = differingRuns(wanted, digestBlocks(imageOf(new Map()).extents));
  t.equal(all, undefined, "all of it differs: it goes as a whole");
  t.end();
});

const entry = (seq: number, object: string): WireLogEntry => {
  return { version: { interval: 1, seq }, kind: 1, object, client: 70_000, sequence: seq, size: 1 };
};
const retry = (client: number, answers: number): WireRetry => ({
  client,
  floor: 0,
  answers: Array.from({ length: answers }, (_, sequence) => {
    return { sequence, version: { interval: 1, seq: 1 }, size: 1 };
  }),
});

t.test("a log is handed over in pages, each of which names what it leaves missing", (t) => {
  const entries = Array.from({ length: 10_000 }, (_, i) => entry(i + 11, `o${i % 700}`));
  const ahead = Array.from({ length: 9_000 }, (_, i) => `before${i}`);
  const named = [...new Set(entries.map(({ object }) => object))];
  const retries = Array.from({ length: 90 }, (_, i) => retry(70_000 + i, 500));
  const whole: PgAdoptRequest = {
    ...{ pg: 7, interval: 2, attempt: 1, create: false, startOver: false },
    common: { interval: 1, seq: 10 },
    entries,
    retries,
    missing: [...ahead, ...named],
  };
  const pages = adoptionPages(whole);
  t.same(
    pages.flatMap((page) => page.entries),
    entries,
  );
  t.same(
    pages.flatMap((page) => page.retries),
    retries,
  );
  t.same(new Set(pages.flatMap((page) => page.missing)), new Set(whole.missing));
  const noted = new Set<string>();
  let end = whole.common;
  for (const page of pages) {
    for (const object of page.missing) noted.add(object);
    if (page.noteOnly === true) continue;
    t.same(page.common, end, "where the page before ended");
    t.ok(ahead.every((object) => noted.has(object)), "before the first entry");
    t.ok(page.entries.every(({ object }) => noted.has(object)));
    end = page.entries.at(-1)!.version;
  }
  t.ok(pages.length >= 3);
  const empty = adoptionPages({ ...whole, entries: [], retries: [], missing: [] });
  t.equal(empty.length, 1, "the end of the log is said in any case");
  const over = adoptionPages({ ...whole, startOver: true, entries: [], missing: [] });
  t.equal(over[0]!.startOver, true);
  t.ok(over.slice(1).every((page) => !page.startOver && !page.create));
  t.same(
    over.flatMap((page) => page.retries),
    retries,
    "answers follow: starting over forgets what came before",
  );
  t.end();
});

t.test("a log is fetched until all pages are there", async (t) => {
  const entries = Array.from({ length: 10 }, (_, i) => entry(i + 1, "a"));
  const retries = Array.from({ length: 7 }, (_, i) => retry(70_000 + i, 1));
  const asked: number[] = [];
  const ask = ({ after, retriesAfter }: { after: { seq: number }; retriesAfter?: number }) => {
    asked.push(after.seq);
    const rest = entries.filter(({ version }) => version.seq > after.seq);
    const answers =
      retriesAfter === undefined ? [] : retries.filter(({ client }) => client > retriesAfter);
    const reply: PgLogReply = {
      entries: rest.slice(0, 4),
      more: rest.length > 4,
      retries: answers.slice(0, 2),
      moreRetries: answers.length > 2,
    };
    return Promise.resolve(reply);
  };
  const start = { after: { interval: 1, seq: 0 }, withRetries: true };
  t.same(await fetchLog(start, ask), { entries, retries });
  t.same(await fetchLog({ ...start, withRetries: false }, ask), { entries, retries: [] });
});

t.test("after a failure nothing is begun and nothing outlives the call", async (t) => {
  const begun: number[] = [];
  const ended: number[] = [];
  const work = async (item: number): Promise<void> => {
    begun.push(item);
    await new Promise((resolve) => setImmediate(resolve));
    if (item === 1) throw new Error("one");
    await new Promise((resolve) => setImmediate(resolve));
    ended.push(item);
  };
  await t.rejects(inParallel([0, 1, 2, 3, 4, 5, 6, 7], 3, work), /one/);
  t.same(ended.length, begun.length - 1, "all but the failed one ended before");
  t.ok(begun.length < 8);
});

/** What a primary says of an object to whoever knows of a truncation that it has not seen yet. */
import t from "tap";
import { BLOCK_SIZE } from "../../../cluster/base/checksum.js";
import { effectiveExtents, statReply } from "../../../osd/object-snapshots.js";
import type { OsdRead } from "../../../osd/proto.js";
import type { ChunkStore, ObjectInfo } from "../../../osd/store/chunk-store.js";

const BLOCKS = 10;
/** Blocks 0 to 2 and 6 to 9 have data. */
const RUNS = [
  { offset: 0, length: 3 * BLOCK_SIZE },
  { offset: 6 * BLOCK_SIZE, length: 4 * BLOCK_SIZE },
];
const info = {
  ...{ size: BLOCKS * BLOCK_SIZE, mtimeNs: 1n, truncateSeq: 1, snapSeq: 0 },
  allocated: 7 * BLOCK_SIZE,
} as ObjectInfo;
const store = {
  stat: () => info,
  clones: () => [],
  extents: (_pg: unknown, _object: string, offset: number, length: number) =>
    RUNS.map((run) => {
      const from = Math.max(run.offset, offset);
      const end = Math.min(
        run.offset + run.length,
        Math.ceil((offset + length) / BLOCK_SIZE) * BLOCK_SIZE,
      );
      return { offset: from, length: end - from };
    }).filter(({ length: bytes }) => bytes > 0),
} as unknown as ChunkStore;

const PG = 1 as Parameters<typeof statReply>[1];
const knowing = (truncateSeq: number, truncateSize: number): OsdRead =>
  ({ object: "a.0", snap: 0, parents: [], truncateSeq, truncateSize }) as unknown as OsdRead;
const view = (message: OsdRead) => {
  const { size, allocated } = statReply(store, PG, message);
  return { size, allocated, extents: effectiveExtents(store, PG, { name: "a.0", info, message }) };
};

t.test("what a newer truncation cuts is neither counted nor data", (t) => {
  t.same(view(knowing(1, 0)), { size: info.size, allocated: info.allocated, extents: RUNS });
  t.same(view(knowing(2, 0)), { size: 0, allocated: 0, extents: [] });
  t.same(view(knowing(2, 5)), {
    ...{ size: 5, allocated: BLOCK_SIZE },
    extents: [{ offset: 0, length: BLOCK_SIZE }],
  });
  const within = 7 * BLOCK_SIZE + 1;
  t.same(view(knowing(2, within)), {
    ...{ size: within, allocated: 5 * BLOCK_SIZE },
    extents: [RUNS[0], { offset: 6 * BLOCK_SIZE, length: 2 * BLOCK_SIZE }],
  });
  t.same(view(knowing(2, info.size)).allocated, info.allocated, "nothing is cut");
  const message = knowing(2, within);
  const range = { offset: 8 * BLOCK_SIZE, length: BLOCK_SIZE };
  t.same(effectiveExtents(store, PG, { name: "a.0", info, message }, range), []);
  t.end();
});

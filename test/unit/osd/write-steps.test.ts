/** What cutting and zeroing do to blocks at their edges: data are kept, and holes stay holes. */
import t from "tap";
import { BLOCK_SIZE } from "../../../cluster/base/checksum.js";
import type { PgId } from "../../../cluster/base/ids.js";
import type { Incoming } from "../../../cluster/messenger/messenger.js";
import { WRITE_UNCONDITIONAL, WriteKind, type OsdWrite } from "../../../osd/proto.js";
import type { OsdWriteReply } from "../../../osd/proto.js";
import { OpKind, type ChunkStore, type ObjectRead } from "../../../osd/store/chunk-store.js";
import { StepPlanner, type Step } from "../../../osd/write-steps.js";

const BLOCKS = 8;

/** An object of eight blocks, of which `data` are none of the holes. */
function planner(data: readonly number[]): StepPlanner {
  const info = { size: BLOCKS * BLOCK_SIZE, truncateSeq: 1, truncateSize: 0, snapSeq: 0 };
  const store = {
    stat: () => info,
    clones: () => [],
    extents: (_pg: PgId, _object: string, offset: number, length: number) =>
      data
        .map((block) => ({ offset: block * BLOCK_SIZE, length: BLOCK_SIZE }))
        .filter((run) => run.offset < offset + length && run.offset + BLOCK_SIZE > offset),
  } as unknown as ChunkStore;
  return new StepPlanner(0 as PgId, store, (_object, offset) => {
    const fill = data.includes(offset / BLOCK_SIZE) ? 7 : 0;
    return Promise.resolve({ data: [Buffer.alloc(BLOCK_SIZE, fill)] } as unknown as ObjectRead);
  });
}
async function planned(
  data: readonly number[],
  message: Partial<OsdWrite>,
  bytes = Buffer.alloc(0),
): Promise<Step[]> {
  const rest = { object: "o", flags: 0, offset: 0, length: bytes.length, parents: [] };
  const truncation = { truncateSeq: 1, truncateSize: 0, snapSeq: 0, snapNewest: 0 };
  return await planner(data).prepare({
    message: { ...rest, ...truncation, ...message },
    data: bytes,
    sums: new Uint32Array(0),
  } as unknown as Incoming<OsdWrite, OsdWriteReply>);
}
const bytesOf = ({ data }: Step): number => data.reduce((sum, { length }) => sum + length, 0);

t.test("a truncation rewrites the block that it cuts, but makes none of a hole", async (t) => {
  const size = 3 * BLOCK_SIZE + 100;
  const kind = WriteKind.truncate;
  const asked = { kind, flags: WRITE_UNCONDITIONAL, offset: size };
  const [cut, ...more] = await planned([3, 5], asked);
  t.match(cut, { kind: OpKind.truncate, offset: 3 * BLOCK_SIZE, size });
  t.equal(bytesOf(cut!), BLOCK_SIZE);
  t.equal(cut!.data[0]![99], 7);
  t.equal(cut!.data[0]![100], 0);
  t.same(more, []);
  const steps = await planned([2, 5], asked);
  t.match(steps, [{ kind: OpKind.truncate, offset: 4 * BLOCK_SIZE, size }]);
  t.equal(bytesOf(steps[0]!), 0);
});

t.test("what comes after a truncation trims first, and makes no block of a hole", async (t) => {
  const truncateSize = 3 * BLOCK_SIZE + 100;
  const write = { kind: WriteKind.write, offset: 6 * BLOCK_SIZE, truncateSeq: 2, truncateSize };
  const [trim, written] = await planned([2, 5], write, Buffer.alloc(BLOCK_SIZE, 1));
  t.match(trim, { kind: OpKind.truncate, offset: 4 * BLOCK_SIZE, size: truncateSize });
  t.equal(bytesOf(trim!), 0);
  t.match(written, { kind: OpKind.write, offset: 6 * BLOCK_SIZE });
});

t.test("a range of zeros rewrites the data at its edges only", async (t) => {
  const range = { kind: WriteKind.zero, offset: BLOCK_SIZE + 10, length: 3 * BLOCK_SIZE };
  const both = await planned([1, 4], range);
  t.same(
    both.map((step) => [step.kind, step.offset, bytesOf(step)]),
    [
      [OpKind.write, BLOCK_SIZE, BLOCK_SIZE],
      [OpKind.zero, 2 * BLOCK_SIZE, 0],
      [OpKind.write, 4 * BLOCK_SIZE, BLOCK_SIZE],
    ],
  );
  const none = await planned([2], range);
  t.same(
    none.map((step) => step.kind),
    [OpKind.zero],
  );
});

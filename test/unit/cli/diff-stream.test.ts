/** The form of differences: nothing that is cut short or changed passes for whole. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { Prng } from "../../../cluster/base/prng.js";
import {
  DATA_BYTES_MAX,
  DiffWriter,
  readDiff,
  type DiffHeader,
  type DiffRecord,
} from "../../../cli/volume/diff-stream.js";

const SIZE = 64 * 2 ** 20;
const HEADER: DiffHeader = {
  ...{ version: 1, volume: "disk", from: { name: "a", origin: "c/1/1", size: SIZE } },
  to: { name: "b", origin: "c/1/2", size: SIZE },
  layout: { objectSize: 4 * 2 ** 20, stripeUnit: 4 * 2 ** 20, stripeCount: 1 },
};
const random = new Prng(5);

async function written(write: (to: DiffWriter) => Promise<void>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  const writer = new DiffWriter(async (bytes) => void pieces.push(Buffer.from(bytes)));
  await writer.begin(HEADER);
  await write(writer);
  await writer.end();
  return Buffer.concat(pieces);
}
async function read(bytes: Buffer, step = bytes.length): Promise<DiffRecord[]> {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += step) pieces.push(bytes.subarray(at, at + step));
  const records: DiffRecord[] = [];
  for await (const record of readDiff(pieces)) records.push(record);
  return records;
}
const sample = (): Promise<Buffer> =>
  written(async (writer) => {
    await writer.data(4096, random.bytes(8192));
    await writer.zeros(0, 4096);
    await writer.data(SIZE - 4096, random.bytes(4096));
  });

t.test("what was written is read, however the pieces come", async (t) => {
  const large = random.bytes(DATA_BYTES_MAX + 4096);
  const bytes = await written(async (writer) => {
    await writer.data(0, large);
    await writer.zeros(SIZE - 8192, 8192);
  });
  for (const step of [1_000, 65_536, bytes.length]) {
    const records = await read(bytes, step);
    t.same(records[0], { is: "header", header: HEADER });
    t.same(
      records.map((record) => record.is),
      ["header", "data", "data", "zeros", "end"],
    );
    const data = records.flatMap((record) => (record.is === "data" ? [record.data] : []));
    t.ok(Buffer.concat(data).equals(large));
    t.same(records[3], { is: "zeros", offset: SIZE - 8192, length: 8192 });
    t.same(records[4], { is: "end", records: 3, bytes: large.length });
  }
  t.same(
    (await read(await written(() => Promise.resolve()))).map((record) => record.is),
    ["header", "end"],
    "nothing has changed",
  );
});

t.test("a stream that is cut anywhere, changed anywhere, or goes on is refused", async (t) => {
  const bytes = await sample();
  const refused = async (what: string, bad: Buffer): Promise<void> => {
    const error = await read(bad, 3_000).then(
      () => undefined,
      (failure: unknown) => failure,
    );
    if (!(error instanceof DssError) || error.code !== "Corrupt") t.fail(what);
  };
  for (let cut = 0; cut < bytes.length; cut += cut < 400 ? 1 : 97) {
    await refused(`cut at ${cut}`, bytes.subarray(0, cut));
  }
  for (let at = 0; at < bytes.length; at += at < 400 || at > bytes.length - 80 ? 1 : 97) {
    const bad = Buffer.from(bytes);
    bad[at]! ^= 1 << random.int(0, 7);
    await refused(`a bit at ${at}`, bad);
  }
  await refused("more", Buffer.concat([bytes, Buffer.from([0])]));
  await refused("twice", Buffer.concat([bytes, bytes]));
  t.pass("all of them");
});

t.test("records beyond the end of the volume are refused", async (t) => {
  for (const write of [
    (writer: DiffWriter) => writer.data(SIZE - 4096, random.bytes(8192)),
    (writer: DiffWriter) => writer.zeros(SIZE, 4096),
  ]) {
    await t.rejects(read(await written(write)), { code: "Corrupt", message: /bad record/ });
  }
});

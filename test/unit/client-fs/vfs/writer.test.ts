/** A file's buffered writes: what a removal holds back, and what a recall may still take out. */
import t from "tap";
import { silentLogger } from "../../../../cluster/base/log.js";
import { nodeClock } from "../../../../cluster/platform/node.js";
import { ExtentCache } from "../../../../client-fs/vfs/extent-cache.js";
import { FileWriter, WriteBudget } from "../../../../client-fs/vfs/writer.js";
import type { ObjectAccess } from "../../../../osd/client/object-access.js";

const settled = () => new Promise((done) => setImmediate(done));

function writerOf(): { writer: FileWriter; written: string[] } {
  const written: string[] = [];
  const objects: Pick<ObjectAccess, "write"> = {
    write: async ({ object }, offset, data) => {
      written.push(`${object} ${offset} ${Buffer.concat([...data]).toString()}`);
      return offset;
    },
  };
  const budget = new WriteBudget(
    2 ** 20,
    nodeClock,
    objects as ObjectAccess,
    new ExtentCache(0),
    silentLogger,
  );
  const layout = { objectSize: 4096, stripeUnit: 4096, stripeCount: 1 };
  const writer = new FileWriter(
    {
      ino: 7,
      layout: () => layout,
      address: (index) => ({ pool: 1, object: `7.${index}` }),
      access: () => ({ minEpoch: 0, truncation: { seq: 0, size: 0 } }),
      beforeWrite: () => undefined,
      mtimeNs: () => 0n,
      size: () => 0,
      otherChanges: () => 0,
      onError: (error) => t.fail(error.message),
      onClean: () => undefined,
    },
    budget,
  );
  return { writer, written };
}

t.test("a removal holds writes back, but not from a recall that it may wait for", async (t) => {
  const { writer, written } = writerOf();
  await writer.hold();
  writer.put(0, Buffer.from("new"));
  let isFlushed = false;
  const flushed = writer.flush().then(() => (isFlushed = true));
  await settled();
  t.same(written, [], "nothing is sent while a removal is under way");
  await writer.flush(undefined, { untilDone: true, recalled: true });
  t.same(written, ["7.0 0 new"]);
  t.ok(writer.clean);
  await flushed;
  t.ok(isFlushed);
  writer.put(0, Buffer.from("old"));
  await settled();
  t.equal(written.length, 1, "and the next write is held back again");
  writer.discard();
  writer.resume();
  t.ok(writer.clean);
});

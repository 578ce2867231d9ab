/** One suite over both stores of metadata: in memory, and in a real ZooKeeper. */
import t, { type Test } from "tap";
import { silentLogger } from "../../cluster/base/log.js";
import { nodeClock } from "../../cluster/platform/node.js";
import { ensureCluster } from "../../cluster/zk/cluster-record.js";
import { TERM_PATH } from "../../cluster/zk/schema.js";
import { connectZooKeeper } from "../../cluster/zk/session.js";
import { MemoryMetadata } from "../../mds/store/memory-store.js";
import type { MetadataStore } from "../../mds/store/metadata-store.js";
import { ZkStore } from "../../mds/store/zk-store.js";
import { startZooKeeper } from "../support/zookeeper.js";

t.setTimeout(60_000);

async function suite(t: Test, lead: () => Promise<MetadataStore>): Promise<void> {
  const store = await lead();
  t.equal(await store.loadPage("i0"), undefined);
  const page = Buffer.from("page");
  await store.writePages([
    { key: "i0", data: page },
    { key: "d1.", data: page },
  ]);
  t.same(await store.loadPage("i0"), page);
  await store.writePages([
    { key: "i0", data: Buffer.from("newer") },
    { key: "d1.", data: undefined },
    { key: "never", data: undefined },
  ]);
  t.equal((await store.loadPage("i0"))!.toString(), "newer");
  t.equal(await store.loadPage("d1."), undefined);

  t.same(await store.journal(), []);
  for (const seq of [1, 2, 3]) await store.appendBatch(seq, Buffer.from(`batch ${seq}`));
  await store.appendBatch(3, Buffer.from("batch 3")); // A repeat of one's own is no error.
  await t.rejects(store.appendBatch(3, Buffer.from("another")), { code: "Fenced" });
  t.same(await store.journal(), [1, 2, 3]);
  t.equal((await store.readBatch(2))!.toString(), "batch 2");
  t.equal(await store.checkpoint(), 0);
  await store.writeCheckpoint(2);
  await store.trim([1, 2, 2]);
  t.same(await store.journal(), [3]);
  t.equal(await store.checkpoint(), 2);
  await store.confirm();

  const next = await lead();
  t.equal(await next.checkpoint(), 2);
  await next.appendBatch(4, Buffer.from("batch 4"));
  const refused = { code: "Fenced" };
  await t.rejects(store.confirm(), refused);
  await t.rejects(store.appendBatch(5, page), refused);
  await t.rejects(store.writePages([{ key: "i0", data: page }]), refused);
  await t.rejects(store.trim([3]), refused);
  await t.rejects(store.writeCheckpoint(4), refused);
  t.same(await next.journal(), [3, 4]);
  t.equal((await next.loadPage("i0"))!.toString(), "newer");
}

t.test("in memory", (t) => {
  const data = new MemoryMetadata();
  return suite(t, () => Promise.resolve(data.lead()));
});

t.test("in ZooKeeper", async (t) => {
  const zookeeper = await startZooKeeper(t);
  const zk = await connectZooKeeper({
    ...{ servers: zookeeper.address, clock: nodeClock, log: silentLogger },
  });
  t.teardown(() => zk.close());
  await ensureCluster(zk, { clusterId: "test", createdMs: 1 });
  await zk.create(TERM_PATH, Buffer.from("0"));
  let version = 0;
  await suite(t, async () => {
    version = await zk.set(TERM_PATH, Buffer.from("term"), version);
    return new ZkStore(zk, nodeClock, version);
  });
});

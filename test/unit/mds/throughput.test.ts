/**
 * Many creates in flight through the leader and its journal: each is done once, and another leader
 * sees all of them. How quick that is, is a comment.
 */
import t from "tap";
import { ROOT_INO } from "../../../mds/proto.js";
import { TestCluster } from "./harness.js";

t.test("creates with 16 in flight", async (t) => {
  const cluster = new TestCluster();
  await cluster.lead();
  await cluster.clock.advance(1);
  const client = await cluster.client();
  const COUNT = 6_000;
  let next = 0;
  const start = performance.now();
  const worker = async (): Promise<void> => {
    while (next < COUNT) {
      const reply = await client.create(ROOT_INO, `file-${next++}`);
      client.floor = Math.max(1, client.lastRequest - 64);
      if (reply.answer.inode === undefined) throw new Error("no inode");
    }
  };
  await Promise.all(Array.from({ length: 16 }, worker));
  const seconds = (performance.now() - start) / 1000;
  t.comment(`${Math.round(COUNT / seconds)} creates/s, ${cluster.leader.journal.last} batches`);
  const listed = await client.send({ op: "getattr", ino: ROOT_INO });
  t.equal(listed.answer.inode!.size, COUNT);
  await cluster.leader.checkpoint();
  t.same(cluster.failures, []);
  // Another leader sees the same from the store.
  await cluster.lead();
  const names = new Set<string>();
  const again = new (await import("./harness.js")).TestClient(cluster);
  await again.open({ client: client.id });
  again.keepAlive();
  let cookie = 0;
  for (;;) {
    const { answer } = await again.send(
      { op: "readdir", ino: ROOT_INO, cookie, limit: 1000, plus: false },
      { id: 1_000_000 + cookie },
    );
    for (const entry of answer.entries!) names.add(entry.name.toString());
    if (answer.end === true) break;
    const last = answer.entries!.at(-1)!.cookie;
    if (last <= cookie) throw new Error("cookies must rise");
    cookie = last;
  }
  t.equal(names.size, COUNT);
  cluster.leader.stop();
});

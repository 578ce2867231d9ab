/** The real network: what is sent in pieces of every size arrives as it was, however slowly. */
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { Prng } from "../../../../cluster/base/prng.js";
import { nodePlatform } from "../../../../cluster/platform/node.js";
import type { Connection } from "../../../../cluster/platform/ports.js";

const { network } = nodePlatform;
const KiB = 1024;

async function connected(t: Test, lends: boolean): Promise<{ near: Connection; far: Connection }> {
  let accepted: (connection: Connection) => void = () => undefined;
  const accepting = new Promise<Connection>((resolve) => (accepted = resolve));
  const listener = await network.listen({ host: "127.0.0.1", port: 0 }, accepted, { lends });
  const near = await network.connect(listener.address, { timeoutMs: 5_000 });
  near.onData(() => undefined);
  near.onClose(() => undefined);
  const far = await accepting;
  t.teardown(async () => {
    near.destroy();
    far.destroy();
    await listener.close();
  });
  return { near, far };
}

for (const lends of [true, false]) {
  t.test(`pieces of every size, in order, to a slow reader; lends ${lends}`, async (t) => {
    const { near, far } = await connected(t, lends);
    const random = new Prng(5);
    const expected: Buffer[] = [];
    const received: Buffer[] = [];
    let bytes = 0;
    let total = 0;
    far.onData((chunk) => {
      received.push(Buffer.from(chunk));
      bytes += chunk.length;
    });
    far.onClose(() => undefined);
    far.pause();
    let sent = 0;
    const sizes = [0, 1, 40, 100, 4 * KiB, 4 * KiB, 30 * KiB, 200 * KiB];
    for (let turn = 0; turn < 300; turn++) {
      // Nothing is read at first, so that all of the system's buffers fill up.
      if (turn === 200) far.resume();
      for (let frame = random.u32() % 12; frame >= 0; frame--) {
        // Large ones now and then only: turns with and without them take different ways.
        const kinds = turn % 3 === 0 ? sizes.length : sizes.length - 2;
        const chunks = Array.from({ length: 1 + (random.u32() % 3) }, () => {
          return random.bytes(sizes[random.u32() % kinds]!);
        });
        for (const chunk of chunks) {
          expected.push(Buffer.from(chunk));
          total += chunk.length;
        }
        near.send(chunks, () => {
          sent++;
          for (const chunk of chunks) chunk.fill(0xdb); // As its owner may from now on.
        });
      }
      if (turn % 7 === 0) t.ok(near.bufferedBytes > 0, "what waits for the end of the turn counts");
      await sleep(0);
    }
    const frames = sent;
    near.send([Buffer.from("the end")]);
    near.end();
    total += 7;
    for (let tries = 0; bytes < total && tries < 2_000; tries++) await sleep(5);
    const all = Buffer.concat(received);
    const wanted = Buffer.concat([...expected, Buffer.from("the end")]);
    t.equal(all.length, wanted.length);
    t.ok(all.equals(wanted), "the same bytes in the same order");
    t.ok(sent > 300 && sent >= frames, `${sent} told that they have left`);
    near.send([Buffer.from("after the end")]);
    await sleep(0);
  });
}

t.test("nothing at all, and a lost connection, harm nobody", async (t) => {
  const { near, far } = await connected(t, true);
  let closed = false;
  near.onClose(() => (closed = true));
  near.send([]);
  near.send([Buffer.alloc(10), Buffer.alloc(10)]);
  far.onData(() => undefined);
  far.onClose(() => undefined);
  far.destroy();
  for (let tries = 0; !closed && tries < 1_000; tries++) {
    near.send([Buffer.alloc(100), Buffer.alloc(100_000)]);
    await sleep(1);
  }
  t.ok(closed);
  near.send([Buffer.alloc(10), Buffer.alloc(10)]);
  await sleep(1);
});

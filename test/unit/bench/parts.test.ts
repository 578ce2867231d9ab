/** Loops keep what they promise in flight; costs and tables are what the figures say. */
import t from "tap";
import { keepInFlight, quantile, repeat } from "../../bench/closed-loop.js";
import { measureRow, perOperation } from "../../bench/parts/part.js";
import { MessageReader, send } from "../../bench/parts/pipeline-wire.js";
import type { Message } from "../../bench/parts/pipeline-wire.js";
import { partsTable, wholeTable } from "../../bench/parts/report.js";
import { PassThrough } from "node:stream";
import type { Socket } from "node:net";

t.test("as many are in flight as is asked for, and the last is waited for", async (t) => {
  let inFlight = 0;
  let most = 0;
  const loop = await keepInFlight(3, 0.01, (done) => {
    most = Math.max(most, ++inFlight);
    setImmediate(() => {
      inFlight--;
      done();
    });
  });
  t.equal(most, 3);
  t.equal(inFlight, 0);
  t.equal(loop.operations, loop.latencies.length);
  t.ok(loop.operations >= 3);
  t.ok(loop.seconds >= 0.01);
});

t.test("one after the other", (t) => {
  let count = 0;
  const loop = repeat(0.002, () => count++);
  t.equal(loop.operations, count);
  t.end();
});

t.test("quantiles", (t) => {
  const loop = { operations: 4, seconds: 1, latencies: [1, 2, 3, 9] };
  t.equal(quantile(loop, 0.5), 3);
  t.equal(quantile(loop, 0.99), 9);
  t.equal(quantile({ ...loop, latencies: [] }, 0.5), 0);
  t.end();
});

t.test("seconds of processor time as microseconds an operation", (t) => {
  t.same(perOperation({ osd: 0.5, mds: 0 }, 1_000), { osd: 500, mds: 0 });
  t.end();
});

t.test("the first run of a row warms up", async (t) => {
  const figures = [1, 10, 30];
  const once = () => Promise.resolve({ figure: figures.shift() ?? 0, cpu: { osd: 2 } });
  const { depth, bytes, runs, median, cpu } = await measureRow(
    { name: "a", depth: 4, bytes: 8 },
    2,
    once,
  );
  t.same({ depth, bytes, runs, median }, { depth: 4, bytes: 8, runs: [10, 30], median: 20 });
  t.same(cpu, { osd: 2 });
});

t.test("messages of the bare pipeline, however they are cut", (t) => {
  const chunks: Buffer[] = [];
  // What is used of a socket.
  const socket = new PassThrough() as unknown as Socket;
  socket.on("data", (chunk) => chunks.push(chunk));
  const data = Buffer.from("some bytes");
  send(socket, { kind: 1, sequence: 7, crc: 99, block: 3, wanted: 0 }, data);
  send(socket, { kind: 2, sequence: 8, crc: 0, block: 5, wanted: 4096 });
  socket.on("end", () => {
    const all = Buffer.concat(chunks);
    for (const size of [1, 5, 24, 33, all.length]) {
      const found: Omit<Message, "release">[] = [];
      const reader = new MessageReader(({ release, ...message }) => {
        found.push({ ...message, data: Buffer.from(message.data) });
        release();
      });
      for (let at = 0; at < all.length; at += size) reader.push(all.subarray(at, at + size));
      t.same(found, [
        { kind: 1, sequence: 7, crc: 99, block: 3, wanted: 0, data },
        { kind: 2, sequence: 8, crc: 0, block: 5, wanted: 4096, data: Buffer.alloc(0) },
      ]);
    }
    t.end();
  });
  process.nextTick(() => socket.end());
});

const measured = {
  ...{ name: "write", unit: "/s" as const, runs: [2_000], median: 2_000, min: 1_900, max: 2_100 },
  latency: { p50: 480, p99: 900 },
};

t.test("the table of the parts", (t) => {
  const cpu = { primary: 40, client: 20.5 };
  t.same(partsTable([{ ...measured, cpu, depth: 1, bytes: 4096 }]).split("\n"), [
    "| Part | a second | range | MB/s | P50 µs | processor µs | of which |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    "| write | 2000 | 1900–2100 | 8.19 | 480 | 60.5 | primary 40.0, client 20.5 |",
  ]);
  t.end();
});

t.test("the table of whole operations", (t) => {
  const cpu = { osd: 300, mds: 0, mount: 1, zookeeper: 2, rest: 100 };
  const [head, , row] = wholeTable([{ ...measured, cpu, depth: 16 }]).split("\n");
  t.match(head, /osd µs \| mds µs \| mount µs \| nbd µs \| zookeeper µs \| rest µs \| all µs/);
  t.equal(
    row,
    "| write | 2000 | 1900–2100 | – | – | 300 | 0.00 | 1.00 | – | 2.00 | 100 | 403 |",
    "a latency is shown where one is under way, a role where it was watched",
  );
  t.end();
});

/**
 * The order that `kill -9` cannot prove: between a client's request and its acknowledgement, each
 * of the three OSDs completes a sync of its own. Seen from outside, by strace on every OSD, for
 * fsync and O_DSYNC on the mount and for flush and FUA on a volume.
 */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { startCluster } from "../support/cluster.js";
import type { ClusterProcess } from "../support/cluster.js";
import { NbdClient } from "../support/nbd-client.js";
import { start, succeed } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const OPERATIONS = 25;
/** Between operations: what one leaves to be done must not pass for the next one's sync. */
const PAUSE_MS = 25;

/** Seconds since 1970. */
interface Interval {
  readonly from: number;
  readonly to: number;
}
interface Sync extends Interval {
  readonly file: string;
}

const now = (): number => (performance.timeOrigin + performance.now()) / 1000;
const pause = (): Promise<void> => new Promise((done) => setTimeout(done, PAUSE_MS));

/**
 * Completed and successful syncs in the output of `strace -f -ttt -T -y`. A call during which
 * another thread's is printed is split in two lines: `… <unfinished ...>` and `<... NAME resumed>`.
 */
function syncsIn(text: string): Sync[] {
  const syncs: Sync[] = [];
  const pending = new Map<string, { from: number; file: string }>();
  for (const line of text.split("\n")) {
    const begin = /^(\d+) +(\d+\.\d+) (?:fdatasync|fsync)\(\d+<([^>]*)>(.*)$/.exec(line);
    const resumed = /^(\d+) +(\d+\.\d+) <\.\.\. (?:fdatasync|fsync) resumed>(.*)$/.exec(line);
    if (begin !== null) {
      const [, thread = "", time = "", file = "", rest = ""] = begin;
      const from = Number(time);
      const took = /\) += 0 <(\d+\.\d+)>$/.exec(rest)?.[1];
      if (took !== undefined) syncs.push({ from, to: from + Number(took), file });
      else if (rest.includes("<unfinished")) pending.set(thread, { from, file });
    } else if (resumed !== null) {
      const [, thread = "", , rest = ""] = resumed;
      const call = pending.get(thread);
      pending.delete(thread);
      const took = /\) += 0 <(\d+\.\d+)>$/.exec(rest)?.[1];
      if (call !== undefined && took !== undefined) {
        syncs.push({ ...call, to: call.from + Number(took) });
      }
    }
  }
  return syncs;
}

const cluster = await startCluster(t);
const traces = tempFolder(t, "strace");
const osds = await cluster.processes("osd");
t.equal(osds.length, 3);

/** Traces every OSD while the operations run; each operation must see a sync on each OSD. */
async function proves(
  t: Tap,
  name: string,
  operation: (i: number) => Promise<Interval>,
): Promise<void> {
  const traceOf = (osd: ClusterProcess): string => join(traces, `${name}-${osd.name}`);
  const tracers = osds.map((osd) =>
    start(
      t,
      "strace",
      ["-f", "-ttt", "-T", "-y", "-e", "trace=fdatasync,fsync", "-o", traceOf(osd)].concat([
        "-p",
        String(osd.pid),
      ]),
    ),
  );
  for (const tracer of tracers) await tracer.output(/attached/);
  const intervals: Interval[] = [];
  for (let i = 0; i < OPERATIONS; i++) {
    await pause();
    intervals.push(await operation(i));
  }
  await Promise.all(tracers.map((tracer) => tracer.stop()));
  for (const osd of osds) {
    await waitFor("the trace", () => existsSync(traceOf(osd)));
    const syncs = syncsIn(readFileSync(traceOf(osd), "utf8"));
    const own = syncs.filter(({ file }) => file.startsWith(`${osd.data}/`));
    const without = intervals.filter(
      ({ from, to }) => !own.some((sync) => sync.from >= from && sync.to <= to),
    );
    t.equal(
      without.length,
      0,
      `${osd.name}: ${own.length} syncs for ${OPERATIONS} acknowledgements of ${name}`,
    );
  }
}
type Tap = typeof t;

/** A child that does one operation for each line on its input, prints when it began and ended. */
const FILE_PROGRAM = `
const fs = require("fs");
const [path, flag] = process.argv.slice(1);
const fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT | Number(flag));
const now = () => (performance.timeOrigin + performance.now()) / 1000;
for (let i = 0; i < ${OPERATIONS}; i++) {
  const data = Buffer.alloc(4096, i + 1);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ${PAUSE_MS});
  const from = now();
  fs.writeSync(fd, data, 0, 4096, i * 8192);
  if (Number(flag) === 0) fs.fsyncSync(fd);
  console.log(from, now());
}
`;

mkdirSync(join(cluster.mount, "d"));
for (const [name, flag] of [
  ["fsync", "0"],
  ["O_DSYNC", "4096"],
] as const) {
  await t.test(`a sync on each OSD before ${name} on the mount returns`, async (t) => {
    const args = ["-e", FILE_PROGRAM, join(cluster.mount, "d", name), flag];
    let printed: string[] | undefined;
    await proves(t as Tap, name, async (i) => {
      // All operations run in one child, at the first call; the others take what it printed.
      printed ??= (await succeed(t, process.execPath, args, { withinMs: 60_000 }))
        .trim()
        .split("\n");
      const [from = 0, to = 0] = (printed[i] ?? "").split(" ").map(Number);
      return { from, to };
    });
  });
}

await t.test("a sync on each OSD before a flush and a FUA write are answered", async (t) => {
  const { server, socket } = await cluster.serve("traced", 64 * 2 ** 20);
  const client = await NbdClient.connect(socket, "traced");
  await t.test("flush", async (t) => {
    await proves(t as Tap, "flush", async (i) => {
      const from = now();
      await client.write(i * 8192, Buffer.alloc(4096, i + 1));
      await client.flush();
      return { from, to: now() };
    });
  });
  await t.test("FUA", async (t) => {
    await proves(t as Tap, "fua", async (i) => {
      const from = now();
      await client.write(2 ** 20 + i * 8192, Buffer.alloc(4096, i + 1), { fua: true });
      return { from, to: now() };
    });
  });
  client.close();
  await server.stop();
});

await t.test("the parser tells complete syncs from others", (t) => {
  const text = [
    "100 1.000000 fdatasync(5</d/wal/1>) = 0 <0.000100>",
    "101 2.000000 fdatasync(5</d/wal/1> <unfinished ...>",
    "102 2.000050 fsync(6</d/x>) = -1 EIO (Input/output error) <0.000010>",
    "101 2.000300 <... fdatasync resumed>) = 0 <0.000300>",
    "103 3.000000 fsync(6</d/x> <unfinished ...>",
  ].join("\n");
  t.same(
    syncsIn(text).map(({ from, file }) => [from, file]),
    [
      [1, "/d/wal/1"],
      [2, "/d/wal/1"],
    ],
  );
  t.end();
});

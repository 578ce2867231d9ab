/** What fio, dbench and strace print is read rightly, and what they do not print is an error. */
import t from "tap";
import { parseFio } from "../../bench/fio.js";
import { parsePids } from "../../bench/peers/peer-system.js";
import { parseSyncs } from "../../bench/peers/syncs.js";
import { parseDbench } from "../../bench/peers/workload.js";

const side = (factor: number): object => ({
  io_bytes: 4096 * factor,
  bw_bytes: 1_000 * factor,
  iops: 0.25 * factor,
  total_ios: factor,
  clat_ns: { percentile: { "50.000000": 2_000 * factor, "99.000000": 9_000 * factor } },
});
const printed = (jobs: object[]): string =>
  `fio: this engine says {hello}\n${JSON.stringify({ "fio version": "3", jobs }, null, 2)}\n`;

t.test("both directions of a group", (t) => {
  const { read, write } = parseFio(printed([{ error: 0, read: side(1), write: side(3) }]));
  t.same(read, {
    ...{ bytesPerSecond: 1_000, operationsPerSecond: 0.25, bytes: 4096, operations: 1 },
    ...{ p50: 2, p99: 9 },
  });
  t.equal(write.operations, 3);
  t.equal(write.p99, 27);
  t.end();
});

t.test("a direction without latencies", (t) => {
  const { read } = parseFio(printed([{ error: 0, read: { iops: 5, bw_bytes: 7 } }]));
  t.same(read, { bytesPerSecond: 7, operationsPerSecond: 5, bytes: 0, operations: 0 });
  t.end();
});

t.test("processor time of fio itself", (t) => {
  const job = { error: 0, usr_cpu: 20, sys_cpu: 30.5, job_runtime: 2_000 };
  t.equal(parseFio(printed([job])).cpuSeconds, 1.01);
  t.equal(parseFio(printed([{ error: 0 }])).cpuSeconds, 0);
  t.end();
});

t.test("what is no result is an error", (t) => {
  t.throws(() => parseFio("fio: no such engine"), /no such engine/);
  t.throws(() => parseFio(""), /nothing/);
  t.throws(() => parseFio("{ broken }"), /broken JSON/);
  t.throws(() => parseFio(printed([])), /no job/);
  t.throws(() => parseFio(printed([{ error: 5 }])), /error 5/);
  t.throws(() => parseFio(printed([{ error: 0 }, { error: 0 }])), /several jobs/);
  t.end();
});

t.test("dbench's throughput", (t) => {
  const line = "Throughput 34.793 MB/sec  4 clients  4 procs  max_latency=44.860 ms";
  t.equal(parseDbench(`  4   123  3.00 MB/sec  warmup\n\n${line}\n`), 34.793);
  t.throws(() => parseDbench("failed to open client.txt"), /no throughput/);
  t.end();
});

t.test("the list of a peer's processes", (t) => {
  const text = "12 345 server osd.0\n13 346 client ceph-fuse\n14 347 ns ns\n\nnonsense\n";
  t.same(parsePids(text), [
    { pid: 12, startTime: "345", role: "servers", name: "osd.0" },
    { pid: 13, startTime: "346", role: "client", name: "ceph-fuse" },
  ]);
  t.end();
});

t.test("sync calls in strace's log", (t) => {
  const log = [
    "101 fdatasync(33)                   = 0",
    "102 fsync(12 <unfinished ...>",
    "101 fdatasync(33 <unfinished ...>",
    "102 <... fsync resumed>)            = 0",
    "103 +++ exited with 0 +++",
    "104 sync_file_range(9, 0, 4096, SYNC_FILE_RANGE_WRITE) = 0",
  ].join("\n");
  t.equal(parseSyncs(log), 4);
  t.equal(parseSyncs(""), 0);
  t.end();
});

/**
 * Volumes of a real cluster that change: size, name, layout, removal; what they take; to files and
 * back; limits and figures.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { start, succeed, type Program } from "../../support/process.js";
import { waitFor } from "../../support/temp.js";
import { cluster, folder } from "./volumes-support.js";

const MIB = 1024 * 1024;

interface View {
  name: string;
  size: number;
  owner: string;
  objectSize: number;
  stripeUnit: number;
  stripeCount: number;
}
const info = (name: string): Promise<View> => cluster.json<View>(["volume", "info", name]);
const volume = (...args: string[]): Promise<string> => cluster.ok(["volume", ...args]);
async function used(name: string): Promise<{ used: number; stored: number; objects: number }> {
  const [row] = await cluster.json<{ used: number; stored: number; objects: number }[]>([
    ...["volume", "du", name],
  ]);
  return row!;
}
let sockets = 0;
async function serve(...names: string[]): Promise<{ server: Program; socket: string }> {
  const socket = join(folder, `change${sockets++}.sock`);
  const server = cluster.start(["volume", "serve", ...names, "--unix", socket]);
  await server.output(/nbd\+unix:\S+/);
  return { server, socket };
}
const sizeOf = async (socket: string, name: string): Promise<string> =>
  (await succeed(t, "nbdinfo", ["--size", `nbd+unix:///${name}?socket=${socket}`])).trim();

t.test("a volume of 16 EiB, finely striped: used at its end, gone at once", async (t) => {
  const layout = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "4"];
  await volume("create", "vast", "16E", ...layout);
  t.match(await info("vast"), { objectSize: MIB, stripeUnit: 65_536, stripeCount: 4 });
  const last = String(2n ** 64n - 8192n);
  await volume("write", "vast", last, "x".repeat(4096));
  t.equal(await volume("read", "vast", last, "4096"), "x".repeat(4096));
  t.match(await used("vast"), { objects: 1, used: 4096 });
  await volume("resize", "vast", "1G", "--allow-shrink");
  t.match(await used("vast"), { objects: 0, used: 0 });
  await volume("rm", "vast", "--wait");
  const bad = await cluster.dss(["volume", "create", "odd", "1G", "--stripe-unit", "100K"]);
  t.match(bad, { code: 1 });
  t.match(bad.stderr, /stripe unit/);
});

t.test("a served volume grows and gets another name under its users", async (t) => {
  await volume("create", "disk", "64M");
  const { server, socket } = await serve("disk");
  t.match(await volume("resize", "disk", "100M"), /100 MiB/);
  t.equal(await sizeOf(socket, "disk"), String(100 * MIB), "new connections see it at once");
  const tail = await cluster.dss(["volume", "resize", "disk", "32M", "--allow-shrink"]);
  t.equal(tail.code, 1);
  t.match(tail.stderr, /in use by/);
  const bare = await cluster.dss(["volume", "resize", "disk", "32M"]);
  t.match(bare.stderr, /--allow-shrink/);
  await volume("rename", "disk", "database");
  const uri = `nbd+unix:///disk?socket=${socket}`;
  await succeed(t, "qemu-io", ["-f", "raw", "-c", "write -P 7 99M 64K", uri]);
  t.match(await info("database"), { size: 100 * MIB });
  t.equal(await sizeOf(socket, "disk"), String(100 * MIB), "the server keeps the name it has");
  await server.stop();
  t.equal(await volume("read", "database", "99M", "4"), "\x07\x07\x07\x07");
});

t.test("what a volume lost by shrinking stays lost when it grows again", async (t) => {
  await volume("create", "tide", "40M");
  for (const at of ["0", "4M", "11M", "20M", "39M"]) await volume("write", "tide", at, "data");
  const before = await used("tide");
  t.match(before, { objects: 5, used: 5 * 4096, stored: 3 * 5 * 4096 });
  t.match(await volume("resize", "tide", "10M", "--allow-shrink"), /tide has 10 MiB/);
  t.match(await used("tide"), { objects: 3, used: 2 * 4096 }, "the third was cut");
  await volume("resize", "tide", "40M");
  for (const at of ["11M", "20M"]) {
    t.equal(await volume("read", "tide", at, "4"), "\0\0\0\0", at);
  }
  t.equal(await volume("read", "tide", "4M", "4"), "data");
  await volume("rm", "tide", "--wait");
});

t.test("a volume goes to a file with holes and comes back, with checksums", async (t) => {
  const content = Buffer.alloc(24 * MIB + 1000);
  for (const at of [0, 5 * MIB + 123, 17 * MIB, content.length - 50]) {
    content.fill(`stretch at ${at} `, at, Math.min(at + 200_000, content.length));
  }
  const source = join(folder, "source.raw");
  writeFileSync(source, content);
  const sum = createHash("sha256").update(content).digest("hex");
  t.match(await volume("import", source, "copied", "--checksum"), `${sum}  ${source}`);
  const { used: taken } = await used("copied");
  t.ok(taken < 700_000, `zeros take no space: ${taken} bytes`);
  const again = await cluster.dss(["volume", "import", source, "copied"]);
  t.match(again.stderr, /exists/);
  t.equal(existsSync(`${source}.dss-progress`), false);

  const target = join(folder, "target.raw");
  const padded = Buffer.concat([content, Buffer.alloc((4096 - (content.length % 4096)) % 4096)]);
  const whole = createHash("sha256").update(padded).digest("hex");
  t.match(await volume("export", "copied", target, "--checksum"), `${whole}  ${target}`);
  t.ok(readFileSync(target).equals(padded));
  t.ok(statSync(target).blocks * 512 < 2 * MIB, "the file has holes");
  t.match((await cluster.dss(["volume", "export", "copied", target])).stderr, /exists/);

  // An export that was interrupted at 6 MiB, and what was written beyond that is not believed.
  truncateSync(target, 6 * MIB);
  writeFileSync(target, Buffer.alloc(100, 7), { flag: "a" });
  const { id } = await cluster.json<{ id: number }>(["volume", "info", "copied"]);
  const about = { direction: "export", volume: id, size: padded.length, modifiedMs: 0 };
  writeFileSync(`${target}.dss-progress`, JSON.stringify({ ...about, next: 6 * MIB }));
  t.match(await volume("export", "copied", target, "--resume", "--checksum"), whole);
  t.ok(readFileSync(target).equals(padded));

  const streamed = await cluster.dss(["volume", "import", "-", "piped"], { input: content });
  t.equal(streamed.code, 0, streamed.stderr);
  const { size } = await info("piped");
  t.equal(size, padded.length, "a stream's volume is as long as the stream");
  const piped = join(folder, "piped.raw");
  t.match(await volume("export", "piped", piped, "--checksum"), whole);
});

t.test("a terabyte that is mostly holes is exported in seconds, every byte of it", async (t) => {
  await volume("create", "sparse", "1T");
  const places = ["0", "511G", "1023G"];
  for (const at of places) await volume("write", "sparse", at, `written at ${at}`);
  await volume("snap", "create", "sparse@kept");
  await volume("write", "sparse", "511G", "changed");
  await volume("write", "sparse", "700G", "later");
  const read = async (file: string, at: number): Promise<string> => {
    const args = [`if=${file}`, "bs=32", "count=1", "status=none", `skip=${at * 2 ** 25}`];
    return (await succeed(t, "dd", args)).replaceAll("\0", "");
  };
  const target = join(folder, "sparse.raw");
  const snapshot = join(folder, "snapshot.raw");
  await volume("export", "sparse", target);
  await volume("export", "sparse@kept", snapshot);
  for (const [file, middle, last] of [
    [target, "changed at 511G", "later"],
    [snapshot, "written at 511G", ""],
  ] as const) {
    t.equal(statSync(file).size, 2 ** 40);
    t.ok(statSync(file).blocks * 512 < MIB, "the file has holes");
    t.equal(await read(file, 0), "written at 0");
    t.equal(await read(file, 511), middle);
    t.equal(await read(file, 700), last);
    t.equal(await read(file, 1023), "written at 1023G");
  }
  await volume("snap", "rm", "--all", "sparse", "--wait");
  await volume("rm", "sparse", "--wait");
});

t.test("the progress of a removal is part of the cluster's status", async (t) => {
  await volume("create", "leaving", "64M");
  await volume("write", "leaving", "20M", "data");
  // The deletes wait, as if they took long.
  await cluster.ok(["cluster", "set", "pause"]);
  await volume("rm", "leaving");
  const about = "freeing the space of leaving, which was removed";
  const { purges } = await cluster.json<{ purges: { entries: number; volumes: object[] } }>([
    "status",
  ]);
  t.match(purges.volumes, [{ name: "leaving", about, percent: 0 }]);
  t.match(await cluster.ok(["status"]), new RegExp(`^purges +${about}: 0 % done$`, "m"));
  t.match((await cluster.dss(["volume", "ls"])).stderr, new RegExp(`${about}: 0 % done`));
  await cluster.ok(["cluster", "unset", "pause"]);
  const done = async () => !/^purges/m.test(await cluster.ok(["status"])) || undefined;
  await t.resolves(waitFor("the end of the removal", done));
});

interface TopRow {
  volume: string;
  readsPerSecond: number;
  writesPerSecond: number;
  readBytesPerSecond: number;
  writeBytesPerSecond: number;
  read: { p50Us: number; p99Us: number; maxUs: number };
  write: { p50Us: number; p99Us: number; maxUs: number };
  limited: number;
}
/** Of fio's report. */
interface Job {
  runtime: number;
  total_ios: number;
  io_bytes: number;
}

/** Runs fio until `dss volume top` has shown what it does; what both say of it. */
async function watched(
  t: Test,
  direction: "read" | "write",
  { socket, args }: { socket: string; args: string[] },
): Promise<{ job: Job; row: TopRow }> {
  const uri = `--uri=nbd+unix:///slow?socket=${socket}`;
  const endless = ["--time_based", "--runtime=120", "--output-format=json", `--rw=${direction}`];
  const common = ["--name=load", "--ioengine=nbd", uri, "--iodepth=8", "--size=32m", ...endless];
  const fio = start(t, "fio", [...common, ...args], { cwd: folder });
  const row = await waitFor(
    "the figures of fio's load",
    async () => {
      const rows = await cluster.json<TopRow[]>(["volume", "top"]);
      const found = rows.find(({ volume: name }) => name === "slow");
      return found !== undefined && found[`${direction}sPerSecond`] > 0 && found.limited > 0
        ? found
        : undefined;
    },
    { withinMs: 60_000 },
  );
  fio.signal("SIGINT"); // It ends in good order and reports.
  await fio.exited;
  const { stdout } = fio;
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf("{"))) as {
    jobs: Record<"read" | "write", Job>[];
  };
  return { job: jobs[0]![direction], row };
}

t.test("limits hold for fio, change at once, and top shows what goes on", async (t) => {
  await volume("create", "slow", "64M");
  const { server, socket } = await serve("slow");
  t.match(await volume("limit", "slow", "--iops", "50"), /50 operations/);
  const reading = await watched(t, "read", { socket, args: ["--bs=4k"] });
  await volume("limit", "slow", "--iops", "0", "--bandwidth", "2M");
  const writing = await watched(t, "write", { socket, args: ["--bs=64k"] });
  await volume("limit", "slow", "--bandwidth", "0");

  // A second's worth at once, then what the limit says; what is begun may overdraw it, and fio's
  // clock begins a little later than the volume's.
  const seconds = (job: Job): number => job.runtime / 1_000 + 1.5;
  const { total_ios: reads } = reading.job;
  t.ok(reads > 0 && reads <= 50 * seconds(reading.job) + 8, JSON.stringify(reading.job));
  const { io_bytes: bytes } = writing.job;
  const bytesMax = 2 * MIB * seconds(writing.job) + 8 * 65_536;
  t.ok(bytes > 0 && bytes <= bytesMax, JSON.stringify(writing.job));
  const { writesPerSecond, writeBytesPerSecond } = writing.row;
  const difference = Math.abs(writeBytesPerSecond - writesPerSecond * 65_536);
  t.ok(difference <= 65_536, `${writesPerSecond} writes, ${writeBytesPerSecond} bytes a second`);
  for (const { p50Us, p99Us, maxUs } of [reading.row.read, writing.row.write]) {
    // The histogram keeps three digits.
    const rises = p50Us > 0 && p50Us <= p99Us && p99Us <= 1.001 * maxUs + 1;
    t.ok(rises, `${p50Us}, ${p99Us}, ${maxUs} us`);
  }
  await server.stop();
  const [seq] = await cluster.json<{ operationsPerSecond: number; p99Us: number }[]>([
    ...["volume", "bench", "slow", "--tests", "rand-write", "--seconds", "1", "--yes"],
  ]);
  t.ok(seq!.operationsPerSecond > 0 && seq!.p99Us > 0);
  const full = await cluster.dss(["volume", "bench", "slow", "--tests", "seq-write"]);
  t.match(full.stderr, /not empty/);
});

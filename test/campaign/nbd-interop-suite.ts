/**
 * Steps of the campaign "nbd-interop" on a real cluster. DSS_INTEROP names one: "clients" is what
 * other programs do with an export through convert, mount and relay; "transfers" kills imports and
 * exports in the middle and resumes them; "figures" compares what `dss volume top` says with what
 * fio has measured.
 */
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { makeCertificates } from "../support/certificates.js";
import { startCluster, type Cluster } from "../support/cluster.js";
import { run, start, succeed, type Program } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const MIB = 2 ** 20;
const STEP = process.env["DSS_INTEROP"] ?? "clients";
const DEATHS = 4;

t.setTimeout(1_700_000);
const folder = tempFolder(t, "interop");
const cluster: Cluster = await startCluster(t);
const volume = (...args: string[]): Promise<string> =>
  cluster.ok(["volume", ...args], { withinMs: 300_000 });
const bigFile = (name: string): string => join(folder, name);

async function serve(
  name: string,
  ...options: string[]
): Promise<{ server: Program; uri: string }> {
  const socket = join(folder, `${name}.sock`);
  const server = cluster.start(["volume", "serve", name, "--unix", socket, ...options]);
  const [, uri] = await server.output(/(nbds?\+unix:\S+)/);
  return { server, uri: uri! };
}
const shaOf = async (path: string): Promise<string> => {
  const hash = createHash("sha256");
  const file = await open(path);
  for await (const chunk of file.createReadStream()) hash.update(chunk as Buffer);
  return hash.digest("hex");
};

if (STEP === "clients") t.test("every client, every way", { timeout: 600_000 }, clients);
else if (STEP === "transfers") t.test("killed and resumed", { timeout: 1_600_000 }, transfers);
else if (STEP === "figures") t.test("the figures of fio and of dss", { timeout: 300_000 }, figures);
else throw new Error(`DSS_INTEROP=${STEP}: clients, transfers or figures`);

// ---- Clients -----------------------------------------------------------------------------------

async function clients(t: Test): Promise<void> {
  const size = 256 * MIB;
  const source = bigFile("source.raw");
  writeFileSync(source, "");
  truncateSync(source, size);
  const random = new Prng(21);
  const file = await open(source, "r+");
  for (const at of [0, 31 * MIB + 4096, 130 * MIB]) {
    await file.write(random.bytes(5 * MIB), 0, 5 * MIB, at);
  }
  await file.close();
  await volume("create", "disk", "256M");
  const { server, uri } = await serve("disk");
  const longMs = { withinMs: 300_000 };
  const same = async (a: string[], b: string[]): Promise<void> => {
    const args = ["compare", "-f", a[0]!, "-F", b[0]!, a[1]!, b[1]!];
    t.match(await succeed(t, "qemu-img", args, longMs), /identical/);
  };

  // qemu-img: formats, maps, 16 requests at a time.
  const qcow = bigFile("source.qcow2");
  await succeed(t, "qemu-img", ["convert", "-f", "raw", "-O", "qcow2", source, qcow], longMs);
  const convert = ["convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", qcow, uri];
  await succeed(t, "qemu-img", convert, longMs);
  await same(["qcow2", qcow], ["raw", uri]);
  const map = await succeed(t, "qemu-img", ["map", "--output=json", "-f", "raw", uri]);
  const data = (JSON.parse(map) as { start: number; length: number; data: boolean }[]).filter(
    (each) => each.data,
  );
  t.same(data[0], { ...data[0], start: 0, length: 5 * MIB });
  const total = data.reduce((sum, { length }) => sum + length, 0);
  t.ok(total <= 15 * MIB + 12 * 65_536, `${total} bytes of data, the rest is holes`);

  // nbdfuse: a file that programs open.
  const mountpoint = join(folder, "fuse");
  mkdirSync(mountpoint);
  const fuse = start(t, "nbdfuse", [join(mountpoint, "disk"), uri]);
  // It is unmounted already unless the test failed.
  t.teardown(() => run(t, "umount", ["-l", mountpoint]).catch(() => undefined));
  await waitFor("the file", () => existsSync(join(mountpoint, "disk")) || undefined);
  await succeed(t, "cmp", [source, join(mountpoint, "disk")], longMs);
  const image = join(mountpoint, "disk");
  await succeed(t, "mkfs.ext4", ["-q", "-F", image], longMs);
  await succeed(t, "e2fsck", ["-n", "-f", image], longMs);
  await succeed(t, "fusermount3", ["-u", mountpoint]);
  t.equal((await fuse.exited).code, 0);

  // nbdkit: as a client of the export, with a filter, whose client is nbdcopy.
  const relay = (script: string): Promise<string> =>
    succeed(t, "nbdkit", ["-U", "-", "nbd", `uri=${uri}`, "--run", script], longMs);
  const copy = bigFile("relayed.raw");
  await relay(`nbdcopy --connections=4 "$uri" ${copy}`);
  await same(["raw", copy], ["raw", uri]);
  await relay(`nbdcopy --connections=4 ${source} "$uri"`);
  await same(["raw", source], ["raw", uri]);
  t.match(await relay('nbdinfo "$uri"'), /can_fast_zero: true/);
  t.match(await succeed(t, "nbddump", ["--length=64", uri]), /^0000000000: /);
  const fio = ["--name=v", "--ioengine=nbd", `--uri=${uri}`, "--rw=randrw", "--bs=4k"];
  const checks = ["--iodepth=64", "--size=32m", "--verify=sha256", "--verify_fatal=1"];
  await succeed(t, "fio", [...fio, ...checks], { cwd: folder, withinMs: 300_000 });
  await server.stop();

  // Encrypted: libnbd and qemu.
  const { folder: keys } = await makeCertificates(folder);
  const tls = [
    "--tls-cert",
    join(folder, "server.pem"),
    "--tls-key",
    join(folder, "server-key.pem"),
  ];
  const secret = await serve("disk", ...tls);
  const trusted = `${secret.uri}&tls-certificates=${keys}&tls-hostname=localhost`;
  const decrypted = bigFile("decrypted.raw");
  await succeed(t, "nbdcopy", ["--connections=2", trusted, decrypted], longMs);
  await secret.server.stop();
  const exported = bigFile("exported.raw");
  t.match(await volume("export", "disk", exported, "--checksum"), await shaOf(decrypted));
}

// ---- Transfers ---------------------------------------------------------------------------------

/**
 * Kills the command when its note says that it is beyond `from`; the note's last position. Without
 * a note it has not begun: it is before any position.
 */
async function killAtNote(t: Test, program: Program, note: string, from: number): Promise<number> {
  const next = (): number =>
    existsSync(note) ? (JSON.parse(readFileSync(note, "utf8")) as { next: number }).next : -1;
  await waitFor("progress", () => next() > from || !program.running || undefined, {
    ...{ withinMs: 300_000, everyMs: 5 },
  });
  t.ok(program.running, "it is in the middle");
  await program.kill();
  return next();
}

async function transfers(t: Test): Promise<void> {
  const size = 3 * 1024 * MIB;
  const source = bigFile("large.raw");
  const random = new Prng(31);
  writeFileSync(source, "");
  truncateSync(source, size);
  const file = await open(source, "r+");
  for (let at = 0; at < size; at += 4 * MIB) {
    const bytes = random.bytes(random.int(1, MIB));
    await file.write(bytes, 0, bytes.length, at + random.int(0, MIB));
  }
  await file.close();
  const sum = await shaOf(source);

  let begun = -1;
  for (let death = 0; death < DEATHS; death++) {
    const more = death === 0 ? [] : ["--resume"];
    const importing = cluster.start(["volume", "import", source, "large", ...more]);
    if (death === 1) {
      const goesOn = (): boolean => isNoteOf(source, importing.pid) || !importing.running;
      await waitFor("the resumed import", goesOn, { withinMs: 60_000, everyMs: 5 });
      t.ok(importing.running, `it goes on: ${importing.tail()}`);
      const second = await cluster.dss(["volume", "import", source, "large", "--resume"]);
      t.match(second, { code: 1, stderr: /goes on in process \d+/ }, "one at a time");
    }
    const at = await killAtNote(t, importing, `${source}.dss-progress`, begun);
    t.ok(at > begun && at < size, `import ${death}: killed after ${at} bytes`);
    begun = at;
  }
  const imported = await volume("import", source, "large", "--resume", "--checksum");
  t.match(imported, new RegExp(`^${sum}`), "the rest follows at once, without a wait for a lease");

  const target = bigFile("large.out");
  begun = -1;
  for (let death = 0; death < 2; death++) {
    const more = death === 0 ? [] : ["--resume"];
    const exporting = cluster.start(["volume", "export", "large", target, ...more]);
    begun = await killAtNote(t, exporting, `${target}.dss-progress`, Math.max(begun, 0));
  }
  t.match(await volume("export", "large", target, "--resume", "--checksum"), new RegExp(`^${sum}`));
  t.equal(await shaOf(target), sum);
  t.ok(statSync(target).blocks * 512 < size * 0.6, "the file has holes");
}

function isNoteOf(file: string, pid: number): boolean {
  if (!existsSync(`${file}.dss-progress`)) return false;
  const { by } = JSON.parse(readFileSync(`${file}.dss-progress`, "utf8")) as {
    by?: { pid: number };
  };
  return by?.pid === pid;
}

// ---- Figures -----------------------------------------------------------------------------------

async function figures(t: Test): Promise<void> {
  await volume("create", "load", "256M");
  const { server, uri } = await serve("load");
  const rate = 200;
  const args = ["--name=load", "--ioengine=nbd", `--uri=${uri}`, "--rw=randwrite", "--bs=4k"];
  const paced = [`--rate_iops=${rate}`, "--runtime=20", "--time_based", "--output-format=json"];
  const fio = succeed(t, "fio", [...args, ...paced], { cwd: folder, withinMs: 120_000 });
  interface Row {
    writesPerSecond: number;
    writeBytesPerSecond: number;
    write: { p50Us: number };
  }
  const rows: Row[] = [];
  let over = false;
  void fio.finally(() => (over = true)).catch(() => undefined); // Awaited below.
  while (!over) {
    rows.push(...(await cluster.json<Row[]>(["volume", "top"])));
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  interface Job {
    write: { iops: number; clat_ns: { percentile: Record<string, number> } };
  }
  const output = await fio;
  const [job] = (JSON.parse(output.slice(output.indexOf("{"))) as { jobs: Job[] }).jobs;
  const busy = rows.filter(({ writesPerSecond }) => writesPerSecond > 0);
  const middle = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!;
  const iops = middle(busy.map((row) => row.writesPerSecond));
  const median = middle(busy.map((row) => row.write.p50Us));
  const clatUs = job!.write.clat_ns.percentile["50.000000"]! / 1_000;
  t.comment(`fio: ${job!.write.iops} writes/s, median ${clatUs} us; top: ${iops}/s, ${median} us`);
  t.ok(Math.abs(iops - job!.write.iops) < 0.1 * rate, "within 10 %");
  t.ok(median > 0.3 * clatUs && median < 1.1 * clatUs, "what the server sees is part of it");
  await server.stop();
}

/**
 * Volumes of a real cluster through the NBD server, with the clients people use: libnbd, qemu, fio
 * and a Linux kernel. Each client also checks what an earlier one wrote through another server.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../../cluster/base/prng.js";
import { makeCertificates } from "../../support/certificates.js";
import { ext4InGuest, GUEST_FILE_BYTES, GUEST_WASTE_BYTES } from "../../support/guest-ext4.js";
import { run, succeed, type Program } from "../../support/process.js";
import { waitFor, type Teardown } from "../../support/temp.js";
import { cluster, folder } from "./volumes-support.js";

const MIB = 1024 * 1024;
const OBJECT = 4 * MIB;
const URI = /(nbds?(?:\+unix)?:\/\/\S+)/;

interface Served {
  server: Program;
  uri: string;
  socket: string;
}
let sockets = 0;

/** `dss volume serve` on a unix socket of its own. */
async function serve(volume: string, ...options: string[]): Promise<Served> {
  const socket = join(folder, `${sockets++}.sock`);
  const server = cluster.start(["volume", "serve", volume, "--unix", socket, ...options]);
  const [, uri] = await server.output(URI);
  return { server, uri: uri!, socket };
}
const create = (name: string, size: string) => cluster.ok(["volume", "create", name, size]);
const sha = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

async function nbdinfo(t: Teardown, ...args: string[]): Promise<Record<string, unknown>[]> {
  const output = await succeed(t, "nbdinfo", args);
  return (JSON.parse(output) as { exports: Record<string, unknown>[] }).exports;
}

interface ObjectsOf {
  objects: { index: number; osds: number[]; allocated: number }[];
}
const objectsOf = async (volume: string): Promise<ObjectsOf["objects"]> =>
  (await cluster.json<ObjectsOf>(["volume", "info", volume, "--objects"])).objects;

t.test("nbdinfo sees the volume", async (t) => {
  await create("info", "1G");
  const { server, uri } = await serve("info");
  const exports = await nbdinfo(t, "--json", uri);
  t.match(exports, [
    {
      "export-name": "info",
      "export-size": 1024 * MIB,
      is_read_only: false,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_multi_conn: true,
      can_df: true,
      can_cache: true,
      can_fast_zero: true,
      contexts: ["base:allocation"],
      block_size_preferred: 4096,
      block_size_maximum: 32 * MIB,
    },
  ]);
  await server.stop();
  const frozen = await serve("info", "--read-only");
  t.match(await nbdinfo(t, "--json", frozen.uri), [{ is_read_only: true, can_trim: false }]);
  await frozen.server.stop();
  const { folder: keys } = await makeCertificates(folder);
  const files = ["--tls-cert", "server.pem", "--tls-key", "server-key.pem"];
  const paths = files.map((each) => (each.startsWith("--") ? each : join(folder, each)));
  const secret = await serve("info", ...paths);
  t.match(secret.uri, /^nbds\+unix:/);
  const uriOf = `${secret.uri}&tls-certificates=${keys}&tls-hostname=localhost`;
  t.match(await nbdinfo(t, "--json", uriOf), [{ "export-name": "info" }]);
  const clear = await run(t, "nbdinfo", [secret.uri.replace("nbds", "nbd")]);
  t.not(clear.code, 0, "encryption is required");
  await secret.server.stop();
});

t.test("nbdcopy both ways, and what is zero takes no space", async (t) => {
  const size = 64 * MIB;
  const bytes = new Prng(7).bytes(size);
  bytes.fill(0, 8 * MIB, 40 * MIB);
  const source = join(folder, "source");
  await writeFile(source, bytes);
  await create("copy", "64M");
  const first = await serve("copy");
  await succeed(t, "nbdcopy", ["--flush", "--connections=4", source, first.uri]);
  await first.server.stop();
  // Another server, so that nothing of the first one's memory can answer.
  const second = await serve("copy");
  const target = join(folder, "target");
  await succeed(t, "nbdcopy", ["--connections=4", second.uri, target]);
  t.equal(sha(await readFile(target)), sha(bytes), "the bytes that were written");
  const map = JSON.parse(await succeed(t, "nbdinfo", ["--map", "--json", second.uri])) as object[];
  t.match(
    map,
    [
      { offset: 0, length: 8 * MIB, type: 0 },
      { offset: 8 * MIB, length: 32 * MIB, type: 3 },
      { offset: 40 * MIB, length: 24 * MIB, type: 0 },
    ],
    "what was never written is a hole",
  );
  t.match(await succeed(t, "nbddump", ["--length=4096", second.uri]), /^0000000000: /);
  const identical = ["compare", "-f", "raw", "-F", "raw", source, second.uri];
  t.match(await succeed(t, "qemu-img", identical), /identical/);
  await second.server.stop();
  const objects = await objectsOf("copy");
  const withData = [0, 1, ...Array.from({ length: 6 }, (_, i) => 10 + i)];
  t.same(
    objects.filter(({ allocated }) => allocated > 0).map(({ index }) => index),
    withData,
    "zeros are holes",
  );
  t.ok(
    objects.every(({ osds }) => osds.length === 3),
    "on three OSDs each",
  );
});

t.test("qemu-io writes, zeroes, discards and verifies", async (t) => {
  await create("qemu", "100M");
  const { server, uri } = await serve("qemu");
  const commands = [
    `write -P 0xaa ${OBJECT - 65_536} 131072`,
    `read -P 0xaa ${OBJECT - 65_536} 131072`,
    `write -z ${OBJECT - 4096} 8192`,
    `read -P 0 ${OBJECT - 4096} 8192`,
    `read -P 0xaa ${OBJECT + 4096} 61440`,
    "write -P 0x55 513 1023",
    "read -P 0x55 513 1023",
    "read -P 0 0 513",
    `write -P 0x11 ${8 * MIB} 16M`,
    `discard ${8 * MIB} 8M`,
    `read -P 0x11 ${16 * MIB} 8M`,
    "read -P 0 64M 32M",
    "flush",
  ];
  const args = ["-f", "raw", "-t", "writeback", "-d", "unmap"];
  const output = await succeed(t, "qemu-io", [
    ...args,
    ...commands.flatMap((command) => ["-c", command]),
    uri,
  ]);
  t.notMatch(output, /failed|error/i);
  await server.stop();
  const kept = (await objectsOf("qemu")).map(({ index }) => index);
  t.same(kept, [0, 1, 4, 5], "discarded objects are gone");
});

t.test("fio verifies random writes with many in flight", async (t) => {
  await create("fio", "64M");
  const { server, uri } = await serve("fio");
  const common = [
    "--name=verify",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--rw=randwrite",
    "--bsrange=512-128k",
    "--blockalign=512",
    "--iodepth=32",
    "--size=48m",
    "--randseed=7",
    "--verify=crc32c",
    "--verify_fatal=1",
  ];
  const fio = run(t, "fio", [...common, "--do_verify=1"], { cwd: folder, withinMs: 120_000 });
  const { code, stdout, stderr } = await fio;
  t.equal(code, 0, stderr);
  t.match(stdout, /err= 0/);
  t.match(stdout, /read: IOPS/, "it was read back");
  await server.stop();
});

t.test("a volume of 1 TiB takes the space of what is written, and gives it back", async (t) => {
  interface Usage {
    osds: { used: number }[];
  }
  const used = async (): Promise<number> => {
    const { osds } = await cluster.json<Usage>(["status"]);
    return osds.reduce((sum, osd) => sum + osd.used, 0);
  };
  /** What the OSDs' files take of this machine's disk. */
  const onDisk = async (): Promise<number> => {
    const { processes } = await cluster.status();
    const folders = processes.filter(({ role }) => role === "osd").map(({ data }) => data);
    const lines = await succeed(t, "du", ["-s", "--block-size=1", ...folders]);
    return lines.split("\n").reduce((sum, line) => sum + (Number.parseInt(line, 10) || 0), 0);
  };
  await create("huge", "1T");
  const before = await used();
  // What was written before this test comes from the logs to the data files at its own pace.
  let diskBefore = await onDisk();
  let same = 0;
  const settled = async (): Promise<true | undefined> => {
    const now = await onDisk();
    same = now === diskBefore ? same + 1 : 0;
    diskBefore = now;
    return same >= 5 ? true : undefined;
  };
  await waitFor("nothing more is written", settled, { withinMs: 90_000, everyMs: 1_000 });
  const { server, uri } = await serve("huge");
  const places = Array.from({ length: 10 }, (_, i) => `${i * 100}G`);
  const io = async (command: (at: string) => string): Promise<void> => {
    const commands = places.flatMap((at) => ["-c", command(at)]);
    await succeed(t, "qemu-io", ["-f", "raw", "-d", "unmap", ...commands, uri]);
  };
  await io((at) => `write -P 0x5a ${at} 1M`);
  const taken = (await used()) - before;
  t.ok(taken >= 30 * MIB, `${taken / MIB} MiB on three replicas`);
  t.ok(taken <= 50 * MIB, `10 MiB take ${taken / MIB} MiB on three replicas`);
  const diskTaken = (await onDisk()) - diskBefore;
  t.ok(diskTaken <= 50 * MIB, `of the disks they take ${diskTaken / MIB} MiB`);
  await io((at) => `discard ${at} 1M`);
  const freed = async (): Promise<true | undefined> =>
    (await used()) - before < 2 * MIB ? true : undefined;
  await t.resolves(waitFor("the space is given back", freed));
  await server.stop();
});

t.test("a volume has one writer at a time, whose name the second one is told", async (t) => {
  await create("single", "16M");
  const owner = await serve("single");
  const second = cluster.start(["volume", "serve", "single", "--unix", join(folder, "b.sock")]);
  const { code } = await second.exited;
  t.not(code, 0);
  t.match(second.stderr, /single is in use by .*nbd client\.\d+, pid \d+/);
  t.match(second.stderr, new RegExp(`pid ${owner.server.pid}\\b`), "it names the process");
  const write = await cluster.dss(["volume", "write", "single", "0", "hello"]);
  t.not(write.code, 0);
  t.match(write.stderr, /in use by/);
  await succeed(t, "nbdinfo", ["--size", owner.uri]);
  await owner.server.stop();
  await cluster.ok(["volume", "write", "single", "5", "hello"]);
  t.equal(await cluster.ok(["volume", "read", "single", "5", "5"]), "hello");
});

t.test("a killed server is succeeded at once, with everything it had answered", async (t) => {
  await create("heir", "16M");
  const first = await serve("heir");
  const io = (uri: string, command: string) =>
    succeed(t, "qemu-io", ["-f", "raw", "-t", "writeback", "-c", command, uri]);
  await io(first.uri, "write -P 0x77 1M 1M");
  await first.server.kill();
  const begin = performance.now();
  const args = ["volume", "serve", "heir", "--unix", first.socket];
  const next = cluster.start(args);
  await next.output(URI);
  t.ok(performance.now() - begin < 5_000, "without waiting for the lease of the dead one");
  t.match(await io(first.uri, "read -P 0x77 1M 1M"), /read 1048576/);
  const again = cluster.start(args);
  t.not((await again.exited).code, 0, "but one that lives keeps its address");
  t.match(again.stderr, /already in use/);
  t.match(await io(first.uri, "write -P 0x78 1M 1M"), /wrote/, "and its lock");
  await next.stop();
});

t.test("a server keeps its lock when the leading metadata server dies", async (t) => {
  await create("lasting", "16M");
  const owner = await serve("lasting");
  const io = ["-f", "raw", "-t", "writeback", "-c", "write -P 0x42 1M 1M", owner.uri];
  await succeed(t, "qemu-io", io);
  await cluster.kill([await cluster.leaderPid()]);
  const begin = performance.now();
  await succeed(t, "qemu-io", io);
  t.ok(performance.now() - begin < 5_000, "data does not need the metadata server");
  const second = cluster.start(["volume", "serve", "lasting", "--unix", join(folder, "c.sock")]);
  t.not((await second.exited).code, 0);
  t.match(second.stderr, new RegExp(`in use by .*pid ${owner.server.pid}\\b`), "its successor");
  t.ok(owner.server.running);
  await owner.server.stop();
  t.equal((await owner.server.exited).code, 0, "and it ends in good order");
  await cluster.up(); // A standby again.
  await cluster.healthy();
});

t.test("a server without names offers every volume over TCP", async (t) => {
  const server = cluster.start(["volume", "serve", "--listen", "127.0.0.1:0"]);
  const [, uri] = await server.output(URI);
  const names = (await nbdinfo(t, "--list", "--json", uri!)).map((each) => each["export-name"]);
  t.same([...names].sort(), ["copy", "fio", "heir", "huge", "info", "lasting", "qemu", "single"]);
  const missing = await run(t, "nbdinfo", [`${uri!}nope`]);
  t.not(missing.code, 0);
  await server.stop();
});

t.test("attach says what to do on a machine whose kernel has no nbd", async (t) => {
  const hasKernelNbd = existsSync("/dev/nbd0");
  const { code, stdout, stderr } = await cluster.dss(["volume", "attach", "single"]);
  if (hasKernelNbd) {
    t.equal(code, 0, stderr);
    t.match(stdout, /^\/dev\/nbd\d+$/m);
    await cluster.ok(["volume", "detach", "single"]);
    return;
  }
  t.not(code, 0);
  t.match(stderr, /no nbd module.*dss volume serve single/s);
});

t.test(
  "a Linux kernel keeps ext4 on a volume whose server dies",
  { timeout: 420_000 },
  async (t) => {
    await create("ext4", "128M");
    const args = ["volume", "serve", "ext4", "--supervise", "--listen", "127.0.0.1:0"];
    const server = cluster.start(args);
    const [, port] = await server.output(/nbd:\/\/127\.0\.0\.1:(\d+)/);
    const steps: string[] = [];
    let used = Infinity;
    const onStep = async (step: string): Promise<void> => {
      steps.push(step);
      if (step === "growing") {
        // It has trimmed before.
        const [usage] = await cluster.json<{ used: number }[]>(["volume", "du", "ext4"]);
        used = usage!.used;
        await cluster.ok(["volume", "resize", "ext4", "192M"]);
        return;
      }
      const answers = [...server.stderr.matchAll(/"pid":(\d+),"size":\d+,"resent"/g)];
      const pid = Number(answers.at(-1)![1]);
      if (existsSync(`/proc/${pid}`)) await cluster.kill([pid]);
    };
    const options = { grows: true, onStep };
    const { code, results, console } = await ext4InGuest(t, Number(port), "ext4", options);
    t.same(steps, ["writing", "copying", "reading", "growing"]);
    t.equal(code, 0, console);
    for (const [name, value] of Object.entries({
      size: String((128 * MIB) / 512),
      large: "same",
      busybox: "same",
      fstrim: "done",
      grown: String((192 * MIB) / 512),
      after: "same",
      fsck: "clean",
      done: "yes",
    })) {
      t.equal(results.get(name), value, name);
    }
    t.ok(used >= GUEST_FILE_BYTES, "the volume has what the guest kept");
    t.ok(used < GUEST_FILE_BYTES + GUEST_WASTE_BYTES, `${used} bytes: what it deleted is gone`);
    await server.stop();
  },
);

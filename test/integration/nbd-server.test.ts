/**
 * The NBD server on real sockets with the clients people use: libnbd's tools, qemu and fio,
 * against an image in memory. Needs libnbd-bin, qemu-utils, nbdkit, fio and openssl.
 */
import { execFile, spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";
import type { Test } from "tap";
import { DssError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { nodeClock, nodePlatform } from "../../cluster/platform/node.js";
import { NbdServer } from "../../nbd/server.js";
import { makeCertificates } from "../support/certificates.js";
import { NbdClient } from "../support/nbd-client.js";
import { waitFor } from "../support/temp.js";
import {
  FLAGS,
  infoData,
  option,
  parseChunks,
  parseReply,
  request,
  type RequestFields,
} from "../unit/nbd/client-bytes.js";
import { MemoryDirectory, MemoryImage } from "../unit/nbd/memory-image.js";

const run = promisify(execFile);
const MIB = 1024 * 1024;
const SIZE = 64 * MIB;

const folder = await mkdtemp(join(tmpdir(), "dss-nbd-"));
const disk = new MemoryImage({ name: "disk", size: SIZE, description: "a disk in memory" });
const frozen = new MemoryImage({
  name: "frozen",
  size: MIB,
  readOnly: true,
  blockSize: { minimum: 512, preferred: 4096, maximum: MIB },
});
const directory = new MemoryDirectory([disk, frozen]);
const lines: string[] = [];
const log: Logger = {
  debug: () => undefined,
  info: () => undefined,
  warn: (fields, message) => lines.push(`${message} ${JSON.stringify(fields)}`),
  error: (fields, message) => lines.push(`${message} ${JSON.stringify(fields)}`),
  child: () => log,
};
const server = new NbdServer({
  network: nodePlatform.network,
  clock: nodeClock,
  log,
  directory,
  defaultExport: "disk",
});
const socket = join(folder, "nbd.sock");
await server.listen({ path: socket });
const tcp = await server.listen({ host: "127.0.0.1", port: 0 });
const port = "port" in tcp ? tcp.port : 0;
const TCP = `nbd://127.0.0.1:${port}/disk`;
const UNIX = `nbd+unix:///disk?socket=${socket}`;

t.teardown(() => rm(folder, { recursive: true, force: true }));

/** What `nbdinfo --json` prints, as far as it is looked at. */
interface Info {
  protocol: string;
  structured: boolean;
  TLS: boolean;
  exports: Record<string, unknown>[];
}
const parse = (text: string): Info => JSON.parse(text) as Info;

t.test("nbdinfo sees the export over TCP and unix sockets", async (t) => {
  for (const uri of [TCP, UNIX, `nbd://127.0.0.1:${port}`]) {
    const info = parse((await run("nbdinfo", ["--json", uri])).stdout);
    t.equal(info.protocol, "newstyle-fixed");
    t.equal(info.structured, true);
    t.match(info.exports, [
      {
        "export-name": "disk",
        description: "a disk in memory",
        "export-size": SIZE,
        is_read_only: false,
        can_flush: true,
        can_fua: true,
        can_multi_conn: true,
        can_trim: true,
        can_zero: true,
        can_cache: true,
        can_df: true,
        can_fast_zero: true,
        contexts: ["base:allocation"],
        block_size_minimum: 1,
        block_size_preferred: 4096,
        block_size_maximum: 32 * MIB,
      },
    ]);
  }
  const info = parse((await run("nbdinfo", ["--json", `nbd://127.0.0.1:${port}/frozen`])).stdout);
  t.match(info.exports[0], { is_read_only: true, can_trim: false, block_size_minimum: 512 });
});

t.test("nbdinfo --list names every export", async (t) => {
  const { stdout } = await run("nbdinfo", ["--list", "--json", `nbd://127.0.0.1:${port}`]);
  t.same(
    parse(stdout)
      .exports.map((e) => e["export-name"])
      .sort(),
    ["disk", "frozen"],
  );
});

t.test("holes are seen by nbdinfo --map and qemu-img map", async (t) => {
  disk.bytes.fill(0);
  disk.bytes.fill(5, MIB, 3 * MIB);
  disk.bytes.fill(6, 40 * MIB, 40 * MIB + 65_536);
  const expected = [
    { offset: 0, length: MIB, hole: true },
    { offset: MIB, length: 2 * MIB, hole: false },
    { offset: 3 * MIB, length: 37 * MIB, hole: true },
    { offset: 40 * MIB, length: 65_536, hole: false },
    { offset: 40 * MIB + 65_536, length: 24 * MIB - 65_536, hole: true },
  ];
  const map = JSON.parse((await run("nbdinfo", ["--map", "--json", TCP])).stdout) as object[];
  t.match(
    map,
    expected.map(({ offset, length, hole }) => ({ offset, length, type: hole ? 3 : 0 })),
  );
  const qemu = await run("qemu-img", ["map", "--output=json", "-f", "raw", UNIX]);
  t.match(
    JSON.parse(qemu.stdout),
    expected.map(({ offset, length, hole }) => ({
      start: offset,
      length,
      zero: hole,
      data: !hole,
    })),
  );
  const dump = (await run("nbddump", ["--length=1048592", TCP])).stdout;
  t.match(dump, /^0000100000: 05 05 05 05/m);
  const sparse = join(folder, "sparse");
  disk.recording = true;
  disk.calls.length = 0;
  await run("nbdcopy", [UNIX, sparse]);
  disk.recording = false;
  const reads = disk.calls.filter((call) => call.startsWith("read"));
  t.ok(reads.length > 0 && reads.length < 64, "holes are not read");
  t.ok((await stat(sparse)).blocks * 512 < 4 * MIB, "nor written");
  await t.resolves(run("qemu-img", ["compare", "-f", "raw", "-F", "raw", sparse, UNIX]));
  disk.bytes[2 * MIB] = 0;
  const compare = run("qemu-img", ["compare", "-f", "raw", "-F", "raw", sparse, UNIX]);
  t.match(await compare.catch((e: unknown) => e), { stdout: /mismatch at offset 2097152/ });
});

t.test("nbdkit passes everything on as a client", async (t) => {
  const export_ = [`socket=${socket}`, "export=disk", "shared=true"];
  disk.bytes.fill(0);
  disk.bytes.fill(5, MIB, 2 * MIB);
  const kit = (script: string) => run("nbdkit", ["-U", "-", "nbd", ...export_, "--run", script]);
  const [info] = parse((await kit('nbdinfo --json "$uri"')).stdout).exports;
  t.match(info, { can_zero: true, can_fast_zero: true, can_cache: true, can_multi_conn: true });
  t.match(JSON.parse((await kit('nbdinfo --map --json "$uri"')).stdout), [
    { offset: 0, length: MIB, type: 3 },
    { offset: MIB, length: MIB, type: 0 },
    { offset: 2 * MIB, length: SIZE - 2 * MIB, type: 3 },
  ]);
  const target = join(folder, "passed-on");
  await kit(`nbdcopy "$uri" ${target}`);
  t.ok((await readFile(target)).equals(disk.bytes));
});

t.test("nbdfuse shows the export as a file that can be written", async (t) => {
  const mountpoint = join(folder, "fuse");
  await mkdir(mountpoint);
  const kit = spawn("nbdfuse", [join(mountpoint, "disk"), UNIX], { stdio: "ignore" });
  const ended = new Promise<number | null>((done) => kit.once("exit", done));
  // It is unmounted already unless the test failed.
  t.teardown(() => run("umount", ["-l", mountpoint]).catch(() => undefined));
  const file = join(mountpoint, "disk");
  await waitFor("the file", async () => (await stat(file).catch(() => undefined)) && true);
  t.equal((await stat(file)).size, SIZE);
  const bytes = new Prng(13).bytes(3 * MIB);
  const source = join(folder, "fuse-source");
  await writeFile(source, bytes);
  const place = ["bs=1M", "seek=5", "conv=notrunc,fsync", "status=none"];
  await run("dd", [`if=${source}`, `of=${file}`, ...place]);
  t.ok(disk.bytes.subarray(5 * MIB, 8 * MIB).equals(bytes), "what the file was given");
  await t.resolves(run("cmp", ["-n", String(3 * MIB), "-i", `0:${5 * MIB}`, source, file]));
  await run("fusermount3", ["-u", mountpoint]);
  t.equal(await ended, 0);
});

t.test("qemu-img converts to an export and from it, formats and holes included", async (t) => {
  const source = join(folder, "convert.qcow2");
  const back = join(folder, "back.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", source, String(SIZE)]);
  const writes = ["write -P 0x21 1M 2M", "write -P 0x22 30M 64k", "write -z 40M 1M"];
  await run("qemu-io", ["-f", "qcow2", ...writes.flatMap((each) => ["-c", each]), source]);
  disk.bytes.fill(0xff);
  await run("qemu-img", ["convert", "-n", "-m", "8", "-f", "qcow2", "-O", "raw", source, UNIX]);
  await t.resolves(run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", source, TCP]));
  t.equal(disk.bytes[2 * MIB], 0x21);
  t.equal(disk.bytes[10 * MIB], 0);
  await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", TCP, back]);
  await t.resolves(run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", back, UNIX]));
  t.ok((await stat(back)).size < 4 * MIB, "holes stay holes");
});

/** One connection in transmission; sends a request at a time and gives the answer's error. */
async function attached(
  t: Test,
  name: string,
  { structured = false } = {},
): Promise<(fields: RequestFields) => Promise<number>> {
  const client = connect(port, "127.0.0.1");
  t.teardown(() => client.destroy());
  client.on("error", () => undefined);
  let received = Buffer.alloc(0);
  client.on("data", (chunk: Buffer) => (received = Buffer.concat([received, chunk])));
  const STRUCTURED_REPLY = structured ? [option(8)] : [];
  client.write(Buffer.concat([FLAGS, ...STRUCTURED_REPLY, option(7, infoData(name))]));
  // The greeting has 18 bytes, and ACK (1) is the last reply to GO.
  const isIn = () => received.length > 58 && received.readUInt32BE(received.length - 8) === 1;
  await waitFor("the export", () => isIn() || undefined);
  return async (fields) => {
    received = Buffer.alloc(0);
    client.write(request(fields));
    const isHere = () => received.length >= (structured ? 24 : 16);
    await waitFor("the reply", () => isHere() || undefined);
    // The payload of an error's chunk begins with its number.
    return structured
      ? parseChunks(received)[0]!.payload.readUInt32BE()
      : parseReply(received).error;
  };
}

t.test("each error has the number that the protocol says", async (t) => {
  const [READ, WRITE, TRIM, CACHE, ZEROES, STATUS] = [0, 1, 4, 5, 6, 7];
  const [EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN] = [1, 5, 22, 28, 75, 95, 108];
  const [DF, FAST_ZERO] = [4, 16];
  const ask = await attached(t, "disk");
  const data = Buffer.alloc(4096, 1);
  const end = BigInt(SIZE);
  t.equal(await ask({ type: WRITE, offset: 0n, data }), 0);
  t.equal(await ask({ type: WRITE, offset: end - 1n, data }), ENOSPC, "a write beyond the end");
  t.equal(await ask({ type: ZEROES, offset: end, length: 1 }), ENOSPC);
  t.equal(await ask({ type: READ, offset: end - 1n, length: 2 }), EINVAL, "a read beyond the end");
  t.equal(await ask({ type: TRIM, offset: end, length: 1 }), EINVAL);
  t.equal(await ask({ type: CACHE, offset: end, length: 1 }), EINVAL);
  t.equal(await ask({ type: READ, length: 32 * MIB + 1 }), EINVAL, "without structured replies");
  t.equal(await ask({ type: 99, length: 1 }), EINVAL, "an unknown command");
  t.equal(await ask({ type: READ, length: 1, flags: DF }), EINVAL, "DF was not negotiated");
  t.equal(await ask({ type: STATUS, length: 1 }), EINVAL, "nor was a context");
  t.equal(await ask({ type: TRIM, length: 1, flags: 1 << 9 }), EINVAL, "an unknown flag");
  t.equal(await ask({ type: ZEROES, offset: 1n, length: 4096, flags: FAST_ZERO }), ENOTSUP);
  for (const [code, number] of [
    ["NoSpace", ENOSPC],
    ["Corrupt", EIO],
    ["Fenced", ESHUTDOWN],
    ["ShuttingDown", ESHUTDOWN],
  ] as const) {
    disk.fault = new DssError(code, "on request");
    t.equal(await ask({ type: WRITE, data }), number, code);
  }
  disk.fault = undefined;
  const chunks = await attached(t, "disk", { structured: true });
  t.equal(await chunks({ type: READ, length: 32 * MIB + 1 }), EOVERFLOW, "too long a read");
  const readOnly = await attached(t, "frozen");
  const aligned = { offset: 0n, length: 512 };
  for (const type of [TRIM, ZEROES]) t.equal(await readOnly({ type, ...aligned }), EPERM);
  t.equal(await readOnly({ type: WRITE, data: Buffer.alloc(512) }), EPERM, "read-only");
});

t.test("one connection more than allowed is refused, and those there are go on", async (t) => {
  const small = new NbdServer({
    ...{ network: nodePlatform.network, clock: nodeClock, log },
    directory: new MemoryDirectory([new MemoryImage({ name: "disk", size: MIB })]),
    limits: { connectionsMax: 2 },
  });
  t.teardown(() => small.stop());
  const path = join(folder, "small.sock");
  await small.listen({ path });
  const two = [await NbdClient.connect(path, "disk"), await NbdClient.connect(path, "disk")];
  await t.rejects(NbdClient.connect(path, "disk"), /closed|ECONNRESET/);
  for (const client of two) await client.write(0, Buffer.alloc(512, 7));
  two[0]!.close();
  const next = await waitFor("a free place", () =>
    NbdClient.connect(path, "disk").catch(() => undefined),
  );
  t.equal((await next.read(0, 1))[0], 7);
  for (const client of [two[1]!, next]) client.close();
});

t.test("an unknown export is refused by name", async (t) => {
  const failed = run("nbdinfo", [`nbd://127.0.0.1:${port}/nope`]);
  const error = await failed.then(() => undefined).catch((cause: unknown) => cause);
  t.match(error, { stderr: /No such file/ });
});

t.test("nbdcopy both ways, over several connections", async (t) => {
  const source = join(folder, "source");
  const target = join(folder, "target");
  const bytes = new Prng(7).bytes(SIZE);
  bytes.fill(0, 8 * MIB, 24 * MIB); // Becomes WRITE_ZEROES.
  await writeFile(source, bytes);
  disk.bytes.fill(0xff);
  disk.recording = true;
  await run("nbdcopy", ["--flush", "--connections=4", source, UNIX]);
  disk.recording = false;
  t.ok(disk.bytes.equals(bytes), "the image has the file's bytes");
  t.ok(disk.calls.includes("flush"));
  t.ok(disk.calls.some((call) => call.startsWith("zero")));
  disk.calls.length = 0;
  await run("nbdcopy", ["--connections=4", TCP, target]);
  t.ok((await readFile(target)).equals(bytes), "the copy has the image's bytes");
});

t.test("nbdcopy with the longest requests", async (t) => {
  const target = join(folder, "large");
  await run("nbdcopy", [`--request-size=${32 * MIB}`, "--connections=1", UNIX, target]);
  t.ok((await readFile(target)).equals(disk.bytes));
  disk.bytes.fill(0);
  await run("nbdcopy", [`--request-size=${32 * MIB}`, target, UNIX]);
  t.ok((await readFile(target)).equals(disk.bytes));
});

t.test("qemu-io writes, zeroes, discards and verifies", async (t) => {
  const commands = [
    "write -P 0xaa 4096 65536",
    "read -P 0xaa 4096 65536",
    "write -z 8192 4096",
    "write -z -u 16384 4096",
    "read -P 0 8192 4096",
    "read -P 0 16384 4096",
    "discard 32768 4096",
    "write -f -P 0x55 512 512",
    "read -P 0x55 512 512",
    "flush",
  ];
  disk.recording = true;
  // By default qemu-io asks for FUA on every write.
  const cache = ["-t", "writeback"];
  const args = ["-f", "raw", ...cache, ...commands.flatMap((command) => ["-c", command]), TCP];
  const { stdout } = await run("qemu-io", args);
  disk.recording = false;
  t.notMatch(stdout, /failed|error/i);
  t.ok(disk.calls.includes("zero 8192+4096 no-hole"), "qemu keeps space unless told -u");
  t.ok(disk.calls.includes("zero 16384+4096"));
  t.ok(disk.calls.includes("trim 32768+4096"));
  t.ok(disk.calls.includes("write 512+512 fua"));
  disk.calls.length = 0;
  await t.rejects(
    run("qemu-io", ["-f", "raw", "-c", "write 0 512", `nbd://127.0.0.1:${port}/frozen`]),
    "a read-only export cannot be opened for writing",
  );
});

t.test("fio verifies random writes with many in flight", async (t) => {
  const args = [
    "--name=verify",
    "--ioengine=nbd",
    `--uri=${UNIX}`,
    "--rw=randwrite",
    "--bsrange=512-128k",
    "--blockalign=512",
    "--iodepth=32",
    "--size=32m",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--randseed=7",
  ];
  await t.resolves(run("fio", args, { cwd: folder }));
});

t.test("encryption, optional and forced, with and without certificates of clients", async (t) => {
  const { identity, other, folder: certificates } = await makeCertificates(folder);
  const forced = new NbdServer({
    ...{ network: nodePlatform.network, clock: nodeClock, log },
    directory: new MemoryDirectory([new MemoryImage({ name: "disk", size: 4 * MIB })]),
    defaultExport: "disk",
    tls: { identity, policy: "require" },
  });
  t.teardown(() => forced.stop());
  const address = await forced.listen({ host: "127.0.0.1", port: 0 });
  const secret = "port" in address ? address.port : 0;
  const uri = (scheme: string, at = certificates) =>
    `${scheme}://localhost:${secret}/disk?tls-certificates=${at}`;
  const info = parse((await run("nbdinfo", ["--json", uri("nbds")])).stdout);
  t.match(info, { TLS: true, structured: true });
  const plain = await run("nbdinfo", [`nbd://localhost:${secret}/disk`]).catch((e: unknown) => e);
  t.match(plain, { stderr: /not supported/ }, "not in the clear");
  lines.length = 0;
  await t.rejects(run("nbdinfo", [uri("nbds", other)]), "a certificate of somebody else");
  t.match(lines.join("\n"), /no encryption/);

  const bytes = new Prng(9).bytes(4 * MIB);
  const source = join(folder, "secret");
  await writeFile(source, bytes);
  await run("nbdcopy", ["--connections=2", source, uri("nbds")]);
  const copy = join(folder, "secret-copy");
  await run("nbdcopy", [uri("nbds"), copy]);
  t.ok((await readFile(copy)).equals(bytes));

  const open = new NbdServer({
    ...{ network: nodePlatform.network, clock: nodeClock, log },
    directory: new MemoryDirectory([new MemoryImage({ name: "disk", size: MIB })]),
    tls: { identity, policy: "allow" },
  });
  t.teardown(() => open.stop());
  const path = join(folder, "open.sock");
  await open.listen({ path });
  for (const [scheme, encrypted] of [
    ["nbd+unix", false],
    ["nbds+unix", true],
  ] as const) {
    const text = `${scheme}:///disk?socket=${path}&tls-certificates=${certificates}`;
    const args = ["--json", encrypted ? `${text}&tls-hostname=localhost` : text];
    t.equal(parse((await run("nbdinfo", args)).stdout).TLS, encrypted);
  }
  const tls = `tls-creds-x509,id=tls0,dir=${certificates},endpoint=client`;
  const target = `driver=nbd,host=localhost,port=${secret},export=disk,tls-creds=tls0`;
  const qemu = ["--object", tls, "--image-opts", "-c", "read 0 1M", target];
  t.match((await run("qemu-io", qemu)).stdout, /read 1048576/);
});

t.test("garbage on a socket harms nobody", async (t) => {
  lines.length = 0;
  const random = new Prng(3);
  await Promise.all(
    Array.from({ length: 20 }, async () => {
      const client = connect(port, "127.0.0.1");
      client.on("error", () => undefined);
      client.write(random.bytes(5000));
      client.resume();
      await new Promise((resolve) => client.once("close", resolve));
    }),
  );
  t.equal(lines.length, 20, "one line each");
  await t.resolves(run("nbdinfo", ["--size", TCP]));
});

t.test("stop flushes, closes every export and removes the socket", async (t) => {
  const client = connect(port, "127.0.0.1");
  client.on("error", () => undefined);
  client.resume();
  await new Promise((resolve) => client.once("data", resolve));
  await server.stop();
  t.same(server.figures, { connections: 0, requests: 0, bytes: 0, exports: 0 });
  t.equal(directory.opens, directory.closes);
  await t.rejects(stat(socket));
  await t.rejects(run("nbdinfo", [TCP]));
});

/**
 * The NBD server on real sockets with the clients people use: libnbd's tools, qemu and fio,
 * against an image in memory. Needs libnbd-bin, qemu-utils and fio.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";
import type { Logger } from "../../cluster/base/log.js";
import { Prng } from "../../cluster/base/prng.js";
import { nodeClock, nodePlatform } from "../../cluster/platform/node.js";
import { NbdServer } from "../../nbd/server.js";
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
  exports: Record<string, unknown>[];
}
const parse = (text: string): Info => JSON.parse(text) as Info;

t.test("nbdinfo sees the export over TCP and unix sockets", async (t) => {
  for (const uri of [TCP, UNIX, `nbd://127.0.0.1:${port}`]) {
    const info = parse((await run("nbdinfo", ["--json", uri])).stdout);
    t.equal(info.protocol, "newstyle-fixed");
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

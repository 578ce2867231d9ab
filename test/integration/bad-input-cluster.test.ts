/**
 * Bad input to a cluster that runs (without one: cli-bad-input.test.ts): ports in use, data folders
 * of others, busy mount points, volumes that exist or do not, bytes that are no protocol. Each is
 * refused in two lines, leaves nothing behind and disturbs nobody.
 */
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { crc32 } from "../../cluster/base/checksum.js";
import { Prng } from "../../cluster/base/prng.js";
import { startCluster } from "../support/cluster.js";
import { NbdClient } from "../support/nbd-client.js";
import { start } from "../support/process.js";
import type { RunResult } from "../support/process.js";
import { freePort, tempFolder, waitFor } from "../support/temp.js";

const cluster = await startCluster(t);
const scratch = tempFolder(t, "bad");
const pids = async (): Promise<Record<string, number>> =>
  Object.fromEntries((await cluster.status()).processes.map(({ name, pid }) => [name, pid]));
const before = await pids();

interface Expected {
  code?: 1 | 2;
  says: RegExp;
}

/** A failure is one or two lines: what, why, what to do; log lines of a daemon may precede it. */
function judge(t: Test, shown: string, result: RunResult, { code = 1, says }: Expected): void {
  t.equal(result.code, code, `${shown}: exit code\n${result.stderr}`);
  const lines = result.stderr
    .trim()
    .split("\n")
    .filter((line) => !line.startsWith("{"));
  t.match(lines.join("\n"), says, shown);
  t.match(lines[0], /^dss: /, `${shown}: says who speaks`);
  t.ok(lines.length <= 2, `${shown}: at most two lines`);
  t.notMatch(result.stderr, /\n\s+at |internal error/, `${shown}: no stack`);
}

async function refused(t: Test, args: readonly string[], expected: Expected): Promise<void> {
  judge(t, `dss ${args.join(" ")}`, await cluster.dss(args, { withinMs: 30_000 }), expected);
}

await t.test("ports in use", async (t) => {
  const taken = createServer();
  await new Promise<void>((done) => taken.listen(0, "127.0.0.1", done));
  t.teardown(() => taken.close());
  const { port } = taken.address() as AddressInfo;
  const data = join(scratch, "osd-port");
  const says = /in use|taken/;
  await refused(t, ["osd", "start", "7", "--port", String(port), "--data", data], { says });
  await refused(t, ["mds", "start", "7", "--port", String(port)], { says });
  await cluster.ok(["volume", "create", "ported", "8M"]);
  const listen = `127.0.0.1:${port}`;
  await refused(t, ["volume", "serve", "ported", "--listen", listen], { says });
  const socket = join(scratch, "taken.sock");
  const other = createServer();
  await new Promise<void>((done) => other.listen(socket, done));
  t.teardown(() => other.close());
  await refused(t, ["volume", "serve", "ported", "--unix", socket], { says });
  t.ok(statSync(socket).isSocket(), "the other program's socket is still there");
  const file = join(scratch, "plain-file");
  writeFileSync(file, "keep me");
  await refused(t, ["volume", "serve", "ported", "--unix", file], { says: /dss: / });
  t.equal(readFileSync(file, "utf8"), "keep me");
  await cluster.ok(["volume", "rm", "ported"]);
  interface Status {
    osds: { id: number }[];
  }
  const { osds } = await cluster.json<Status>(["status"]);
  t.same(osds.map(({ id }) => id).sort(), [0, 1, 2], "no trace of osd.7 in the map");
});

await t.test("data folders of another OSD, of a newer version, of something else", async (t) => {
  const [osd] = await cluster.processes("osd");
  const osdStart = async (id: number, data: string): Promise<string[]> => {
    const port = String(await freePort());
    return ["osd", "start", String(id), "--port", port, "--data", data];
  };
  const running = osd?.data ?? "";
  await refused(t, await osdStart(8, running), { says: /in use|locked|used by|belongs to/ });
  await refused(t, await osdStart(0, running), { says: /in use|locked|used by|runs/ });

  const copy = join(scratch, "copy");
  mkdirSync(copy);
  cpSync(join(running, "superblock"), join(copy, "superblock"));
  await refused(t, await osdStart(8, copy), { says: /belongs to osd\.0, not osd\.8/ });

  const newer = join(scratch, "newer");
  mkdirSync(newer);
  const [json = ""] = readFileSync(join(copy, "superblock"), "utf8").split("\n");
  const changed = `${JSON.stringify({ ...(JSON.parse(json) as object), version: 99 })}\n`;
  const sum = crc32(Buffer.from(changed)).toString(16).padStart(8, "0");
  writeFileSync(join(newer, "superblock"), `${changed}${sum}\n`);
  await refused(t, await osdStart(0, newer), { says: /version 99[\s\S]*(newer|install)/ });

  const damaged = join(scratch, "damaged");
  mkdirSync(damaged);
  writeFileSync(join(damaged, "superblock"), json.replace("osd", "ost"));
  await refused(t, await osdStart(0, damaged), { says: /checksum|damaged/ });

  const photos = join(scratch, "photos");
  mkdirSync(photos);
  writeFileSync(join(photos, "1.jpg"), "x");
  await refused(t, await osdStart(8, photos), { says: /not empty[\s\S]*1\.jpg[\s\S]*choose/ });
  t.same(
    readdirSync(photos).filter((name) => name !== "lock"),
    ["1.jpg"],
  );

  const file = join(scratch, "file");
  writeFileSync(file, "x");
  await refused(t, await osdStart(8, file), { says: /not a directory|is a file|exists/ });
  t.equal(readFileSync(file, "utf8"), "x");
  for (const folder of [copy, newer, damaged]) {
    const made = readdirSync(folder).filter((name) => !["superblock", "lock"].includes(name));
    t.same(made, [], `nothing was made in ${folder}`);
  }
});

await t.test("mount points that are busy, missing, full or no directories", async (t) => {
  await refused(t, ["mount", cluster.mount], { says: /already mounted[\s\S]*dss umount/ });
  await refused(t, ["mount", join(scratch, "missing")], { says: /does not exist[\s\S]*mkdir/ });
  t.notOk(existsSync(join(scratch, "missing")));
  const full = join(scratch, "full");
  mkdirSync(full);
  writeFileSync(join(full, "x"), "");
  await refused(t, ["mount", full], { says: /not empty/ });
  await refused(t, ["mount", join(full, "x")], { says: /not a directory/ });
  const link = join(scratch, "link");
  symlinkSync(cluster.mount, link);
  await refused(t, ["mount", link], { says: /already mounted/ });
  await refused(t, ["umount", full], { says: /nothing is mounted/ });
  await refused(t, ["umount", "/proc"], { says: /mounted at \/proc/ });
  const up = ["cluster", "up", "--data", cluster.data, "--mount", join(scratch, "elsewhere")];
  await refused(t, up, { code: 2, says: /mounted at/ });
  t.notOk(existsSync(join(scratch, "elsewhere")));
  const table = readFileSync("/proc/self/mountinfo", "utf8");
  t.equal(table.split("\n").filter((line) => line.includes(scratch)).length, 0, "no mount is left");
});

await t.test("a mount point that is in use is not taken away", async (t) => {
  const second = await cluster.mountAgain("busy");
  writeFileSync(join(second, "held"), "x");
  const tail = start(t, "tail", ["-f", join(second, "held")]);
  await tail.output(/x/);
  await refused(t, ["umount", second], { says: /in use by tail[\s\S]*--force/ });
  t.equal(readFileSync(join(second, "held"), "utf8"), "x", "it still works");
  await tail.stop();
  await cluster.ok(["umount", second], { withinMs: 30_000 });
});

await t.test("volumes: names, sizes, ranges", async (t) => {
  await cluster.ok(["volume", "create", "one", "16M"]);
  await refused(t, ["volume", "create", "one", "16M"], { says: /"?one"? .*exists|exists.*one/ });
  for (const verb of ["info", "rm", "serve"]) {
    await refused(t, ["volume", verb, "none"], { says: /no volume "?none"?/ });
  }
  await refused(t, ["volume", "read", "none", "0"], { says: /no volume "?none"?/ });
  await refused(t, ["volume", "write", "none", "0", "x"], { says: /no volume "?none"?/ });
  for (const size of ["-1", "0", "1.5K3", "99999999T", "1e9", "", "100B", "NaN", "0x10"]) {
    await refused(t, ["volume", "create", "bad", "--", size], { code: 2, says: /size|argument/ });
  }
  for (const name of ["", "a/b", "a b", "x".repeat(300), "a\nb"]) {
    const result = await cluster.dss(["volume", "create", "--", name, "16M"]);
    t.ok(result.code === 1 || result.code === 2, `name ${JSON.stringify(name)} is refused`);
    t.match(result.stderr, /^dss: /);
    t.notMatch(result.stderr, /\n\s+at |internal error/);
  }
  await refused(t, ["volume", "read", "one", "16M", "1"], { says: /beyond the end/ });
  await refused(t, ["volume", "read", "one", "--", "-1", "1"], { code: 2, says: /negative/ });
  await refused(t, ["volume", "write", "one", "16777215", "xy"], { says: /beyond the end/ });
  await refused(t, ["volume", "create", "bad", "1", "--pool", "none"], { says: /no pool "none"/ });
  interface Volume {
    name: string;
  }
  const volumes = await cluster.json<Volume[]>(["volume", "ls"]);
  t.same(
    volumes.map(({ name }) => name),
    ["one"],
    "nothing was made",
  );
  await cluster.ok(["volume", "rm", "one"]);
});

await t.test("things that are not there", async (t) => {
  for (const verb of ["out", "in", "rm"]) {
    await refused(t, ["osd", verb, "42"], { says: /osd\.42|OSD 42/ });
  }
  await refused(t, ["osd", "reweight", "42", "1"], { says: /osd\.42|OSD 42/ });
  await refused(t, ["osd", "reweight", "0", "--", "-1"], { code: 2, says: /weight/ });
  await refused(t, ["pg", "show", "9.99"], { says: /9\.99/ });
  await refused(t, ["pg", "locate", "none", "x"], { says: /no pool "none"/ });
});

// ---- Bytes that are no protocol ----------------------------------------------------------------

/** Sends bytes and waits until the other side has closed; what it answered is returned. */
async function send(target: { port: number } | { path: string }, bytes: Buffer, end = true) {
  const socket = connect({ host: "127.0.0.1", ...target });
  let answer = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => (answer = Buffer.concat([answer, chunk])));
  socket.on("error", () => undefined); // A reset is as good as an end.
  const closed = new Promise<void>((done) => socket.on("close", () => done()));
  socket.on("connect", () => (end ? socket.end(bytes) : socket.write(bytes)));
  let isClosed = false;
  void closed.then(() => (isClosed = true));
  await waitFor("the connection is closed", () => isClosed, { withinMs: 20_000 });
  return answer;
}

/** A frame header with right checksums, so that only its lengths are judged. */
function header(fields: { type?: number; body?: number; data?: number; version?: number }): Buffer {
  const head = Buffer.alloc(40);
  head.writeUInt32LE(0x44535321, 0);
  head.writeUInt16LE(fields.version ?? 1, 4);
  head.writeUInt16LE(fields.type ?? 2, 6);
  head.writeUInt32LE(1, 8);
  head.writeUInt32LE(fields.body ?? 0, 24);
  head.writeUInt32LE(fields.data ?? 0, 28);
  head.writeUInt32LE(crc32(head.subarray(0, 32)), 32);
  head.writeUInt32LE(0, 36);
  return head;
}

const random = new Prng(9);
/** `ends` is false for what must be refused before the sender has finished. */
const GARBAGE: readonly { what: string; bytes: Buffer; ends: boolean }[] = [
  { what: "random bytes", bytes: random.bytes(5_000), ends: false },
  { what: "HTTP", bytes: Buffer.from("GET / HTTP/1.1\r\n\r\n".repeat(4)), ends: false },
  { what: "zeros", bytes: Buffer.alloc(4_096), ends: false },
  { what: "a body of 4 GiB", bytes: header({ body: 0xffffffff }), ends: false },
  { what: "data of 4 GiB", bytes: header({ data: 0xffffffff }), ends: false },
  { what: "a frame of another version", bytes: header({ version: 77 }), ends: false },
  { what: "an unknown message", bytes: header({ type: 65_534 }), ends: false },
  { what: "a header with a flipped bit", bytes: flipped(header({}), 100), ends: false },
  { what: "half a header", bytes: header({}).subarray(0, 20), ends: true },
  { what: "a body that never comes", bytes: header({ body: 1_000 }), ends: true },
  { what: "nothing", bytes: Buffer.alloc(0), ends: true },
];

function flipped(bytes: Buffer, bit: number): Buffer {
  const copy = Buffer.from(bytes);
  const at = bit >> 3;
  copy[at] = (copy[at] ?? 0) ^ (1 << (bit & 7));
  return copy;
}

interface Addresses {
  osds: { id: number; address: string }[];
}
interface Mds {
  id: number;
  address: string;
}
const portOf = (address: string): number => Number(address.split(":").at(-1));

await t.test("garbage and oversized frames on the port of every daemon", async (t) => {
  const { osds } = await cluster.json<Addresses>(["status"]);
  const mds = await cluster.json<Mds[]>(["mds", "ls"]);
  const targets = [
    ...osds.map(({ id, address }) => ({ name: `osd.${id}`, port: portOf(address) })),
    ...mds.map(({ id, address }) => ({ name: `mds.${id}`, port: portOf(address) })),
  ];
  t.equal(targets.length, 5);
  const { processes } = await cluster.status();
  for (const { name, port } of targets) {
    const log = processes.find((each) => each.name === name)?.log ?? "";
    for (const { what, bytes, ends } of GARBAGE) {
      const from = statSync(log).size;
      await send({ port }, bytes, ends);
      const added = readFileSync(log).subarray(from).toString("utf8").trim();
      const lines = added === "" ? [] : added.split("\n");
      const about = lines.filter((line) => /connection|frame/.test(line));
      t.ok(about.length <= 1, `${name}, ${what}: at most one line\n${added}`);
      if (!ends) t.equal(about.length, 1, `${name}, ${what}: one line`);
      t.notMatch(added, /"level":"error"|\\n +at /, `${name}, ${what}: no error, no stack`);
    }
  }
  t.same(await pids(), before, "nobody died");
});

await t.test("garbage and oversized requests on the NBD port", async (t) => {
  const { server, socket: path } = await cluster.serve("nbd", 16 * 2 ** 20);
  const steady = await NbdClient.connect(path, "nbd");
  await steady.write(0, Buffer.alloc(4096, 7), { fua: true });
  const option = Buffer.alloc(20);
  option.writeUInt32BE(3, 0);
  option.write("IHAVEOPT", 4, "latin1");
  option.writeUInt32BE(7, 12);
  option.writeUInt32BE(0xfffffff0, 16);
  const cases = [...GARBAGE, { what: "an option of 4 GiB", bytes: option, ends: false }];
  for (const { what, bytes, ends } of cases.filter((each) => !/version|unknown/.test(each.what))) {
    const lines = server.stderr.split("\n").length;
    await send({ path }, bytes, ends);
    const added = server.stderr
      .split("\n")
      .slice(lines - 1)
      .join("\n");
    t.ok(added.trim().split("\n").length <= 2, `${what}: no flood of lines\n${added}`);
    t.notMatch(added, /\\n +at /, `${what}: no stack`);
    t.ok(server.running, `${what}: the server lives on`);
    t.ok((await steady.read(0, 4096)).equals(Buffer.alloc(4096, 7)), `${what}: others go on`);
  }
  // Requests that are out of range are answered with an error, and the connection goes on.
  await t.rejects(steady.read(16 * 2 ** 20, 4096), /NBD error/);
  await t.rejects(steady.write(16 * 2 ** 20 - 1, Buffer.alloc(2)), /NBD error/);
  t.ok((await steady.read(0, 4096)).equals(Buffer.alloc(4096, 7)));
  await t.rejects(NbdClient.connect(path, "none"), /refused/);
  steady.close();
  await server.stop();
});

await t.test("nothing of all this is left", async (t) => {
  t.same(await pids(), before, "the same processes run");
  await cluster.healthy();
  writeFileSync(join(cluster.mount, "works"), "as before");
  t.equal(readFileSync(join(cluster.mount, "works"), "utf8"), "as before");
});

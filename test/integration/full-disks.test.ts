/**
 * OSDs on disks of 300 MB, filled to the brim through the mount and through NBD: ENOSPC and no
 * other error, everything acknowledged is there with the right bytes, also after all OSDs were
 * killed while full; deletes make room, and everything goes on by itself.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, statfsSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { Cluster } from "../support/cluster.js";
import type { FillRequest, Filled } from "../support/filler.js";
import { loopDisk } from "../support/loop-disk.js";
import { NbdClient } from "../support/nbd-client.js";
import { BUILD, succeed } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const MiB = 2 ** 20;
const DISK_BYTES = 300 * MiB;
const FILE_BYTES = 6 * MiB;
const VOLUME_BYTES = 512 * MiB;
const NBD_ENOSPC = "NBD error 28";

const folder = tempFolder(t, "full");
const disks = [0, 1, 2].map((id) => loopDisk(t, folder, `disk.${id}`, DISK_BYTES));
const cluster = new Cluster(t, {
  folder,
  osds: 3,
  env: {
    DSS_OSD_WAL_SEGMENT_BYTES: "16M",
    DSS_OSD_WAL_SEGMENTS: "3",
    DSS_OSD_OVERLAY_BYTES_MAX: "16M",
    DSS_OSD_RESERVE_BYTES: "16M",
    DSS_POOL_PGS: "16",
  },
});

interface Health {
  status: string;
  checks: { code: string }[];
}
const codes = async (): Promise<string[]> =>
  (await cluster.json<Health>(["health"])).checks.map(({ code }) => code);
const fill = async (request: Partial<FillRequest>): Promise<Filled> => {
  const all = { do: "fill", folder: cluster.mount, fileBytes: FILE_BYTES, filesMax: 1, ...request };
  const args = [`${BUILD}test/support/filler.js`, JSON.stringify(all)];
  const text = await succeed(t, process.execPath, args, { withinMs: 120_000 });
  return JSON.parse(text) as Filled;
};
const wrong = async (files: Filled["files"]): Promise<string[]> =>
  (await fill({ do: "verify", files })).wrong;
const available = (): number => {
  const { bavail, bsize } = statfsSync(cluster.mount);
  return bavail * bsize;
};
/** The mount's log has a line for every write-back that failed. */
const failures = async (): Promise<number> => {
  const [mount] = await cluster.processes("mount");
  const lines = readFileSync(mount!.log, "utf8").split("\n");
  return lines.filter((line) => line.includes("write-back failed")).length;
};

await t.test("the stores move to small disks", async () => {
  await cluster.up();
  await cluster.healthy();
  await cluster.down();
  for (const [id, disk] of disks.entries()) {
    const store = join(cluster.data, `osd.${id}`);
    execFileSync("cp", ["-a", `${store}/.`, disk]);
    rmSync(store, { recursive: true });
    symlinkSync(disk, store);
  }
  await cluster.up();
  await cluster.healthy();
});

const random = new Prng(31);
const volume: { offset: number; data: Buffer }[] = [];
let kept: Filled["files"] = [];

/** OSDs say every few seconds what they have: df of right after a burst is of before it. */
async function settledAvailable(): Promise<number> {
  for (let last = available(); ;) {
    await new Promise((done) => setTimeout(done, 4_000));
    const now = available();
    if (Math.abs(now - last) < MiB) return now;
    last = now;
  }
}
async function serve(): Promise<{ client: NbdClient; end: () => Promise<void> }> {
  const { server, socket } = await cluster.serve("v", VOLUME_BYTES);
  const client = await NbdClient.connect(socket, "v");
  const end = async (): Promise<void> => {
    client.close();
    await server.stop();
  };
  return { client, end };
}
async function differing(client: NbdClient): Promise<number[]> {
  const found: number[] = [];
  for (const { offset, data } of volume) {
    if (!(await client.read(offset, data.length)).equals(data)) found.push(offset);
  }
  return found;
}

await t.test("filled through the mount and through NBD: ENOSPC, and nothing else", async (t) => {
  const { client, end } = await serve();
  const write = async (offset: number): Promise<void> => {
    const data = random.bytes(MiB);
    await client.write(offset, data);
    volume.push({ offset, data });
  };
  for (let i = 0; i < 60; i++) await write(i * 2 * MiB);
  await client.flush();
  const before = await settledAvailable();
  t.ok(before > 50 * MiB && before < DISK_BYTES, `df: ${before} available`);
  const filled = await fill({ prefix: "a", seed: 1, filesMax: 100 });
  kept = filled.files;
  t.match(filled.error, /^ENOSPC at (write|fsync|close)$/);
  const bytes = kept.length * FILE_BYTES;
  t.comment(`${kept.length} files, ${bytes} bytes of the ${before} that df had promised`);
  t.ok(bytes > before * 0.8 && bytes <= before + 4 * MiB, "df had told the truth");
  let failure = "";
  for (let i = 0; i < 60 && failure === ""; i++) {
    await write(VOLUME_BYTES / 2 + i * MiB).catch((error: Error) => (failure = error.message));
  }
  t.equal(failure, NBD_ENOSPC);
  t.same(await differing(client), [], "the volume's bytes");
  await end();
  t.ok((await codes()).includes("OSD_FULL"), "health says so");
  await waitFor("df shows that it is full", () => available() < FILE_BYTES);
});

await t.test("a write that nobody waits for says so at close, and does not spin", async (t) => {
  const small = await fill({ prefix: "b", seed: 2, fileBytes: MiB, filesMax: 40 });
  t.match(small.error, /^ENOSPC at /);
  kept.push(...small.files);
  const dd = ["if=/dev/zero", `of=${join(cluster.mount, "zeros")}`, "bs=1M", "count=20"];
  await t.rejects(succeed(t, "dd", dd), /No space left on device/);
  await new Promise((done) => setTimeout(done, 1_000));
  const first = await failures();
  t.ok(first > 0, "the mount's log tells");
  await new Promise((done) => setTimeout(done, 3_000));
  t.equal(await failures(), first, "no write is tried again and again");
});

await t.test("killed while full: everything acknowledged is there, still full", async (t) => {
  await cluster.killRoles("osd");
  await cluster.up();
  await cluster.remount();
  await waitFor("all is served", async () => !(await codes()).includes("PG_INACTIVE"), {
    withinMs: 30_000,
  });
  t.same(await wrong(kept), [], "no byte of a file is wrong");
  const { client, end } = await serve();
  t.same(await differing(client), [], "nor of the volume");
  const data = Buffer.alloc(4 * MiB, 1);
  await t.rejects(client.write(VOLUME_BYTES - 8 * MiB, data), { message: NBD_ENOSPC });
  await end();
  t.ok((await codes()).includes("OSD_FULL"));
});

await t.test("deletes make room, and everything goes on by itself", async (t) => {
  const gone = kept.splice(0, Math.floor(kept.length / 2));
  for (const [name] of gone) rmSync(join(cluster.mount, name));
  await waitFor("df shows the room", () => available() > (gone.length * FILE_BYTES) / 2, {
    withinMs: 30_000,
    everyMs: 250,
  });
  const again = await fill({ prefix: "c", seed: 3, filesMax: 5 });
  t.equal(again.error, "");
  t.same(await wrong([...kept, ...again.files]), []);
  await cluster.healthy();
  const { client, end } = await serve();
  await client.write(VOLUME_BYTES - 8 * MiB, Buffer.alloc(4 * MiB, 1));
  t.same(await differing(client), []);
  await end();
  await cluster.remount();
  t.same(await wrong([...kept, ...again.files]), []);
});

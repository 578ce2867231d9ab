/**
 * A mount does not die with the process that serves it: programs on it go on, with their open files
 * and locks, when its worker is killed and when another version takes over.
 */
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { mkdirSync, readdirSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import t from "tap";
import { isGone, startCluster } from "../../support/cluster.js";
import { start, succeed } from "../../support/process.js";
import { tempFolder, waitFor } from "../../support/temp.js";

const cluster = await startCluster(t);

const WRITER = `
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for i in range(int(sys.argv[2])):
    os.write(fd, bytes([i % 256]) * 4096)
    if i == 10: print("begun", flush=True)
    time.sleep(0.01)
os.fsync(fd)
os.close(fd)
`;

async function worker(): Promise<{ pid: number; supervisor: number }> {
  const [mount] = await cluster.processes("mount");
  const { pid, supervisor = 0 } = mount!;
  return { pid, supervisor };
}
/** Resolves when another one serves. */
async function killWorker(): Promise<void> {
  const { pid } = await worker();
  await cluster.kill([pid]);
  await waitFor("another worker", async () => {
    const next = (await worker()).pid;
    return next !== pid && next > 0 ? true : undefined;
  });
}

/** `npm run campaign worker-kill` does more of it. */
await t.test("its worker is killed while programs work", async (t) => {
  const before = await worker();
  t.not(before.pid, before.supervisor);
  const source = join(tempFolder(t, "source"), "tree");
  mkdirSync(source);
  for (let i = 0; i < 20; i++) {
    mkdirSync(join(source, `d${i}`));
    for (let j = 0; j < 15; j++) {
      writeFileSync(join(source, `d${i}`, `f${j}`), Buffer.alloc(1024 * (j + 1), i * 16 + j));
    }
  }
  // Synced data of a file that stays open; a lock, and who waits for it.
  const path = join(cluster.mount, "open");
  const file = openSync(path, "w+");
  writeSync(file, "synced");
  fsyncSync(file);
  const lockFile = join(cluster.mount, "lock");
  const over = join(tempFolder(t, "lock"), "over");
  const hold = `echo held; while [ ! -e ${over} ]; do sleep 0.1; done`;
  const holder = start(t, "flock", [lockFile, "sh", "-c", hold]);
  await holder.output(/held/);
  const waiter = start(t, "flock", [lockFile, "echo", "got it"]);
  // What is not synced may be lost with the worker: each file is, and is written again if not.
  const copy = `cd ${source} && find . -type d -exec mkdir -p ${cluster.mount}/tree/{} \\; &&
    find . -type f | while read f; do
      until dd if="$f" of="${cluster.mount}/tree/$f" conv=fsync status=none 2>> /dev/null; do
        echo again
      done
    done; echo done`;
  const copying = start(t, "bash", ["-c", copy]);
  for (let kill = 0; kill < 3; kill++) {
    await waitFor("progress", () => readdirSync(cluster.mount).includes("tree") || undefined);
    await killWorker();
  }
  await copying.output(/done/, 120_000);
  const again = copying.stdout.match(/again/g)?.length ?? 0;
  t.ok(again <= 3, `${again} files had unsynced data when a worker was killed`);
  await succeed(t, "diff", ["-r", source, join(cluster.mount, "tree")]);
  t.notMatch(waiter.stdout, /got it/, "it waits still");
  writeFileSync(over, "");
  t.equal((await holder.exited).code, 0);
  t.equal((await waiter.exited).code, 0, "who waited for a lock has got it");
  t.equal(readFileSync(path, "utf8"), "synced");
  writeSync(file, " and more", 6);
  fsyncSync(file);
  closeSync(file);
  t.equal(readFileSync(path, "utf8"), "synced and more");
  const { supervisor } = await worker();
  t.equal(supervisor, before.supervisor);
});

function ask(request: object): Promise<{ done: boolean; error?: string; pid: number }> {
  const folder = join(cluster.data, "run", "mounts");
  const name = readdirSync(folder).find((each) => each.endsWith(".sock"));
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = connect(join(folder, name ?? "none"));
    socket.on("data", (chunk) => (text += String(chunk))).on("error", reject);
    socket.on("close", () => resolve(JSON.parse(text) as { done: boolean; pid: number }));
    socket.write(`${JSON.stringify(request)}\n`);
  });
}

await t.test("another version takes over, and nothing is lost", async (t) => {
  const before = await worker();
  const path = join(cluster.mount, "upgraded");
  const file = openSync(path, "w+");
  const blocks = 400;
  const writing = start(t, "python3", ["-c", WRITER, join(cluster.mount, "stream"), `${blocks}`]);
  await writing.output(/begun/);
  writeSync(file, "not synced");
  await cluster.ok(["mount", cluster.mount, "--upgrade"], { withinMs: 60_000 });
  const next = await worker();
  t.not(next.pid, before.pid);
  t.equal(next.supervisor, before.supervisor);
  fsyncSync(file);
  t.equal(readFileSync(path, "utf8"), "not synced");
  const bogus = join(tempFolder(t, "bogus"), "main.js");
  writeFileSync(bogus, "throw new Error('not a worker');\n");
  const refused = await ask({ upgrade: bogus });
  t.match(refused, { done: false, error: /the old one goes on/ });
  writeSync(file, "!", 10);
  fsyncSync(file);
  closeSync(file);
  t.equal(readFileSync(path, "utf8"), "not synced!", "the version of before serves again");
  t.equal((await writing.exited).code, 0, writing.tail());
  t.equal(readFileSync(join(cluster.mount, "stream")).length, blocks * 4096);
});

await t.test("without its supervisor it ends in good order", async (t) => {
  const { pid, supervisor } = await worker();
  writeFileSync(join(cluster.mount, "last"), "bytes");
  await cluster.kill([supervisor]);
  await waitFor("the worker's end", () => isGone(pid), { withinMs: 60_000 });
  await cluster.up();
  t.equal(readFileSync(join(cluster.mount, "last"), "utf8"), "bytes", "what was written is there");
  await cluster.ok(["umount", cluster.mount], { withinMs: 60_000 });
});

await t.test(
  "with nobody left to answer it can be taken away, and who waits hears so",
  async (t) => {
    const path = tempFolder(t, "orphan");
    await cluster.ok(["mount", path], { withinMs: 60_000 });
    writeFileSync(join(path, "file"), "bytes");
    const of = async (what: string): Promise<number> =>
      Number(await succeed(t, "pgrep", ["-f", `${what} ${path}( |$)`]));
    const [served, supervisor] = [await of("main.js mount"), await of("program.js")];
    // As one of its threads that the kernel does not let go.
    process.kill(served, "SIGSTOP");
    t.teardown(() => cluster.kill([served]));
    await cluster.kill([supervisor]);
    const reader = start(t, "cat", [join(path, "other")]);
    await waitFor("the reader's wait", () =>
      /fuse|request_wait/.test(readFileSync(`/proc/${reader.pid}/wchan`, "utf8")),
    );
    await cluster.ok(["umount", "--force", path], { withinMs: 30_000 });
    t.not((await reader.exited).code, 0);
    t.notOk(readFileSync("/proc/mounts", "utf8").includes(path));
  },
);

await t.test("told so, a mount ends with its worker", async (t) => {
  const path = tempFolder(t, "mortal");
  t.teardown(() => cluster.dss(["umount", path]));
  await cluster.ok(["mount", path, "--client-restart-worker", "never"], { withinMs: 60_000 });
  writeFileSync(join(path, "mortal"), "bytes");
  const pid = Number(await succeed(t, "pgrep", ["-f", `mount ${path} --worker`]));
  await cluster.kill([pid]);
  await waitFor("the mount's end", () => !readFileSync("/proc/mounts", "utf8").includes(path));
});

await t.test("a mount that is stuck ends, and who waits gets an error", async (t) => {
  const path = tempFolder(t, "stuck");
  const log = join(tempFolder(t, "log"), "mount");
  t.teardown(() => cluster.dss(["umount", path]));
  const settings = ["--client-abort-stuck-ms", "4s", "--log", log];
  await cluster.ok(["mount", path, ...settings], { withinMs: 60_000 });
  const osds = (await cluster.processes("osd")).map(({ pid }) => pid);
  for (const pid of osds) process.kill(pid, "SIGSTOP");
  try {
    const target = `of=${join(path, "file")}`;
    const writer = start(t, "dd", ["if=/dev/zero", target, "count=1", "conv=fsync"]);
    const { code } = await writer.exited;
    t.not(code, 0);
    t.match(writer.stderr, /fsync failed|closing/);
    await waitFor("the mount's end", () => !readFileSync("/proc/mounts", "utf8").includes(path));
  } finally {
    for (const pid of osds) process.kill(pid, "SIGCONT");
  }
  t.match(readFileSync(log, "utf8"), /fsync of inode \d+ has had no answer.*is given up/);
});

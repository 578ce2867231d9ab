/** What `dss mount -o`, mount(8) and fstab do, on further mounts of a cluster that runs. */
import {
  appendFileSync,
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readlinkSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { ROOT } from "../../tools/test-parts.js";
import type { Cluster } from "../support/cluster.js";
import { run, succeed } from "../support/process.js";

const MOUNT_MS = 60_000;
const HELPER = "/sbin/mount.dss";

/**
 * Puts this tree's helper where mount(8) looks for it, in the place of another checkout's, which may
 * be gone, and puts the other one back afterwards.
 */
function useOwnHelper(t: Test): void {
  const found = lstatSync(HELPER, { throwIfNoEntry: false });
  const before = found === undefined ? undefined : readlinkSync(HELPER);
  rmSync(HELPER, { force: true });
  symlinkSync(join(ROOT, "bin", "mount-dss"), HELPER);
  t.teardown(() => {
    rmSync(HELPER);
    if (before !== undefined) symlinkSync(before, HELPER);
  });
}

function read(path: string): string {
  const fd = openSync(path, "r");
  try {
    const data = Buffer.alloc(100);
    return data.toString("utf8", 0, readSync(fd, data, 0, 100, 0));
  } finally {
    closeSync(fd);
  }
}
/** The code of what fails. */
const codeOf = (action: () => unknown): string | undefined => {
  try {
    action();
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  }
};

export async function optionsSuite(t: Test, cluster: Cluster): Promise<void> {
  const folder = join(cluster.mount, "options");
  const other = join(cluster.folder, "options");
  mkdirSync(folder);
  mkdirSync(other);
  const at = (name: string): string => join(other, "options", name);
  const mounted = async (options: string, work: () => unknown): Promise<void> => {
    await cluster.ok(["mount", other, "-o", options], { withinMs: MOUNT_MS });
    try {
      await work();
    } finally {
      await cluster.ok(["umount", other], { withinMs: MOUNT_MS });
    }
  };
  const old = new Date("2001-02-03T04:05:06Z");
  const older = new Date("2000-01-01T00:00:00Z");
  const atime = (name: string): number => statSync(at(name)).atimeMs;
  writeFileSync(join(folder, "f"), "bytes");

  await t.test("noatime: reads leave no trace; uid, gid and cache", async (t) => {
    await mounted("noatime,uid=1234,gid=4321,cache=none", () => {
      utimesSync(at("f"), older, old);
      t.equal(read(at("f")), "bytes");
      t.equal(atime("f"), older.getTime());
      const { uid, gid } = statSync(at("f"));
      t.same([uid, gid], [1234, 4321]);
      appendFileSync(at("f"), "!");
      t.equal(read(at("f")), "bytes!");
      utimesSync(at("f"), older, old);
    });
    t.equal(statSync(join(folder, "f")).uid, process.getuid!());
  });
  let first = 0;
  await t.test("relatime, as without an option: the first read after a change", async (t) => {
    await mounted("cache=8M", () => {
      t.equal(read(at("f")), "bytes!");
      first = atime("f");
      t.ok(first > old.getTime(), "it was older than the last change");
      t.equal(read(at("f")), "bytes!");
      t.equal(atime("f"), first);
    });
  });
  await t.test("strictatime, and ro: nothing changes and nothing can", async (t) => {
    let second = 0;
    await mounted("strictatime", () => {
      t.equal(atime("f"), first, "the leader was told");
      read(at("f"));
      second = atime("f");
      t.ok(second > first);
    });
    await mounted("ro,strictatime", () => {
      t.equal(
        codeOf(() => writeFileSync(at("g"), "")),
        "EROFS",
      );
      t.equal(read(at("f")), "bytes!");
      t.equal(atime("f"), second);
    });
  });
  await t.test("sync: what is written is there when its mount dies", async (t) => {
    await cluster.ok(["mount", other, "-o", "sync"], { withinMs: MOUNT_MS });
    const fd = openSync(at("s"), "w");
    writeSync(fd, "here");
    // Supervisor and worker at once: nobody goes on with what the mount has in memory.
    const whole = `mount(-supervisor-program.js)? ${other}( |$)`;
    const pids = (await succeed(t, "pgrep", ["-f", whole])).trim().split("\n").map(Number);
    t.equal(pids.length, 2, "supervisor and worker");
    await cluster.kill(pids);
    t.equal(readFileSync(join(folder, "s"), "utf8"), "here");
    t.not(
      codeOf(() => closeSync(fd)),
      "EBADF",
    );
    await cluster.dss(["umount", "--force", other], { withinMs: MOUNT_MS });
  });
  await t.test("what the mount is doing", async (t) => {
    const fd = openSync(join(folder, "f"), "r");
    const text = readFileSync(join(cluster.mount, ".dss", "status"), "utf8");
    const status = JSON.parse(text) as {
      mountpoint: string;
      open: { ino: number }[];
      operations: Record<string, { count: number }>;
    };
    t.equal(status.mountpoint, cluster.mount);
    t.ok(status.open.some(({ ino }) => ino === statSync(join(folder, "f")).ino));
    t.ok((status.operations["lookup"]?.count ?? 0) > 0);
    closeSync(fd);
    t.equal(
      codeOf(() => writeFileSync(join(cluster.mount, ".dss", "x"), "")),
      "EPERM",
    );
    t.notOk(readdirSync(cluster.mount).includes(".dss"));
  });
  await t.test("what is not known is refused with what is", async (t) => {
    for (const option of ["nosuch", "cache=lots", "uid=root"]) {
      const { code, stderr } = await cluster.dss(["mount", other, "-o", option]);
      t.not(code, 0);
      t.match(stderr, new RegExp(option));
    }
  });
  await t.test("mount -t dss and fstab", async (t) => {
    useOwnHelper(t);
    const { zookeeper } = await cluster.status();
    const table = join(cluster.folder, "fstab");
    writeFileSync(table, `${zookeeper} ${other} dss ro,noatime,nofail,_netdev 0 0\n`);
    const within = { withinMs: MOUNT_MS, env: cluster.env };
    for (const args of [
      ["-t", "dss", "-o", "ro", zookeeper, other],
      ["-T", table, other],
    ]) {
      const { code, stderr } = await run(t, "mount", args, within);
      t.equal(code, 0, stderr);
      t.equal(read(at("f")), "bytes!");
      t.equal(
        codeOf(() => writeFileSync(at("g"), "")),
        "EROFS",
      );
      const ended = await run(t, "umount", [other], within);
      t.equal(ended.code, 0, ended.stderr);
    }
  });
}

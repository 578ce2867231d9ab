/**
 * A FUSE connection outlives the process that serves it: the descriptor is held by another one, a
 * new process carries on with it, and the kernel sends again what was not answered
 * (FUSE_NOTIFY_RESEND). Who waits on the mount sees nothing but a delay. Needs root, /dev/fuse.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { INIT_FLAG2 } from "../../client-fs/fuse/abi.js";
import { threadPoolSize } from "../../client-fs/fuse/device.js";
import { start } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

const SERVER = fileURLToPath(new URL("./resumed-fs.js", import.meta.url));

class Server {
  readonly child: ChildProcess;
  output = "";

  constructor(fd: number, ...args: string[]) {
    this.child = spawn(process.execPath, [SERVER, ...args], {
      stdio: ["ignore", "pipe", "inherit", fd],
      env: { ...process.env, UV_THREADPOOL_SIZE: String(threadPoolSize()) },
    });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => (this.output += text));
  }
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    return await waitFor(String(pattern), () => pattern.exec(this.output) ?? undefined, {
      withinMs: 30_000,
    });
  }
  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await gone;
  }
}

t.test("a new process answers what a killed one had not", async (t) => {
  const mountpoint = join(tempFolder(t, "resume"), "mnt");
  mkdirSync(mountpoint);
  const fd = openSync("/dev/fuse", "r+");
  const servers: Server[] = [];
  t.teardown(async () => {
    spawnSync("umount", ["-i", "-l", mountpoint]);
    for (const server of servers) await server.kill();
    closeSync(fd);
  });
  const first = new Server(fd);
  servers.push(first);
  const options = "fd=3,rootmode=40000,user_id=0,group_id=0,default_permissions";
  const mounted = spawnSync(
    "mount",
    ["-i", "-t", "fuse", "-o", options, "--", "resumed", mountpoint],
    { stdio: ["ignore", "ignore", "inherit", fd] },
  );
  t.equal(mounted.status, 0);
  const [, negotiated = ""] = await first.until(/negotiated (.*)\n/);
  const maker = start(t, "sh", ["-c", 'mkdir "$1" && ls -d "$1"', "sh", join(mountpoint, "made")]);
  await first.until(/held/);
  await first.kill();
  t.ok(maker.running, "it waits");

  const second = new Server(fd, negotiated);
  servers.push(second);
  const [, resent] = await second.until(/resent (\w+)\n/);
  const { flags2 } = JSON.parse(negotiated) as { flags2: number };
  t.equal(resent, String((flags2 & INIT_FLAG2.HAS_RESEND) !== 0));
  if (resent !== "true") return; // Before Linux 6.9 there is nothing more to see.
  const { code } = await maker.exited;
  t.equal(code, 0, "and never learns of it");
  await second.until(/MKDIR 0/);
  t.equal(second.output.match(/MKDIR/g)?.length, 1, "made once");
  t.match(maker.stdout, /made/);
});

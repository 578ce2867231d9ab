/**
 * Both FUSE drivers under real programs: cp, tar, git, dd, fio. A child process mounts the file
 * system in memory (a process must not use its own mount); the programs run from here. Needs
 * root, /dev/fuse, libfuse2, git, fio, python3.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import t, { type Test } from "tap";
import { isDssError } from "../../cluster/base/errors.js";
import { silentLogger } from "../../cluster/base/log.js";
import { mountFileSystem, threadPoolSize } from "../../client-fs/fuse/device.js";
import { MemoryFileSystem } from "./memory-fs.js";

const exec = promisify(execFile);
const HOST = fileURLToPath(new URL("./memory-fs.js", import.meta.url));
const COMMAND_MS = 60_000;
const { O_RDONLY, O_CREAT, O_EXCL, O_WRONLY } = fs.constants;

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "fuse-driver-"));
fs.chmodSync(scratch, 0o755); // Other users come here too.
const hosts = new Set<Host>();

/** The process that holds a mount. */
class Host {
  readonly child: ChildProcess;
  readonly exited: Promise<number | null>;
  output = "";
  errors = "";

  constructor(
    driver: string,
    readonly mountpoint: string,
  ) {
    this.child = spawn(process.execPath, [HOST, driver, mountpoint], {
      env: { ...process.env, UV_THREADPOOL_SIZE: String(threadPoolSize("threads")) },
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => (this.output += text));
    this.child.stderr!.setEncoding("utf8").on("data", (text: string) => (this.errors += text));
    this.exited = new Promise((resolve) => this.child.on("exit", (code) => resolve(code)));
    hosts.add(this);
  }

  async until(pattern: RegExp): Promise<RegExpMatchArray> {
    for (const end = Date.now() + 20_000; Date.now() < end;) {
      const match = pattern.exec(this.output);
      if (match) return match;
      if (this.child.exitCode !== null) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`host did not print ${pattern}: ${this.output} ${this.errors}`);
  }
  async ask(command: string, pattern: RegExp): Promise<RegExpMatchArray> {
    this.output = "";
    this.child.stdin!.write(`${command}\n`);
    return await this.until(pattern);
  }
  async stop(): Promise<void> {
    hosts.delete(this);
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGKILL");
      await this.exited;
    }
    await exec("umount", ["-l", this.mountpoint]).catch(() => undefined);
  }
}

async function start(driver: string, name: string): Promise<Host> {
  const mountpoint = path.join(scratch, name);
  fs.mkdirSync(mountpoint, { recursive: true });
  const host = new Host(driver, mountpoint);
  await host.until(/ready/);
  return host;
}

async function run(command: string, args: string[], cwd = scratch): Promise<string> {
  const { stdout } = await exec(command, args, {
    cwd,
    timeout: COMMAND_MS,
    maxBuffer: 16 * 1024 * 1024,
    env: { ...process.env, LC_ALL: "C", GIT_CONFIG_GLOBAL: "/dev/null", HOME: scratch },
  });
  return stdout;
}
const shell = (script: string, cwd: string): Promise<string> => run("bash", ["-ec", script], cwd);

async function errnoOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "none";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

t.teardown(async () => {
  for (const host of [...hosts]) await host.stop();
  fs.rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
});

/** A tree with awkward names, links and sizes around the page and request limits. */
function makeTree(root: string): void {
  fs.mkdirSync(path.join(root, "deep/er/est"), { recursive: true });
  const sizes = [0, 1, 4095, 4096, 4097, 131_072, 1_048_575, 1_048_577, 3_000_000];
  for (const size of sizes) {
    const data = Buffer.alloc(size);
    for (let i = 0; i < size; i++) data[i] = (i * 31 + size) & 0xff;
    fs.writeFileSync(path.join(root, `deep/f${size}`), data);
  }
  fs.writeFileSync(path.join(root, "deep/er/ümläut and spaces\nnewline"), "x");
  fs.writeFileSync(path.join(root, "deep/er/est/run"), "#!/bin/sh\n", { mode: 0o755 });
  fs.symlinkSync("../f4096", path.join(root, "deep/er/link"));
  fs.symlinkSync("nowhere", path.join(root, "deep/dangling"));
}

for (const driver of ["kernel", "kernel-threads", "fuse-native"]) {
  t.test(`driver ${driver}`, { timeout: 240_000 }, async (t) => {
    const host = await start(driver, driver);
    const at = (...parts: string[]): string => path.join(host.mountpoint, ...parts);
    t.teardown(() => host.stop());

    await t.test("shows up in the mount table", async (t) => {
      const table = fs.readFileSync("/proc/self/mountinfo", "utf8");
      const line = table.split("\n").find((l) => l.includes(` ${host.mountpoint} `)) ?? "";
      t.match(line, / - fuse\.dss dss /);
      t.match(await run("df", [host.mountpoint]), /^dss /m);
    });

    await t.test("cp -r and tar keep every byte", async (t) => {
      const source = path.join(scratch, `${driver}-source`);
      makeTree(source);
      await run("cp", ["-r", source, at("copy")]);
      await run("diff", ["-r", "--no-dereference", source, at("copy")]);
      await shell(`tar cf all.tar copy && mkdir un && tar xf all.tar -C un`, host.mountpoint);
      await run("diff", ["-r", "--no-dereference", source, at("un/copy")]);
      t.equal(fs.statSync(at("un/copy/deep/er/est/run")).mode & 0o777, 0o755);
      t.equal(fs.readlinkSync(at("un/copy/deep/er/link")), "../f4096");
    });

    await t.test("git init, commit, clone, fsck", async (t) => {
      const git = `git -c user.email=a@example.org -c user.name=a`;
      await shell(
        `git init -q r && cd r && for i in $(seq 30); do echo $i > f$i; done && git add . &&
         ${git} commit -qm one && git mv f1 g1 && ${git} commit -qm two && git gc -q`,
        host.mountpoint,
      );
      await shell(`git clone -q r clone && cd clone && git fsck --strict`, host.mountpoint);
      t.equal((await run("git", ["rev-list", "--count", "HEAD"], at("clone"))).trim(), "2");
    });

    await t.test("names: rename, links, exclusive create, the errors POSIX wants", async (t) => {
      const p = fs.promises;
      await p.mkdir(at("n/d"), { recursive: true });
      await p.writeFile(at("n/a"), "a");
      await p.writeFile(at("n/b"), "b");
      await p.link(at("n/a"), at("n/hard"));
      t.equal((await p.stat(at("n/hard"))).nlink, 2);
      await p.rename(at("n/a"), at("n/b"));
      t.equal(await p.readFile(at("n/b"), "utf8"), "a");
      t.equal(await errnoOf(p.stat(at("n/a"))), "ENOENT");
      t.equal(await errnoOf(p.open(at("n/b"), O_WRONLY | O_CREAT | O_EXCL)), "EEXIST");
      t.equal(await errnoOf(p.rmdir(at("n"))), "ENOTEMPTY");
      t.equal(await errnoOf(p.unlink(at("n/d"))), "EISDIR");
      t.equal(await errnoOf(p.rmdir(at("n/b"))), "ENOTDIR");
      t.equal(await errnoOf(p.writeFile(at("n", "x".repeat(256)), "")), "ENAMETOOLONG");
      await p.rename(at("n/d"), at("n/e"));
      await p.chmod(at("n/b"), 0o4711);
      await p.chown(at("n/b"), 12, 34);
      const { mode, uid, gid } = await p.stat(at("n/b"));
      t.same([mode & 0o777, uid, gid], [0o711, 12, 34]);
      t.match(await errnoOf(p.truncate(at("n/none"), 1)), "ENOENT");
      await p.utimes(at("n/b"), 1_000_000, 1_000_000);
      t.equal((await p.stat(at("n/b"))).mtimeMs, 1_000_000_000);
    });

    await t.test("sparse files, truncation, an open file that was unlinked", async (t) => {
      const p = fs.promises;
      await shell(
        `dd if=/dev/urandom of=s bs=1M count=3 seek=20 status=none &&
         dd if=s bs=1M skip=20 status=none | cmp - <(tail -c 3145728 s) &&
         cmp -n 20971520 s /dev/zero`,
        host.mountpoint,
      );
      const stat = await p.stat(at("s"));
      t.equal(stat.size, 23 * 1024 * 1024);
      t.ok(stat.blocks * 512 < 4 * 1024 * 1024, "holes take no room");
      await p.truncate(at("s"), 1000);
      await p.truncate(at("s"), 5000);
      t.same(await p.readFile(at("s")), Buffer.alloc(5000));
      const file = await p.open(at("gone"), "w+");
      await file.write("still here");
      await p.unlink(at("gone"));
      const { buffer, bytesRead } = await file.read(Buffer.alloc(20), 0, 20, 0);
      t.equal(buffer.toString("utf8", 0, bytesRead), "still here");
      await file.close();
    });

    await t.test("a directory of 3,000 names", async (t) => {
      await shell(`mkdir many && cd many && seq 3000 | xargs touch`, host.mountpoint);
      t.equal((await shell(`ls -1 many | sort -u | wc -l`, host.mountpoint)).trim(), "3000");
      t.equal((await shell(`ls -l many | wc -l`, host.mountpoint)).trim(), "3001");
      await shell(`rm -r many`, host.mountpoint);
    });

    await t.test("extended attributes", async (t) => {
      const out = await run("python3", [
        "-c",
        `import os, sys, errno
f = sys.argv[1]
os.setxattr(f, "user.one", b"1" * 300)
os.setxattr(f, "user.two", b"")
print(sorted(os.listxattr(f)), len(os.getxattr(f, "user.one")), os.getxattr(f, "user.two"))
os.removexattr(f, "user.one")
for call in (lambda: os.getxattr(f, "user.one"), lambda: os.setxattr(f, "user.two", b"", 1)):
    try: call()
    except OSError as e: print(errno.errorcode[e.errno])`,
        at("n/b"),
      ]);
      t.equal(out, "['user.one', 'user.two'] 300 b''\nENODATA\nEEXIST\n");
    });

    await t.test("fio verifies what it wrote", async () => {
      const direct = ["--direct=1", "--ioengine=libaio", "--iodepth=8"];
      await run("fio", [
        "--name=v", `--directory=${host.mountpoint}`, "--rw=randrw", "--bsrange=512-256k",
        "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--numjobs=2", "--minimal",
        "--blockalign=512", ...(driver === "fuse-native" ? [] : direct),
      ]); // prettier-ignore
    });

    if (driver !== "fuse-native") await kernelOnly(t, host, at);

    await t.test("nothing is left of removed files once the kernel forgets them", async (t) => {
      await shell(`rm -rf -- *`, host.mountpoint);
      let inodes = "";
      for (let i = 0; i < 100 && inodes !== "1"; i++) {
        fs.writeFileSync("/proc/sys/vm/drop_caches", "2");
        inodes = (await host.ask("inodes", /inodes (\d+)/))[1]!;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      t.equal(inodes, "1", "the root alone");
    });

    await t.test("umount says busy, then ends the host after it has flushed", async (t) => {
      fs.writeFileSync(at("open"), "x");
      const fd = fs.openSync(at("open"), O_RDONLY);
      t.match(await errnoOf(run("umount", [host.mountpoint])), /32/);
      fs.closeSync(fd);
      await run("umount", [host.mountpoint]);
      t.equal(await host.exited, 0, host.errors);
      t.match(host.output, /destroyed/);
      t.same(fs.readdirSync(host.mountpoint), []);
    });
  });
}

/** What only the kernel protocol can do. */
async function kernelOnly(t: Test, host: Host, at: (...parts: string[]) => string): Promise<void> {
  await t.test("files belong to their caller; others' writes clear set-uid", async (t) => {
    fs.mkdirSync(at("open-dir"));
    fs.chmodSync(at("open-dir"), 0o777);
    const as = ["--reuid=1234", "--regid=2345", "--clear-groups"];
    await run("setpriv", [...as, "bash", "-c", `umask 027; echo x > ${at("open-dir/mine")}`]);
    const { uid, gid, mode } = fs.statSync(at("open-dir/mine"));
    t.same([uid, gid, mode & 0o7777], [1234, 2345, 0o640]);
    fs.writeFileSync(at("secret"), "s", { mode: 0o600 });
    t.match(await errnoOf(run("setpriv", [...as, "cat", at("secret")])), "1");
    for (const how of [">>", ">"]) {
      fs.chmodSync(at("open-dir/mine"), 0o6775);
      await run("setpriv", [...as, "bash", "-c", `echo y ${how} ${at("open-dir/mine")}`]);
      t.equal(fs.statSync(at("open-dir/mine")).mode & 0o7777, 0o775, how);
    }
  });

  await t.test("rename flags, fallocate, SEEK_DATA and SEEK_HOLE", async (t) => {
    const out = await run("python3", [
      "-c",
      `import ctypes, errno, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(a, b, flags):
    r = libc.renameat2(-100, a, -100, b, flags)
    return errno.errorcode[ctypes.get_errno()] if r else "ok"
open("x", "w").write("X"); open("y", "w").write("Y")
print(*[renameat2(b"x", b"y", flag) for flag in (1, 2, 4)], open("x").read())
fd = os.open("z", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"d" * 65536, 65536 * 4)
print(*[os.lseek(fd, at, how) for at, how in ((0, 3), (0, 4), (65536 * 4, 4))])
r = libc.fallocate(fd, 3, ctypes.c_long(65536 * 4), ctypes.c_long(4096))
print(r, os.pread(fd, 4098, 65536 * 4).count(b"d"), os.fstat(fd).st_size)
try: os.lseek(fd, 10**9, os.SEEK_DATA)
except OSError as e: print(errno.errorcode[e.errno])
try: os.ftruncate(fd, 2**60)
except OSError as e: print(errno.errorcode[e.errno])`,
      host.mountpoint,
    ]);
    t.equal(out, "EEXIST ok EINVAL Y\n262144 0 327680\n0 2 327680\nENXIO\nEFBIG\n");
  });

  await t.test("notifications reach the kernel", async (t) => {
    fs.writeFileSync(at("cached"), "old");
    fs.readFileSync(at("cached"));
    const [, epoch, expected] = await host.ask("invalidate", /invalidated (\w+) (\w+)/);
    t.equal(epoch, expected, "INC_EPOCH works exactly where the kernel's version says so");
    t.equal(fs.readFileSync(at("cached"), "utf8"), "old");
  });

  await t.test("shared writable mappings of files opened with O_DIRECT or not", async (t) => {
    const out = await run("python3", [
      "-c",
      `import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
m = mmap.mmap(fd, 8192); m[4000:4200] = b"m" * 200; m.flush(); m.close(); os.close(fd)
print(open(sys.argv[1], "rb").read().count(b"m"))`,
      at("mapped"),
    ]);
    t.equal(out, "200\n");
  });
}

t.test("a dead daemon's mount is taken away by the next one", async (t) => {
  const first = await start("kernel", "dead");
  fs.writeFileSync(path.join(first.mountpoint, "x"), "x");
  first.child.kill("SIGKILL");
  await first.exited;
  t.equal(await errnoOf(fs.promises.stat(first.mountpoint)), "ENOTCONN");
  const second = new Host("kernel", first.mountpoint);
  await second.until(/ready/);
  t.same(fs.readdirSync(second.mountpoint), []);
  const third = new Host("kernel", second.mountpoint);
  await third.exited;
  t.match(third.errors, /already mounted/, "a live one is refused");
  hosts.delete(third);
  second.child.kill("SIGTERM");
  t.equal(await second.exited, 0);
  await first.stop();
  await second.stop();
});

t.test("clear errors for unusable mount points", async (t) => {
  const refused = async (mountpoint: string, code: Parameters<typeof isDssError>[1]) => {
    try {
      const mounted = await mountFileSystem(new MemoryFileSystem(), {
        mountpoint,
        logger: silentLogger,
      });
      await mounted.unmount({ lazy: true });
      t.fail(`mounted on ${mountpoint}`);
    } catch (error) {
      t.ok(isDssError(error, code), `${mountpoint}: ${String(error)}`);
    }
  };
  await refused(path.join(scratch, "missing"), "NotFound");
  fs.writeFileSync(path.join(scratch, "file"), "");
  await refused(path.join(scratch, "file"), "NotDirectory");
  fs.mkdirSync(path.join(scratch, "full/entry"), { recursive: true });
  await refused(path.join(scratch, "full"), "NotEmpty");
});

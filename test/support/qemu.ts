/**
 * A guest under qemu that brings what the host's kernel may lack: Debian's kernel with the nbd and
 * ext4 modules, busybox, nbd-client and e2fsprogs. Its first file system is packed here, from the
 * kernel's folder (prepared by tools/bootstrap.js, see guestFolder) and the host's programs with
 * their libraries. The guest reaches the host's loopback address as GUEST_HOST.
 *
 * A guest runs one shell script and powers off; nothing of it is left afterwards.
 */
import { copyFileSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { start, succeed } from "./process.js";
import { tempFolder, withDeadline, type Teardown } from "./temp.js";

/** The host's 127.0.0.1, seen from the guest. */
export const GUEST_HOST = "10.0.2.2";
const MEMORY_MIB = 384;
/** In the order in which they must be loaded. */
const MODULES = ["crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "nbd", "e1000"];
/** Programs of the host that the guest has besides busybox. */
const PROGRAMS = ["nbd-client", "mkfs.ext4", "e2fsck"];
const RESULT = /^RESULT (\S+) ?(.*?)\r?$/gm;

/** Where the guest's kernel is: the rule of tools/bootstrap.js, which also sets the variable. */
export function guestFolder(): string {
  const named = process.env["DSS_TEST_GUEST"];
  if (named !== undefined && named !== "") return named;
  return join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "dss", "guest");
}

export interface GuestOptions {
  /**
   * Runs as root in the guest's /bin/sh with `set -e`. What it prints goes to the console; lines
   * `RESULT name value` are what the test gets. `exit` ends the guest.
   */
  script: string;
  withinMs: number;
}

export interface GuestResult {
  /** The script's exit code. */
  code: number;
  results: ReadonlyMap<string, string>;
  console: string;
}

/** Boots the guest, runs the script and waits for its end; fails when it does not come. */
export async function runGuest(t: Teardown, options: GuestOptions): Promise<GuestResult> {
  if (!existsSync(join(guestFolder(), "complete"))) {
    throw new Error(`no guest kernel in ${guestFolder()}: "npm test" downloads it`);
  }
  const folder = tempFolder(t, "guest");
  const initrd = await packFileSystem(t, folder, options.script);
  const kernel = find("boot", (path) => path.startsWith("vmlinuz-"));
  const guest = start(t, "qemu-system-x86_64", [
    // Always emulated: /dev/kvm may be there and yet never get a guest off the ground.
    ...["-machine", "pc,accel=tcg"],
    ...["-m", String(MEMORY_MIB), "-smp", "1", "-nographic", "-no-reboot", "-nodefaults"],
    ...["-serial", "stdio"],
    ...["-kernel", kernel],
    ...["-initrd", initrd],
    ...["-append", "console=ttyS0 quiet panic=-1"],
    ...["-nic", "user,model=e1000"],
  ]);
  try {
    await withDeadline(options.withinMs, "the guest", guest.exited);
  } catch (cause) {
    await guest.stop();
    throw new Error(`${String(cause)}; its console:\n${guest.tail(60)}`, { cause });
  }
  const console = guest.stdout;
  const results = new Map<string, string>();
  for (const [, name, value] of console.matchAll(RESULT)) results.set(name!, value!);
  const code = results.get("exit");
  if (code === undefined) throw new Error(`the guest did not finish:\n${guest.tail(60)}`);
  return { code: Number(code), results, console };
}

/** Builds the initramfs; returns its path. */
async function packFileSystem(t: Teardown, folder: string, script: string): Promise<string> {
  const root = join(folder, "root");
  const put = (from: string, to: string): void => {
    const target = join(root, to);
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(from, target);
  };
  put(
    find("bin", (path) => path === "busybox"),
    "bin/busybox",
  );
  for (const name of MODULES) {
    put(
      find("lib/modules", (path) => path.endsWith(`/${name}.ko`)),
      `modules/${name}.ko`,
    );
  }
  for (const name of PROGRAMS) {
    const path = programPath(name);
    put(path, `sbin/${name}`);
    // `ldd` prints `name => /path (address)`, and only `/path (address)` for the loader.
    for (const [, library] of (await succeed(t, "ldd", [path])).matchAll(/(\/\S+) \(0x/g)) {
      put(library!, library!);
    }
  }
  for (const name of ["proc", "sys", "dev", "mnt", "tmp", "etc"]) {
    mkdirSync(join(root, name), { recursive: true });
  }
  writeFileSync(join(root, "etc/mtab"), "");
  writeFileSync(join(root, "script"), `set -e\n${script}\n`);
  writeFileSync(join(root, "init"), INIT, { mode: 0o755 });
  const initrd = join(folder, "initrd");
  const pack = 'find . | cpio --quiet -o -H newc > "$1"';
  await succeed(t, "sh", ["-c", pack, "sh", initrd], { cwd: root });
  return initrd;
}

const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin
/bin/busybox --install -s 2>/dev/null
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
for module in ${MODULES.join(" ")}; do insmod /modules/$module.ko || echo "no $module"; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via ${GUEST_HOST}
sh /script
echo "RESULT exit $?"
sync
poweroff -f
`;

/** The one file below a folder of the guest's packages whose path there matches. */
function find(folder: string, wanted: (path: string) => boolean): string {
  const base = join(guestFolder(), folder);
  const found = readdirSync(base, { recursive: true, encoding: "utf8" }).filter(wanted);
  if (found.length !== 1) throw new Error(`${base}: ${found.length} files instead of one`);
  return join(base, found[0]!);
}

function programPath(name: string): string {
  for (const folder of ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]) {
    const path = join(folder, name);
    if (existsSync(path)) return path;
  }
  throw new Error(`${name} is not installed on this machine`);
}

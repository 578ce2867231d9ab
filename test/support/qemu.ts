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
import { start, succeed, type Program } from "./process.js";
import { tempFolder, withDeadline, type Teardown } from "./temp.js";

/** The host's 127.0.0.1, seen from the guest. */
export const GUEST_HOST = "10.0.2.2";
const MEMORY_MIB = 384;
/** In the order in which they must be loaded. */
const EXT4_MODULES = ["crc16", "crc32c_generic", "mbcache", "jbd2", "ext4"];
const MODULES = [...EXT4_MODULES, "nbd", "e1000"];
/** What a root file system on a virtual disk needs. */
const DISK_MODULES = [
  ...["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"],
  ...["virtio_blk", ...EXT4_MODULES],
];
/** Programs of the host that the guest has besides busybox. */
const PROGRAMS = ["nbd-client", "mkfs.ext4", "e2fsck", "resize2fs"];
const RESULT = /^RESULT (\S+) ?(.*?)\r?$/gm;
const STEP = /^STEP (\S+)\r?$/gm;
const STEP_LOOK_MS = 100;

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
  /** Called once for each line `STEP name` that it prints, one after the other. */
  onStep?: (name: string) => Promise<void>;
  /**
   * Boots from a root file system on this disk (argument of qemu's `-blockdev`, without a node
   * name), whose /sbin/init is the script; else everything is in the kernel's memory.
   */
  rootDisk?: string;
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
  const { rootDisk } = options;
  const disk =
    rootDisk === undefined
      ? []
      : ["-blockdev", `${rootDisk},node-name=root`, "-device", "virtio-blk-pci,drive=root"];
  const initrd = await packFileSystem(t, folder, options);
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
    ...disk,
  ]);
  try {
    const steps = options.onStep === undefined ? [] : [followSteps(guest, options.onStep)];
    const end = Promise.all([guest.exited, ...steps]);
    await withDeadline(options.withinMs, "the guest", end);
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

/** Ends with the guest; fails with the first step that fails. */
async function followSteps(guest: Program, onStep: (name: string) => Promise<void>): Promise<void> {
  for (let done = 0; ;) {
    const isOver = !guest.running;
    const names = [...guest.stdout.matchAll(STEP)].map(([, name]) => name!);
    for (; done < names.length; done++) await onStep(names[done]!);
    if (isOver) return;
    await new Promise((resolve) => setTimeout(resolve, STEP_LOOK_MS));
  }
}

/** A tree for `mkfs.ext4 -d`, with the script as /sbin/init; see `rootDisk`. */
export async function rootTree(folder: string, script: string): Promise<string> {
  const root = join(folder, "tree");
  for (const name of ["bin", "sbin", "proc", "sys", "dev", "tmp", "etc", "data"]) {
    mkdirSync(join(root, name), { recursive: true });
  }
  copyFileSync(
    find("bin", (path) => path === "busybox"),
    join(root, "bin/busybox"),
  );
  writeFileSync(join(root, "script"), `set -e\n${script}\n`);
  writeFileSync(join(root, "sbin/init"), ROOT_INIT, { mode: 0o755 });
  return root;
}

/** Builds the initramfs; returns its path. */
async function packFileSystem(
  t: Teardown,
  folder: string,
  { script, rootDisk }: GuestOptions,
): Promise<string> {
  const root = join(folder, "root");
  const isDisk = rootDisk !== undefined;
  const put = (from: string, to: string): void => {
    const target = join(root, to);
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(from, target);
  };
  put(
    find("bin", (path) => path === "busybox"),
    "bin/busybox",
  );
  for (const name of isDisk ? DISK_MODULES : MODULES) {
    put(
      find("lib/modules", (path) => path.endsWith(`/${name}.ko`)),
      `modules/${name}.ko`,
    );
  }
  for (const name of isDisk ? [] : PROGRAMS) {
    const path = programPath(name);
    put(path, `sbin/${name}`);
    // `ldd` prints `name => /path (address)`, and only `/path (address)` for the loader.
    for (const [, library] of (await succeed(t, "ldd", [path])).matchAll(/(\/\S+) \(0x/g)) {
      put(library!, library!);
    }
  }
  for (const name of ["proc", "sys", "dev", "mnt", "tmp", "etc", "root"]) {
    mkdirSync(join(root, name), { recursive: true });
  }
  writeFileSync(join(root, "etc/mtab"), "");
  writeFileSync(join(root, "script"), `set -e\n${script}\n`);
  writeFileSync(join(root, "init"), isDisk ? DISK_INIT : INIT, { mode: 0o755 });
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

/** Finds the root file system and hands over to its init. */
const DISK_INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s 2>/dev/null
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in ${DISK_MODULES.join(" ")}; do insmod /modules/$module.ko || echo "no $module"; done
for i in $(seq 1 600); do [ -e /dev/vda ] && break; sleep 0.1; done
mount -t ext4 /dev/vda /root || { echo "no root file system"; poweroff -f; }
mount -o move /dev /root/dev
cd /root
mount -o move . /
exec chroot . /sbin/init
`;

/** The init of a root file system: runs /script, and shuts down as a machine does. */
const ROOT_INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin
/bin/busybox --install -s 2>/dev/null
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
echo # The kernel's last line has no end.
sh /script
code=$?
sync
mount -o remount,ro / || code=99
echo "RESULT exit $code"
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

/**
 * Debian packages that dss needs, by purpose: the only list of them. Plain JavaScript without
 * dependencies, because it runs before `npm ci`.
 *
 * `present` is what proves that a package is there: a file, or the name of a program. Asking the
 * file system instead of dpkg keeps the common case (nothing is missing) at a few milliseconds and
 * accepts programs that were installed in another way.
 */

/** @typedef {"up" | "test" | "bench" | "guest"} Purpose */

/** @type {readonly { name: string, present: string, purpose: Purpose, why: string }[]} */
export const PACKAGES = [
  {
    name: "zookeeper",
    present: "/usr/share/java/zookeeper.jar",
    purpose: "up",
    why: "coordination and metadata",
  },
  { name: "default-jre-headless", present: "java", purpose: "up", why: "runs ZooKeeper" },
  { name: "fuse3", present: "fusermount3", purpose: "up", why: "mounts without root" },
  { name: "nbd-client", present: "nbd-client", purpose: "up", why: "dss volume attach" },

  { name: "fio", present: "fio", purpose: "test", why: "load with verification" },
  { name: "libnbd-bin", present: "nbdcopy", purpose: "test", why: "an independent NBD client" },
  { name: "nbdkit", present: "nbdkit", purpose: "test", why: "an independent NBD client" },
  { name: "openssl", present: "openssl", purpose: "test", why: "certificates for encryption" },
  { name: "qemu-utils", present: "qemu-io", purpose: "test", why: "an independent NBD client" },
  { name: "strace", present: "strace", purpose: "test", why: "proves a sync before each answer" },
  { name: "sqlite3", present: "sqlite3", purpose: "test", why: "a database on the mount" },
  { name: "git", present: "git", purpose: "test", why: "repositories on the mount" },
  { name: "python3", present: "python3", purpose: "test", why: "system calls that Node lacks" },
  { name: "attr", present: "setfattr", purpose: "test", why: "extended attributes" },
  { name: "acl", present: "setfacl", purpose: "test", why: "access control lists" },
  { name: "procps", present: "ps", purpose: "test", why: "figures of processes" },
  { name: "psmisc", present: "fuser", purpose: "test", why: "finds users of a mount" },
  { name: "iproute2", present: "ip", purpose: "test", why: "network namespaces" },
  { name: "e2fsprogs", present: "mkfs.ext4", purpose: "test", why: "file systems on volumes" },

  { name: "dbench", present: "dbench", purpose: "bench", why: "load of a file server" },

  {
    name: "qemu-system-x86",
    present: "qemu-system-x86_64",
    purpose: "guest",
    why: "boots a kernel that has nbd",
  },
  { name: "cpio", present: "cpio", purpose: "guest", why: "packs the guest's first file system" },
];

/**
 * Packages that are only unpacked into a cache folder for the guest, never installed: installing a
 * kernel would run the boot loader's hooks, and busybox-static would displace busybox.
 * `depends` names a package whose newest dependency matching the pattern is meant.
 */
export const GUEST_PACKAGES = [
  { name: "linux-image", depends: "linux-image-amd64", pattern: /^linux-image-\d\S*-amd64$/ },
  { name: "busybox-static", depends: undefined, pattern: undefined },
];

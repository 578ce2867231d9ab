/**
 * A machine whose root file system is a dss volume: made with mkfs.ext4, copied to the volume, and
 * booted by qemu through its own NBD driver (virtio in the guest). The guest works on its root
 * while a test does what it wants to the cluster, and shuts down as machines do.
 */
import { join } from "node:path";
import { succeed } from "./process.js";
import { rootTree, runGuest, type GuestResult } from "./qemu.js";
import type { Teardown } from "./temp.js";

/** The volume's size, bytes. */
export const ROOT_BYTES = 96 * 2 ** 20;
const ROUNDS = 6;

/**
 * Every boot checks what the one before has left, and writes anew: files with their checksums,
 * many small ones, renames, removals, links, each round ended by a sync.
 */
const SCRIPT = `
if [ -e /data/sums ]; then
  (cd /data && sha256sum -c -s sums) && echo "RESULT earlier good"
else
  echo "RESULT earlier none"
fi
for round in $(seq 1 ${ROUNDS}); do
  echo "STEP round$round"
  mkdir -p /data/$round
  rm -rf /data/$round/*
  dd if=/dev/urandom of=/data/$round/large bs=64k count=64 2>/dev/null
  for i in $(seq 1 60); do echo "round $round file $i" > /data/$round/$i.new; done
  for i in $(seq 1 60); do mv /data/$round/$i.new /data/$round/$i; done
  for i in $(seq 1 3 60); do rm /data/$round/$i; done
  ln -f /data/$round/large /data/hard
  cp /bin/busybox /data/$round/busybox
  sync
  (cd /data && sha256sum $round/large $round/busybox $round/2 $round/3 >> sums.new)
  (cd /data && sha256sum -c -s sums.new) || exit 5
done
mv /data/sums.new /data/sums
sync
echo 3 > /proc/sys/vm/drop_caches
(cd /data && sha256sum -c -s sums) && echo "RESULT written good"
cmp /bin/busybox /data/1/busybox && echo "RESULT busybox same"
dmesg | grep -i "I/O error\\|EXT4-fs error\\|Remounting" && exit 9
echo "RESULT done yes"
`;

/** Makes the root file system on the export; its former bytes are gone. */
export async function makeRoot(t: Teardown, folder: string, uri: string): Promise<void> {
  const tree = await rootTree(folder, SCRIPT);
  const image = join(folder, "root.img");
  await succeed(t, "mkfs.ext4", ["-q", "-F", "-d", tree, image, `${ROOT_BYTES / 1024}K`]);
  await succeed(t, "nbdcopy", ["--flush", "--destination-is-zero", image, uri], {
    withinMs: 300_000,
  });
}

/** Boots it once. `onStep` is called when the guest begins "round1" to "round6". */
export function bootRoot(
  t: Teardown,
  disk: { socket: string; name: string },
  options: { withinMs: number; onStep: (name: string) => Promise<void> },
): Promise<GuestResult> {
  const { socket, name } = disk;
  const server = `server.type=unix,server.path=${socket}`;
  const rootDisk = `driver=nbd,${server},export=${name},discard=unmap,cache.direct=on`;
  return runGuest(t, { ...options, script: "", rootDisk });
}

/** `e2fsck -n -f` of a copy of the export. Fails unless it is clean. */
export async function checkRoot(t: Teardown, folder: string, uri: string): Promise<string> {
  const copy = join(folder, "after.img");
  await succeed(t, "nbdcopy", [uri, copy], { withinMs: 300_000 });
  return await succeed(t, "e2fsck", ["-n", "-f", copy], { withinMs: 120_000 });
}

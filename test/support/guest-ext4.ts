/**
 * What a Linux kernel does with a volume: the guest attaches an export through its own NBD client,
 * makes ext4 on it, fills it, reads it back after a remount, discards, and checks it.
 */
import { GUEST_HOST, runGuest, type GuestResult } from "./qemu.js";
import type { Teardown } from "./temp.js";

/** Bytes of the large file that the guest writes. */
export const GUEST_FILE_BYTES = 24 * 1024 * 1024;

/** Bytes of one that it deletes before it trims. */
export const GUEST_WASTE_BYTES = 24 * 1024 * 1024;

/** The device is attached anew until it is larger; then the file system grows into it. */
const GROW = (port: number, name: string): string => `
before=$(cat /sys/block/nbd0/size)
echo "STEP growing"
for i in $(seq 1 100); do
  nbd-client -d /dev/nbd0
  nbd-client ${GUEST_HOST} ${port} -N ${name} /dev/nbd0 -connections 4
  [ "$(cat /sys/block/nbd0/size)" -gt "$before" ] && break
  sleep 0.2
done
echo "RESULT grown $(cat /sys/block/nbd0/size)"
e2fsck -f -p /dev/nbd0
resize2fs /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
[ "$sum" = "$(sha256sum < /mnt/large)" ] && echo "RESULT after same"
umount /mnt
`;

const script = (port: number, name: string, grows: boolean): string => `
nbd-client ${GUEST_HOST} ${port} -N ${name} /dev/nbd0 -connections 4
echo "RESULT size $(cat /sys/block/nbd0/size)"
echo "RESULT discard $(cat /sys/block/nbd0/queue/discard_max_bytes)"
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
echo "STEP writing"
dd if=/dev/urandom of=/mnt/large bs=64k count=${GUEST_FILE_BYTES / 65_536} 2>/dev/null
mkdir -p /mnt/folder/deeper
for i in $(seq 1 200); do echo "file $i" > /mnt/folder/deeper/$i; done
dd if=/mnt/large of=/mnt/waste bs=64k count=${GUEST_WASTE_BYTES / 65_536} 2>/dev/null
echo "STEP copying"
cp -a /bin/busybox /mnt/folder/
ln /mnt/large /mnt/hard; ln -s ../large /mnt/folder/soft
sync
sum=$(sha256sum < /mnt/large)
umount /mnt
# Nothing of the page cache may answer for the volume.
echo 3 > /proc/sys/vm/drop_caches
nbd-client -d /dev/nbd0
nbd-client ${GUEST_HOST} ${port} -N ${name} /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
echo "STEP reading"
[ "$sum" = "$(sha256sum < /mnt/large)" ] && echo "RESULT large same"
cmp /bin/busybox /mnt/folder/busybox && echo "RESULT busybox same"
echo "RESULT files $(cat /mnt/folder/deeper/* | sha256sum | cut -c 1-64)"
echo "RESULT sum $(echo "$sum" | cut -c 1-64)"
rm /mnt/hard /mnt/folder/busybox /mnt/waste
sync # Blocks are free for the trim only when the journal says so.
fstrim /mnt && echo "RESULT fstrim done"
umount /mnt
${grows ? GROW(port, name) : ""}
e2fsck -n -f /dev/nbd0 && echo "RESULT fsck clean"
nbd-client -d /dev/nbd0
dmesg | grep -i "I/O error\\|EXT4-fs error" && exit 9
echo "RESULT done yes"
`;

/**
 * Runs the whole story against the export on the host's loopback port; about 15 s. `onStep` is
 * called when the guest begins "writing", "copying", "reading" and, with `grows`, "growing": then
 * the export has to become larger.
 */
export function ext4InGuest(
  t: Teardown,
  port: number,
  name: string,
  { grows = false, onStep }: { grows?: boolean; onStep?: (name: string) => Promise<void> } = {},
): Promise<GuestResult> {
  const steps = onStep === undefined ? {} : { onStep };
  return runGuest(t, { script: script(port, name, grows), withinMs: 400_000, ...steps });
}

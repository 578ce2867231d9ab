/**
 * What a Linux kernel does with a volume: the guest attaches an export through its own NBD client,
 * makes ext4 on it, fills it, reads it back after a remount, discards, and checks it.
 */
import { GUEST_HOST, runGuest, type GuestResult } from "./qemu.js";
import type { Teardown } from "./temp.js";

/** Bytes of the large file that the guest writes. */
export const GUEST_FILE_BYTES = 24 * 1024 * 1024;

const script = (port: number, name: string): string => `
nbd-client ${GUEST_HOST} ${port} -N ${name} /dev/nbd0 -connections 4
echo "RESULT size $(cat /sys/block/nbd0/size)"
echo "RESULT discard $(cat /sys/block/nbd0/queue/discard_max_bytes)"
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
echo "STEP writing"
dd if=/dev/urandom of=/mnt/large bs=64k count=${GUEST_FILE_BYTES / 65_536} 2>/dev/null
mkdir -p /mnt/folder/deeper
for i in $(seq 1 200); do echo "file $i" > /mnt/folder/deeper/$i; done
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
rm /mnt/hard /mnt/folder/busybox
fstrim /mnt && echo "RESULT fstrim done"
umount /mnt
e2fsck -n -f /dev/nbd0 && echo "RESULT fsck clean"
nbd-client -d /dev/nbd0
dmesg | grep -i "I/O error\\|EXT4-fs error" && exit 9
echo "RESULT done yes"
`;

/**
 * Runs the whole story against the export on the host's loopback port; about 15 s. `onStep` is
 * called when the guest begins "writing", "copying" and "reading".
 */
export function ext4InGuest(
  t: Teardown,
  port: number,
  name: string,
  onStep?: (name: string) => Promise<void>,
): Promise<GuestResult> {
  const steps = onStep === undefined ? {} : { onStep };
  return runGuest(t, { script: script(port, name), withinMs: 180_000, ...steps });
}

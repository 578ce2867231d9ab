/** The layouts of the FUSE protocol against the byte positions in include/uapi/linux/fuse.h. */
import t from "tap";
import { isDssError } from "../../../../cluster/base/errors.js";
import type { Attributes } from "../../../../client-fs/file-system.js";
import * as abi from "../../../../client-fs/fuse/abi.js";
import { OPCODES, rowOf } from "../../../../client-fs/fuse/opcodes.js";

const attributes: Attributes = {
  ino: 2 ** 40 + 7,
  mode: 0o100644,
  nlink: 3,
  uid: 1000,
  gid: 1001,
  rdev: 0x801,
  size: 2 ** 50 + 5,
  blocks: 9,
  blksize: 4096,
  atimeNs: 1_700_000_000_123_456_789n,
  mtimeNs: -1n, // 1 ns before 1970
  ctimeNs: 5n,
  btimeNs: 1_600_000_000_000_000_042n,
};

t.test("attributes lie where struct fuse_attr has them", (t) => {
  const message = Buffer.alloc(abi.ATTR_SIZE + 8, 0xff);
  abi.putAttributes(abi.viewOf(message), 8, attributes);
  t.equal(message.readBigUInt64LE(8), 2n ** 40n + 7n, "ino");
  t.equal(message.readBigUInt64LE(16), 2n ** 50n + 5n, "size");
  t.equal(message.readBigUInt64LE(24), 9n, "blocks");
  t.equal(message.readBigInt64LE(32), 1_700_000_000n, "atime");
  t.equal(message.readBigInt64LE(40), -1n, "mtime rounds down before 1970");
  t.equal(message.readBigInt64LE(48), 0n, "ctime");
  t.equal(message.readUInt32LE(56), 123_456_789, "atimensec");
  t.equal(message.readUInt32LE(60), 999_999_999, "mtimensec");
  t.equal(message.readUInt32LE(64), 5, "ctimensec");
  t.same(
    [68, 72, 76, 80, 84, 88, 92].map((at) => message.readUInt32LE(at)),
    [0o100644, 3, 1000, 1001, 0x801, 4096, 0],
    "mode, nlink, uid, gid, rdev, blksize, flags",
  );
  t.end();
});

t.test("an entry carries both validity times", (t) => {
  const message = Buffer.alloc(abi.ENTRY_OUT_SIZE, 0xff);
  const entry = { attributes, generation: 4, entryValidMs: 1_500, attributesValidMs: 250 };
  abi.putEntry(abi.viewOf(message), 0, entry);
  t.equal(message.readBigUInt64LE(0), 2n ** 40n + 7n);
  t.equal(message.readBigUInt64LE(8), 4n);
  t.equal(message.readBigUInt64LE(16), 1n, "entry_valid");
  t.equal(message.readBigUInt64LE(24), 0n, "attr_valid");
  t.equal(message.readUInt32LE(32), 500_000_000, "entry_valid_nsec");
  t.equal(message.readUInt32LE(36), 250_000_000, "attr_valid_nsec");
  t.end();
});

t.test("statx has its own layout, with the time of birth", (t) => {
  const message = Buffer.alloc(abi.STATX_OUT_SIZE + 8, 0xff);
  const device = { ...attributes, rdev: 0x1234_5678 };
  const entry = { attributes: device, generation: 4, entryValidMs: 1_500, attributesValidMs: 250 };
  abi.putStatxOut(abi.viewOf(message), 8, entry);
  t.equal(message.readUInt32LE(16), 250_000_000, "attr_valid_nsec");
  const stat = message.subarray(8 + 32);
  t.equal(stat.length, 256);
  t.equal(stat.readUInt32LE(0), 0xfff, "mask");
  t.same([stat.readUInt32LE(16), stat.readUInt32LE(20), stat.readUInt32LE(24)], [3, 1000, 1001]);
  t.equal(stat.readUInt16LE(28), 0o100644);
  t.same(
    [32, 40, 48].map((at) => stat.readBigUInt64LE(at)),
    [2n ** 40n + 7n, 2n ** 50n + 5n, 9n],
    "ino, size, blocks",
  );
  const time = (at: number): bigint =>
    stat.readBigInt64LE(at) * 1_000_000_000n + BigInt(stat.readUInt32LE(at + 8));
  t.equal(time(64), device.atimeNs);
  t.equal(time(80), device.btimeNs);
  t.equal(time(96), device.ctimeNs);
  t.equal(time(112), device.mtimeNs);
  // new_encode_dev(): minor 7-0, major 11-0, minor 19-8.
  t.same([stat.readUInt32LE(128), stat.readUInt32LE(132)], [0x456, 0x12378]);
  t.end();
});

t.test("u53 refuses what a number cannot hold", (t) => {
  const message = Buffer.alloc(8);
  message.writeBigUInt64LE(2n ** 53n - 1n);
  t.equal(abi.u53(message, 0), 2 ** 53 - 1);
  message.writeBigUInt64LE(2n ** 53n);
  try {
    abi.u53(message, 0, "FileTooLarge");
    t.fail("accepted 2^53");
  } catch (error) {
    t.ok(isDssError(error, "FileTooLarge"));
  }
  t.end();
});

t.test("times survive the way from the kernel and back", (t) => {
  for (const ns of [0n, 1n, -1n, -1_500_000_000n, 4_102_444_800_999_999_999n]) {
    const message = Buffer.alloc(abi.ATTR_SIZE);
    abi.putAttributes(abi.viewOf(message), 0, { ...attributes, mtimeNs: ns });
    t.equal(abi.timeNs(message, 32, 52), ns);
  }
  t.end();
});

t.test("notifications have unique 0 and their code for an error", (t) => {
  const inode = abi.invalidateInodeMessage(5, 4096, 8192);
  t.equal(inode.readUInt32LE(0), 40);
  t.equal(inode.readInt32LE(4), 2);
  t.equal(inode.readBigUInt64LE(8), 0n);
  t.same(
    [16, 24, 32].map((at) => inode.readBigUInt64LE(at)),
    [5n, 4096n, 8192n],
  );
  const entry = abi.invalidateEntryMessage(1, Buffer.from("name"));
  t.equal(entry.length, 16 + 16 + 5);
  t.equal(entry.readUInt32LE(24), 4);
  t.equal(entry.subarray(32).toString(), "name\0");
  t.same([abi.resendMessage().readInt32LE(4), abi.incrementEpochMessage().readInt32LE(4)], [7, 8]);
  t.end();
});

t.test("directory entries are padded to 8 bytes", (t) => {
  t.equal(abi.direntSize(1, false), 32);
  t.equal(abi.direntSize(8, false), 32);
  t.equal(abi.direntSize(9, false), 40);
  t.equal(abi.direntSize(1, true), 160);
  t.end();
});

t.test("every opcode up to Linux 6.18 has one row", (t) => {
  const gaps = [7, 19]; // Never assigned.
  for (let opcode = 1; opcode <= 53; opcode++) {
    const found = OPCODES.filter((row) => row.opcode === opcode);
    t.equal(found.length, gaps.includes(opcode) ? 0 : 1, `opcode ${opcode}`);
    t.equal(rowOf(opcode), found[0]);
  }
  t.equal(rowOf(4096)?.name, "CUSE_INIT");
  t.equal(rowOf(54), undefined);
  t.end();
});

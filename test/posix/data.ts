/** Scenarios on the bytes of files: append, truncate, holes, mappings, space, locks. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import { exec, fails, python, readRange, withOpen, writeAll } from "./checks.js";
import type { Scenarios } from "./checks.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const TIB = 1024 * 1024 * MIB;
/** What a file of the default layout is cut into. */
const OBJECT = 4 * MIB;

const pattern = (length: number, salt: number): Buffer => {
  const data = Buffer.allocUnsafe(length);
  for (let i = 0; i < length; i++) data[i] = (i * 31 + (i >> 8) * 7 + salt) & 0xff;
  return data;
};

export const DATA: Scenarios = {
  "append: every write lands at the end": ({ at }) => {
    withOpen(at("log"), "a", (one) => {
      withOpen(at("log"), "a", (two) => {
        for (let i = 0; i < 200; i++) fs.writeSync(i % 2 === 0 ? one : two, `${i}\n`);
      });
    });
    const lines = fs.readFileSync(at("log"), "utf8").trim().split("\n");
    assert.deepEqual(
      lines,
      Array.from({ length: 200 }, (_, i) => String(i)),
    );
    // An append goes to the end whatever position is asked for.
    withOpen(at("log"), "a", (fd) => void fs.writeSync(fd, "end", 0));
    assert.ok(fs.readFileSync(at("log"), "utf8").endsWith("199\nend"));
  },

  "append by several processes: nothing is lost or torn": async ({ at }) => {
    const script = 'for i in $(seq 150); do echo "$1-$i-xxxxxxxxxxxxxxxxxxxxxxxx" >> "$2"; done';
    await Promise.all(
      ["a", "b", "c"].map(
        (who) =>
          new Promise<void>((done, fail) => {
            const child = spawn("sh", ["-c", script, "sh", who, at("shared")]);
            child.on("error", fail);
            child.on("exit", (code) => (code === 0 ? done() : fail(new Error(`exit ${code}`))));
          }),
      ),
    );
    const lines = fs.readFileSync(at("shared"), "utf8").trim().split("\n");
    assert.equal(lines.length, 450);
    assert.equal(new Set(lines).size, 450);
    for (const line of lines) assert.match(line, /^[abc]-\d+-x{24}$/);
  },

  "holes take no space, and stat says so": ({ at }) => {
    const blocks = (): number => fs.statSync(at("f")).blocks * 512;
    const isAbout = (bytes: number): void => {
      // A local file system may count blocks that describe others.
      const found = blocks();
      assert.ok(found >= bytes && found <= bytes + 64 * KIB, `${found} for ${bytes}`);
    };
    withOpen(at("f"), "w+", (fd) => {
      fs.ftruncateSync(fd, TIB);
      isAbout(0);
      fs.writeSync(fd, pattern(MIB, 1), 0, MIB, TIB / 2);
      fs.fsyncSync(fd);
      isAbout(MIB);
      fs.writeSync(fd, pattern(MIB, 2), 0, MIB, 0);
      fs.fsyncSync(fd);
      isAbout(2 * MIB);
      fs.ftruncateSync(fd, MIB / 2);
      fs.fsyncSync(fd);
      isAbout(MIB / 2);
    });
    exec("fallocate", "--punch-hole", "--offset", "0", "--length", String(MIB / 4), at("f"));
    isAbout(MIB / 4);
    assert.equal(exec("du", "--block-size=1K", at("f")).split("\t")[0], String(blocks() / KIB));
  },

  "truncate: shorter, longer, zeros between": ({ at }) => {
    const data = pattern(OBJECT + 100 * KIB, 1);
    fs.writeFileSync(at("f"), data);
    fs.truncateSync(at("f"), OBJECT + 1);
    assert.equal(fs.statSync(at("f")).size, OBJECT + 1);
    fs.truncateSync(at("f"), OBJECT + 50 * KIB);
    const now = fs.readFileSync(at("f"));
    assert.ok(now.subarray(0, OBJECT + 1).equals(data.subarray(0, OBJECT + 1)));
    assert.ok(
      now.subarray(OBJECT + 1).every((byte) => byte === 0),
      "old bytes never come back",
    );
    fs.truncateSync(at("f"), 1_000);
    fs.truncateSync(at("f"), 3 * OBJECT);
    withOpen(at("f"), "r+", (fd) => {
      writeAll(fd, Buffer.from("mark"), 2 * OBJECT - 2);
      assert.ok(readRange(fd, 1_000, 2 * OBJECT - 1_002).every((byte) => byte === 0));
      assert.equal(readRange(fd, 2 * OBJECT - 2, 4).toString(), "mark");
      assert.ok(readRange(fd, 2 * OBJECT + 2, OBJECT).every((byte) => byte === 0));
    });
    fs.truncateSync(at("f"), 0);
    assert.equal(fs.readFileSync(at("f")).length, 0);
    fs.writeFileSync(at("f"), "new", { flag: "w" });
    assert.equal(fs.readFileSync(at("f"), "utf8"), "new");
    fails(() => fs.truncateSync(at("none"), 1), "ENOENT");
    fails(() => fs.truncateSync(at(), 1), "EISDIR");
    withOpen(at("f"), "r", (fd) => fails(() => fs.ftruncateSync(fd, 1), "EINVAL", "EBADF"));
  },

  "reading: at the end, beyond it, at a hole": ({ at }) => {
    fs.writeFileSync(at("f"), "12345");
    withOpen(at("f"), "r+", (fd) => {
      assert.equal(readRange(fd, 5, 10).length, 0);
      assert.equal(readRange(fd, 1_000_000, 10).length, 0);
      assert.equal(readRange(fd, 3, 10).toString(), "45");
      fs.writeSync(fd, "x", 100_000);
      const all = readRange(fd, 0, 200_000);
      assert.equal(all.length, 100_001);
      assert.ok(all.subarray(5, 100_000).every((byte) => byte === 0));
    });
    withOpen(at("f"), "w", (fd) => fails(() => fs.readSync(fd, Buffer.alloc(1)), "EBADF"));
    withOpen(at("f"), "r", (fd) => fails(() => fs.writeSync(fd, "x"), "EBADF"));
  },

  "a sparse file of 1 TiB": ({ at }) => {
    const marks = [0, TIB / 2 - 3, TIB - 8];
    const before = fs.statfsSync(at("."));
    withOpen(at("huge"), "w+", (fd) => {
      for (const offset of marks) writeAll(fd, Buffer.from("8 bytes!"), offset);
      fs.fsyncSync(fd);
      for (const offset of marks) assert.equal(readRange(fd, offset, 8).toString(), "8 bytes!");
      for (const offset of [MIB, TIB / 4 + 1, TIB - MIB]) {
        const hole = readRange(fd, offset, 64 * KIB);
        assert.equal(hole.length, 64 * KIB);
        assert.ok(hole.every((byte) => byte === 0));
      }
    });
    assert.equal(fs.statSync(at("huge")).size, TIB);
    const { bfree, bsize } = fs.statfsSync(at("."));
    const used = (before.bfree - bfree) * bsize;
    assert.ok(used <= 64 * MIB, `${used} bytes of the disk for three small pieces`);
    fs.truncateSync(at("huge"), 8);
    assert.equal(fs.readFileSync(at("huge"), "utf8"), "8 bytes!");
    fs.unlinkSync(at("huge"));
  },

  "shared and private mappings": ({ at }) => {
    const size = OBJECT + 64 * KIB;
    fs.writeFileSync(at("m"), pattern(size, 3));
    const out = python(
      `path, size, edge = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR)
m = mmap.mmap(fd, size)
print(m[edge - 2:edge + 2] == os.pread(fd, 4, edge - 2))
m[edge - 5000:edge + 5000] = b"M" * 10000
m.flush()
print(os.pread(fd, 10000, edge - 5000).count(b"M"))
os.pwrite(fd, b"W" * 100, 12345)
print(m[12345:12445] == b"W" * 100)
p = mmap.mmap(fd, size, mmap.MAP_PRIVATE)
p[0:4] = b"priv"
print(os.pread(fd, 4, 0) == b"priv")
p.close(); m.close(); os.fsync(fd); os.close(fd)`,
      at("m"),
      String(size),
      String(OBJECT),
    );
    assert.equal(out, "True\n10000\nTrue\nFalse\n");
    const expected = pattern(size, 3);
    expected.fill("M", OBJECT - 5_000, OBJECT + 5_000);
    expected.fill("W", 12_345, 12_445);
    assert.ok(fs.readFileSync(at("m")).equals(expected));
  },

  "direct, synchronous and vectored writes": ({ at }) => {
    const out = python(
      `path = sys.argv[1]
page = mmap.mmap(-1, 65536)
page[:] = b"D" * 65536
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
print(os.pwritev(fd, [page], 4194304 - 32768))
back = mmap.mmap(-1, 65536)
print(os.preadv(fd, [back], 4194304 - 32768), bytes(back) == bytes(page))
os.close(fd)
fd = os.open(path, os.O_RDWR | os.O_SYNC)
print(os.pwritev(fd, [b"abc", b"", b"defg"], 4194303))
print(os.pread(fd, 9, 4194302))
os.close(fd)
fd = os.open(path, os.O_RDWR | os.O_DSYNC)
print(os.pwrite(fd, b"x", 0), os.fstat(fd).st_size)`,
      at("d"),
    );
    assert.equal(out, "65536\n65536 True\n7\nb'DabcdefgD'\n1 4227072\n");
  },

  "locks: flock and fcntl keep others out": ({ at }) => {
    fs.writeFileSync(at("l"), "x");
    const out = python(
      `import subprocess
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
def other(kind):
    script = "import fcntl,os,sys\\nfd=os.open(sys.argv[1],os.O_RDWR)\\n" + \\
        "try:\\n fcntl.%s(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\\n print('got')\\n" % kind + \\
        "except OSError: print('refused')"
    return subprocess.check_output([sys.executable, "-c", script, path]).decode().strip()
for kind, call in (("flock", fcntl.flock), ("lockf", fcntl.lockf)):
    call(fd, fcntl.LOCK_EX)
    print(kind, other(kind))
    call(fd, fcntl.LOCK_UN)
    print(kind, other(kind))`,
      at("l"),
    );
    assert.equal(out, "flock refused\nflock got\nlockf refused\nlockf got\n");
  },

  "space: statfs, df, and blocks of a file": ({ at, root }) => {
    const space = fs.statfsSync(root);
    assert.ok(space.bsize >= 512 && space.blocks > 0, "there is room");
    assert.ok(space.bavail <= space.bfree && space.bfree <= space.blocks);
    const [, line = ""] = exec("df", "-B1", "--output=size,used,avail,target", root).split("\n");
    const [size = 0] = line.trim().split(/\s+/).map(Number);
    assert.ok(Math.abs(size - space.blocks * space.bsize) <= 0.01 * size, `df says ${line}`);
    assert.match(exec("df", "-i", root), /\d/);
    fs.writeFileSync(at("f"), pattern(MIB, 0));
    withOpen(at("f"), "r+", (fd) => fs.fsyncSync(fd));
    const { blocks } = fs.statSync(at("f"));
    assert.ok(blocks * 512 >= MIB && blocks * 512 <= OBJECT + MIB, `${blocks} blocks`);
  },
};

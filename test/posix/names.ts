/** Scenarios on names: directories, rename, links, listing while the directory changes. */
import assert from "node:assert/strict";
import * as fs from "node:fs";
import { createServer } from "node:net";
import { exec, fails, python, sorted, withOpen } from "./checks.js";
import type { Scenarios } from "./checks.js";

const { O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_WRONLY } = fs.constants;

export const NAMES: Scenarios = {
  "errors of creating and removing": ({ at }) => {
    fs.mkdirSync(at("d"));
    fs.writeFileSync(at("f"), "x");
    fs.writeFileSync(at("d/g"), "y");
    fails(() => fs.mkdirSync(at("d")), "EEXIST");
    fails(() => fs.mkdirSync(at("none/x")), "ENOENT");
    fails(() => fs.mkdirSync(at("f/x")), "ENOTDIR");
    fails(() => fs.rmdirSync(at("d")), "ENOTEMPTY");
    fails(() => fs.rmdirSync(at("f")), "ENOTDIR");
    fails(() => fs.unlinkSync(at("d")), "EISDIR", "EPERM");
    fails(() => fs.unlinkSync(at("none")), "ENOENT");
    fails(() => fs.openSync(at("f"), O_WRONLY | O_CREAT | O_EXCL), "EEXIST");
    fails(() => fs.openSync(at("d"), O_WRONLY), "EISDIR");
    fails(() => fs.openSync(at("f"), O_RDONLY | O_DIRECTORY), "ENOTDIR");
    fails(() => fs.openSync(at("f/"), O_RDONLY), "ENOTDIR");
    fails(() => fs.statSync(at("none")), "ENOENT");
    fails(() => fs.readdirSync(at("f")), "ENOTDIR");
    fs.unlinkSync(at("d/g"));
    fs.rmdirSync(at("d"));
    fails(() => fs.statSync(at("d/g")), "ENOENT");
    assert.deepEqual(fs.readdirSync(at()), ["f"]);
  },

  "exclusive create: one of many wins": async ({ at }) => {
    const tries = Array.from({ length: 24 }, async () => {
      const file = await fs.promises.open(at("lock"), O_WRONLY | O_CREAT | O_EXCL);
      await file.close();
    });
    const won = (await Promise.allSettled(tries)).filter(({ status }) => status === "fulfilled");
    assert.equal(won.length, 1);
  },

  "rename: over a file, over a directory, across directories": ({ at }) => {
    fs.writeFileSync(at("a"), "A");
    fs.writeFileSync(at("b"), "B");
    const { ino } = fs.statSync(at("a"));
    fs.renameSync(at("a"), at("b"));
    assert.equal(fs.readFileSync(at("b"), "utf8"), "A");
    assert.equal(fs.statSync(at("b")).ino, ino, "the inode moves with its name");
    fails(() => fs.statSync(at("a")), "ENOENT");

    fs.mkdirSync(at("one/sub"), { recursive: true });
    fs.mkdirSync(at("two"));
    fs.writeFileSync(at("one/sub/deep"), "deep");
    const links = fs.statSync(at("one")).nlink;
    fs.renameSync(at("one/sub"), at("two/moved"));
    assert.equal(fs.readFileSync(at("two/moved/deep"), "utf8"), "deep");
    assert.deepEqual(fs.readdirSync(at("one")), []);
    // Some file systems always show one link for a directory; those that count must count right.
    if (links === 3) {
      assert.equal(fs.statSync(at("one")).nlink, 2);
      assert.equal(fs.statSync(at("two")).nlink, 3);
    }
    assert.equal(fs.statSync(at("two/moved/..")).ino, fs.statSync(at("two")).ino);

    fs.mkdirSync(at("empty"));
    fs.renameSync(at("two/moved"), at("empty"));
    assert.deepEqual(fs.readdirSync(at("empty")), ["deep"]);
    fs.mkdirSync(at("other"));
    fails(() => fs.renameSync(at("other"), at("empty")), "ENOTEMPTY", "EEXIST");
    fails(() => fs.renameSync(at("b"), at("other")), "EISDIR");
    fails(() => fs.renameSync(at("other"), at("b")), "ENOTDIR");
    fails(() => fs.renameSync(at("empty"), at("empty/inside")), "EINVAL");
    fails(() => fs.renameSync(at("none"), at("b")), "ENOENT");
    fs.renameSync(at("b"), at("b"));
    fs.linkSync(at("b"), at("same"));
    fs.renameSync(at("b"), at("same"));
    assert.equal(fs.readFileSync(at("b"), "utf8"), "A", "two names of one file both stay");
    assert.equal(fs.statSync(at("same")).nlink, 2);
  },

  "rename over a file that is open": ({ at }) => {
    fs.writeFileSync(at("new"), "new");
    fs.writeFileSync(at("old"), "old");
    withOpen(at("old"), "r", (fd) => {
      fs.renameSync(at("new"), at("old"));
      assert.equal(fs.readFileSync(fd, "utf8"), "old");
      assert.equal(fs.fstatSync(fd).nlink, 0);
    });
    assert.equal(fs.readFileSync(at("old"), "utf8"), "new");
  },

  "rename with exchange and no-replace": ({ root, at }) => {
    fs.writeFileSync(at("x"), "X");
    fs.mkdirSync(at("y"));
    fs.writeFileSync(at("y/in"), "Y");
    const out = python(
      `os.chdir(sys.argv[1])
def r(a, b, flags): return code(libc.renameat2(-100, a, -100, b, flags))
print(r(b"x", b"y", 1), r(b"x", b"y", 2), r(b"x", b"none", 2), r(b"y", b"z", 1))`,
      root,
    );
    assert.equal(out, "EEXIST ok ENOENT ok\n");
    assert.equal(fs.readFileSync(at("x/in"), "utf8"), "Y");
    assert.equal(fs.readFileSync(at("z"), "utf8"), "X");
  },

  "symbolic links": ({ at }) => {
    const long = `${"x".repeat(200)}/`.repeat(15);
    fs.symlinkSync(long, at("long"));
    assert.equal(fs.readlinkSync(at("long")), long);
    assert.equal(fs.lstatSync(at("long")).size, long.length);
    fs.mkdirSync(at("d"));
    fs.writeFileSync(at("d/f"), "through");
    fs.symlinkSync("d", at("to-d"));
    fs.symlinkSync("../d/f", at("d/up"));
    assert.equal(fs.readFileSync(at("to-d/up"), "utf8"), "through");
    assert.ok(fs.lstatSync(at("to-d")).isSymbolicLink());
    fails(() => fs.rmdirSync(at("to-d")), "ENOTDIR");
    fs.symlinkSync("round", at("round"));
    fails(() => fs.openSync(at("round"), "r"), "ELOOP");
    fs.symlinkSync("missing", at("dangling"));
    fails(() => fs.statSync(at("dangling")), "ENOENT");
    fs.writeFileSync(at("dangling"), "made through the link");
    assert.equal(fs.readFileSync(at("missing"), "utf8"), "made through the link");
    fails(() => fs.readlinkSync(at("d/f")), "EINVAL");
    fails(() => fs.symlinkSync("x", at("long")), "EEXIST");
    fs.unlinkSync(at("to-d"));
    assert.equal(fs.readFileSync(at("d/f"), "utf8"), "through", "only the link is gone");
  },

  "hard links": ({ at }) => {
    fs.writeFileSync(at("a"), "1");
    fs.mkdirSync(at("d"));
    fs.linkSync(at("a"), at("d/b"));
    fs.appendFileSync(at("d/b"), "2");
    assert.equal(fs.readFileSync(at("a"), "utf8"), "12");
    assert.equal(fs.statSync(at("a")).nlink, 2);
    assert.equal(fs.statSync(at("a")).ino, fs.statSync(at("d/b")).ino);
    fails(() => fs.linkSync(at("d"), at("e")), "EPERM");
    fails(() => fs.linkSync(at("a"), at("d/b")), "EEXIST");
    fails(() => fs.linkSync(at("none"), at("e")), "ENOENT");
    fs.unlinkSync(at("a"));
    assert.equal(fs.statSync(at("d/b")).nlink, 1);
    assert.equal(fs.readFileSync(at("d/b"), "utf8"), "12");
    fs.symlinkSync("d/b", at("s"));
    fs.linkSync(at("s"), at("s2"));
    assert.ok(fs.lstatSync(at("s2")).isSymbolicLink(), "link(2) does not follow");
  },

  "a file lives on while it is open": ({ at }) => {
    fs.writeFileSync(at("f"), "here");
    withOpen(at("f"), "r+", (fd) => {
      fs.unlinkSync(at("f"));
      fails(() => fs.statSync(at("f")), "ENOENT");
      assert.equal(fs.fstatSync(fd).nlink, 0);
      fs.writeSync(fd, "still ", 0);
      fs.ftruncateSync(fd, 5);
      fs.writeSync(fd, "!", 5);
      const data = Buffer.alloc(10);
      assert.equal(fs.readSync(fd, data, 0, 10, 0), 6);
      assert.equal(data.toString("utf8", 0, 6), "still!");
      fs.fsyncSync(fd);
      fs.writeFileSync(at("f"), "another");
      assert.equal(fs.fstatSync(fd).size, 6, "a new file of the name is another file");
    });
    assert.equal(fs.readFileSync(at("f"), "utf8"), "another");
    fs.mkdirSync(at("d"));
    withOpen(at("d"), O_RDONLY | O_DIRECTORY, (fd) => {
      fs.rmdirSync(at("d"));
      assert.ok(fs.fstatSync(fd).isDirectory());
      fails(() => fs.writeFileSync(`/proc/self/fd/${fd}/new`, "x"), "ENOENT");
    });
  },

  "long names and strange names": ({ at, root }) => {
    const names = [
      "x".repeat(255),
      "ü".repeat(127),
      " leading and trailing ",
      "new\nline",
      "quote'\"\\",
      "-rf",
      "...",
      "日本語",
      "e\u0301 is not \u00e9",
    ];
    for (const name of names) fs.writeFileSync(at(name), name);
    assert.deepEqual(sorted(fs.readdirSync(root)), sorted(names));
    for (const name of names) assert.equal(fs.readFileSync(at(name), "utf8"), name);
    // Names are bytes: what is no UTF-8 is kept as it is.
    const bytes = Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 0x80])]);
    fs.writeFileSync(bytes, "bytes");
    assert.equal(fs.readFileSync(bytes, "utf8"), "bytes");
    assert.ok(fs.readdirSync(root, "buffer").some((name) => name[0] === 0xff && name.length === 3));
    fails(() => fs.writeFileSync(at("x".repeat(256)), ""), "ENAMETOOLONG");
    fails(() => fs.mkdirSync(at("x".repeat(256))), "ENAMETOOLONG");
    fails(() => fs.statSync(at("x".repeat(256))), "ENAMETOOLONG");
    fails(() => fs.renameSync(at("-rf"), at("x".repeat(256))), "ENAMETOOLONG");
    let deep = root;
    for (let i = 0; i < 30; i++) deep += `/${"d".repeat(60)}${i}`;
    fs.mkdirSync(deep, { recursive: true });
    fs.writeFileSync(`${deep}/bottom`, "bottom");
    assert.equal(fs.readFileSync(`${deep}/bottom`, "utf8"), "bottom");
  },

  "listing 5,000 names while they change": ({ at, scale }) => {
    const count = Math.max(400, Math.round(5_000 * scale));
    fs.mkdirSync(at("many"));
    const name = (i: number): string => at("many", `n${String(i).padStart(5, "0")}`);
    for (let i = 0; i < count; i++) fs.closeSync(fs.openSync(name(i), "w"));
    const seen = new Map<string, number>();
    const removed = new Set<string>();
    const directory = fs.opendirSync(at("many"), { bufferSize: 16 });
    let reads = 0;
    for (let entry = directory.readSync(); entry !== null; entry = directory.readSync()) {
      seen.set(entry.name, (seen.get(entry.name) ?? 0) + 1);
      if (++reads % 5 === 0 && reads < count) {
        const gone = `n${String((reads * 7) % count).padStart(5, "0")}`;
        fs.rmSync(at("many", gone), { force: true });
        removed.add(gone);
        fs.writeFileSync(at("many", `new${reads}`), "");
      }
    }
    directory.closeSync();
    for (const [found, times] of seen) assert.equal(times, 1, `${found} was listed ${times} times`);
    for (let i = 0; i < count; i++) {
      const each = `n${String(i).padStart(5, "0")}`;
      if (!removed.has(each)) assert.ok(seen.has(each), `${each} was there all the time`);
    }
    const now = fs.readdirSync(at("many"));
    assert.ok(![...removed].some((each) => now.includes(each)));
    assert.equal(new Set(now).size, now.length);
    fs.rmSync(at("many"), { recursive: true });
    fails(() => fs.statSync(at("many")), "ENOENT");
  },

  "fsync of a directory; a new file in it": ({ at }) => {
    fs.mkdirSync(at("d"));
    withOpen(at("d"), O_RDONLY | O_DIRECTORY, (fd) => {
      for (let i = 0; i < 20; i++) fs.writeFileSync(at("d", String(i)), String(i));
      fs.fsyncSync(fd);
      fs.fdatasyncSync(fd);
    });
    assert.equal(fs.readdirSync(at("d")).length, 20);
  },

  "fifos, sockets and their types": async ({ at, root, local }) => {
    exec("mkfifo", "-m", "640", at("fifo"));
    assert.ok(fs.statSync(at("fifo")).isFIFO());
    assert.equal(fs.statSync(at("fifo")).mode & 0o777, 0o640);
    const reader = fs.promises.readFile(at("fifo"), "utf8");
    await fs.promises.writeFile(at("fifo"), "through the pipe");
    assert.equal(await reader, "through the pipe");
    // A socket's path has at most 107 bytes, so it is made by a name relative to a link.
    const link = `${local}/s`;
    fs.symlinkSync(root, link);
    const server = createServer();
    await new Promise<void>((done, fail) => {
      server.once("error", fail);
      server.listen(`${link}/sock`, done);
    });
    assert.ok(fs.statSync(at("sock")).isSocket());
    await new Promise<void>((done) => server.close(() => done()));
    fs.unlinkSync(link);
    const types = new Map(
      fs.readdirSync(root, { withFileTypes: true }).map((each) => [each.name, each.isFIFO()]),
    );
    assert.equal(types.get("fifo"), true, "the listing says what it is");
  },
};

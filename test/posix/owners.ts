/** Scenarios on attributes: modes, owners, special bits, times, extended attributes. Need root. */
import assert from "node:assert/strict";
import * as fs from "node:fs";
import { asUser, exec, fails, withOpen } from "./checks.js";
import type { Scenarios } from "./checks.js";

const NOBODY = 65_534;
const FRIEND = 54_321;
const GROUP = 4_242;

const mode = (path: string): number => fs.statSync(path).mode & 0o7777;

export const OWNERS: Scenarios = {
  "modes and the umask": ({ at }) => {
    const before = process.umask(0o027);
    try {
      fs.writeFileSync(at("f"), "", { mode: 0o666 });
      fs.mkdirSync(at("d"), { mode: 0o777 });
    } finally {
      process.umask(before);
    }
    assert.equal(mode(at("f")), 0o640);
    assert.equal(mode(at("d")), 0o750);
    for (const bits of [0, 0o444, 0o755, 0o4755, 0o2711, 0o7777]) {
      fs.chmodSync(at("f"), bits);
      assert.equal(mode(at("f")), bits);
    }
  },

  "another user: what is forbidden is refused": ({ at }) => {
    fs.writeFileSync(at("secret"), "s", { mode: 0o600 });
    fs.writeFileSync(at("public"), "p", { mode: 0o644 });
    fs.mkdirSync(at("closed"), { mode: 0o700 });
    fs.mkdirSync(at("open"));
    fs.chmodSync(at("open"), 0o777);
    fs.mkdirSync(at("list-only"));
    fs.writeFileSync(at("list-only/f"), "x");
    fs.chmodSync(at("list-only"), 0o744);
    asUser(NOBODY, NOBODY, () => {
      fails(() => fs.readFileSync(at("secret")), "EACCES");
      assert.equal(fs.readFileSync(at("public"), "utf8"), "p");
      fails(() => fs.openSync(at("public"), "r+"), "EACCES");
      fails(() => fs.writeFileSync(at("closed/x"), ""), "EACCES");
      fails(() => fs.readdirSync(at("closed")), "EACCES");
      fails(() => fs.unlinkSync(at("public")), "EACCES");
      fails(() => fs.renameSync(at("public"), at("open/x")), "EACCES");
      assert.deepEqual(fs.readdirSync(at("list-only")), ["f"]);
      fails(() => fs.statSync(at("list-only/f")), "EACCES");
      fails(() => fs.chmodSync(at("public"), 0o777), "EPERM");
      fails(() => fs.chownSync(at("public"), NOBODY, NOBODY), "EPERM");
      fails(() => fs.utimesSync(at("public"), 1, 1), "EPERM");
      fs.writeFileSync(at("open/mine"), "mine", { mode: 0o640 });
      fails(() => fs.chownSync(at("open/mine"), 0, NOBODY), "EPERM");
    });
    const { uid, gid } = fs.statSync(at("open/mine"));
    assert.deepEqual([uid, gid, mode(at("open/mine"))], [NOBODY, NOBODY, 0o640]);
    asUser(FRIEND, NOBODY, () => {
      assert.equal(fs.readFileSync(at("open/mine"), "utf8"), "mine", "the group may read");
      fails(() => fs.openSync(at("open/mine"), "r+"), "EACCES");
    });
    fs.chownSync(at("open/mine"), FRIEND, GROUP);
    asUser(FRIEND, GROUP, () => fs.appendFileSync(at("open/mine"), "+"));
    asUser(NOBODY, NOBODY, () => fails(() => fs.readFileSync(at("open/mine")), "EACCES"));
    fs.lchownSync(at("open/mine"), 7, 8);
    assert.equal(fs.statSync(at("open/mine")).uid, 7);
  },

  "a set-group-id directory hands its group on": ({ at }) => {
    fs.mkdirSync(at("team"));
    fs.chownSync(at("team"), 0, GROUP);
    fs.chmodSync(at("team"), 0o2777);
    asUser(NOBODY, NOBODY, () => {
      fs.writeFileSync(at("team/f"), "");
      fs.mkdirSync(at("team/d"));
      fs.symlinkSync("f", at("team/l"));
      // One who is not in the file's group cannot set its set-group-id bit.
      fs.chmodSync(at("team/f"), 0o2755);
    });
    assert.equal(fs.statSync(at("team/f")).gid, GROUP);
    assert.equal(fs.lstatSync(at("team/l")).gid, GROUP);
    assert.equal(fs.statSync(at("team/d")).gid, GROUP);
    assert.equal(mode(at("team/d")) & 0o2000, 0o2000, "a directory hands the bit on too");
    assert.equal(mode(at("team/f")), 0o755);
  },

  "a sticky directory protects other people's names": ({ at }) => {
    fs.mkdirSync(at("tmp"));
    fs.chmodSync(at("tmp"), 0o1777);
    asUser(NOBODY, NOBODY, () => {
      fs.writeFileSync(at("tmp/his"), "");
      fs.chmodSync(at("tmp/his"), 0o666);
    });
    asUser(FRIEND, FRIEND, () => {
      fs.writeFileSync(at("tmp/other"), "");
      fs.appendFileSync(at("tmp/his"), "written by a friend");
      fails(() => fs.unlinkSync(at("tmp/his")), "EPERM", "EACCES");
      fails(() => fs.renameSync(at("tmp/his"), at("tmp/mine")), "EPERM", "EACCES");
      fails(() => fs.renameSync(at("tmp/other"), at("tmp/his")), "EPERM", "EACCES");
      fs.unlinkSync(at("tmp/other"));
    });
    asUser(NOBODY, NOBODY, () => fs.unlinkSync(at("tmp/his")));
    assert.deepEqual(fs.readdirSync(at("tmp")), []);
  },

  "writing, truncating and chown clear set-user-id": ({ at }) => {
    fs.writeFileSync(at("tool"), "x");
    for (const how of ["write", "truncate", "chown"] as const) {
      fs.chownSync(at("tool"), NOBODY, NOBODY);
      fs.chmodSync(at("tool"), 0o6777);
      if (how === "chown") fs.chownSync(at("tool"), FRIEND, FRIEND);
      else {
        asUser(FRIEND, FRIEND, () => {
          if (how === "write") withOpen(at("tool"), "r+", (fd) => void fs.writeSync(fd, "y"));
          else fs.truncateSync(at("tool"), 0);
        });
      }
      assert.equal(mode(at("tool")), 0o777, how);
    }
  },

  "times: what changes which": async ({ at }) => {
    fs.writeFileSync(at("f"), "x");
    fs.utimesSync(at("f"), 1_000_000_000.5, 1_234_567_890.25);
    const set = fs.statSync(at("f"), { bigint: true });
    assert.equal(set.mtimeNs, 1_234_567_890_250_000_000n);
    assert.equal(set.atimeNs, 1_000_000_000_500_000_000n);
    exec("touch", "-d", "@1.123456789", at("f"));
    assert.equal(fs.statSync(at("f"), { bigint: true }).mtimeNs, 1_123_456_789n);
    // Times may be those of the kernel's clock tick, so that "later" needs a moment.
    const tick = (): Promise<void> => new Promise((done) => setTimeout(done, 12));
    const times = (path: string) => fs.statSync(path, { bigint: true });
    const before = times(at("f"));
    await tick();
    fs.chmodSync(at("f"), 0o600);
    const changed = times(at("f"));
    assert.ok(changed.ctimeNs > before.ctimeNs, "chmod moves ctime");
    assert.equal(changed.mtimeNs, before.mtimeNs, "and not mtime");
    await tick();
    fs.appendFileSync(at("f"), "y");
    const written = times(at("f"));
    assert.ok(written.mtimeNs > changed.mtimeNs && written.ctimeNs > changed.ctimeNs);
    fs.mkdirSync(at("d"));
    const empty = times(at("d"));
    await tick();
    fs.writeFileSync(at("d/x"), "");
    const filled = times(at("d"));
    assert.ok(filled.mtimeNs > empty.mtimeNs, "a new name moves its directory's mtime");
    await tick();
    fs.unlinkSync(at("d/x"));
    assert.ok(times(at("d")).mtimeNs > filled.mtimeNs);
    const alone = times(at("f"));
    await tick();
    fs.linkSync(at("f"), at("g"));
    assert.ok(times(at("f")).ctimeNs > alone.ctimeNs, "a new link moves ctime");
    const age = Date.now() - Number(times(at("g")).ctimeNs / 1_000_000n);
    assert.ok(Math.abs(age) < 10_000, `clocks differ by ${age} ms`);
  },

  "extended attributes": ({ at }) => {
    fs.writeFileSync(at("f"), "x");
    fs.mkdirSync(at("d"));
    const value = "v".repeat(1_000);
    for (const path of [at("f"), at("d")]) {
      exec("setfattr", "-n", "user.one", "-v", value, path);
      exec("setfattr", "-n", "user.empty", path);
      exec("setfattr", "-n", "user.binary", "-v", "0x00ff0a00", path);
      assert.equal(exec("getfattr", "--only-values", "-n", "user.one", path), value);
      const all = exec("getfattr", "--absolute-names", "-d", "-e", "hex", path);
      assert.match(all, /^user\.binary=0x00ff0a00$/m);
      assert.match(all, /^user\.empty=(0x|"")?$/m);
      exec("setfattr", "-n", "user.one", "-v", "short", path);
      assert.equal(exec("getfattr", "--only-values", "-n", "user.one", path), "short");
      exec("setfattr", "-x", "user.one", path);
      assert.throws(() => exec("getfattr", "-n", "user.one", path));
      assert.throws(() => exec("setfattr", "-x", "user.one", path));
    }
    assert.throws(() => exec("setfattr", "-n", "nonsense.x", "-v", "1", at("f")));
    exec("cp", "--preserve=all", at("f"), at("copy"));
    assert.match(exec("getfattr", "--absolute-names", at("copy")), /user\.binary/);
    fs.renameSync(at("copy"), at("moved"));
    assert.match(exec("getfattr", "--absolute-names", at("moved")), /user\.binary/);
  },
};

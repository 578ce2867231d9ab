/**
 * Programs that people use, on any folder: cp and diff, dd, tar, git, sqlite3, fio. Each runs as a
 * child process; what it wrote is compared after the caches are cold.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { succeed } from "../support/process.js";
import type { Place } from "./posix-suite.js";

const MIB = 1024 * 1024;
const PROGRAM_MS = 120_000;
const ENVIRONMENT = { LC_ALL: "C", GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" };

/** A shell script with arguments $1, $2, …; it must succeed. Returns its standard output. */
async function shell(t: Test, script: string, ...args: string[]): Promise<string> {
  return await succeed(t, "bash", ["-euo", "pipefail", "-c", script, "bash", ...args], {
    withinMs: PROGRAM_MS,
    env: ENVIRONMENT,
  });
}

/** A tree like a source tree: many small files, some large, links, odd names. Seeded. */
function makeTree(root: string, files: number): void {
  const random = new Prng(7);
  const folders = [root];
  for (let i = 0; i < Math.ceil(files / 25); i++) {
    const folder = join(random.pick(folders), `d${i}`);
    mkdirSync(folder, { recursive: true });
    folders.push(folder);
  }
  for (let i = 0; i < files; i++) {
    const roll = random.float();
    const size = roll < 0.05 ? 0 : roll < 0.9 ? random.int(1, 12_000) : random.int(1, 200_000);
    const name = i % 97 === 0 ? `file ${i} (ä\n)` : `f${i}.txt`;
    const mode = i % 13 === 0 ? 0o755 : 0o644;
    writeFileSync(join(random.pick(folders), name), random.bytes(size), { mode });
  }
  for (let i = 0; i < files / 50; i++) {
    symlinkSync(`../f${random.int(0, files)}.txt`, join(random.pick(folders), `link${i}`));
  }
}

export async function programsSuite(t: Test, place: Place): Promise<void> {
  const { folder, local, scale } = place;
  const count = (full: number, least: number): number => Math.max(least, Math.round(full * scale));
  const cold = async (): Promise<void> => await place.cold?.();

  const files = count(3_000, 200);
  await t.test(`cp -r of ${files} files, tar out and in; diff -r with cold caches`, async (t) => {
    const source = join(local, "tree");
    mkdirSync(source);
    makeTree(source, files);
    await shell(t, 'cp -r --preserve=mode,links "$1" "$2/copy"', source, folder);
    const pack = 'mkdir "$2/untar"; tar -C "$1" -cf - . | tar -C "$2/untar" -xf -';
    await shell(t, pack, source, folder);
    await cold();
    await shell(t, 'diff -r --no-dereference "$1" "$2/copy"', source, folder);
    await shell(t, 'diff -r --no-dereference "$1" "$2/untar"', source, folder);
    const list = "find . -printf '%P %y %m %l\\n' | LC_ALL=C sort";
    t.equal(
      await shell(t, `cd "$1"; ${list}`, join(folder, "copy")),
      await shell(t, `cd "$1"; ${list}`, source),
      "names, types, modes and links",
    );
    // The archive itself on the file system under test, made from there.
    await shell(t, 'cd "$1"; tar -cf all.tar copy; tar -df all.tar; rm all.tar', folder);
    await shell(t, 'rm -r "$1/copy" "$1/untar"', folder);
    t.equal(await shell(t, 'ls -A "$1" | wc -l', folder), "0\n", "nothing is left of it");
  });

  // Six times what the mount keeps.
  const megabytes = count(384, 16);
  await t.test(`dd of ${megabytes} MiB and its checksum with cold caches`, async (t) => {
    // A cheap stream that repeats nowhere: a cipher over zeros would need a program more.
    const generator =
      `const r=Buffer.alloc(${MIB}),h=require("crypto").createHash("sha256");let x=1;` +
      `for(let i=0;i<r.length;i+=4){x=(Math.imul(x,1664525)+1013904223)>>>0;r.writeUInt32LE(x,i)}` +
      `const fs=require("fs");for(let n=0;n<${megabytes};n++){r.writeUInt32LE(n,0);` +
      `r.writeUInt32LE(n,524288);h.update(r);let d=0;while(d<r.length)d+=fs.writeSync(1,r,d)}` +
      `fs.writeSync(2,h.digest("hex"))`;
    const wanted = await shell(
      t,
      '{ "$1" -e "$2" | dd of="$3/big" bs=1M iflag=fullblock conv=fsync status=none; } 2>&1',
      process.execPath,
      generator,
      folder,
    );
    t.match(wanted, /^[0-9a-f]{64}$/);
    await cold();
    const sum = await shell(t, 'dd if="$1/big" bs=1M status=none | sha256sum', folder);
    t.equal(sum.slice(0, 64), wanted);
    t.equal(await shell(t, 'stat -c %s "$1/big"', folder), `${megabytes * MIB}\n`);
    await shell(t, 'rm "$1/big"', folder);
  });

  await t.test("git: init, add, commit, branch, gc, clone, fsck", async (t) => {
    const source = join(local, "git-tree");
    mkdirSync(source);
    makeTree(source, count(400, 60));
    const git = "git -c user.email=a@example.org -c user.name=a -c init.defaultBranch=main";
    await shell(
      t,
      `cd "$2"; ${git} init -q repo; cp -r "$1" repo/src; cd repo; ${git} add -A;
       ${git} commit -qm one; ${git} checkout -qb side; ${git} mv src moved; echo x > moved/new;
       ${git} add -A; ${git} commit -qm two; ${git} checkout -q main; ${git} merge -q side;
       ${git} gc -q; ${git} clone -q . ../clone`,
      source,
      folder,
    );
    await cold();
    const script = `cd "$1/clone"; ${git} fsck --strict --full; ${git} status --porcelain;
      ${git} rev-list --count HEAD`;
    t.match(await shell(t, script, folder), /^2\n$/m);
    await shell(
      t,
      'rm "$2/clone/moved/new"; diff -r --no-dereference "$1" "$2/clone/moved"',
      source,
      folder,
    );
    await shell(t, 'rm -rf "$1/repo" "$1/clone"', folder);
  });

  const modes = ["WAL", "DELETE", "TRUNCATE"];
  const rows = count(2_000, 200);
  for (const mode of modes) {
    await t.test(`sqlite3, journal mode ${mode}`, async (t) => {
      const db = join(folder, `${mode}.db`);
      const setUp = `PRAGMA journal_mode=${mode}; PRAGMA synchronous=FULL;
        CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, data BLOB); CREATE INDEX i ON t(who, id);`;
      const out = await shell(t, 'sqlite3 "$1" "$2"', db, setUp);
      t.equal(out.trim().toLowerCase(), mode.toLowerCase());
      // Two programs at once: their locks must hold each other back.
      const load = (who: string): string => {
        const statements = Array.from(
          { length: 20 },
          () =>
            `BEGIN IMMEDIATE; WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c ` +
            `WHERE n<${Math.round(rows / 40)}) INSERT INTO t(who, data) ` +
            `SELECT '${who}', randomblob(900) FROM c; COMMIT;`,
        );
        return `.timeout 60000\n${statements.join("\n")}\n`;
      };
      await Promise.all(
        ["one", "two"].map((who) =>
          succeed(t, "sqlite3", ["-bail", db], {
            input: load(who),
            withinMs: PROGRAM_MS,
          }),
        ),
      );
      await succeed(t, "sqlite3", ["-bail", db], {
        input:
          ".timeout 60000\nDELETE FROM t WHERE id % 3 = 0;\n" +
          "UPDATE t SET data = zeroblob(3000) WHERE id % 7 = 0;\nVACUUM;\n",
        withinMs: PROGRAM_MS,
      });
    });
  }
  await cold();
  for (const mode of modes) {
    await t.test(`sqlite3, journal mode ${mode}, with cold caches`, async (t) => {
      const check = await shell(
        t,
        'sqlite3 "$1" "$2"',
        join(folder, `${mode}.db`),
        "PRAGMA integrity_check; SELECT who, count(*) FROM t GROUP BY who;",
      );
      const inserted = 2 * 20 * Math.round(rows / 40);
      t.match(check, /^ok\n/);
      const counts = [...check.matchAll(/\|(\d+)/g)].map((match) => Number(match[1]));
      t.equal(counts.length, 2);
      t.equal(
        counts.reduce((sum, each) => sum + each, 0),
        inserted - Math.floor(inserted / 3),
      );
      await shell(t, 'rm "$1/$2".db*', folder, mode);
    });
  }

  const io = `${count(24, 4)}M`;
  const fio = (direct: boolean): string[] => [
    `--name=verify-${direct ? "direct" : "buffered"}`,
    `--directory=${folder}`,
    "--rw=randwrite",
    "--bsrange=4k-64k",
    `--size=${io}`,
    "--numjobs=4",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_dump=0",
    "--verify_state_save=0",
    "--group_reporting",
    "--minimal",
    "--randseed=11",
    ...(direct
      ? ["--direct=1", "--ioengine=libaio", "--iodepth=8"]
      : ["--ioengine=psync", "--fsync=64"]),
  ];
  const options = { withinMs: PROGRAM_MS, cwd: local };
  for (const direct of [false, true]) {
    const how = direct ? "direct, 8 in flight" : "buffered, fsync now and then";
    await t.test(`fio verifies random writes of 4 jobs, ${how}`, async (t) => {
      await succeed(t, "fio", fio(direct), options);
    });
  }
  await t.test("fio verifies them again with cold caches", async (t) => {
    if (place.cold !== undefined) {
      await cold();
      for (const direct of [false, true]) {
        await succeed(t, "fio", [...fio(direct), "--verify_only"], options);
      }
    }
    await shell(t, 'rm "$1"/verify-*', folder);
  });

  await t.test("fio through a mapping", async (t) => {
    await succeed(
      t,
      "fio",
      ["--name=map", `--directory=${folder}`, "--rw=randwrite", "--bs=4k", `--size=${io}`].concat([
        "--ioengine=mmap",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--minimal",
      ]),
      { withinMs: PROGRAM_MS, cwd: local },
    );
    await shell(t, 'rm "$1"/map.*', folder);
  });

  await t.test("writing a file as an editor does it: never half of it is seen", async (t) => {
    const path = join(folder, "edited");
    const sums = new Set<string>();
    for (let i = 0; i < 20; i++) {
      const text = `version ${i}\n`.repeat(2_000);
      sums.add(createHash("sha256").update(text).digest("hex"));
      writeFileSync(join(local, "version"), text);
      const save = 'cp "$1" "$2.new"; sync "$2.new"; mv "$2.new" "$2"';
      await shell(t, save, join(local, "version"), path);
      const seen = createHash("sha256").update(readFileSync(path)).digest("hex");
      t.ok(sums.has(seen));
    }
  });
}

/**
 * Two mounts of one file system, close to open: what one has written and closed, the other reads
 * when it opens; names that one makes, renames or removes are seen by the other at once.
 */
import assert from "node:assert/strict";
import * as fs from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { Prng } from "../../cluster/base/prng.js";
import { succeed } from "../support/process.js";

export interface TwoMounts {
  /** The same folder of the file system, through either mount. */
  readonly a: string;
  readonly b: string;
}

/** Bytes through a child process: this one must not wait on a mount without a deadline. */
async function read(t: Test, path: string): Promise<string> {
  return await succeed(t, "cat", [path], { withinMs: 30_000 });
}
async function write(t: Test, path: string, text: string, how = ">"): Promise<void> {
  await succeed(t, "sh", ["-c", `cat ${how} "$1"`, "sh", path], {
    input: text,
    withinMs: 30_000,
  });
}
async function shell(t: Test, script: string, ...args: string[]): Promise<string> {
  return await succeed(t, "bash", ["-euc", script, "bash", ...args], { withinMs: 60_000 });
}

/** A program of its own: it works on the mounts as anybody does, one call after the other. */
async function program(t: Test, source: string, ...args: string[]): Promise<string> {
  const script = `const fs = require("node:fs"); const args = process.argv.slice(1); ${source}`;
  return await succeed(t, process.execPath, ["-e", script, ...args], { withinMs: 120_000 });
}
/** One side changes the directory a few times, and the other looks at every change. */
const TAKES_TURNS = `
  const assert = require("node:assert");
  const [a, b] = args.map((folder) => folder + "/turns");
  fs.mkdirSync(a);
  const expected = new Set();
  for (let round = 0; round < 15; round++) {
    const [here, there] = round % 2 === 0 ? [a, b] : [b, a];
    const made = [];
    for (let i = 0; i < 1 + (round % 5); i++) {
      const name = "f" + round + "-" + i;
      fs.writeFileSync(here + "/" + name, "text of " + name, { flag: "wx" });
      made.push(name);
      expected.add(name);
    }
    fs.chmodSync(here + "/" + made[0], 0o640);
    fs.mkdirSync(here + "/d");
    for (const name of made) {
      assert.equal(fs.readFileSync(there + "/" + name, "utf8"), "text of " + name);
    }
    assert.equal(fs.statSync(there + "/" + made[0]).mode & 0o777, 0o640);
    assert.throws(() => fs.writeFileSync(there + "/" + made[0], "", { flag: "wx" }), /EEXIST/);
    fs.rmdirSync(there + "/d");
    assert.equal(fs.existsSync(here + "/d"), false);
    if (round % 3 === 0) {
      fs.unlinkSync(there + "/" + made[0]);
      expected.delete(made[0]);
      assert.equal(fs.existsSync(here + "/" + made[0]), false);
    }
    if (round % 5 === 4) {
      const all = [...expected].sort();
      for (const side of [a, b]) assert.deepEqual(fs.readdirSync(side).sort(), all);
    }
  }
  console.log("done");
`;
/** Makes the same names as another one at the same time; prints those that were its own. */
const MAKES = `
  const won = [];
  for (let i = 0; i < 60; i++) {
    try {
      fs.closeSync(fs.openSync(args[0] + "/n" + i, "wx"));
      won.push("n" + i);
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
    }
  }
  console.log(won.join(" "));
`;

export async function twoMountsSuite(t: Test, { a, b }: TwoMounts): Promise<void> {
  await t.test("written and closed here, read there", async (t) => {
    for (let i = 0; i < 10; i++) {
      const [writer, reader] = i % 2 === 0 ? [a, b] : [b, a];
      const text = `round ${i} `.repeat(1 + i * 700);
      await write(t, join(writer, "shared"), text);
      t.equal(await read(t, join(reader, "shared")), text);
      t.equal(await read(t, join(writer, "shared")), text);
    }
  });

  await t.test("appends from both sides in turn", async (t) => {
    let wanted = "";
    for (let i = 0; i < 10; i++) {
      const line = `${i}\n`;
      wanted += line;
      await write(t, join(i % 2 === 0 ? a : b, "log"), line, ">>");
    }
    t.equal(await read(t, join(a, "log")), wanted);
    t.equal(await read(t, join(b, "log")), wanted);
  });

  await t.test("large files, overwritten in the middle by the other side", async (t) => {
    const random = new Prng(5);
    const data = random.bytes(9 * 2 ** 20 + 123);
    const local = await fs.promises.mkdtemp(join(process.env["TMPDIR"] ?? "/tmp", "two-"));
    t.teardown(() => fs.rmSync(local, { recursive: true, force: true }));
    fs.writeFileSync(join(local, "ref"), data);
    await shell(t, 'cp "$1" "$2"', join(local, "ref"), join(a, "large"));
    await shell(t, 'cmp "$1" "$2"', join(local, "ref"), join(b, "large"));
    const piece = random.bytes(70_000);
    fs.writeFileSync(join(local, "piece"), piece);
    piece.copy(data, 4 * 2 ** 20 - 30_000);
    fs.writeFileSync(join(local, "ref"), data);
    await shell(
      t,
      'dd if="$1" of="$2" oflag=seek_bytes seek="$3" conv=notrunc status=none',
      join(local, "piece"),
      join(b, "large"),
      String(4 * 2 ** 20 - 30_000),
    );
    await shell(t, 'cmp "$1" "$2"', join(local, "ref"), join(a, "large"));
    await shell(t, 'truncate -s 5000001 "$1" "$2"', join(local, "ref"), join(a, "large"));
    await shell(t, 'cmp "$1" "$2"', join(local, "ref"), join(b, "large"));
  });

  await t.test("names: create, rename, remove, directories", async (t) => {
    await shell(t, 'mkdir "$1/d"; echo 1 > "$1/d/x"; ls "$2/d"', a, b).then((out) =>
      t.equal(out, "x\n"),
    );
    await shell(t, 'mv "$1/d/x" "$1/d/y"', b);
    t.equal(await shell(t, 'ls "$1/d"; cat "$1/d/y"; ! test -e "$1/d/x"', a), "y\n1\n");
    await shell(t, 'rm "$1/d/y"', a);
    t.equal(await shell(t, 'ls -A "$1/d"; ! test -e "$1/d/y"', b), "");
    await shell(t, 'rmdir "$1/d"', b);
    t.equal(await shell(t, 'test -e "$1/d" && echo there || echo gone', a), "gone\n");
    // A name that was looked for in vain is found as soon as the other side makes it.
    await shell(t, '! test -e "$1/later"; touch "$2/later"; test -e "$1/later"', a, b);
  });

  await t.test("attributes: mode, size, times and links", async (t) => {
    await shell(t, 'echo data > "$1/f"; chmod 604 "$1/f"; ln "$1/f" "$1/g"', a);
    t.equal(await shell(t, 'stat -c "%a %s %h" "$1/f"', b), "604 5 2\n");
    await shell(t, 'chmod 640 "$1/g"; rm "$1/f"; touch -d @1000000 "$1/g"', b);
    t.equal(await shell(t, 'stat -c "%a %s %h %Y" "$1/g"', a), "640 5 1 1000000\n");
  });

  await t.test("exclusive creation has one winner over both mounts", async (t) => {
    for (let round = 0; round < 10; round++) {
      const attempts = await Promise.all(
        [a, b, a, b].map((folder) =>
          shell(t, 'set -C; echo > "$1" && echo won || true', join(folder, `lock${round}`)),
        ),
      );
      assert.equal(attempts.filter((out) => out === "won\n").length, 1, `round ${round}`);
    }
    t.pass("in each of 10 rounds");
  });

  await t.test("bursts of changes in one directory, in turn: each is seen at once", async (t) => {
    t.equal(await program(t, TAKES_TURNS, a, b), "done\n");
  });

  await t.test("both sides make the same names at once: each has one maker", async (t) => {
    await shell(t, 'mkdir "$1/race"', a);
    const won = await Promise.all([a, b].map((folder) => program(t, MAKES, join(folder, "race"))));
    const names = won.flatMap((out) => out.split(/\s+/).filter(Boolean)).sort();
    t.same(names, Array.from({ length: 60 }, (_, i) => `n${i}`).sort());
    for (const folder of [a, b]) {
      t.equal((await shell(t, 'ls "$1/race" | wc -l', folder)).trim(), "60");
    }
  });

  await t.test("renames from both sides at once lose no file", async (t) => {
    await shell(t, 'mkdir "$1/many"; for i in $(seq 60); do echo $i > "$1/many/$i"; done', a);
    const move = 'for i in $(seq "$2" 2 60); do mv "$1/many/$i" "$1/many/moved-$i"; done';
    await Promise.all([shell(t, move, a, "1"), shell(t, move, b, "2")]);
    for (const folder of [a, b]) {
      const names = await shell(t, 'ls "$1/many" | sort | tr "\\n" " "', folder);
      t.equal(names.trim().split(" ").length, 60);
      t.notMatch(` ${names}`, / \d/);
    }
    t.equal((await shell(t, 'cat "$1"/many/* | sort -n | uniq | wc -l', b)).trim(), "60");
  });
}

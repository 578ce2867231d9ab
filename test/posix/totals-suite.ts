/**
 * Recursive totals and quotas on the mount of a real cluster: `dss du` beside GNU du and find, the
 * virtual attributes, EDQUOT through the kernel, and all of it over the death of the leader. The
 * leader that is killed stays away.
 */
import {
  appendFileSync,
  closeSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import type { Test } from "tap";
import type { Cluster } from "../support/cluster.js";
import { waitFor } from "../support/temp.js";

const MiB = 2 ** 20;
/** A size that is on its way is told within a few seconds. */
const TOLD_MS = 20_000;

interface Usage {
  files: number;
  directories: number;
  bytes: number;
  allocated: number;
  quota: { bytes: number; inodes: number } | null;
}

/** Node has no name for it. */
const EDQUOT = 122;
/** The code of what fails. */
function codeOf(action: () => unknown): string {
  try {
    action();
    return "done";
  } catch (error) {
    const { errno, code } = error as NodeJS.ErrnoException;
    return errno === -EDQUOT ? "EDQUOT" : (code ?? String(error));
  }
}
/** What GNU find sees, each file once. */
function walked(folder: string): Omit<Usage, "quota"> {
  const lines = execFileSync("find", [folder, "-mindepth", "1", "-printf", "%y %i %s %b\n"])
    .toString()
    .trim()
    .split("\n");
  const sum = { files: 0, directories: 0, bytes: 0, allocated: 0 };
  const seen = new Set<string>();
  for (const line of lines) {
    const [type, ino, size, blocks] = line.split(" ") as [string, string, string, string];
    if (type === "d") sum.directories++;
    else if (!seen.has(ino)) {
      seen.add(ino);
      sum.files++;
      sum.bytes += Number(size);
      sum.allocated += Number(blocks) * 512;
    }
  }
  return sum;
}
const attribute = (name: string, path: string): string =>
  execFileSync("getfattr", ["--only-values", "--absolute-names", "-n", name, path]).toString();

/** Without starting a program of our own. */
const counted = (path: string): Omit<Usage, "quota"> => ({
  files: Number(attribute("dss.dir.rfiles", path)),
  directories: Number(attribute("dss.dir.rsubdirs", path)),
  bytes: Number(attribute("dss.dir.rbytes", path)),
  allocated: Number(attribute("dss.dir.rallocated", path)),
});

export async function totalsSuite(t: Test, cluster: Cluster): Promise<void> {
  const top = join(cluster.mount, "totals");
  const usage = (path: string): Promise<Usage> => cluster.json<Usage>(["du", path]);
  const agrees = async (t: Test, what: string): Promise<void> => {
    const wanted = walked(top);
    let found = counted(top);
    await waitFor(
      "the totals of a walk",
      () => {
        found = counted(top);
        return JSON.stringify(found) === JSON.stringify(wanted);
      },
      { withinMs: TOLD_MS, everyMs: 200 },
    ).catch(() => t.same(found, wanted, what));
    t.pass(what);
  };

  await t.test("du", async (t) => {
    for (const name of ["a", "b", "a/deep", "a/deep/er"]) {
      mkdirSync(join(top, name), { recursive: true });
    }
    for (let i = 0; i < 40; i++) {
      writeFileSync(join(top, i % 2 === 0 ? "a/deep/er" : "b", `f${i}`), Buffer.alloc(i * 1000));
    }
    linkSync(join(top, "b/f1"), join(top, "a/second"));
    symlinkSync("somewhere", join(top, "a/link"));
    truncateSync(join(top, "b/f3"), 5 * MiB);
    unlinkSync(join(top, "b/f5"));
    renameSync(join(top, "a/deep"), join(top, "b/deep"));
    renameSync(join(top, "b/f7"), join(top, "b/f9"));
    unlinkSync(join(top, "b/f1"));
    await agrees(t, "as find has them");
    const kilobytes = execFileSync("du", ["-s", "-k", top]).toString().split("\t")[0];
    const { bytes, allocated, files, directories } = await usage(top);
    t.equal(allocated / 1024, Number(kilobytes), "as GNU du has it");
    t.match({ bytes, allocated, files, directories }, counted(top));
    t.equal(attribute("dss.dir.rentries", top), String(files + directories));
    const listed = execFileSync("getfattr", ["--absolute-names", "-d", "-m", "-", top]).toString();
    t.notMatch(listed, /dss\./, "not listed");
    const byPath = await cluster.json<Usage & { children: { name: string }[] }>([
      "du",
      "--path",
      "/totals",
      "--depth",
      "1",
    ]);
    t.equal(byPath.bytes, bytes);
    t.same(
      byPath.children.map(({ name }) => name),
      ["a", "b"],
    );
    t.match(await cluster.ok(["du", top]), /SIZE +ON DISK +FILES +DIRECTORIES +PATH/);
  });

  await t.test("quotas through the kernel", async (t) => {
    const realm = join(top, "realm");
    const inner = join(realm, "inner");
    mkdirSync(inner, { recursive: true });
    const at = (name: string): string => join(inner, name);
    writeFileSync(at("before"), "x"); // The mount has the directory for itself.
    await cluster.ok(["quota", "set", realm, "--inodes", "4", "--bytes", "1M"]);
    writeFileSync(at("1"), "x");
    mkdirSync(at("2"));
    t.equal(
      codeOf(() => writeFileSync(at("3"), "")),
      "EDQUOT",
      "create",
    );
    t.equal(
      codeOf(() => mkdirSync(at("3"))),
      "EDQUOT",
      "mkdir",
    );
    t.equal(
      codeOf(() => symlinkSync("x", at("3"))),
      "EDQUOT",
      "symlink",
    );
    t.equal(
      codeOf(() => renameSync(join(top, "a"), at("a"))),
      "EDQUOT",
      "a directory moved in",
    );
    linkSync(at("1"), at("same"));
    rmSync(at("2"), { recursive: true });
    const fd = openSync(at("large"), "w");
    let written = 0;
    const fill = (): void => {
      for (; written < 4 * MiB; written += 64 * 1024) writeSync(fd, Buffer.alloc(64 * 1024));
    };
    t.equal(codeOf(fill), "EDQUOT", "write");
    // Less by what is reserved for the small files until their sizes are told.
    t.ok(written <= MiB && written >= MiB - 256 * 1024, `one writer stops at ${written} bytes`);
    t.equal(
      codeOf(() => ftruncateSync(fd, 2 * MiB)),
      "EDQUOT",
      "truncate up",
    );
    closeSync(fd);
    truncateSync(at("large"), 1000);
    appendFileSync(at("large"), "there is room again");
    const command = ["quota", "get", realm];
    t.match(await cluster.json<Usage>(command), { quota: { bytes: MiB, inodes: 4 } });
    t.equal(attribute("dss.quota.max_inodes", realm), "4");
    execFileSync("setfattr", ["-n", "dss.quota.max_inodes", "-v", "5", realm]);
    writeFileSync(at("3"), "");
    t.equal(
      codeOf(() => writeFileSync(at("4"), "")),
      "EDQUOT",
    );
    t.match(await cluster.ok(["quota", "ls"]), /\/totals\/realm/);
    await agrees(t, "totals");
  });

  await t.test("under the next leader", async (t) => {
    const before = counted(top);
    await cluster.kill([await cluster.leaderPid()]);
    const realm = join(top, "realm");
    t.equal(
      codeOf(() => writeFileSync(join(realm, "4"), "")),
      "EDQUOT",
      "it knows the quota",
    );
    t.same(counted(top), before, "and the totals");
    await cluster.ok(["quota", "rm", realm]);
    writeFileSync(join(realm, "4"), Buffer.alloc(2 * MiB));
    t.equal(statSync(join(realm, "4")).size, 2 * MiB);
    await agrees(t, "without a quota");
    rmSync(join(top, "b"), { recursive: true });
    await agrees(t, "after a removal");
    await cluster.ok(["fsck", "--no-objects"]);
  });
}

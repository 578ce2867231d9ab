/** The fuse-native driver's mapping of paths to inodes: every lookup is given back, once. */
import t from "tap";
import { DssError, isDssError } from "../../../../cluster/base/errors.js";
import type { Entry, FileSystem } from "../../../../client-fs/file-system.js";
import { PathTable, splitPath } from "../../../../client-fs/fuse/fuse-native.js";

function tree(validMs: number, gate = Promise.resolve()) {
  const lookups = new Map<number, number>();
  const calls: string[] = [];
  const inos: Record<string, number> = { "1/a": 2, "2/b": 3, "3/c": 4 };
  const fs = {
    lookup: (parent: number, name: Buffer): Promise<Entry> => {
      const key = `${parent}/${name.toString()}`;
      calls.push(key);
      const ino = inos[key];
      if (ino === undefined) return Promise.reject(new DssError("NotFound", key));
      lookups.set(ino, (lookups.get(ino) ?? 0) + 1);
      return gate.then(() => ({ attributes: { ino }, entryValidMs: validMs }) as Entry);
    },
    forget: (ino: number, count: number): void => {
      const left = (lookups.get(ino) ?? 0) - count;
      if (left < 0) throw new Error(`inode ${ino} forgotten too often`);
      if (left === 0) lookups.delete(ino);
      else lookups.set(ino, left);
    },
  } as unknown as FileSystem;
  return { paths: new PathTable(fs, { uid: 0, gid: 0, pid: 0, umask: 0 }), lookups, calls };
}

t.test("without validity nothing is remembered and nothing leaks", async (t) => {
  const { paths, lookups, calls } = tree(0);
  const ino = await paths.resolve("/a/b/c");
  t.equal(ino, 4);
  t.same([...lookups], [[4, 1]], "only the pinned inode is held");
  paths.unpin(ino);
  t.equal(lookups.size, 0);
  paths.unpin(await paths.resolve("/a/b/c"));
  t.equal(calls.length, 6, "looked up again");
  t.equal(lookups.size, 0);
});

t.test("valid paths are looked up once", async (t) => {
  const { paths, lookups, calls } = tree(60_000);
  paths.unpin(await paths.resolve("/a/b/c"));
  const pinned = await paths.resolve("/a/b/c");
  t.equal(calls.length, 3);
  paths.dropTree("/a");
  t.same([...lookups.keys()], [4], "a dropped path keeps what is in use");
  paths.unpin(pinned);
  t.equal(lookups.size, 0);
  paths.unpin(await paths.resolve("/a/b"));
  paths.clear();
  t.equal(lookups.size, 0);
});

t.test("a lookup that a removal overtakes is not remembered", async (t) => {
  let open: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => (open = resolve));
  const { paths, lookups, calls } = tree(60_000, gate);
  const racing = paths.resolve("/a");
  while (calls.length === 0) await Promise.resolve();
  paths.drop("/a");
  open();
  paths.unpin(await racing);
  t.equal(lookups.size, 0);
  paths.unpin(await paths.resolve("/a"));
  t.same(calls, ["1/a", "1/a"]);
  paths.unpin(await paths.resolve("/a"));
  t.equal(calls.length, 2, "but the next one is");
});

t.test("a failing lookup gives its parents back", async (t) => {
  const { paths, lookups } = tree(0);
  try {
    await paths.resolve("/a/b/missing");
    t.fail("found what is not there");
  } catch (error) {
    t.ok(isDssError(error, "NotFound"));
  }
  t.equal(lookups.size, 0);
  t.equal(await paths.resolve("/"), 1);
});

t.test("paths split at the last slash", (t) => {
  t.same(splitPath("/a"), { parent: "/", name: Buffer.from("a") });
  t.same(splitPath("/a/b"), { parent: "/a", name: Buffer.from("b") });
  t.throws(() => splitPath(`/${"é".repeat(128)}`), { code: "NameTooLong" }, "bytes count");
  t.end();
});

/** Directories that a mount lists by what it knows, in the leader's order and with its cookies. */
import t from "tap";
import type { DirEntry } from "../../../../client-fs/file-system.js";
import { CALLER, newWorld, type TestMount } from "./world.js";

const NAMES = 300;

/** Names and cookies behind `cookie`; `most` ends it early. */
async function list(
  mount: TestMount,
  ino: number,
  { cookie = 0, most = Infinity, handle = 0 } = {},
): Promise<DirEntry[]> {
  const id = handle === 0 ? (await mount.run(mount.vfs.opendir(ino))).handle : handle;
  const found: DirEntry[] = [];
  for (let at = cookie; found.length < most;) {
    const options = { maxEntries: 100, plus: true };
    const page = [...(await mount.run(mount.vfs.readdir(ino, id, at, options)))].slice(0, 100);
    if (page.length === 0) break;
    found.push(...page);
    at = page.at(-1)!.cookie;
  }
  return found.slice(0, most);
}
/** A directory "d" with that many files. */
async function folder(mount: TestMount, files: number): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(1, Buffer.from("d"), 0o755, CALLER));
  const { ino } = made.attributes;
  for (let i = 0; i < files; i++) await mount.create(ino, `name ${i}`);
  return ino;
}
const shown = (entries: readonly DirEntry[]): string[] =>
  entries.map(({ name, ino, type, cookie }) => `${name.toString()} ${ino} ${type} ${cookie}`);
/** How often the mount asks the leader for a listing, or for something else. */
function count(mount: TestMount): { asked: number; others: string[] } {
  const counted = { asked: 0, others: [] as string[] };
  const { mds } = mount;
  const call = mds.call.bind(mds);
  mds.call = (request, options) => {
    if (request.op === "readdir") counted.asked++;
    else counted.others.push(request.op);
    return call(request, options);
  };
  return counted;
}

t.test("what a mount has made it lists without the leader, as the leader would", async (t) => {
  const world = await newWorld(1);
  const [a, b] = [await world.mount(), await world.mount()];
  const asked = count(a);
  const ino = await folder(a, NAMES);
  await a.run(a.vfs.mkdir(ino, Buffer.from("below"), 0o755, CALLER));
  await a.run(a.vfs.unlink(ino, Buffer.from("name 7"), CALLER));
  const own = await list(a, ino);
  t.equal(own.length, NAMES + 2, "with . and .., one removed and one directory");
  t.equal(asked.asked, 0, "nobody was asked");
  t.ok(
    own.slice(2).every(({ entry }) => entry !== undefined),
    "with attributes",
  );
  await b.lookup(1, "d");
  t.same(shown(await list(b, ino)), shown(own), "the leader lists the same");
});

t.test("a listing goes on with the leader when the directory was given back", async (t) => {
  const world = await newWorld(2);
  const [a, b] = [await world.mount(), await world.mount()];
  const asked = count(a);
  const ino = await folder(a, NAMES);
  const { handle } = await a.run(a.vfs.opendir(ino));
  const first = await list(a, ino, { most: 100, handle });
  t.equal(asked.asked, 0);
  await b.lookup(1, "d");
  await b.create(ino, "another");
  // Another reader of the folder; the first one goes on with what it has in hand.
  const { cookie } = first.at(-1)!;
  const second = await list(a, ino, { cookie });
  t.ok(asked.asked > 0, "the leader is asked");
  const names = [...first, ...second].map(({ name }) => name.toString());
  t.equal(new Set(names).size, names.length, "no name twice");
  for (let i = 0; i < NAMES; i++) if (!names.includes(`name ${i}`)) t.fail(`name ${i} is missing`);
  t.ok(shown(await list(b, ino)).length === NAMES + 3);
  t.equal((await list(a, ino)).length, NAMES + 3, "and what the other made is there");
});

t.test("names without known attributes are the leader's to list", async (t) => {
  const world = await newWorld(3);
  const [a, b] = [await world.mount(), await world.mount()];
  const ino = await folder(a, 0);
  await a.create(ino, "file");
  const asked = count(a);
  t.equal((await list(a, ino)).length, 3);
  t.equal(asked.asked, 0);
  // The file's attributes are another's now, the directory's names are not.
  await b.lookup(1, "d");
  const file = await b.lookup(ino, "file");
  await b.write({ ino: file, handle: await b.open(file) }, 0, "longer");
  const listed = await list(a, ino);
  t.ok(asked.asked > 0);
  t.not(listed.at(-1)!.entry?.attributes.size, 0, "no size of before");
  t.equal(await a.size(file), 6);
});

t.test("who removes a tree that nobody else has anything of asks once a directory", async (t) => {
  const world = await newWorld(4);
  const a = await world.mount();
  const ino = await folder(a, 0);
  for (let i = 0; i < 9; i++) {
    const file = await a.create(ino, `name ${i}`);
    await a.run(a.vfs.release(file.ino, file.handle));
  }
  await a.run(a.vfs.destroy());
  const b = await world.mount();
  await b.lookup(1, "d");
  t.equal((await list(b, ino)).length, 11);
  const asked = count(b);
  for (let i = 0; i < 8; i++) await b.run(b.vfs.unlink(ino, Buffer.from(`name ${i}`), CALLER));
  t.same(asked, { asked: 1, others: [] });
  const c = await world.mount();
  await c.lookup(1, "d");
  t.equal((await list(c, ino)).length, 3, "others see it");
  // What another one has, too, the leader removes.
  await c.open(await c.lookup(ino, "name 8"));
  await b.run(b.vfs.unlink(ino, Buffer.from("name 8"), CALLER));
  t.ok(asked.others.includes("unlink"));
});

/** Which entries of a listing come with attributes, and that none is left out or comes twice. */
import t from "tap";
import { CALLER, newWorld } from "./world.js";
import type { TestMount } from "./world.js";

async function fill(mount: TestMount, name: string, count: number): Promise<number> {
  const made = await mount.run(mount.vfs.mkdir(1, Buffer.from(name), 0o755, CALLER));
  const directory = made.attributes.ino;
  for (let i = 0; i < count; i++) {
    const file = await mount.create(directory, `f${i}`);
    await mount.run(mount.vfs.release(file.ino, file.handle));
  }
  return directory;
}
interface Walked {
  names: string[];
  /** For each answer, how many entries it had, and how many of them attributes. */
  answers: { entries: number; attributes: number }[];
}
async function walk(mount: TestMount, directory: number, looking: boolean): Promise<Walked> {
  const { handle } = await mount.run(mount.vfs.opendir(directory));
  const names: string[] = [];
  const answers: Walked["answers"] = [];
  for (let cookie = 0; ;) {
    const asked = mount.vfs.readdir(directory, handle, cookie, { maxEntries: 300, plus: true });
    const entries = [...(await mount.run(asked))].slice(0, 300);
    if (entries.length === 0) break;
    const own = entries.filter(({ name }) => name[0] !== 0x2e);
    const attributes = own.filter(({ entry }) => entry !== undefined).length;
    answers.push({ entries: own.length, attributes });
    names.push(...own.map(({ name }) => name.toString()));
    if (looking) await mount.lookup(directory, own[0]!.name.toString());
    cookie = entries.at(-1)!.cookie;
  }
  await mount.run(mount.vfs.releasedir(directory, handle));
  return { names, answers };
}

t.test("small directories always; large ones for who looks at entries", async (t) => {
  const world = await newWorld(5);
  const a = await world.mount();
  const small = await fill(a, "small", 40);
  const large = await fill(a, "large", 1_100);
  await a.run(a.vfs.destroy());
  const b = await world.mount();
  await b.lookup(1, "small");
  await b.lookup(1, "large");

  const few = await walk(b, small, false);
  t.equal(new Set(few.names).size, 40);
  t.same(few.answers, [{ entries: 40, attributes: 40 }]);

  const names = await walk(b, large, false);
  t.equal(new Set(names.names).size, 1_100);
  t.equal(names.names.length, 1_100);
  t.ok(
    names.answers.every(({ attributes }) => attributes === 0),
    "names alone",
  );

  const looked = await walk(b, large, true);
  t.equal(looked.names.length, 1_100);
  t.same([...looked.names].sort(), [...names.names].sort());
  const [first, ...rest] = looked.answers;
  t.equal(first?.attributes, 0);
  t.ok(first!.entries <= 64, `${first!.entries} names first`);
  for (const { entries, attributes } of rest) t.equal(attributes, entries, "with attributes");
});

/** Small files that were written as a whole are read from this mount's memory afterwards. */
import t from "tap";
import { CALLER, newWorld } from "./world.js";

const text = (file: number): Buffer => Buffer.alloc(3_000 + file, file + 1);

t.test("what was written back is not asked for again, until somebody else may write", async (t) => {
  const world = await newWorld(1);
  const [a, b] = [await world.mount(), await world.mount()];
  const files = [];
  for (let i = 0; i < 5; i++) {
    const file = await a.create(1, `f${i}`);
    await a.write(file, 0, text(i));
    await a.run(a.vfs.fsync(file.ino, file.handle));
    files.push(file);
  }
  const begin = world.objects.reads;
  for (const [i, file] of files.entries()) t.same(await a.read(file, 0, 9_999), text(i));
  t.equal(world.objects.reads, begin, "no object is read");

  const [file] = files;
  const { ino } = file!;
  t.equal(await b.lookup(1, "f0"), ino);
  const other = { ino, handle: await b.open(ino) };
  await b.write(other, 0, "another's");
  const changed = Buffer.concat([Buffer.from("another's"), text(0).subarray(9)]);
  t.same(await a.read(file!, 0, 9_999), changed, "another's bytes are seen");

  // Longer, shorter, and written in part.
  await a.write(files[1]!, 5_000, "end");
  const longer = Buffer.concat([text(1), Buffer.alloc(5_000 - 3_001), Buffer.from("end")]);
  await a.run(a.vfs.fsync(files[1]!.ino, files[1]!.handle));
  t.same(await a.read(files[1]!, 0, 9_999), longer);
  await a.run(a.vfs.setattr(files[2]!.ino, { size: 10 }, CALLER));
  await a.run(a.vfs.setattr(files[2]!.ino, { size: 20 }, CALLER));
  const cut = Buffer.concat([text(2).subarray(0, 10), Buffer.alloc(10)]);
  t.same(await a.read(files[2]!, 0, 9_999), cut);
  await a.run(a.vfs.fallocate(files[3]!.ino, files[3]!.handle, 100, 50, 3, CALLER));
  const punched = Buffer.from(text(3)).fill(0, 100, 150);
  t.same(await a.read(files[3]!, 0, 9_999), punched);
  await a.write(files[4]!, 7, Buffer.from("x"), 0o40002);
  const direct = Buffer.from(text(4)).fill("x", 7, 8);
  t.same(await a.read(files[4]!, 0, 9_999), direct, "written past the cache");
});

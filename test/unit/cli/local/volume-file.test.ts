/** An image as a file: what a loop device, and anybody else, may do with it. */
import t from "tap";
import { VolumeFileSystem } from "../../../../cli/local/volume-file.js";
import { MemoryImage } from "../../nbd/memory-image.js";

const ROOT = 1;
const FILE = 2;
const O_RDWR = 2;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 0x10;
const COLLAPSE_RANGE = 8;
const SIZE = 1_000_000;

function world(readOnly = false) {
  const image = new MemoryImage({ name: "disk", size: SIZE, readOnly });
  image.recording = true;
  let refreshes = 0;
  const files = new VolumeFileSystem(image, 5n, async () => void refreshes++);
  return { image, files, refreshed: () => refreshes };
}

t.test("one file of the volume's size, and nothing else", async (t) => {
  const { files, refreshed } = world();
  const names = [...(await files.readdir(ROOT, 0, 0))].map(({ name }) => name.toString());
  t.same(names, [".", "..", "disk"]);
  t.same([...(await files.readdir(ROOT, 0, 3))], []);
  t.match(await files.lookup(ROOT, Buffer.from("disk")), { attributes: { ino: FILE, size: SIZE } });
  t.match(await files.getattr(FILE), { attributes: { size: SIZE, mode: 0o100600 } });
  t.equal(refreshed(), 1, "its size is looked at");
  await t.rejects(files.lookup(ROOT, Buffer.from("other")), { code: "NotFound" });
  await t.rejects(files.unlink(), { code: "NotPermitted" });
  await t.rejects(files.create(), { code: "NotPermitted" });
  await t.rejects(files.open(ROOT, 0), { code: "IsDirectory" });
  await t.rejects(files.setattr(FILE, { size: 5 }), { code: "NotPermitted" });
  t.match(await files.setattr(FILE, { size: SIZE, mode: 0 }), { attributes: { size: SIZE } });
  t.match(await files.open(FILE, O_RDWR), { directIo: true });
});

t.test("bytes go to the image, holes too, and never beyond its end", async (t) => {
  const { files, image } = world();
  t.equal(await files.write(FILE, 0, 10, Buffer.from("hello")), 5);
  t.equal(Buffer.concat(await files.read(FILE, 0, 10, 5)).toString(), "hello");
  t.equal(Buffer.concat(await files.read(FILE, 0, SIZE - 3, 100)).length, 3, "to the end");
  t.same(await files.read(FILE, 0, SIZE, 10), []);
  await t.rejects(files.write(FILE, 0, SIZE - 2, Buffer.from("abc")), { code: "NoSpace" });
  await files.fallocate(FILE, 0, 0, 4096, PUNCH_HOLE | KEEP_SIZE);
  await files.fallocate(FILE, 0, SIZE - 10, 4096, ZERO_RANGE | KEEP_SIZE);
  await files.fallocate(FILE, 0, 0, 4096, 0);
  await t.rejects(files.fallocate(FILE, 0, SIZE, 4096, 0), { code: "NoSpace" });
  await t.rejects(files.fallocate(FILE, 0, 0, 4096, COLLAPSE_RANGE), { code: "NotSupported" });
  await files.fsync();
  await files.destroy();
  const changes = image.calls.filter((call) => !call.startsWith("read"));
  t.same(changes, ["write 10+5", "zero 0+4096", `zero ${SIZE - 10}+10`, "flush", "flush"]);
});

t.test("read-only is read-only", async (t) => {
  const { files, image } = world(true);
  await t.rejects(files.open(FILE, O_RDWR), { code: "ReadOnly" });
  await files.open(FILE, 0);
  await t.rejects(files.fallocate(FILE, 0, 0, 10, PUNCH_HOLE | KEEP_SIZE), { code: "ReadOnly" });
  await files.destroy();
  t.same(image.calls, []);
});

/** Which way the data files are read: past the page cache at first, through it again. */
import t from "tap";
import { DataFiles } from "../../../../osd/store/data-files.js";
import type { DirectFile, Disk, DiskFile } from "../../../../cluster/platform/ports.js";

const BLOCK = 4096;
const FILE_BYTES = 8 * 2 ** 20;

/** Only what reading and writing need; it notes which way was taken. */
async function world(): Promise<{ files: DataFiles; ways: string[] }> {
  const ways: string[] = [];
  const way = (name: string): Partial<DiskFile> => ({
    read: (buffer) => {
      ways.push(name);
      return Promise.resolve(buffer.length);
    },
    write: () => Promise.resolve(),
    size: () => Promise.resolve(FILE_BYTES),
    truncate: () => Promise.resolve(),
    sync: () => Promise.resolve(),
  });
  const disk: Partial<Disk> = {
    open: () => Promise.resolve(way("cached") as DiskFile),
    openDirect: () => Promise.resolve(way("direct") as DirectFile),
    syncDirectory: () => Promise.resolve(),
    list: () => Promise.resolve(["00000"]),
  };
  const files = new DataFiles(disk as Disk, FILE_BYTES, true);
  await files.open();
  return { files, ways };
}

void t.test("large reads pass by the page cache until they come again", async (t) => {
  const { files, ways } = await world();
  const read = (start: number, count: number): Promise<void> =>
    files.read({ start, count }, Buffer.alloc(count * BLOCK));
  await read(0, 256);
  await read(256, 64);
  await read(320, 63);
  t.same(ways.splice(0), ["direct", "direct", "cached"], "small ones never do");
  await read(0, 256);
  await read(256, 64);
  t.same(ways.splice(0), ["cached", "cached"]);
  const bytes = [Buffer.alloc(128 * BLOCK)];
  await files.write({ start: 128, count: 128 }, bytes, new Set(), true);
  await read(0, 256);
  await read(128, 128);
  t.same(ways.splice(0), ["cached", "direct"], "what was written past it is not in it");
  await files.write({ start: 128, count: 128 }, bytes, new Set(), false);
  await read(128, 128);
  t.same(ways.splice(0), ["cached"]);
  await read(2048 - 64, 128);
  t.same(ways, ["direct", "direct"], "a run over the end of a file, of which each part is large");
});

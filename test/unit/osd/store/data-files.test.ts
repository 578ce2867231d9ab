/** Which way the data files are read: past the page cache at first, through it again. */
import t from "tap";
import { DataFiles } from "../../../../osd/store/data-files.js";
import type { DirectFile, Disk, DiskFile } from "../../../../cluster/platform/ports.js";

const BLOCK = 4096;
const FILE_BYTES = 8 * 2 ** 20 + 128 * 1024;

/** Only what reading and writing need; it notes which way was taken, and which piece of a file. */
async function world(): Promise<{ files: DataFiles; ways: string[]; pieces: string[] }> {
  const ways: string[] = [];
  const pieces: string[] = [];
  const way = (name: string): Partial<DiskFile> => ({
    read: (buffer, position) => {
      ways.push(name);
      pieces.push(`${position / BLOCK}+${buffer.length / BLOCK}`);
      return Promise.resolve(buffer.length);
    },
    readSync: (buffer) => buffer.length,
    write: () => Promise.resolve(),
    size: () => Promise.resolve(FILE_BYTES),
    truncate: () => Promise.resolve(),
    sync: () => Promise.resolve(),
    close: () => Promise.resolve(),
  });
  const disk: Partial<Disk> = {
    open: () => Promise.resolve(way("cached") as DiskFile),
    openDirect: () => Promise.resolve(way("direct") as DirectFile),
    syncDirectory: () => Promise.resolve(),
    list: () => Promise.resolve(["00000", "00001"]),
  };
  const files = new DataFiles(disk as Disk, FILE_BYTES, true);
  await files.open();
  return { files, ways, pieces };
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
  await read(2080 - 64, 128);
  t.same(ways, ["direct", "direct"], "a run over the end of a file, of which each part is large");
});

void t.test("what lies around small reads is fetched through the page cache", async (t) => {
  const { files, ways, pieces } = await world();
  const read = (start: number): boolean => files.readSync({ start, count: 1 }, Buffer.alloc(BLOCK));
  t.ok(read(70));
  t.ok(read(64 * 5));
  t.same(ways, [], "one read of each place");
  t.ok(read(127));
  await Promise.resolve();
  t.same(ways.splice(0), ["cached"]);
  t.same(pieces.splice(0), ["64+64"]);
  t.ok(read(2080));
  t.ok(read(2080 + 63));
  t.same(pieces, ["0+64"], "places are counted from the start of their file");
  await files.close();
});

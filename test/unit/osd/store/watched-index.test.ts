/** The store's index on the real LMDB: reading a part of it holds nothing back. */
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { openNodeDisk } from "../../../../cluster/platform/node-disk.js";
import { WatchedIndex } from "../../../../osd/store/watched-index.js";

const KEYS = 200;
const COMMITS = 60;

t.test("who reads the beginning of a range keeps no old pages from being used again", async (t) => {
  const root = mkdtempSync(join(tmpdir(), "dss-index-"));
  t.teardown(() => rmSync(root, { recursive: true }));
  const index = new WatchedIndex(await (await openNodeDisk(root)).openStore("index"));
  const change = (turn: number): Promise<void> => {
    const value = Buffer.alloc(1_000, turn);
    const puts = Array.from({ length: KEYS }, (_, i) => ({ key: Buffer.from([1, i]), value }));
    return index.commit({ puts, deletes: [] });
  };
  const bytes = (): number => statSync(join(root, "index", "data.mdb")).size;
  const all = { start: Buffer.from([1]), end: Buffer.from([2]) };
  await change(0);
  const atFirst = bytes();
  for (let turn = 1; turn <= COMMITS; turn++) {
    let seen = 0;
    for (const { value } of index.range(all)) {
      t.equal(value[0], turn - 1);
      if (++seen === 3) break;
    }
    await change(turn);
  }
  // The pages of the last commit, of this one, and of the one before, which a reader may be at.
  t.ok(bytes() <= 6 * atFirst, `${atFirst} bytes became ${bytes()}`);
  await index.close();
});

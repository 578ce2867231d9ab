/**
 * A program that saves files: `saver.js FOLDER SEED SECONDS`. As careful programs do, most files
 * are synced before they count as saved: written anew, through another name that is renamed over
 * them, after their times were set and they were cut to nothing, or appended to. Small ones are
 * sometimes only closed, which saves them from the death of a mount's worker. What fails with EIO
 * is done again. Files that were saved are read all along, and all of them in the end. Prints one
 * JSON document (`SaverResult`); anything but EIO, and a file that is not what was saved, ends it
 * with exit code 1 and says what was found.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { Prng } from "../../cluster/base/prng.js";

export interface SaverResult {
  saves: number;
  /** Of these, files that were closed and not synced. */
  closed: number;
  files: number;
  /** Saves and reads that were done again because of EIO. */
  again: number;
}

const DIRECTORIES = 8;
const SIZES = [1, 100, 1_024, 5_000, 20_000, 70_000];
const PIECE = 4_096;
const WAYS = ["anew", "anew", "rename", "cut", "append", "close", "close"] as const;
/** Larger files are not safe before they are synced. */
const CLOSE_BYTES_MAX = 64 * 1024;
type Way = (typeof WAYS)[number];

const [folder = "", seed, seconds] = process.argv.slice(2);
const random = new Prng(Number(seed));
const saved = new Map<string, Buffer>();
let again = 0;
let closed = 0;

function untilDone<T>(step: () => T): T {
  for (;;) {
    try {
      return step();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EIO") throw error;
      again++;
    }
  }
}
function withFile(path: string, flags: string, work: (file: number) => void, sync = true): void {
  const file = fs.openSync(path, flags);
  try {
    work(file);
    if (sync) fs.fsyncSync(file);
  } finally {
    fs.closeSync(file);
  }
}
function writeAll(file: number, data: Buffer): void {
  for (let at = 0; at < data.length; at += PIECE) {
    fs.writeSync(file, data, at, Math.min(PIECE, data.length - at));
  }
}
function write(path: string, data: Buffer, sync = true): void {
  withFile(path, "w", (file) => writeAll(file, data), sync);
}

function save(path: string, data: Buffer, way: Way): Buffer {
  const before = saved.get(path);
  if (way === "append" && before !== undefined) {
    const whole = Buffer.concat([before, data]);
    try {
      withFile(path, "a", (file) => writeAll(file, data));
    } catch (error) {
      // Some of it may be there: all of it is written anew.
      if ((error as NodeJS.ErrnoException).code !== "EIO") throw error;
      again++;
      untilDone(() => write(path, whole));
    }
    return whole;
  }
  if (way === "close" && data.length <= CLOSE_BYTES_MAX) {
    untilDone(() => write(path, data, false));
    closed++;
    return data;
  }
  untilDone(() => {
    const target = way === "rename" ? `${path}.new` : path;
    write(target, data);
    if (way === "rename") fs.renameSync(target, path);
    if (way !== "cut") return;
    fs.utimesSync(path, 1, 1);
    fs.truncateSync(path, 0);
    withFile(path, "r+", (file) => writeAll(file, data));
  });
  return data;
}
function check(path: string): void {
  const found = untilDone(() => fs.readFileSync(path));
  const expected = saved.get(path)!;
  if (found.equals(expected)) return;
  const at = found.findIndex((byte, i) => byte !== expected[i]);
  const { size } = fs.statSync(path);
  throw new Error(
    `${path}: ${found.length} bytes (stat says ${size}), ${expected.length} were saved, ` +
      `the first other one at ${at}`,
  );
}

const end = performance.now() + Number(seconds) * 1_000;
let saves = 0;
fs.mkdirSync(folder, { recursive: true });
while (performance.now() < end) {
  let path: string;
  if (saved.size === 0 || random.chance(0.4)) {
    const directory = join(folder, `d${random.int(0, DIRECTORIES - 1)}`);
    untilDone(() => fs.mkdirSync(directory, { recursive: true }));
    path = join(directory, `f${saves}`);
  } else path = random.pick([...saved.keys()]);
  const data = Buffer.alloc(random.pick(SIZES), random.int(1, 255));
  saved.set(path, save(path, data, random.pick(WAYS)));
  saves++;
  if (random.chance(0.3)) check(random.pick([...saved.keys()]));
}
for (const path of saved.keys()) check(path);
const result: SaverResult = { saves, closed, files: saved.size, again };
console.log(JSON.stringify(result));

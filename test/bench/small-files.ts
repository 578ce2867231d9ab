/**
 * Small files, as a program: `small-files.js FOLDER PHASE COUNT WORKERS`. Prints operations
 * a second.
 * Phases: create (1 KiB each), stat, read, delete; 100 files a directory. A create is open, write
 * and close, as programs do it that ask for no durability.
 */
import { constants, promises } from "node:fs";
import { mkdir, open, stat, unlink, rmdir } from "node:fs/promises";
import { join } from "node:path";

const [folder = "", phase = "", countText = "0", workersText = "1"] = process.argv.slice(2);
const count = Number(countText);
const workers = Number(workersText);
const PER_FOLDER = 100;
const BYTES = 1024;
const content = Buffer.alloc(BYTES, "dss ");

const folderOf = (i: number): string => join(folder, `d${Math.floor(i / PER_FOLDER)}`);
const pathOf = (i: number): string => join(folderOf(i), `f${i}`);

async function one(i: number): Promise<void> {
  switch (phase) {
    case "create": {
      const file = await open(pathOf(i), constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL);
      await file.write(content);
      await file.close();
      return;
    }
    case "stat": {
      const { size } = await stat(pathOf(i));
      if (size !== BYTES) throw new Error(`${pathOf(i)} has ${size} bytes`);
      return;
    }
    case "read": {
      const data = await promises.readFile(pathOf(i));
      if (!data.equals(content)) throw new Error(`${pathOf(i)} has wrong bytes`);
      return;
    }
    case "delete":
      await unlink(pathOf(i));
      return;
    default:
      throw new Error(`no phase "${phase}"`);
  }
}

const folders = Array.from({ length: Math.ceil(count / PER_FOLDER) }, (_, i) => i * PER_FOLDER);
if (phase === "create") {
  for (const first of folders) await mkdir(folderOf(first), { recursive: true });
}
const start = performance.now();
let next = 0;
const work = async (): Promise<void> => {
  for (let i = next++; i < count; i = next++) await one(i);
};
await Promise.all(Array.from({ length: workers }, work));
const seconds = (performance.now() - start) / 1000;
if (phase === "delete") for (const first of folders) await rmdir(folderOf(first));
process.stdout.write(`${count / seconds}\n`);

/**
 * Operations on files of a mount, as a program: one JSON document on standard input says what to
 * do, one on standard output how many milliseconds it took. A program, so that a mount that hangs
 * stops nobody else, and so that starting it does not count.
 */
import { randomFillSync } from "node:crypto";
import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { open, stat } from "node:fs/promises";
import { dirname } from "node:path";

export type FileOperation =
  /** A file of so many bytes, synced. */
  | { readonly do: "write"; readonly path: string; readonly bytes: number }
  /** From its beginning to its end. */
  | { readonly do: "read"; readonly path: string; readonly bytes: number }
  /** A file of so many bytes of which only the last 4 KiB are written, synced. */
  | { readonly do: "sparse"; readonly path: string; readonly bytes: number }
  | { readonly do: "read-block"; readonly path: string; readonly offset: number }
  /** Files with so many bytes each, one after the other, and their directories. */
  | { readonly do: "create"; readonly paths: readonly string[]; readonly bytes: number }
  | { readonly do: "stat"; readonly paths: readonly string[] }
  | { readonly do: "delete"; readonly paths: readonly string[] }
  /** The names alone, as `ls -f`. */
  | { readonly do: "list"; readonly path: string; readonly entries: number }
  /** Kills a process: how long until one file is looked up, and until another one is created. */
  | {
      readonly do: "takeover";
      readonly pid: number;
      readonly stat: string;
      readonly create: string;
    };

const BLOCK = 4096;
const CHUNK = randomFillSync(Buffer.alloc(2 ** 20));

function withFile(path: string, flags: string, action: (file: number) => void): void {
  const file = openSync(path, flags);
  try {
    action(file);
  } finally {
    closeSync(file);
  }
}

function write(path: string, bytes: number): void {
  withFile(path, "wx", (file) => {
    for (let at = 0; at < bytes; at += CHUNK.length) {
      writeSync(file, CHUNK, 0, Math.min(CHUNK.length, bytes - at));
    }
    fsyncSync(file);
  });
}

function read(path: string, bytes: number): void {
  withFile(path, "r", (file) => {
    const into = Buffer.alloc(CHUNK.length);
    let at = 0;
    for (let got = -1; got !== 0; at += got) got = readSync(file, into);
    if (at !== bytes) throw new Error(`${path} has ${at} bytes instead of ${bytes}`);
  });
}

function makeSparse(path: string, bytes: number): void {
  withFile(path, "wx", (file) => {
    ftruncateSync(file, bytes);
    writeSync(file, CHUNK, 0, BLOCK, bytes - BLOCK);
    fsyncSync(file);
  });
}

/** A block of a hole. */
function readBlock(path: string, offset: number): void {
  withFile(path, "r", (file) => {
    const into = Buffer.alloc(BLOCK, 1);
    const got = readSync(file, into, 0, BLOCK, offset);
    if (got !== BLOCK || into.some((byte) => byte !== 0)) throw new Error(`${path} has no hole`);
  });
}

function create(paths: readonly string[], bytes: number): void {
  let last = "";
  for (const path of paths) {
    const folder = dirname(path);
    if (folder !== last) mkdirSync(folder, { recursive: true });
    last = folder;
    withFile(path, "wx", (file) => void (bytes > 0 && writeSync(file, CHUNK, 0, bytes)));
  }
}

function list(path: string, entries: number): void {
  const found = readdirSync(path).length;
  if (found !== entries) throw new Error(`${path} has ${found} entries instead of ${entries}`);
}

async function takeover(pid: number, path: string, created: string): Promise<number[]> {
  const start = performance.now();
  process.kill(pid, "SIGKILL");
  const since = (): number => performance.now() - start;
  return await Promise.all([
    stat(path).then(since),
    open(created, "wx").then(async (file) => {
      const ms = since();
      await file.close();
      return ms;
    }),
  ]);
}

function once(operation: Exclude<FileOperation, { do: "takeover" }>): void {
  switch (operation.do) {
    case "write":
      return write(operation.path, operation.bytes);
    case "read":
      return read(operation.path, operation.bytes);
    case "sparse":
      return makeSparse(operation.path, operation.bytes);
    case "read-block":
      return readBlock(operation.path, operation.offset);
    case "create":
      return create(operation.paths, operation.bytes);
    case "stat":
      for (const path of operation.paths) statSync(path);
      return;
    case "delete":
      for (const path of operation.paths) unlinkSync(path);
      return;
    case "list":
      return list(operation.path, operation.entries);
  }
}

async function perform(operation: FileOperation): Promise<number[]> {
  if (operation.do === "takeover") {
    return await takeover(operation.pid, operation.stat, operation.create);
  }
  const start = performance.now();
  once(operation);
  return [performance.now() - start];
}

const operation = JSON.parse(readFileSync(0, "utf8")) as FileOperation;
process.stdout.write(`${JSON.stringify(await perform(operation))}\n`);

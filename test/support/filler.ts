/**
 * Fills a folder with files of random bytes, as a program: `filler.js JSON`, until an error or
 * until `filesMax` are there. Each file is written in pieces, synced and closed; only then it
 * counts. Prints one JSON document (`Filled`). With `verify` it reads files instead, and tells
 * which of them do not have their checksum.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import { Prng } from "../../cluster/base/prng.js";

export interface FillRequest {
  do: "fill" | "verify";
  folder: string;
  prefix: string;
  seed: number;
  fileBytes: number;
  filesMax: number;
  /** verify: name and checksum. */
  files: [name: string, sum: string][];
}
export interface Filled {
  files: [name: string, sum: string][];
  /** What ended it: "ENOSPC at fsync". */
  error: string;
  wrong: string[];
}

const PIECE_BYTES = 256 * 1024;
const request = JSON.parse(process.argv[2] ?? "{}") as FillRequest;
const random = new Prng(request.seed);
const result: Filled = { files: [], error: "", wrong: [] };
const sumOf = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

/** Returns what failed, or nothing. */
function writeFile(path: string, bytes: Buffer): string {
  let doing = "open";
  let fd = -1;
  try {
    fd = fs.openSync(path, "w");
    doing = "write";
    for (let at = 0; at < bytes.length;) {
      at += fs.writeSync(fd, bytes, at, Math.min(PIECE_BYTES, bytes.length - at));
    }
    doing = "fsync";
    fs.fsyncSync(fd);
    doing = "close";
    const closing = fd;
    fd = -1;
    fs.closeSync(closing);
    return "";
  } catch (error) {
    return `${(error as NodeJS.ErrnoException).code} at ${doing}`;
  } finally {
    try {
      if (fd >= 0) fs.closeSync(fd);
    } catch {
      // The error was told already.
    }
  }
}

if (request.do === "verify") {
  for (const [name, sum] of request.files) {
    if (sumOf(fs.readFileSync(join(request.folder, name))) !== sum) result.wrong.push(name);
  }
} else {
  for (let i = 0; i < request.filesMax && result.error === ""; i++) {
    const name = `${request.prefix}${i}`;
    const bytes = random.bytes(request.fileBytes);
    result.error = writeFile(join(request.folder, name), bytes);
    if (result.error === "") result.files.push([name, sumOf(bytes)]);
  }
}
process.stdout.write(JSON.stringify(result));

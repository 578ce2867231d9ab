/**
 * The tree that is unpacked, copied and removed: a tar file of files in nested directories, sized
 * like a source tree (most a few KiB, some a hundred times that; 12 KiB on average). The same on
 * every machine, because it is drawn from a seed.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Prng } from "../../../cluster/base/prng.js";
import { succeed } from "../../support/process.js";
import { tempFolder } from "../../support/temp.js";
import type { Scope } from "../../support/scope.js";

const SEED = 20_261_122;
const FILES_A_DIRECTORY = 5;
const TYPICAL_BYTES = 4_000;
const SPREAD = 1.5;
const LARGEST_BYTES = 400 * 1024;

export interface TreeFile {
  readonly path: string;
  readonly bytes: number;
}

/** Files of the tree, in the order of their directories. */
export function planTree(files: number): TreeFile[] {
  const random = new Prng(SEED);
  return Array.from({ length: files }, (_, i) => {
    const directory = Math.floor(i / FILES_A_DIRECTORY);
    const path = `part-${Math.floor(directory / 50)}/package-${directory % 50}/file-${i}`;
    // Log-normal: the sum of uniform numbers is close enough to a bell.
    const bell = Array.from({ length: 12 }, () => random.float()).reduce((a, b) => a + b) - 6;
    const bytes = Math.min(LARGEST_BYTES, Math.round(TYPICAL_BYTES * Math.exp(SPREAD * bell)));
    return { path, bytes };
  });
}

/** Writes the tar file into a folder of its own and returns its path. */
export async function makeTree(scope: Scope, files: number): Promise<string> {
  const folder = tempFolder(scope, "peers-tree");
  const random = new Prng(SEED + 1);
  const text = random.bytes(LARGEST_BYTES);
  const made = new Set<string>();
  for (const { path, bytes } of planTree(files)) {
    const full = join(folder, "tree", path);
    const directory = full.slice(0, full.lastIndexOf("/"));
    if (!made.has(directory)) mkdirSync(directory, { recursive: true });
    made.add(directory);
    const start = random.int(0, LARGEST_BYTES - bytes);
    writeFileSync(full, text.subarray(start, start + bytes));
  }
  const tar = join(folder, "tree.tar");
  const withinMs = 120_000;
  await scope.within((t) => succeed(t, "tar", ["-C", folder, "-cf", tar, "tree"], { withinMs }));
  return tar;
}

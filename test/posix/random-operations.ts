/**
 * Random operations on one file, at unaligned places around the borders of objects, done twice: on
 * the file under test and on a local file. Every read is compared, the whole file at the end and
 * after each reopening. Determined by the seed; a failure prints the seed and the last operations.
 */
import assert from "node:assert/strict";
import * as fs from "node:fs";
import { Prng } from "../../cluster/base/prng.js";
import { readRange, writeAll } from "./checks.js";
import type { Scene } from "./checks.js";

const KIB = 1024;
const OBJECT = 4 * KIB * KIB;
const SIZE_MAX = 3 * OBJECT + 300 * KIB;
const DIRECT_ALIGN = 4 * KIB;
const HISTORY = 12;
const { O_RDWR, O_APPEND, O_CREAT, O_TRUNC } = fs.constants;
/** Absent from Node's constants on some systems; Linux has it everywhere dss runs. */
const O_DIRECT = (fs.constants as { O_DIRECT?: number }).O_DIRECT ?? 0o40000;

type Operation =
  | { kind: "write" | "read" | "append" | "direct"; offset: number; length: number }
  | { kind: "truncate"; size: number }
  | { kind: "fsync" | "reopen" | "remove" };

/** Places near a border are what goes wrong. */
function place(random: Prng): number {
  if (random.chance(0.6)) {
    const border = OBJECT * random.int(0, 3);
    return Math.max(0, border + random.int(-9_000, 9_000));
  }
  if (random.chance(0.5)) return random.int(0, 200 * KIB);
  return random.int(0, SIZE_MAX - 1);
}

function length(random: Prng): number {
  if (random.chance(0.3)) return random.int(1, 100);
  if (random.chance(0.6)) return random.int(1, 20_000);
  if (random.chance(0.2)) return random.int(1, OBJECT / 2);
  return random.int(1, 300 * KIB);
}

function choose(random: Prng): Operation {
  const offset = place(random);
  const bytes = Math.max(1, Math.min(length(random), SIZE_MAX - offset));
  const draw = random.float();
  if (draw < 0.4) return { kind: "write", offset, length: bytes };
  if (draw < 0.7) return { kind: "read", offset, length: bytes };
  if (draw < 0.77) return { kind: "append", offset: 0, length: Math.min(bytes, 30_000) };
  if (draw < 0.85) {
    const start = offset - (offset % DIRECT_ALIGN);
    const rounded = Math.ceil(Math.min(bytes, 100 * KIB) / DIRECT_ALIGN) * DIRECT_ALIGN;
    return { kind: "direct", offset: start, length: rounded };
  }
  if (draw < 0.91) return { kind: "truncate", size: random.chance(0.05) ? 0 : offset };
  if (draw < 0.96) return { kind: "fsync" };
  return random.chance(0.03) ? { kind: "remove" } : { kind: "reopen" };
}

export function randomOperations(scene: Scene, count: number): void {
  const random = new Prng(scene.seed);
  const path = scene.at("random");
  const twin = `${scene.local}/random-${scene.seed}`;
  const history: string[] = [];
  let fd = fs.openSync(path, O_RDWR | O_CREAT | O_TRUNC, 0o644);
  let reference = fs.openSync(twin, O_RDWR | O_CREAT | O_TRUNC, 0o644);
  try {
    for (let i = 0; i < count; i++) {
      const operation = choose(random);
      history.push(`${i}: ${JSON.stringify(operation)}`);
      if (history.length > HISTORY) history.shift();
      switch (operation.kind) {
        case "write": {
          const data = random.bytes(operation.length);
          writeAll(fd, data, operation.offset);
          writeAll(reference, data, operation.offset);
          break;
        }
        case "read":
          compare(fd, reference, operation.offset, operation.length);
          break;
        case "append":
          append([path, twin], random.bytes(operation.length));
          break;
        case "direct": {
          const data = random.bytes(operation.length);
          writeDirect(path, data, operation.offset);
          writeAll(reference, data, operation.offset);
          break;
        }
        case "truncate":
          fs.ftruncateSync(fd, operation.size);
          fs.ftruncateSync(reference, operation.size);
          break;
        case "fsync":
          fs.fsyncSync(fd);
          break;
        case "reopen":
        case "remove":
          fs.closeSync(fd);
          if (operation.kind === "remove") {
            fs.unlinkSync(path);
            fs.closeSync(reference);
            fs.unlinkSync(twin);
            reference = fs.openSync(twin, O_RDWR | O_CREAT, 0o644);
          }
          fd = fs.openSync(path, O_RDWR | O_CREAT, 0o644);
          compareAll(fd, reference);
          break;
      }
      assert.equal(fs.fstatSync(fd).size, fs.fstatSync(reference).size, "the sizes differ");
    }
    fs.fsyncSync(fd);
    compareAll(fd, reference);
  } catch (error) {
    const lines = history.join("\n  ");
    throw new Error(`seed ${scene.seed}: ${String(error)}\nlast operations:\n  ${lines}`, {
      cause: error,
    });
  } finally {
    fs.closeSync(fd);
    fs.closeSync(reference);
  }
}

/** Compares what an earlier run left with its twin: after the caches are cold. */
export function compareWithTwin(scene: Scene): void {
  const fd = fs.openSync(scene.at("random"), "r");
  const reference = fs.openSync(`${scene.local}/random-${scene.seed}`, "r");
  try {
    compareAll(fd, reference);
  } finally {
    fs.closeSync(fd);
    fs.closeSync(reference);
  }
}

function append(paths: readonly string[], data: Buffer): void {
  for (const path of paths) {
    const fd = fs.openSync(path, O_RDWR | O_APPEND);
    try {
      assert.equal(fs.writeSync(fd, data), data.length, "an append is written whole");
    } finally {
      fs.closeSync(fd);
    }
  }
}

/** With O_DIRECT; a file system that wants aligned memory, which Node cannot give, goes without. */
function writeDirect(path: string, data: Buffer, offset: number): void {
  const fd = fs.openSync(path, O_RDWR | O_DIRECT);
  try {
    writeAll(fd, data, offset);
    return;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error;
  } finally {
    fs.closeSync(fd);
  }
  const plain = fs.openSync(path, O_RDWR);
  try {
    writeAll(plain, data, offset);
  } finally {
    fs.closeSync(plain);
  }
}

function compare(fd: number, reference: number, offset: number, bytes: number): void {
  const found = readRange(fd, offset, bytes);
  const wanted = readRange(reference, offset, bytes);
  if (found.equals(wanted)) return;
  let at = 0;
  while (at < found.length && found[at] === wanted[at]) at++;
  assert.fail(
    `read of ${bytes} at ${offset}: ${found.length} bytes, ${wanted.length} expected; ` +
      `they differ from ${offset + at} on (${found[at]}, not ${wanted[at]})`,
  );
}

function compareAll(fd: number, reference: number): void {
  const { size } = fs.fstatSync(reference);
  assert.equal(fs.fstatSync(fd).size, size, "the sizes differ");
  for (let offset = 0; offset < size + 1; offset += 1_000_003) {
    compare(fd, reference, offset, 1_000_003);
  }
}

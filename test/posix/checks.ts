/**
 * What scenarios share. A scenario is a function that uses one folder of the file system under test
 * with plain system calls and throws at the first thing that POSIX does not say. It runs in a
 * process of its own (worker.ts), never in one that serves the mount.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";

export interface Scene {
  /** An empty folder of the file system under test. */
  readonly root: string;
  /** A path below it. */
  at(...names: string[]): string;
  /** A folder of the machine's own file system, for references. */
  readonly local: string;
  readonly seed: number;
  /** 1 for the full size; less for a file system that is only a check of the suites. */
  readonly scale: number;
}

export type Scenario = (scene: Scene) => void | Promise<void>;
export type Scenarios = Readonly<Record<string, Scenario>>;

/** Throws unless the action fails with that errno name (one of those). */
export function fails(action: () => unknown, ...codes: readonly string[]): void {
  let found = "success";
  try {
    action();
  } catch (error) {
    found = (error as NodeJS.ErrnoException).code ?? String(error);
  }
  assert.ok(codes.includes(found), `expected ${codes.join(" or ")}, got ${found}`);
}

/** Runs the action and closes the descriptor whatever happens. */
export function withOpen<T>(path: string, flags: number | string, use: (fd: number) => T): T {
  const fd = fs.openSync(path, flags, 0o644);
  try {
    return use(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** All bytes of a range; fewer at the end of the file. */
export function readRange(fd: number, offset: number, length: number): Buffer {
  const out = Buffer.alloc(length);
  let done = 0;
  while (done < length) {
    const count = fs.readSync(fd, out, done, length - done, offset + done);
    if (count === 0) break;
    done += count;
  }
  return out.subarray(0, done);
}

export function writeAll(fd: number, data: Buffer, offset: number): void {
  let done = 0;
  while (done < data.length) {
    const count = fs.writeSync(fd, data, done, data.length - done, offset + done);
    assert.ok(count > 0, "a write of some bytes writes some");
    done += count;
  }
}

/** Acts as an unprivileged user with one group; back to root afterwards. */
export function asUser<T>(uid: number, gid: number, action: () => T): T {
  assert.equal(process.geteuid?.(), 0, "this scenario needs root");
  process.setgroups?.([]);
  process.setegid?.(gid);
  process.seteuid?.(uid);
  try {
    return action();
  } finally {
    process.seteuid?.(0);
    process.setegid?.(0);
  }
}

/** System calls that Node lacks; `script` finds `libc`, `os` and arguments in `sys.argv[1:]`. */
export function python(script: string, ...args: string[]): string {
  const prelude =
    "import ctypes, errno, fcntl, mmap, os, sys\n" +
    "libc = ctypes.CDLL(None, use_errno=True)\n" +
    "def code(r): return errno.errorcode[ctypes.get_errno()] if r else 'ok'\n";
  return execFileSync("python3", ["-c", prelude + script, ...args], {
    encoding: "utf8",
    timeout: 60_000,
    stdio: ["ignore", "pipe", "pipe"],
  });
}

export function exec(program: string, ...args: string[]): string {
  return execFileSync(program, args, {
    encoding: "utf8",
    timeout: 60_000,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C" },
  });
}

export function makeScene(options: Omit<Scene, "at">): Scene {
  return { ...options, at: (...names) => join(options.root, ...names) };
}

export const sorted = (names: readonly string[]): string[] => [...names].sort();

/**
 * Directories as people name them to commands about the file system: by where they are below a
 * mount on this machine, or by their path from the root of the file system (`--path`).
 */
import type { Command } from "commander";
import { closeSync, fsyncSync, openSync, realpathSync, statSync } from "node:fs";
import { dirname, posix, resolve } from "node:path";
import { DssError } from "../cluster/base/errors.js";
import type { DirectoryName } from "../mds/proto-totals.js";
import { UsageError } from "./failure.js";

export interface PathOptions {
  path?: string;
}
export interface NamedDirectory {
  /** As it was given. */
  shown: string;
  name: DirectoryName;
  /** The cluster that is mounted there. */
  zookeeper?: string;
}

export function withDirectory(command: Command): Command {
  return command
    .argument("[directory]", "a directory below a mount on this machine")
    .option("--path <path>", "instead, its path from the root of the file system");
}

/** Throws UsageError when none or two are named. */
export async function directoryOf(
  given: string | undefined,
  { path }: PathOptions,
): Promise<NamedDirectory> {
  if ((given === undefined) === (path === undefined)) {
    throw new UsageError(
      given === undefined ? "no directory is named" : "a directory and --path are both given",
      "name a directory below a mount, such as /mnt/dss/data, or --path /data",
    );
  }
  if (path !== undefined) return { shown: path, name: { path: namesOf(path) } };
  return belowMount(given!);
}

/** Names from the root; "." and ".." are taken out as text. */
function namesOf(path: string): Buffer[] {
  const names = posix.resolve("/", path).split("/");
  return names.filter((name) => name !== "").map((name) => Buffer.from(name));
}

async function belowMount(given: string): Promise<NamedDirectory> {
  const { findMount } = await import("../client-fs/fuse/device.js");
  const { readRecord } = await import("./local/mounts.js");
  const place = statOf(given);
  for (let at = place.path; ; at = dirname(at)) {
    const mount = findMount(at);
    if (mount === undefined && at !== "/") continue;
    if (mount?.type !== "fuse.dss") break;
    sync(place.path);
    const { zookeeper } = readRecord(at) ?? {};
    const known = zookeeper === undefined ? {} : { zookeeper };
    return { shown: given, name: { ino: place.ino }, ...known };
  }
  throw new DssError("InvalidArgument", `${given} is not in a dss file system`, {
    hint: "name a directory below a mount, or its path in the file system with --path",
  });
}

/** A mount tells the metadata server a little later what was made; it has to know it now. */
function sync(path: string): void {
  try {
    const directory = openSync(path, "r");
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    if (code === "EACCES") return; // Who may not read it asks for what was there before.
    throw new DssError("Disk", `${path} cannot be synced: ${code}`, {
      hint: "see the mount's log for what could not be written",
    });
  }
}

function statOf(given: string): { path: string; ino: number } {
  try {
    const path = realpathSync(resolve(given));
    const stat = statSync(path);
    if (stat.isDirectory()) return { path, ino: stat.ino };
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    throw new DssError("NotFound", `${given} cannot be looked at: ${code}`, {
      hint: "check the path, and that the file system is mounted: dss status",
    });
  }
  throw new DssError("NotDirectory", `${given} is no directory`, {
    hint: "totals and quotas are those of directories",
  });
}

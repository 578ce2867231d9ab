/** `dss du`: how much is below a directory, from the totals that the metadata leader keeps. */
import type { Command } from "commander";
import { DssError } from "../cluster/base/errors.js";
import type { DirectoryTotals, DirectoryUsage } from "../mds/proto-totals.js";
import { directoryOf, withDirectory, type NamedDirectory, type PathOptions } from "./file-path.js";
import { examples, useCluster, withJson } from "./options.js";
import { note, printJson, printTable } from "./output.js";
import { formatSize, parseCount } from "./sizes.js";

interface Options extends PathOptions {
  depth: string;
  json?: boolean;
}

export function register(command: Command): void {
  withJson(withDirectory(command))
    .option("--depth <levels>", "1 also shows each directory in it", "0")
    .action(async (given: string | undefined, options: Options) => {
      const depth = parseCount(options.depth, { what: "depth", min: 0, max: 1 });
      const directory = await directoryOf(given, options);
      const usage = await ask(command, directory, depth > 0);
      if (options.json === true) printJson(documentOf(directory.shown, usage, depth));
      else show(directory.shown, usage);
    });
  examples(
    command,
    "dss du /mnt/dss/projects",
    "dss du /mnt/dss --depth 1",
    "dss du --path / --json",
  );
}

async function ask(
  command: Command,
  { name, zookeeper }: NamedDirectory,
  children: boolean,
): Promise<DirectoryUsage> {
  const { usage } = await useCluster(
    command,
    (client) => client.admin({ op: "usage", ...name, children }),
    zookeeper,
  );
  if (usage !== undefined) return usage;
  throw new DssError("Malformed", "the leader answered without totals");
}

/** Numbers as far as they are exact in JSON. */
export function totalsDocument(totals: DirectoryTotals): object {
  const { ino, files, directories, bytes, allocated, maxBytes, maxInodes } = totals;
  return {
    ...{ ino, files, directories, bytes: Number(bytes), allocated: Number(allocated) },
    quota: maxBytes === 0 && maxInodes === 0 ? null : { bytes: maxBytes, inodes: maxInodes },
  };
}
function documentOf(path: string, { totals, children, isCut }: DirectoryUsage, depth: number) {
  const below = children.map(({ name, totals: each }) => ({
    name: name.toString(),
    ...totalsDocument(each),
  }));
  const more = depth === 0 ? {} : { children: below, complete: !isCut };
  return { path, ...totalsDocument(totals), ...more };
}

const row = (path: string, totals: DirectoryTotals): unknown[] => [
  formatSize(Number(totals.bytes)),
  formatSize(Number(totals.allocated)),
  totals.files,
  totals.directories,
  path,
];
function show(path: string, { totals, children, isCut }: DirectoryUsage): void {
  const slash = path.endsWith("/") ? "" : "/";
  const below = children.map(({ name, totals: each }) => row(`${path}${slash}${name}`, each));
  const head = ["SIZE", "ON DISK", "FILES", "DIRECTORIES", "PATH"];
  printTable(head, [...below, row(path, totals)]);
  if (isCut) note("there are more directories than are shown");
}

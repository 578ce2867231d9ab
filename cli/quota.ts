/** `dss quota`: limits of bytes and inodes below directories. */
import type { Command } from "commander";
import { DssError } from "../cluster/base/errors.js";
import type { DirectoryTotals, QuotaLimits, QuotaReport } from "../mds/proto-totals.js";
import { totalsDocument } from "./du.js";
import { UsageError } from "./failure.js";
import { directoryOf, withDirectory, type NamedDirectory, type PathOptions } from "./file-path.js";
import { examples, useCluster, withCluster, withJson } from "./options.js";
import { printJson, printLine, printTable } from "./output.js";
import { formatSize, parseCount, parseSize } from "./sizes.js";

interface Options extends PathOptions {
  json?: boolean;
}
interface Limits extends PathOptions {
  bytes?: string;
  inodes?: string;
}

export function register(command: Command): void {
  registerSet(command.command("set").summary("limit what may be below a directory"));
  registerGet(command.command("get").summary("a directory's limits, and what it has"));
  registerList(command.command("ls").summary("every directory with limits"));
  registerRemove(command.command("rm").summary("take a directory's limits away"));
  examples(
    command,
    "dss quota set /mnt/dss/projects --bytes 10G --inodes 100000",
    "dss quota get /mnt/dss/projects",
    "dss quota rm --path /projects",
  );
}

function registerSet(command: Command): void {
  withCluster(withDirectory(command.description(command.summary())))
    .option("--bytes <size>", "sizes of all files together, such as 10G; 0 takes the limit away")
    .option("--inodes <count>", "files and directories together; 0 takes the limit away")
    .action(async (given: string | undefined, options: Limits) => {
      const limits = limitsOf(options);
      const directory = await directoryOf(given, options);
      describe(directory.shown, await change(command, directory, limits));
    });
  examples(command, "dss quota set /mnt/dss/projects --bytes 10G --inodes 100000");
}
function limitsOf({ bytes, inodes }: Limits): Partial<QuotaLimits> {
  if (bytes === undefined && inodes === undefined) {
    throw new UsageError("no limit is given", "give --bytes 10G, --inodes 100000, or both");
  }
  const size = { what: "limit", bare: "bytes", min: 0, max: Number.MAX_SAFE_INTEGER } as const;
  const count = { what: "limit", min: 0, max: 999_999_999_999_999 };
  return {
    ...(bytes === undefined ? {} : { maxBytes: parseSize(bytes, size) }),
    ...(inodes === undefined ? {} : { maxInodes: parseCount(inodes, count) }),
  };
}

function registerGet(command: Command): void {
  withJson(withDirectory(command.description(command.summary()))).action(
    async (given: string | undefined, options: Options) => {
      const directory = await directoryOf(given, options);
      const { name, zookeeper } = directory;
      const { usage } = await useCluster(
        command,
        (client) => client.admin({ op: "usage", ...name, children: false }),
        zookeeper,
      );
      if (usage === undefined) throw unanswered();
      const { totals } = usage;
      if (options.json === true) printJson({ path: directory.shown, ...totalsDocument(totals) });
      else describe(directory.shown, totals);
    },
  );
  examples(command, "dss quota get /mnt/dss/projects", "dss quota get --path /projects --json");
}

function registerRemove(command: Command): void {
  withCluster(withDirectory(command.description(command.summary()))).action(
    async (given: string | undefined, options: Options) => {
      const directory = await directoryOf(given, options);
      await change(command, directory, { maxBytes: 0, maxInodes: 0 });
      printLine(`${directory.shown} has no quota`);
    },
  );
  examples(command, "dss quota rm /mnt/dss/projects");
}

function registerList(command: Command): void {
  withJson(command.description(command.summary())).action(async (options: Options) => {
    const { quotas } = await useCluster(command, (client) => client.admin({ op: "quotaList" }));
    if (quotas === undefined) throw unanswered();
    const sorted = quotas.map((each) => ({ ...each, shown: pathOf(each) }));
    sorted.sort((a, b) => (a.shown < b.shown ? -1 : 1));
    if (options.json === true) {
      printJson(sorted.map(({ shown, totals }) => ({ path: shown, ...totalsDocument(totals) })));
    } else if (sorted.length === 0) printLine("no directory has a quota");
    else
      printTable(
        HEAD,
        sorted.map(({ shown, totals }) => rowOf(shown, totals)),
      );
  });
  examples(command, "dss quota ls");
}
/** From the root of the file system. */
function pathOf({ path, totals }: QuotaReport): string {
  if (path === undefined) return `inode ${totals.ino.toString(16)}`;
  return `/${path.map((name) => name.toString()).join("/")}`;
}

async function change(
  command: Command,
  { name, zookeeper }: NamedDirectory,
  limits: Partial<QuotaLimits>,
): Promise<DirectoryTotals> {
  const { totals } = await useCluster(
    command,
    (client) => client.admin({ op: "quotaSet", ...name, ...limits }),
    zookeeper,
  );
  if (totals !== undefined) return totals;
  throw unanswered();
}
function unanswered(): DssError {
  return new DssError("Malformed", "the leader answered without totals");
}

const HEAD = ["SIZE", "LIMIT", "INODES", "LIMIT", "PATH"];
function rowOf(path: string, totals: DirectoryTotals): unknown[] {
  const { files, directories, bytes, maxBytes, maxInodes } = totals;
  return [
    formatSize(Number(bytes)),
    maxBytes === 0 ? "-" : formatSize(maxBytes),
    files + directories,
    maxInodes === 0 ? "-" : maxInodes,
    path,
  ];
}
function describe(path: string, totals: DirectoryTotals): void {
  printTable(HEAD, [rowOf(path, totals)]);
}

/**
 * The `dss` command: the table of its verbs. Each verb's file is loaded only when it is called, so
 * that `dss --help` and commands that ask something answer at once. Commander parses; this file
 * decides how a command ends (failure.ts).
 */
import { Command, CommanderError } from "commander";
import { explain } from "./failure.js";
import { version } from "./version.js";

interface Verb {
  name: string;
  alias?: string;
  summary: string;
  /** Adds the verb's options, subcommands and action. */
  load(): Promise<{ register(command: Command): void }>;
}

const VERBS: readonly Verb[] = [
  {
    name: "cluster",
    summary: "start, stop and show a cluster on this machine",
    load: () => import("./cluster.js"),
  },
  {
    name: "status",
    summary: "health, daemons, placement groups, usage and activity",
    load: () => import("./status.js"),
  },
  {
    name: "health",
    summary: "what is wrong, by named code",
    load: () => import("./health.js"),
  },
  {
    name: "topology",
    summary: "hosts, OSDs, their shares of the ring and what they hold",
    load: () => import("./topology.js"),
  },
  {
    name: "osd",
    summary: "storage daemons: run one, list them, change their place",
    load: () => import("./osd.js"),
  },
  { name: "mds", summary: "metadata servers: run one, list them", load: () => import("./mds.js") },
  { name: "pool", summary: "pools and their settings", load: () => import("./pool.js") },
  {
    name: "pg",
    summary: "placement groups, and where an object's copies are",
    load: () => import("./pg.js"),
  },
  {
    name: "scrub",
    summary: "compare and verify the copies of all objects, repair what is wrong",
    load: () => import("./scrub.js"),
  },
  {
    name: "fsck",
    summary: "check metadata against itself and against the objects, repair what is wrong",
    load: () => import("./fsck.js"),
  },
  {
    name: "du",
    summary: "how much is below a directory, at once",
    load: () => import("./du.js"),
  },
  {
    name: "quota",
    summary: "limits of bytes and inodes below directories",
    load: () => import("./quota.js"),
  },
  { name: "mount", summary: "mount the file system", load: () => import("./mount.js") },
  {
    name: "umount",
    summary: "write everything back and unmount",
    load: () => import("./umount.js"),
  },
  {
    name: "volume",
    alias: "device",
    summary: "block devices: create, read, write, serve, attach",
    load: () => import("./volume.js"),
  },
];

function buildProgram(): Command {
  const program = new Command("dss");
  program
    .description("dss, a distributed storage system: files, block devices, replicated objects")
    .version(version(), "-V, --version", "print the version")
    .option("--zookeeper <host:port,…>", "the cluster's ZooKeeper servers (DSS_ZOOKEEPER)")
    .helpOption("-h, --help", "print help")
    .helpCommand(false)
    // What follows the verb is the verb's: `cluster up --zookeeper 3` means a number of servers.
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      outputError: (text, write) => write(text.replace(/^error: /, "dss: ")),
    })
    .configureHelp({ helpWidth: Math.min(process.stdout.columns ?? 100, 100) })
    .showSuggestionAfterError(true)
    .addHelpText("after", "\n`dss COMMAND --help` shows the details and an example of each.");
  for (const verb of VERBS) {
    const command = program.command(verb.name).summary(verb.summary).description(verb.summary);
    command.helpCommand(false);
    if (verb.alias !== undefined) command.alias(verb.alias);
  }
  program.hook("preSubcommand", async (_, command) => {
    const verb = VERBS.find((each) => each.name === command.name());
    if (verb !== undefined) (await verb.load()).register(command);
  });
  return program;
}

/** `dss help osd` is `dss osd --help`. */
function normalize(args: readonly string[]): string[] {
  return args[0] === "help" ? [...args.slice(1), "--help"] : [...args];
}

async function run(args: readonly string[]): Promise<number> {
  try {
    await buildProgram().parseAsync(normalize(args), { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      // Commander has printed its message; help that was asked for is a success.
      return error.exitCode === 0 ? 0 : 2;
    }
    const { lines, exitCode } = explain(error);
    process.stderr.write(`${lines.join("\n")}\n`);
    return exitCode;
  }
}

/** Ends quietly when the reader of a pipe goes away (`dss pg ls | head`). */
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(process.exitCode ?? 0);
    throw error;
  });
}

/** A command has closed what it opened; what still keeps the process alive then is cut off. */
const LINGER_MS = 2_000;

const exitCode = await run(process.argv.slice(2));
process.exitCode ??= exitCode;
setTimeout(() => process.exit(), LINGER_MS).unref();

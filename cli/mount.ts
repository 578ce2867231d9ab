/**
 * `dss mount PATH`: in the background by default. The parent checks what can be wrong and returns
 * when the mount is usable. What stays is a small supervisor (local/mount-supervisor.ts), which
 * runs this same command with `--worker`; the fuse-native driver has one process, and no successor.
 */
import { Option, type Command } from "commander";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { hostname, constants as osConstants } from "node:os";
import { join, resolve } from "node:path";
import { describeError } from "../cluster/base/errors.js";
import { runtimeFolder } from "./local/folders.js";
import { examples, settingsOf, withCluster, withSettings, zookeeperOf } from "./options.js";
import { printLine } from "./output.js";
import { version } from "./version.js";

interface MountFlags {
  foreground?: boolean;
  worker?: boolean;
  upgrade?: boolean;
  options?: string[];
  driver: "kernel" | "fuse-native";
  log?: string;
}

const collect = (value: string, earlier: string[] | undefined): string[] => [
  ...(earlier ?? []),
  ...value.split(",").filter((each) => each !== ""),
];

export function register(command: Command): void {
  withCluster(command)
    .argument("<path>", "an existing, empty directory")
    .option("-f, --foreground", "do not go to the background; log to the terminal")
    .option("-o, --options <list>", "mount options: ro, nonempty, noatime, nosuid, nodev…", collect)
    .option("--log <file>", "log of the background process")
    .option("--upgrade", "let this version serve the mount at PATH; programs on it go on")
    .addOption(new Option("--worker").hideHelp())
    .addOption(
      new Option("--driver <driver>", "kernel: /dev/fuse itself; fuse-native: through libfuse")
        .choices(["kernel", "fuse-native"])
        .default("kernel"),
    );
  withSettings(command, ["cluster", "client"]);
  command.action(async (path: string, flags: MountFlags) => {
    const survival = settingsOf(command).client; // Wrong settings are refused before all else.
    if (flags.worker === true) {
      await runWorker(command, path, flags);
      return;
    }
    if (flags.upgrade === true) {
      const { upgradeMount } = await import("./local/mounts.js");
      const { pid } = await upgradeMount(path);
      printLine(`${resolve(path)} is served by version ${version()} (process ${pid})`);
      return;
    }
    if (flags.foreground === true) {
      await (flags.driver === "kernel" ? runSupervised : runAlone)(command, path, flags);
      return;
    }
    const [{ checkMountpoint, startMount }, { withClient }] = await Promise.all([
      import("./local/mounts.js"),
      import("./context.js"),
    ]);
    await checkMountpoint(path, flags.options);
    const zookeeper = zookeeperOf(command);
    // A cluster that cannot be reached is told here, not by a worker that waits for it.
    await withClient(zookeeper, (client) => client.needMap());
    const record = await startMount({
      path,
      zookeeper,
      log: flags.log === undefined ? defaultLog(path) : resolve(flags.log),
      driver: flags.driver,
      settings: settingArguments(command),
      survival,
      ...(flags.options !== undefined && { options: flags.options.join(",") }),
    });
    printLine(`mounted at ${record.mountpoint}; log: ${record.log}`);
  });
  examples(
    command,
    "dss mount /mnt/dss",
    "dss mount /mnt/dss -o ro,noatime",
    "dss mount /mnt/dss --upgrade",
  );
}

function defaultLog(path: string): string {
  const folder = join(runtimeFolder(), "log");
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  const name = createHash("sha256").update(resolve(path)).digest("hex").slice(0, 12);
  return join(folder, `mount-${name}.log`);
}

/** The settings given as flags, for the worker's command line. */
function settingArguments(command: Command): string[] {
  const own = new Set(["zookeeper", "foreground", "options", "log", "driver", "worker", "upgrade"]);
  const given = command.opts<Record<string, unknown>>();
  return command.options.flatMap((option) => {
    const value = given[option.attributeName()];
    if (own.has(option.name()) || typeof value !== "string") return [];
    return [option.long!, value];
  });
}

// ---- The process that serves -------------------------------------------------------------------

/** In the foreground, under a supervisor in this process. */
async function runSupervised(command: Command, path: string, flags: MountFlags): Promise<void> {
  const [{ checkMountpoint, supervisionOf }, { superviseMount }] = await Promise.all([
    import("./local/mounts.js"),
    import("./local/mount-supervisor.js"),
  ]);
  const mountpoint = await checkMountpoint(path, flags.options);
  const options = flags.options === undefined ? [] : ["-o", flags.options.join(",")];
  const args = ["--zookeeper", zookeeperOf(command), ...options, ...settingArguments(command)];
  await superviseMount(supervisionOf(mountpoint, args, settingsOf(command).client));
}

async function runWorker(command: Command, path: string, flags: MountFlags): Promise<void> {
  const [{ recordEnd }, { serveMount }, { daemonLogger }] = await Promise.all([
    import("./local/mounts.js"),
    import("./local/mount-worker.js"),
    import("./daemon.js"),
  ]);
  const config = settingsOf(command);
  const mountpoint = resolve(path);
  const logger = daemonLogger(`mount ${mountpoint}`, config);
  const options = { ...mountOptions(flags, mountpoint), zookeeper: zookeeperOf(command) };
  // The supervisor's record: it may have ended by then.
  const supervisor = process.ppid;
  await serveMount({ ...options, config, logger }, (ended) => {
    recordEnd(mountpoint, ended, supervisor);
  });
}

function mountOptions(flags: MountFlags, mountpoint: string) {
  const options = flags.options ?? [];
  const own = ["ro", "rw", "nonempty"];
  return {
    ...{ mountpoint, driver: flags.driver, host: hostname(), version: version() },
    readOnly: options.includes("ro"),
    allowNonEmpty: options.includes("nonempty"),
    mountOptions: options.filter((each) => !own.includes(each)),
  };
}

/** The only process of its mount. */
async function runAlone(command: Command, path: string, flags: MountFlags): Promise<void> {
  const { recordEnd, workerEnvironment } = await import("./local/mounts.js");
  const environment = workerEnvironment();
  if (process.env["UV_THREADPOOL_SIZE"] !== environment["UV_THREADPOOL_SIZE"]) {
    await again(environment);
    return;
  }
  const config = settingsOf(command);
  const zookeeper = zookeeperOf(command);
  const [{ runMount }, { daemonLogger, runToEnd }] = await Promise.all([
    import("../client-fs/main.js"),
    import("./daemon.js"),
  ]);
  const mountpoint = resolve(path);
  const logger = daemonLogger(`mount ${mountpoint}`, config);
  const onStuck = (what: string): void => {
    recordEnd(mountpoint, `the mount was given up: ${what}`);
    process.exit(1); // With it the kernel's connection ends, and who waits gets an error.
  };
  const options = { ...mountOptions(flags, mountpoint), zookeeper, config, logger, onStuck };
  try {
    await runToEnd({ config, logger }, () => runMount(options));
    recordEnd(mountpoint, "");
  } catch (error) {
    recordEnd(mountpoint, describeError(error));
    throw error;
  }
}

/**
 * The size of the thread pool is fixed when a process starts, and a mount needs more than the
 * default: this process hands over to one that has it, with its terminal and its signals.
 */
async function again(environment: Readonly<Record<string, string>>): Promise<void> {
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    stdio: "inherit",
    env: { ...process.env, ...environment },
  });
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on("SIGTERM", forward).on("SIGINT", forward);
  process.exitCode = await new Promise<number>((done, fail) => {
    child.once("error", fail);
    child.once("exit", (code, signal) => {
      done(code ?? 128 + (signal === null ? 0 : (osConstants.signals[signal] ?? 0)));
    });
  });
}

/** What verbs share: the options of asking commands, the settings of daemons, examples in help. */
import type { Command } from "commander";
import { existsSync, readFileSync } from "node:fs";
import { DssError } from "../cluster/base/errors.js";
import { loadConfig, parseEndpoints } from "../cluster/config/load.js";
import {
  ALL_OPTIONS,
  formatRange,
  formatValue,
  type Config,
  type Section,
} from "../cluster/config/options.js";
import type { ClusterClient } from "./context.js";
import { dataFolder } from "./local/folders.js";
import { isAlive } from "./local/process.js";
import { readState, zookeeperAddress } from "./local/state.js";
import { UsageError } from "./failure.js";

export interface CommonOptions {
  zookeeper?: string;
  json?: boolean;
}

/** Adds `--zookeeper`, which every command that talks to a cluster has. */
export function withCluster(command: Command): Command {
  return command.option(
    "--zookeeper <host:port,…>",
    "the cluster's ZooKeeper servers (DSS_ZOOKEEPER; else the cluster on this machine)",
  );
}

export function withJson(command: Command): Command {
  return withCluster(command).option("--json", "print one JSON document");
}

export function examples(command: Command, ...lines: string[]): Command {
  const title = lines.length === 1 ? "Example" : "Examples";
  return command.addHelpText(
    "after",
    `\n${title}:\n${lines.map((line) => `  $ ${line}`).join("\n")}`,
  );
}

/**
 * Where the cluster's ZooKeeper is: flag, environment, `known` (of what the command is about), the
 * cluster on this machine.
 */
export function zookeeperOf(command: Command, known?: string): string {
  const { zookeeper } = command.optsWithGlobals<CommonOptions>();
  const named = zookeeper ?? process.env["DSS_ZOOKEEPER"];
  if (named !== undefined && named !== "") {
    const source = zookeeper === undefined ? "DSS_ZOOKEEPER" : "--zookeeper";
    return checkEndpoints(named, source);
  }
  if (known !== undefined) return known;
  const folder = dataFolder(undefined);
  const state = readState(folder);
  if (state === undefined) {
    throw new DssError("Configuration", "no cluster is named, and none runs on this machine", {
      hint: "start one with `dss cluster up`, or name one with --zookeeper or DSS_ZOOKEEPER",
    });
  }
  const servers = state.processes.filter((each) => each.role === "zookeeper");
  if (servers.length > 0 && !servers.some(isAlive)) {
    throw new DssError("Unreachable", `the cluster in ${folder} does not run`, {
      hint: "start it with `dss cluster up`",
    });
  }
  return zookeeperAddress(state);
}

/**
 * Runs the action with a short-lived view of the cluster. What that needs is loaded only now, so
 * that wrong calls and help answer at once.
 */
export async function useCluster<T>(
  command: Command,
  action: (client: ClusterClient) => Promise<T> | T,
  known?: string,
): Promise<T> {
  const zookeeper = zookeeperOf(command, known);
  const { withClient } = await import("./context.js");
  return await withClient(zookeeper, action);
}

export function checkEndpoints(text: string, source: string): string {
  const endpoints = parseEndpoints(text);
  if (endpoints === undefined) {
    throw new UsageError(
      `${source}: "${text}" does not name ZooKeeper servers`,
      "write host:port, or host:port,host:port,host:port",
    );
  }
  const shown = endpoints.map(({ host, port }) => `${host}:${port}`);
  return shown.join(",");
}

// ---- Settings of daemons -----------------------------------------------------------------------

/** Adds every setting of the sections as a flag. */
export function withSettings(command: Command, sections: readonly Section[]): Command {
  command.option("--config <file>", "settings from a JSON file (flags and environment go before)");
  for (const row of ALL_OPTIONS) {
    if (!sections.includes(row.section) || row.name === "zookeeper") continue;
    const { option } = row;
    const unit = option.kind === "number" ? option.unit : option.kind;
    const standard = formatValue(option, option.default);
    const help = `${option.help} (${standard}; ${formatRange(option)})`;
    command.addOption(command.createOption(`${row.flag} <${unit}>`, help).helpGroup("Settings:"));
  }
  return command;
}

/**
 * The settings from flags, environment and file; `zookeeperOf` has the servers. Throws UsageError.
 */
export function settingsOf(command: Command): Config {
  const given = command.opts<Record<string, unknown>>();
  const known = new Set(ALL_OPTIONS.map((row) => row.flag.slice(2)));
  const flags: Record<string, unknown> = {};
  for (const option of command.options) {
    const name = option.name();
    if (name !== "zookeeper" && known.has(name)) flags[name] = given[option.attributeName()];
  }
  const path = given["config"];
  try {
    return loadConfig({
      flags,
      environment: process.env,
      ...(typeof path === "string" && { file: { name: path, text: readSettings(path) } }),
    });
  } catch (error) {
    if (!(error instanceof DssError)) throw error;
    throw new UsageError(error.message, error.hint ?? "see --help for the settings");
  }
}

function readSettings(path: string): string {
  if (!existsSync(path)) throw new DssError("Configuration", `there is no file ${path}`);
  return readFileSync(path, "utf8");
}

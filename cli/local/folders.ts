/**
 * Where a cluster on this machine keeps its state, and how commands find it without being told.
 *
 * Data folder: `--data`, `DSS_DATA`, else the folder that the last `dss cluster up` used (a pointer
 * in the runtime folder), else /var/lib/dss for root and ~/.local/share/dss for others.
 * Runtime folder: what does not survive a reboot (records of mounts and attached volumes).
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";

type Environment = Readonly<Record<string, string | undefined>>;
const isRoot = (): boolean => process.getuid?.() === 0;

export function defaultDataFolder(env: Environment = process.env): string {
  if (isRoot()) return "/var/lib/dss";
  return join(env["XDG_DATA_HOME"] || join(homedir(), ".local", "share"), "dss");
}

/** With DSS_DATA set it is below that folder, so that such a cluster is apart from all others. */
export function runtimeFolder(env: Environment = process.env): string {
  if (env["DSS_DATA"]) return join(resolve(env["DSS_DATA"]), "run");
  if (env["XDG_RUNTIME_DIR"]) return join(env["XDG_RUNTIME_DIR"], "dss");
  return isRoot() ? "/run/dss" : join(homedir(), ".local", "state", "dss");
}

const pointerPath = (env: Environment): string => join(runtimeFolder(env), "current");

/** The data folder that a command is about; it need not exist. */
export function dataFolder(given: string | undefined, env: Environment = process.env): string {
  if (given !== undefined) return resolve(given);
  if (env["DSS_DATA"]) return resolve(env["DSS_DATA"]);
  try {
    const named = readFileSync(pointerPath(env), "utf8").trim();
    if (named.startsWith("/")) return named;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  return defaultDataFolder(env);
}

/** Makes the cluster the one that commands without options mean. */
export function rememberCluster(folder: string, env: Environment = process.env): void {
  if (env["DSS_DATA"]) return;
  mkdirSync(runtimeFolder(env), { recursive: true, mode: 0o755 });
  writeFileSync(pointerPath(env), `${folder}\n`);
}

/** Ends that, if it was the one. */
export function forgetCluster(folder: string, env: Environment = process.env): void {
  if (env["DSS_DATA"] || dataFolder(undefined, env) !== folder) return;
  rmSync(pointerPath(env), { force: true });
}

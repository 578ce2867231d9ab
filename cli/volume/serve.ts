/** `dss volume serve`: the NBD server in the foreground. */
import type { Command } from "commander";
import { hostname } from "node:os";
import { resolve } from "node:path";
import type { Address } from "../../cluster/platform/ports.js";
import { UsageError } from "../failure.js";
import { examples, settingsOf, withCluster, withSettings, zookeeperOf } from "../options.js";
import { parsePort } from "../osd.js";
import { printLine } from "../output.js";
import { version } from "../version.js";
import { tlsOf, withTls, type TlsFlags } from "./tls.js";

const NBD_PORT = 10_809;

interface ServeFlags {
  listen?: string;
  unix?: string;
  readOnly?: boolean;
  force?: boolean;
  supervise?: boolean;
  file?: string;
}
type AllServeFlags = ServeFlags & TlsFlags;

function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))?:(\d{1,5})$/.exec(text);
  if (match === null) {
    throw new UsageError(`--listen "${text}" is not an address`, "write HOST:PORT, such as :10809");
  }
  const port = match[3] === "0" ? 0 : parsePort(match[3]!);
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}

export function registerServe(parent: Command): void {
  const serve = withCluster(
    parent
      .command("serve")
      .description("serve volumes by NBD in the foreground; prints where")
      .argument("[names...]", "volumes (every volume of the cluster)")
      .option("--listen <host:port>", `TCP address (127.0.0.1:${NBD_PORT} without --unix)`)
      .option("--unix <path>", "unix socket")
      .option("--read-only", "refuse writes; takes no lock, so there may be any number")
      .option("--force", "take the volumes from their owners, who are fenced first")
      .option("--supervise", "serve one volume by a child process that may die: clients go on"),
  );
  serve.option("--file <folder>", "offer one volume as FOLDER/NAME by FUSE; supervised too");
  withTls(serve);
  withSettings(serve, ["cluster", "client", "nbd"]);
  serve.action(async (names: string[], flags: AllServeFlags) => {
    const config = settingsOf(serve);
    const tls = tlsOf(flags);
    const scheme = tls?.policy === "require" ? "nbds" : "nbd";
    const listen: Address[] = [];
    if (flags.unix !== undefined) listen.push({ path: resolve(flags.unix) });
    if (flags.listen !== undefined) listen.push(parseListen(flags.listen));
    if (listen.length === 0) listen.push({ host: "127.0.0.1", port: NBD_PORT });
    if (flags.supervise === true || flags.file !== undefined) onlyOne(names);
    const zookeeper = zookeeperOf(serve);
    const { daemonLogger, runToEnd } = await import("../daemon.js");
    const logger = daemonLogger("nbd", config);
    const onReady = (addresses: readonly Address[]): void => {
      for (const address of addresses) {
        for (const name of names.length === 0 ? [""] : names) {
          printLine(uriOf(address, name, scheme));
        }
      }
    };
    const readOnly = flags.readOnly === true;
    const force = flags.force === true;
    const common = {
      ...{ listen, zookeeper, config, logger, readOnly, onReady },
      ...(tls !== undefined && { tls }),
    };
    await runToEnd({ config, logger }, async () => {
      if (flags.file !== undefined) {
        const { runVolumeFile } = await import("../local/supervise.js");
        const about = { zookeeper, config, logger, readOnly, force, volume: onlyOne(names) };
        return await runVolumeFile({ ...about, folder: resolve(flags.file), onReady: printLine });
      }
      if (flags.supervise === true) {
        const { runSupervised } = await import("../local/supervise.js");
        return await runSupervised({ ...common, volume: onlyOne(names), force });
      }
      const { runNbd } = await import("../../nbd/main.js");
      const about = { host: hostname(), version: version() };
      return await runNbd({ ...common, ...about, names, lock: { force } });
    });
  });
  examples(
    serve,
    "dss volume serve mydevice --unix /run/mydevice.sock",
    "dss volume serve --listen 127.0.0.1:10809",
    "dss volume serve --listen 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem",
  );
}

function onlyOne(names: readonly string[]): string {
  const [name] = names;
  if (name !== undefined && names.length === 1) return name;
  throw new UsageError("--supervise and --file serve one volume", "name exactly one");
}

/** As the NBD URI specification says. */
export function uriOf(address: Address, name: string, scheme: "nbd" | "nbds" = "nbd"): string {
  const path = name.split("/").map(encodeURIComponent).join("/");
  if ("path" in address) return `${scheme}+unix:///${path}?socket=${encodeURI(address.path)}`;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${path}`;
}

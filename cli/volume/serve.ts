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
import { withAdvice } from "./session.js";
import { tlsOf, withTls, type TlsFlags } from "./tls.js";

const NBD_PORT = 10_809;

interface ServeFlags {
  listen?: string;
  unix?: string;
  readOnly?: boolean;
  force?: boolean;
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
      .option("--force", "take the volumes from their owners, who are fenced first"),
  );
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
    const zookeeper = zookeeperOf(serve);
    const [{ runNbd }, { daemonLogger, runToEnd }] = await Promise.all([
      import("../../nbd/main.js"),
      import("../daemon.js"),
    ]);
    const logger = daemonLogger("nbd", config);
    await runToEnd(logger, () =>
      runNbd({
        ...{ names, listen, zookeeper, config, logger },
        readOnly: flags.readOnly === true,
        lock: { force: flags.force === true },
        ...(tls !== undefined && { tls }),
        host: hostname(),
        version: version(),
        onReady: (addresses) => {
          for (const address of addresses) {
            for (const name of names.length === 0 ? [""] : names) {
              printLine(uriOf(address, name, scheme));
            }
          }
        },
      }),
    ).catch((error: unknown) => {
      throw withAdvice(error);
    });
  });
  examples(
    serve,
    "dss volume serve mydevice --unix /run/mydevice.sock",
    "dss volume serve --listen 127.0.0.1:10809",
    "dss volume serve --listen 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem",
  );
}

/** As the NBD URI specification says. */
export function uriOf(address: Address, name: string, scheme: "nbd" | "nbds" = "nbd"): string {
  const path = name.split("/").map(encodeURIComponent).join("/");
  if ("path" in address) return `${scheme}+unix:///${path}?socket=${encodeURI(address.path)}`;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${path}`;
}

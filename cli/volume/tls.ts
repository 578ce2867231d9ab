/** The flags by which `dss volume serve` encrypts its connections, and the files they name. */
import { Option, type Command } from "commander";
import { readFileSync } from "node:fs";
import type { ServerTls } from "../../nbd/connection.js";
import { UsageError } from "../failure.js";

export interface TlsFlags {
  tlsCert?: string;
  tlsKey?: string;
  tlsCa?: string;
  tls?: "require" | "allow";
}

export function withTls(command: Command): void {
  command
    .option("--tls-cert <file>", "certificate (PEM) that clients are shown; makes TLS available")
    .option("--tls-key <file>", "its private key (PEM)")
    .option("--tls-ca <file>", "authority (PEM) that must have signed the clients' certificates")
    .addOption(
      new Option("--tls <mode>", "whether clients must encrypt (require with --tls-cert)").choices([
        "require",
        "allow",
      ]),
    );
}

/** Undefined without a certificate. Throws UsageError. */
export function tlsOf({ tlsCert, tlsKey, tlsCa, tls }: TlsFlags): ServerTls | undefined {
  if (tlsCert === undefined && tlsKey === undefined) {
    if (tls === undefined && tlsCa === undefined) return undefined;
    throw new UsageError("encryption needs a certificate", "give --tls-cert and --tls-key");
  }
  if (tlsCert === undefined || tlsKey === undefined) {
    const hint = "give both --tls-cert and --tls-key";
    throw new UsageError("a certificate and its key belong together", hint);
  }
  const identity = {
    certificate: read("--tls-cert", tlsCert),
    key: read("--tls-key", tlsKey),
    ...(tlsCa !== undefined && { clientAuthority: read("--tls-ca", tlsCa) }),
  };
  return { identity, policy: tls ?? "require" };
}

function read(flag: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(`${flag}: ${reason}`, "name a readable PEM file");
  }
}

/**
 * ZooKeeper servers for a cluster on this machine: their settings, their start, and whether they
 * answer. Only the loopback address is used.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { DssError } from "../../cluster/base/errors.js";
import { HOST } from "./ports.js";
import { startDetached, type Started } from "./process.js";

export interface ZooKeeperServer {
  id: number;
  /** For clients. */
  port: number;
  /** Between servers; unused by a single one. */
  peerPort: number;
  electionPort: number;
}

const JAR = "/usr/share/java/zookeeper.jar";
const CLASSES = "/usr/share/java/*";
const SINGLE = "org.apache.zookeeper.server.ZooKeeperServerMain";
const ENSEMBLE = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
const HEAP_MIB = 256;
/** Largest request, in bytes; clients stay below ZooKeeper's own default. */
const REQUEST_BYTES_MAX = 4 * 2 ** 20;

/** The text of zoo.cfg. */
export function settingsOf(
  server: ZooKeeperServer,
  servers: readonly ZooKeeperServer[],
  folder: string,
): string {
  const values: Record<string, string | number | boolean> = {
    tickTime: 500,
    initLimit: 20,
    syncLimit: 4,
    dataDir: join(folder, "data"),
    clientPort: server.port,
    clientPortAddress: HOST,
    maxClientCnxns: 0,
    minSessionTimeout: 1_000,
    maxSessionTimeout: 120_000,
    "admin.enableServer": false,
    "4lw.commands.whitelist": "ruok,srvr,stat,mntr,conf",
    "autopurge.snapRetainCount": 3,
    "autopurge.purgeInterval": 1,
    // Preallocated log files of the default size (64 MiB) fill a small disk for nothing.
    preAllocSize: 16_384,
    snapCount: 100_000,
  };
  if (servers.length > 1) {
    for (const each of servers) {
      values[`server.${each.id}`] = `${HOST}:${each.peerPort}:${each.electionPort}`;
    }
  }
  const lines = Object.entries(values).map(([name, value]) => `${name}=${value}`);
  return `${lines.join("\n")}\n`;
}

export async function startZooKeeper(
  server: ZooKeeperServer,
  servers: readonly ZooKeeperServer[],
  paths: { folder: string; log: string },
): Promise<Started> {
  if (!existsSync(JAR)) {
    throw new DssError("Configuration", "ZooKeeper is not installed", {
      hint: "apt-get install zookeeper default-jre-headless, or name servers with --zookeeper",
    });
  }
  const settings = join(paths.folder, "zoo.cfg");
  mkdirSync(join(paths.folder, "data"), { recursive: true, mode: 0o750 });
  writeIfChanged(settings, settingsOf(server, servers, paths.folder));
  if (servers.length > 1) writeIfChanged(join(paths.folder, "data", "myid"), `${server.id}\n`);
  const virtualMachine = [
    `-Xmx${HEAP_MIB}m`,
    "-Xms32m",
    // Quick to start and small; the servers of a development cluster are seldom busy.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-XX:+ExitOnOutOfMemoryError",
    `-Djute.maxbuffer=${REQUEST_BYTES_MAX}`,
    "-Djava.net.preferIPv4Stack=true",
  ];
  const main = servers.length > 1 ? ENSEMBLE : SINGLE;
  return await startDetached({
    program: "java",
    args: [...virtualMachine, "-cp", CLASSES, main, settings],
    log: paths.log,
    cwd: paths.folder,
  });
}

function writeIfChanged(path: string, text: string): void {
  if (existsSync(path) && readFileSync(path, "utf8") === text) return;
  writeFileSync(path, text);
}

/** The server takes part in serving requests ("standalone", "leader", "follower"). */
export async function servesRequests(port: number): Promise<boolean> {
  // `ruok` is answered before requests are; `srvr` knows the mode.
  return (await fourLetterWord(port, "srvr")).includes("Mode:");
}

/** The answer to an administrative word, "" when there is none. */
function fourLetterWord(port: number, word: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ host: HOST, port });
    let answer = "";
    socket.setTimeout(1_000, () => socket.destroy());
    socket.on("connect", () => socket.write(word));
    socket.on("data", (chunk) => (answer += chunk.toString("latin1")));
    socket.on("error", () => undefined); // Refused: "" by the close that follows.
    socket.on("close", () => resolve(answer));
  });
}

/**
 * A real ZooKeeper server for one test: own data folder and port, small heap, quick ticks. It can
 * be killed and started again on the same data and port.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { run, start } from "./process.js";
import type { Program } from "./process.js";
import { freePort, tempFolder, waitFor } from "./temp.js";
import type { Teardown } from "./temp.js";

/** ZooKeeper and its dependencies as Debian installs them. */
const JAR = "/usr/share/java/zookeeper.jar";
const SINGLE = "org.apache.zookeeper.server.ZooKeeperServerMain";
const ENSEMBLE = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
const PEER_PORT = 2888;
const ELECTION_PORT = 3888;
const HOST = "127.0.0.1";
const START_MS = 30_000;
const ATTEMPTS = 3;

export interface ZooKeeper {
  /** `127.0.0.1:port` */
  readonly address: string;
  readonly port: number;
  readonly process: Program;
  /** `kill -9`. */
  kill(): Promise<void>;
  /** Starts it again after `kill`, with its data and port. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

/** Starts a server and waits until it answers. */
export async function startZooKeeper(t: Teardown): Promise<ZooKeeper> {
  if (!existsSync(JAR)) throw new Error("ZooKeeper is not installed: npm test installs it");
  const folder = tempFolder(t, "zk");
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    let program: Program;
    try {
      program = await launchServer(t, { folder, host: HOST, port });
    } catch (error) {
      // Another program may have taken the port meanwhile; anything else fails again.
      if (attempt < ATTEMPTS) continue;
      throw error;
    }
    return {
      address: `${HOST}:${port}`,
      port,
      get process() {
        return program;
      },
      kill: () => program.kill(),
      restart: async () => {
        program = await launchServer(t, { folder, host: HOST, port });
      },
      stop: () => program.stop(),
    };
  }
}

export interface ServerOptions {
  readonly folder: string;
  readonly host: string;
  readonly port: number;
  /** Its number, and all servers of the ensemble; a single server has neither. */
  readonly id?: number;
  readonly ensemble?: readonly { id: number; host: string }[];
  /** The command that runs a program where the server shall be; here when left out. */
  readonly on?: (program: string, args: readonly string[]) => [string, string[]];
}

/** Starts a server; of an ensemble it waits until it takes part. */
export async function launchServer(t: Teardown, options: ServerOptions): Promise<Program> {
  const { folder, host, port, ensemble = [] } = options;
  const on = options.on ?? ((program, args): [string, string[]] => [program, [...args]]);
  const data = join(folder, "data");
  mkdirSync(data, { recursive: true });
  const settings = join(folder, "zoo.cfg");
  const values = {
    tickTime: 500,
    initLimit: 10,
    syncLimit: 4,
    dataDir: data,
    clientPort: port,
    clientPortAddress: host,
    maxClientCnxns: 0,
    minSessionTimeout: 1_000,
    maxSessionTimeout: 120_000,
    "admin.enableServer": false,
    "4lw.commands.whitelist": "*",
    "autopurge.purgeInterval": 0,
    ...Object.fromEntries(
      ensemble.map((each) => [`server.${each.id}`, `${each.host}:${PEER_PORT}:${ELECTION_PORT}`]),
    ),
  };
  const text = Object.entries(values).map(([name, value]) => `${name}=${value}\n`);
  writeFileSync(settings, text.join(""));
  if (options.id !== undefined) writeFileSync(join(data, "myid"), `${options.id}\n`);
  const logFile = join(folder, "zookeeper.log");
  const heap = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"];
  const main = ensemble.length > 0 ? ENSEMBLE : SINGLE;
  const [java, args] = on("java", [
    ...heap,
    `-Djute.maxbuffer=${4 * 2 ** 20}`,
    ...["-cp", "/usr/share/java/*", main, settings],
  ]);
  const program = start(t, java, args, { logFile, cwd: folder });
  // A server elsewhere can be asked only from there.
  const [shell, script] = on("bash", [
    ...["-c", 'exec 3<>"/dev/tcp/$0/$1" && echo srvr >&3 && timeout 2 cat <&3'],
    ...[host, String(port)],
  ]);
  const ask = async (): Promise<string> =>
    options.on === undefined
      ? await fourLetterWord(port, "srvr")
      : (await run(t, shell, script, { withinMs: 5_000 })).stdout;
  try {
    await waitFor(
      `ZooKeeper answers on ${host}:${port}`,
      async () => {
        if (!program.running) return "ended";
        // `ruok` is answered before the server serves requests; `srvr` knows its mode.
        return (await ask()).includes("Mode:") ? "ready" : undefined;
      },
      { withinMs: START_MS, everyMs: 50 },
    );
    if (!program.running) throw new Error("ZooKeeper ended");
    return program;
  } catch (cause) {
    await program.stop();
    const log = existsSync(logFile) ? readFileSync(logFile, "utf8") : "";
    const tail = log.trim().split("\n").slice(-20).join("\n");
    throw new Error(`ZooKeeper did not start:\n${tail}`, { cause });
  }
}

/** One of ZooKeeper's administrative words (ruok, stat, mntr); "" when it cannot be reached. */
export function fourLetterWord(port: number, word: string): Promise<string> {
  return new Promise((done) => {
    const socket = connect({ host: HOST, port });
    let answer = "";
    socket.setTimeout(2_000, () => socket.destroy());
    socket.on("connect", () => socket.write(word));
    socket.on("data", (chunk) => (answer += chunk.toString("latin1")));
    socket.on("error", () => undefined); // Refused: reported as "" by the close that follows.
    socket.on("close", () => done(answer));
  });
}

/** How ZooKeeper derives a session's password from its number (ZooKeeperServer.generatePasswd). */
const PASSWORD_SECRET = 0xb3415c00n;

function sessionPassword(session: bigint): Buffer {
  // java.util.Random, which is a published linear congruential generator.
  const mask = (1n << 48n) - 1n;
  const factor = 0x5deece66dn;
  let seed = (BigInt.asUintN(64, session ^ PASSWORD_SECRET) ^ factor) & mask;
  const password = Buffer.alloc(16);
  for (let at = 0; at < password.length; at += 4) {
    seed = (seed * factor + 0xbn) & mask;
    password.writeUInt32LE(Number(BigInt.asUintN(32, seed >> 16n)), at);
  }
  return password;
}

/**
 * Ends a session of somebody else's, as its expiry would: its ephemeral nodes vanish, and its owner
 * is told when it next connects. Joins the session by its number, and closes it: joining takes the
 * session's connection away from its owner, who may take it back before the close has arrived, so
 * it is done again until the server says that the session is over.
 */
export async function expireSession(port: number, session: bigint): Promise<void> {
  if (!(await closeSession(port, session))) {
    throw new Error(`ZooKeeper knows no session ${session.toString(16)}`);
  }
  while (await closeSession(port, session));
}

const isReset = (error: NodeJS.ErrnoException): boolean =>
  error.code === "ECONNRESET" || error.code === "EPIPE";

/** False when the session was over before. */
async function closeSession(port: number, session: bigint): Promise<boolean> {
  const connectRequest = Buffer.alloc(4 + 44);
  connectRequest.writeInt32BE(44, 0);
  connectRequest.writeInt32BE(10_000, 4 + 12); // After protocol version and last transaction seen.
  connectRequest.writeBigInt64BE(BigInt.asIntN(64, session), 4 + 16);
  connectRequest.writeInt32BE(16, 4 + 24);
  sessionPassword(session).copy(connectRequest, 4 + 28);
  const closeRequest = Buffer.alloc(12);
  closeRequest.writeInt32BE(8, 0);
  closeRequest.writeInt32BE(1, 4);
  closeRequest.writeInt32BE(-11, 8);
  const socket = connect({ host: "127.0.0.1", port });
  try {
    return await new Promise<boolean>((done, fail) => {
      let received = Buffer.alloc(0);
      let joined = false;
      socket.setTimeout(5_000, () => fail(new Error("ZooKeeper does not answer")));
      // With the session; or because its owner took it back, perhaps before we had the answer.
      socket.on("error", (error) => (isReset(error) ? done(true) : fail(error)));
      socket.on("close", () => done(true));
      socket.on("data", (chunk) => {
        received = Buffer.concat([received, chunk]);
        if (joined || received.length < 4 + 16) return;
        const timeout = received.readInt32BE(8);
        if (timeout <= 0) return done(false);
        joined = true;
        socket.write(closeRequest);
      });
      socket.write(connectRequest);
    });
  } finally {
    socket.destroy();
  }
}

/**
 * A volume server that was frozen, for longer than its lease or until its volume was taken by
 * force: another one has the volume, and when the first one wakes up with requests in its queue,
 * not one of them may succeed. And a race for a volume.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { silentLogger } from "../../../cluster/base/log.js";
import { loadConfig } from "../../../cluster/config/load.js";
import { openVolume } from "../../../nbd/main.js";
import { startCluster } from "../../support/cluster.js";
import { succeed, type Program } from "../../support/process.js";
import { tempFolder, waitFor } from "../../support/temp.js";
import { FLAGS, infoData, option, parseReply, request } from "../../unit/nbd/client-bytes.js";

const URI = /(nbd\+unix:\/\/\S+)/;
const LEASE_MS = 4_000;
const BLOCK = 4096;
const GREETING = 18;
const GO = 7;
const READ = 0;
const WRITE = 1;

/** A client that sends when it is told to and keeps all that it receives. */
class Client {
  private received = Buffer.alloc(0);
  closed = false;
  private constructor(private readonly socket: Socket) {
    socket.on("data", (chunk: Buffer) => (this.received = Buffer.concat([this.received, chunk])));
    socket.on("error", () => undefined);
    socket.on("close", () => (this.closed = true));
  }
  static async open(path: string, name: string): Promise<Client> {
    const socket = connect({ path });
    await once(socket, "connect");
    const client = new Client(socket);
    socket.write(Buffer.concat([FLAGS, option(GO, infoData(name))]));
    // ACK (1) ends what the server says about the export.
    await waitFor("the export", () => {
      const replies = client.received.subarray(GREETING);
      return replies.length >= 20 && replies.readUInt32BE(replies.length - 8) === 1;
    });
    client.received = Buffer.alloc(0);
    return client;
  }
  send(type: number, cookie: bigint, data?: Buffer): void {
    const fields = data === undefined ? { length: BLOCK } : { data };
    this.socket.write(request({ type, cookie, ...fields }));
  }
  /** Simple replies without data; a successful read would be followed by its bytes. */
  get bytes(): Buffer {
    return this.received;
  }
  close(): void {
    this.socket.destroy();
  }
}

const { cluster, folder } = await (async () => {
  const env = {
    DSS_MDS_SESSION_LEASE_MS: `${LEASE_MS}`,
    DSS_MDS_RECALL_TIMEOUT_MS: `${LEASE_MS / 2}`,
  };
  return { cluster: await startCluster(t, { env }), folder: tempFolder(t, "fence") };
})();

/** Freezes a server in the middle of its work and wakes it up when `takeOver` has its volume. */
async function wakeWithout(
  t: Test,
  volume: string,
  takeOver: () => Promise<{ next: Program; uri: string }>,
): Promise<void> {
  await cluster.ok(["volume", "create", volume, "16M"]);
  const socket = join(folder, `${volume}.sock`);
  const first = cluster.start(["volume", "serve", volume, "--unix", socket]);
  await first.output(URI);
  const client = await Client.open(socket, volume);
  t.teardown(() => client.close());
  client.send(WRITE, 1n, Buffer.alloc(BLOCK, 0x11));
  await waitFor("the first write", () => client.bytes.length >= 16);
  t.same(parseReply(client.bytes), { error: 0, cookie: 1n });

  first.signal("SIGSTOP");
  // They wait in its socket until it wakes up.
  client.send(WRITE, 2n, Buffer.alloc(BLOCK, 0x22));
  client.send(READ, 3n);
  const successor = await takeOver();
  const io = (command: string) =>
    succeed(t, "qemu-io", ["-f", "raw", "-t", "writeback", "-c", command, successor.uri]);
  await io(`write -P 0x33 0 ${BLOCK}`);

  first.signal("SIGCONT");
  const { code } = await first.exited;
  t.not(code, 0, "it says that it failed");
  t.match(first.stderr, /evicted|fenced/i);
  await waitFor("the end of the connection", () => client.closed);
  // Errors or nothing at all; but neither the write nor the read (16 bytes and a block) succeeds.
  const replies = client.bytes.subarray(16);
  t.equal(replies.length % 16, 0);
  t.ok(replies.length <= 32, `${replies.length} bytes`);
  for (let at = 0; at < replies.length; at += 16) {
    t.not(parseReply(replies.subarray(at)).error, 0, "no request succeeds");
  }
  t.match(await io(`read -P 0x33 0 ${BLOCK}`), /read 4096/, "the successor's bytes stay");
  await successor.next.stop();
}

t.test("a frozen server wakes up without its volume", { timeout: 150_000 }, async (t) => {
  await wakeWithout(t, "shared", async () => {
    const begin = performance.now();
    const successor = await waitFor(
      "another server gets the volume",
      async () => {
        const unix = join(folder, `next-${Date.now()}.sock`);
        const next = cluster.start(["volume", "serve", "shared", "--unix", unix]);
        // Refused as long as the lock is held: asked again.
        const uri = await next.output(URI).catch(() => undefined);
        return uri === undefined ? undefined : { next, uri: uri[1]! };
      },
      { withinMs: 60_000 },
    );
    t.ok(performance.now() - begin > LEASE_MS / 2, "not before the lease is over");
    return successor;
  });
});

t.test("a frozen server's volume can be taken by force at once", { timeout: 90_000 }, async (t) => {
  await wakeWithout(t, "forced", async () => {
    const serve = (name: string, ...more: string[]) =>
      cluster.start(["volume", "serve", "forced", "--unix", join(folder, name), ...more]);
    const refused = serve("polite.sock");
    t.not((await refused.exited).code, 0);
    t.match(refused.stderr, /forced is in use by .*nbd client\.\d+, pid \d+.* since 20.*--force/s);
    const reader = serve("reader.sock", "--read-only");
    const [, readerUri] = await reader.output(URI);
    const look = ["-f", "raw", "-r", "-c", `read -P 0x11 0 ${BLOCK}`, readerUri!];
    t.match(await succeed(t, "qemu-io", look), /read 4096/, "readers need no lock");
    const next = serve("forced-next.sock", "--force");
    const [, uri] = await next.output(URI);
    await reader.stop();
    return { next, uri: uri! };
  });
});

t.test("of two that open a volume at the same time exactly one gets it", async (t) => {
  await cluster.ok(["volume", "create", "raced", "16M"]);
  const { zookeeper } = await cluster.status();
  const config = loadConfig();
  const open = (who: string) =>
    openVolume({
      ...{ name: "raced", write: true, type: "cli", host: hostname(), detail: who },
      ...{ zookeeper, config, logger: silentLogger },
    });
  for (let round = 0; round < 20; round++) {
    const results = await Promise.allSettled([open(`a${round}`), open(`b${round}`)]);
    const won = results.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    const lost = results.flatMap((each) =>
      each.status === "rejected" ? [each.reason as unknown] : [],
    );
    t.equal(won.length, 1, `round ${round}: ${lost.map(String).join("; ")}`);
    t.match(lost, [{ code: "Busy", message: /raced is in use by / }]);
    for (const each of won) await each.close();
  }
});

/**
 * A volume server that was frozen for longer than its lease: another one has the volume meanwhile,
 * and when the first one wakes up with requests in its queue, not one of them may succeed.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import t from "tap";
import { startCluster } from "../../support/cluster.js";
import { succeed } from "../../support/process.js";
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

t.test("a frozen server wakes up without its volume", { timeout: 150_000 }, async (t) => {
  const folder = tempFolder(t, "fence");
  const env = {
    DSS_MDS_SESSION_LEASE_MS: `${LEASE_MS}`,
    DSS_MDS_RECALL_TIMEOUT_MS: `${LEASE_MS / 2}`,
  };
  const cluster = await startCluster(t, { env });
  await cluster.ok(["volume", "create", "shared", "16M"]);
  const socket = join(folder, "first.sock");
  const first = cluster.start(["volume", "serve", "shared", "--unix", socket]);
  await first.output(URI);
  const client = await Client.open(socket, "shared");
  t.teardown(() => client.close());
  client.send(WRITE, 1n, Buffer.alloc(BLOCK, 0x11));
  await waitFor("the first write", () => client.bytes.length >= 16);
  t.same(parseReply(client.bytes), { error: 0, cookie: 1n });

  first.signal("SIGSTOP");
  // They wait in its socket until it wakes up.
  client.send(WRITE, 2n, Buffer.alloc(BLOCK, 0x22));
  client.send(READ, 3n);
  const begin = performance.now();
  const successor = await waitFor(
    "another server gets the volume",
    async () => {
      const unix = join(folder, `next-${Date.now()}.sock`);
      const next = cluster.start(["volume", "serve", "shared", "--unix", unix]);
      const uri = await next.output(URI).catch(() => undefined);
      return uri === undefined ? undefined : { next, uri: uri[1]! };
    },
    { withinMs: 60_000 },
  );
  t.ok(performance.now() - begin > LEASE_MS / 2, "not before the lease is over");
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
});

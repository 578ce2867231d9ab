/** Encryption of an accepted connection: what comes through, and how it fails. */
import { connect as connectPlain, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import t from "tap";
import { nodePlatform } from "../../../../cluster/platform/node.js";
import type { Connection } from "../../../../cluster/platform/ports.js";
import { makeCertificates } from "../../../support/certificates.js";

const { identity } = await makeCertificates(t.testdir());
const withoutClients = { certificate: identity.certificate, key: identity.key };

interface Pair {
  client: Socket;
  server: Connection;
  closed: Promise<Error | undefined>;
}

/** A client that has connected in the clear, and the accepted side. */
async function pair(): Promise<Pair> {
  let accept: (connection: Connection) => void = () => undefined;
  const accepted = new Promise<Connection>((resolve) => (accept = resolve));
  const listener = await nodePlatform.network.listen({ host: "127.0.0.1", port: 0 }, accept);
  const { port } = listener.address as { port: number };
  const client = connectPlain(port, "127.0.0.1");
  client.on("error", () => undefined);
  const server = await accepted;
  const closed = new Promise<Error | undefined>((resolve) => server.onClose(resolve));
  void listener.close(); // Which ends with the connection.
  return { client, server, closed };
}

t.test("what is sent before goes out in the clear, what follows encrypted", async (t) => {
  const { client, server, closed } = await pair();
  const received: string[] = [];
  server.onData((chunk) => received.push(chunk.toString()));
  server.send([Buffer.from("plain")]);
  const agreed = server.startTls!(withoutClients);
  const [first] = await new Promise<Buffer[]>((resolve) => {
    client.once("data", (chunk: Buffer) => resolve([chunk]));
  });
  t.equal(first!.toString(), "plain");
  const secure = connectTls({ socket: client, rejectUnauthorized: false });
  secure.write("hello");
  await agreed;
  server.send([Buffer.from("secret")]);
  const answer = await new Promise<Buffer>((resolve) => secure.once("data", resolve));
  t.equal(answer.toString(), "secret");
  t.same(received, ["hello"]);
  server.end();
  secure.resume();
  secure.end();
  t.equal(await closed, undefined, "and it is closed once, in good order");
});

t.test("a peer that talks something else, leaves, or has left already", async (t) => {
  const garbage = await pair();
  const refused = garbage.server.startTls!(identity);
  garbage.client.write("no TLS at all, whatever you say");
  await t.rejects(refused, { code: "NotPermitted" });
  await garbage.closed;

  const leaving = await pair();
  const left = leaving.server.startTls!(identity);
  leaving.client.destroy();
  await t.rejects(left, { code: "NotPermitted" });
  await leaving.closed;

  const gone = await pair();
  gone.server.destroy();
  await t.rejects(gone.server.startTls!(identity), { code: "NotPermitted" });
  gone.client.destroy();
});

t.test("a client must show a certificate when an authority is given", async (t) => {
  const { client, server, closed } = await pair();
  const agreed = server.startTls!(identity);
  const secure = connectTls({ socket: client, rejectUnauthorized: false });
  secure.on("error", () => undefined);
  await t.rejects(agreed, { code: "NotPermitted" });
  await closed;
});

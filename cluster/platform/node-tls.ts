/**
 * TLS on accepted sockets (X.509, TLS 1.2 or later), for protocols that begin in the clear.
 * Every connection gets a TLS server of its own that never listens: that is Node's documented way
 * to have the peer's certificate judged on a socket that is already open.
 */
import type { Socket } from "node:net";
import { createSecureContext, createServer, type TLSSocket } from "node:tls";
import { DssError } from "../base/errors.js";
import type { TlsIdentity } from "./ports.js";

const optionsOf = ({ certificate, key, clientAuthority }: TlsIdentity) => ({
  cert: certificate,
  key,
  minVersion: "TLSv1.2" as const,
  ...(clientAuthority !== undefined && {
    ca: clientAuthority,
    requestCert: true,
    rejectUnauthorized: true,
  }),
});

/** Errors: Configuration when the certificate, the key or the authority is of no use. */
export function checkTlsIdentity(identity: TlsIdentity): void {
  try {
    createSecureContext(optionsOf(identity));
  } catch (cause) {
    throw new DssError("Configuration", "the TLS certificate, key or authority cannot be used", {
      cause,
      hint: "give PEM files: a certificate, its private key, and the authority of the clients",
    });
  }
}

/**
 * The encrypted stream on a paused socket that nobody reads any more; what it has buffered unread
 * counts as the peer's first words. Errors: NotPermitted when the peer does not agree or shows no
 * good certificate, with the socket destroyed.
 */
export function acceptTls(socket: Socket, identity: TlsIdentity): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const refuse = (cause: Error): void => {
      socket.destroy();
      reject(new DssError("NotPermitted", "the peer did not agree on encryption", { cause }));
    };
    const gone = (): void => refuse(new Error("the connection was closed"));
    // One that is gone already would never say so again.
    if (socket.destroyed) {
      gone();
      return;
    }
    socket.once("close", gone);
    const server = createServer(optionsOf(identity), (secure) => {
      socket.off("close", gone);
      resolve(secure);
    });
    server.once("tlsClientError", refuse);
    server.emit("connection", socket);
  });
}

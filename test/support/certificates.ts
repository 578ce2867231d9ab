/** X.509 certificates for tests of encryption, made with openssl: an authority and who it signs. */
import { execFile } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { TlsIdentity } from "../../cluster/platform/ports.js";

const run = promisify(execFile);

export interface Certificates {
  /** The server's: for localhost, clients must be signed by the same authority. */
  identity: TlsIdentity;
  /** A client's, with the names that libnbd and qemu expect. */
  folder: string;
  /** A client's that another authority has signed; it trusts the right one. */
  other: string;
}

export async function makeCertificates(base: string): Promise<Certificates> {
  const openssl = (...args: string[]) => run("openssl", args, { cwd: base });
  const key = (name: string) => [
    ...["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"],
    ...["-keyout", `${name}-key.pem`, "-subj", `/CN=${name}`],
  ];
  const authority = (name: string) =>
    openssl("req", "-x509", ...key(name), "-out", `${name}.pem`);
  const signed = async (name: string, by: string, extension: string): Promise<void> => {
    await openssl("req", "-new", ...key(name), "-out", `${name}.csr`);
    await writeFile(join(base, `${name}.ext`), extension);
    await openssl(
      ...["x509", "-req", "-in", `${name}.csr`, "-CA", `${by}.pem`, "-CAkey", `${by}-key.pem`],
      ...["-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`, "-out", `${name}.pem`],
    );
  };
  await authority("authority");
  await authority("stranger");
  await signed("server", "authority", "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
  await signed("client", "authority", "extendedKeyUsage=clientAuth\n");
  await signed("intruder", "stranger", "extendedKeyUsage=clientAuth\n");
  const text = (name: string) => readFile(join(base, name), "utf8");
  const folderOf = async (name: string): Promise<string> => {
    const folder = join(base, `tls-${name}`);
    await mkdir(folder);
    await writeFile(join(folder, "ca-cert.pem"), await text("authority.pem"));
    await writeFile(join(folder, "client-cert.pem"), await text(`${name}.pem`));
    await writeFile(join(folder, "client-key.pem"), await text(`${name}-key.pem`));
    return folder;
  };
  return {
    identity: {
      certificate: await text("server.pem"),
      key: await text("server-key.pem"),
      clientAuthority: await text("authority.pem"),
    },
    folder: await folderOf("client"),
    other: await folderOf("intruder"),
  };
}

/** The flags that encrypt `dss volume serve`. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { checkTlsIdentity } from "../../../../cluster/platform/node-tls.js";
import { tlsOf } from "../../../../cli/volume/tls.js";

t.test("encryption is there with a certificate and its key, and then required", (t) => {
  const folder = t.testdir({
    "cert.pem": "a certificate",
    "key.pem": "a key",
    "ca.pem": "an authority",
  });
  const [tlsCert, tlsKey, tlsCa] = ["cert.pem", "key.pem", "ca.pem"].map((f) => join(folder, f));
  const identity = { certificate: "a certificate", key: "a key" };
  t.equal(tlsOf({}), undefined);
  t.same(tlsOf({ tlsCert: tlsCert!, tlsKey: tlsKey! }), { identity, policy: "require" });
  t.same(tlsOf({ tlsCert: tlsCert!, tlsKey: tlsKey!, tlsCa: tlsCa!, tls: "allow" }), {
    identity: { ...identity, clientAuthority: "an authority" },
    policy: "allow",
  });
  t.end();
});

t.test("flags that contradict each other, and files that are not there", (t) => {
  const folder = t.testdir();
  const path = join(folder, "cert.pem");
  writeFileSync(path, "");
  t.throws(() => tlsOf({ tls: "require" }), /needs a certificate/);
  t.throws(() => tlsOf({ tlsCa: path }), /needs a certificate/);
  t.throws(() => tlsOf({ tlsCert: path }), /belong together/);
  t.throws(() => tlsOf({ tlsKey: path }), /belong together/);
  t.throws(() => tlsOf({ tlsCert: path, tlsKey: join(folder, "nope") }), /--tls-key.*nope/);
  t.end();
});

t.test("a certificate that cannot be used is refused before anything is served", (t) => {
  const identity = { certificate: "no certificate", key: "no key" };
  t.throws(() => checkTlsIdentity(identity), { code: "Configuration" });
  t.end();
});

/** What `dss cluster up` decides: counts, ports, settings of ZooKeeper. */
import t from "tap";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { plan, preferredOsdPort } from "../../../../cli/local/plan.js";
import { isFree, pickPort } from "../../../../cli/local/ports.js";
import { newState } from "../../../../cli/local/state.js";
import { settingsOf } from "../../../../cli/local/zookeeper.js";

const existing = () => {
  const state = newState("/mnt/dss");
  state.osds = [0, 1, 2].map((id) => ({ id, port: 9100 + id }));
  state.mds = [0, 1].map((id) => ({ id, port: 9110 + id }));
  state.zookeeper = { servers: [{ id: 1, port: 2181, peerPort: 2888, electionPort: 3888 }] };
  return state;
};

t.test("a new cluster has the defaults, or what was asked for", (t) => {
  const none = newState("");
  const standard = { zookeeper: { servers: 1 }, mds: 2, osds: 3, mount: "/mnt/dss" };
  t.same(plan(none, {}, true), standard);
  const asked = { zookeeper: { external: "h:1" }, mds: 1, osds: 5, mount: "/m" };
  t.same(plan(none, asked, true), asked);
  t.end();
});

t.test("an existing cluster keeps what it has, and grows", (t) => {
  const same = { zookeeper: { servers: 1 }, mds: 2, osds: 3, mount: "/mnt/dss" };
  t.same(plan(existing(), {}, false), same);
  t.same(plan(existing(), { osds: 3, zookeeper: { servers: 1 } }, false), same);
  t.equal(plan(existing(), { osds: 5 }, false).osds, 5);
  t.end();
});

t.test("options that contradict an existing cluster are wrong calls", (t) => {
  const refused = [
    { osds: 2 },
    { mds: 1 },
    { zookeeper: { servers: 3 } },
    { zookeeper: { external: "h:1" } },
  ];
  for (const options of refused) {
    t.throws(() => plan(existing(), options, false), { code: "InvalidArgument" });
  }
  t.end();
});

t.test("a port is the preferred one, or the next that nobody has", async (t) => {
  const busy = new Set([9100, 9101]);
  const taken = new Set([9102]);
  const free = (port: number): Promise<boolean> => Promise.resolve(!busy.has(port));
  t.equal(await pickPort(9100, taken, free), 9103);
  t.equal(await pickPort(9100, taken, free), 9104, "not twice");
  await t.rejects(
    pickPort(9100, taken, () => Promise.resolve(false)),
    { code: "Busy" },
  );

  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  t.equal(await isFree(port), false);
  await new Promise<void>((done) => server.close(() => done()));
  t.equal(await isFree(port), true);
});

t.test("OSDs make room for the ports of metadata servers", (t) => {
  t.equal(preferredOsdPort(0), 9100);
  t.equal(preferredOsdPort(9), 9109);
  t.equal(preferredOsdPort(10), 9120);
  t.end();
});

t.test("one server stands alone; three know each other; all listen on loopback only", (t) => {
  const servers = [1, 2, 3].map((id) => ({
    ...{ id, port: 2180 + id, peerPort: 2887 + id, electionPort: 3887 + id },
  }));
  const alone = settingsOf(servers[0]!, [servers[0]!], "/f");
  t.match(alone, /^clientPort=2181$/m);
  t.match(alone, /^dataDir=\/f\/data$/m);
  t.notMatch(alone, /^server\./m);
  const ensemble = settingsOf(servers[1]!, servers, "/f");
  t.match(ensemble, /^server\.3=127\.0\.0\.1:2890:3890$/m);
  for (const text of [alone, ensemble]) {
    t.match(text, /^clientPortAddress=127\.0\.0\.1$/m);
    t.match(text, /^tickTime=500$/m);
    t.match(text, /^syncLimit=4$/m);
    t.match(text, /^admin\.enableServer=false$/m);
    t.match(text, /^autopurge\.purgeInterval=1$/m);
  }
  t.end();
});

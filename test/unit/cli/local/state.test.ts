/** The state file, the marker that protects folders, and which cluster is meant. */
import t from "tap";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { dataFolder, forgetCluster, rememberCluster } from "../../../../cli/local/folders.js";
import { identify } from "../../../../cli/local/process.js";
import {
  checkUsable,
  newState,
  readState,
  running,
  writeState,
  zookeeperAddress,
} from "../../../../cli/local/state.js";
import { bringDown } from "../../../../cli/local/down.js";
import { tempFolder } from "../../../support/temp.js";

t.test("what is written is read again", (t) => {
  const folder = tempFolder(t, "state");
  t.equal(readState(folder), undefined);
  const state = newState("/mnt/dss");
  const self = identify(process.pid)!;
  state.processes.push({ ...self, name: "osd.0", role: "osd", data: "/d", log: "/l" });
  state.processes.push({
    ...self,
    startTicks: 1,
    name: "osd.1",
    role: "osd",
    data: "/d",
    log: "/l",
  });
  state.zookeeper = { servers: [{ id: 1, port: 2181, peerPort: 2888, electionPort: 3888 }] };
  writeState(folder, state);
  const read = readState(folder)!;
  t.same(read, state);
  t.equal(running(read, "osd.0")?.pid, process.pid);
  t.equal(running(read, "osd.1"), undefined, "another process has its number");
  t.equal(zookeeperAddress(read), "127.0.0.1:2181");
  t.end();
});

t.test("a damaged, foreign or newer state is refused with a reason", (t) => {
  const folder = tempFolder(t, "state");
  const path = join(folder, "cluster.json");
  const good = newState("/mnt/dss");
  const write = (value: unknown): void => writeFileSync(path, JSON.stringify(value));
  writeFileSync(path, "{ half");
  t.throws(() => readState(folder), { code: "Configuration", message: /damaged/ });
  write({ some: "thing" });
  t.throws(() => readState(folder), { code: "Configuration", message: /not describe a cluster/ });
  write(null);
  t.throws(() => readState(folder), { code: "Configuration", message: /not describe a cluster/ });
  write({ ...good, format: 2 });
  t.throws(() => readState(folder), { code: "IncompatibleVersion", message: /format 2/ });
  const bad: readonly [string, unknown][] = [
    ["mount", 5],
    ["zookeeper", undefined],
    ["zookeeper", { servers: [{ id: 1 }] }],
    ["osds", [{ id: -1, port: 1 }]],
    ["osds", [null]],
    ["mds", "none"],
    [
      "processes",
      [{ pid: 1, startTicks: 0, bootId: "", name: "", role: "osd", data: "", log: "" }],
    ],
    ["processes", [{ pid: 9, startTicks: 0, bootId: "", name: "", role: "x", data: "", log: "" }]],
  ];
  for (const [member, value] of bad) {
    write({ ...good, [member]: value });
    t.throws(
      () => readState(folder),
      { code: "Configuration", message: new RegExp(member) },
      member,
    );
  }
  t.end();
});

t.test("only an empty, missing or marked folder is used", (t) => {
  const folder = tempFolder(t, "state");
  t.doesNotThrow(() => checkUsable(join(folder, "missing")));
  t.doesNotThrow(() => checkUsable(folder));
  writeFileSync(join(folder, "photo.jpg"), "");
  t.throws(() => checkUsable(folder), { code: "NotEmpty", message: /photo\.jpg/ });
  t.throws(() => checkUsable(join(folder, "photo.jpg")), { code: "NotDirectory" });
  writeState(folder, newState("/mnt/dss"));
  t.doesNotThrow(() => checkUsable(folder));
  t.end();
});

t.test("a folder without our marker is never deleted", async (t) => {
  const folder = tempFolder(t, "state");
  writeFileSync(join(folder, "precious"), "data");
  const request = { folder, purge: true, force: true, say: () => undefined };
  await t.rejects(bringDown(request), { code: "NotFound", message: /no cluster in/ });
  writeFileSync(join(folder, "cluster.json"), '{"name": "of another program"}');
  await t.rejects(bringDown(request), { code: "Configuration" });
  t.equal(readFileSync(join(folder, "precious"), "utf8"), "data");
});

t.test("the last cluster is the one that is meant, unless another is named", (t) => {
  const folder = tempFolder(t, "folders");
  const env = { XDG_RUNTIME_DIR: folder };
  const standard = dataFolder(undefined, env);
  mkdirSync(join(folder, "dss"), { recursive: true });
  rememberCluster("/srv/one", env);
  t.equal(dataFolder(undefined, env), "/srv/one");
  t.equal(dataFolder("/given", env), "/given");
  t.equal(dataFolder(undefined, { ...env, DSS_DATA: "/named" }), "/named");
  forgetCluster("/srv/other", env);
  t.equal(dataFolder(undefined, env), "/srv/one", "another cluster's end changes nothing");
  forgetCluster("/srv/one", env);
  t.equal(dataFolder(undefined, env), standard);
  rememberCluster("/srv/two", { ...env, DSS_DATA: join(folder, "x") });
  t.equal(dataFolder(undefined, env), standard, "a named cluster does not become the last one");
  t.end();
});

/**
 * Wrong calls and missing surroundings: what, why and what to do in two lines; nothing left behind.
 */
import t, { type Test } from "tap";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg } from "node:os";
import { join } from "node:path";
import { dss, run } from "../support/process.js";
import { freePort, tempFolder } from "../support/temp.js";

interface Sandbox {
  folder: string;
  env: Record<string, string>;
}

/** Commands in here know no cluster and keep their records in the folder. */
function sandbox(t: Test): Sandbox {
  const folder = tempFolder(t, "cli");
  return { folder, env: { DSS_DATA: join(folder, "data"), DSS_ZOOKEEPER: "" } };
}

interface Expected {
  code: 1 | 2;
  says: RegExp;
}

/** At most so many programs at a time. */
const TOGETHER = 3;
async function all<T>(list: readonly T[], action: (each: T) => Promise<void>): Promise<void> {
  const queue = [...list];
  const work = async (): Promise<void> => {
    for (let each = queue.shift(); each !== undefined; each = queue.shift()) await action(each);
  };
  await Promise.all(Array.from({ length: TOGETHER }, work));
}

async function refused(
  t: Test,
  { env }: Sandbox,
  args: string[],
  expected: Expected,
): Promise<void> {
  const shown = `dss ${args.join(" ")}`;
  const { code, stdout, stderr } = await run(t, ...dss(...args), { env });
  t.equal(code, expected.code, `${shown}: exit code`);
  t.equal(stdout, "", `${shown}: nothing on stdout`);
  t.match(stderr, expected.says, shown);
  t.match(stderr, /^dss: /, `${shown}: says who speaks`);
  t.ok(stderr.trim().split("\n").length <= 2, `${shown}: at most two lines`);
  t.notMatch(stderr, /\n\s+at /, `${shown}: no stack`);
}

t.test("unknown commands and options name the nearest one", async (t) => {
  const box = sandbox(t);
  const cases: [string[], RegExp][] = [
    [["statsu"], /unknown command 'statsu'[\s\S]*status/],
    [["status", "--jsno"], /unknown option '--jsno'[\s\S]*--json/],
    [["cluster", "up", "--osd", "3"], /unknown option '--osd'[\s\S]*--osds/],
    [["volume", "creat", "a", "1"], /unknown command 'creat'[\s\S]*create/],
    [["osd", "start", "0", "--osd-wal-segment", "4"], /unknown option[\s\S]*--osd-wal-segments/],
    [["volume", "create", "a"], /missing required argument 'size'/],
    [["volume", "create", "a", "1", "2"], /too many arguments/],
    [["mount", "/tmp", "--driver", "floppy"], /kernel, fuse-native/],
  ];
  await all(cases, ([args, says]) => refused(t, box, args, { code: 2, says }));
});

t.test("sizes, offsets and numbers that are negative, malformed or absurd", async (t) => {
  const box = sandbox(t);
  const cases: [string[], RegExp][] = [
    [["volume", "create", "a", "-5"], /size "-5" is negative/],
    [["volume", "create", "a", "0"], /too small/],
    [["volume", "create", "a", "99999999T"], /too large/],
    [["volume", "create", "a", "big"], /is not a size/],
    [["volume", "read", "a", "-1"], /offset "-1" is negative/],
    [["volume", "read", "a", "0", "0"], /length "0" is too small/],
    [["volume", "write", "a", "x", "data"], /offset "x" is not a size/],
    [["volume", "serve", "a", "--listen", "localhost"], /not an address/],
    [["volume", "serve", "a", "--listen", ":99999"], /port "99999"/],
    [["osd", "start", "10000"], /OSD "10000"/],
    [["osd", "start", "-1"], /OSD "-1"/],
    [["osd", "start", "0", "--port", "70000"], /port "70000"/],
    [["osd", "start", "0", "--osd-wal-segments", "1"], /osd\.walSegments takes 3 to 64/],
    [["osd", "reweight", "0", "-1"], /weight "-1"/],
    [["osd", "reweight", "0", "1000"], /weight "1000"/],
    [["mds", "start", "x"], /MDS "x"/],
    [["cluster", "up", "--osds", "0"], /--osds "0"/],
    [["cluster", "up", "--osds", "1000"], /--osds "1000"/],
    [["cluster", "up", "--zookeeper", "2"], /even number/],
    [["cluster", "up", "--zookeeper", "a:b:c"], /does not name ZooKeeper servers/],
    [["status", "--zookeeper", "host:0"], /does not name ZooKeeper servers/],
  ];
  await all(cases, ([args, says]) => refused(t, box, args, { code: 2, says }));
  t.notOk(existsSync(box.env["DSS_DATA"]!), "nothing was created");
});

t.test("settings that contradict each other or are misspelt in the environment", async (t) => {
  const box = sandbox(t);
  const args = ["osd", "start", "0", "--heartbeat-ms", "9s"];
  await refused(t, box, args, { code: 2, says: /heartbeatGraceMs >= 3 \* heartbeatMs/ });
  const env = { ...box.env, DSS_OSD_WAL_SEGMENT: "4" };
  await refused(t, { ...box, env }, ["osd", "start", "0"], {
    code: 2,
    says: /DSS_OSD_WAL_SEGMENTS/,
  });
});

t.test("a cluster that is not there", async (t) => {
  const box = sandbox(t);
  const none = { code: 1, says: /no cluster is named[\s\S]*dss cluster up/ } as const;
  for (const args of [["status"], ["osd", "ls"], ["volume", "ls"], ["osd", "start", "0"]]) {
    await refused(t, box, args, none);
  }
  const gone = { code: 1, says: /no ZooKeeper answers at 127\.0\.0\.1/ } as const;
  const servers = ["--zookeeper", `127.0.0.1:${await freePort()}`];
  const mountpoint = join(box.folder, "mnt");
  mkdirSync(mountpoint);
  for (const args of [["status"], ["pg", "ls"], ["volume", "ls"], ["mount", mountpoint]]) {
    await refused(t, box, [...args, ...servers], gone);
  }
  await refused(t, box, ["osd", "start", "0", ...servers], gone);
  t.notOk(existsSync(box.env["DSS_DATA"]!), "nothing was created");
});

t.test("mount points that are missing, files, or not empty", async (t) => {
  const box = sandbox(t);
  const servers = ["--zookeeper", "127.0.0.1:1"];
  const file = join(box.folder, "file");
  writeFileSync(file, "x");
  const missing = join(box.folder, "missing");
  const cases: [string, RegExp][] = [
    [missing, /does not exist[\s\S]*mkdir -p/],
    [file, /is not a directory/],
    [box.folder, /is not empty[\s\S]*nonempty/],
  ];
  for (const [path, says] of cases) {
    await refused(t, box, ["mount", path, ...servers], { code: 1, says });
  }
  t.notOk(existsSync(missing));
  for (const path of [missing, file, box.folder]) {
    await refused(t, box, ["umount", path], { code: 1, says: /nothing is mounted at/ });
  }
  for (const [path, says] of cases.slice(1)) {
    const up = ["cluster", "up", "--mount", path];
    await refused(t, box, up, { code: 1, says });
  }
  const { stdout } = await run(t, ...dss("cluster", "status", "--json"), { env: box.env });
  const left = stdout === "" ? [] : (JSON.parse(stdout) as { processes: unknown[] }).processes;
  t.same(left, [], "no process was started");
});

t.test("a data folder of something else", async (t) => {
  const box = sandbox(t);
  const photos = join(box.folder, "photos");
  mkdirSync(photos);
  writeFileSync(join(photos, "1.jpg"), "x");
  const says = /holds files that are not of a dss cluster \(1\.jpg\)/;
  await refused(t, box, ["cluster", "up", "--data", photos], { code: 1, says });
  for (const extra of [[], ["--purge"]]) {
    const down = ["cluster", "down", "--data", photos, ...extra];
    await refused(t, box, down, { code: 1, says: /there is no cluster in/ });
  }
  t.same(readdirSync(photos), ["1.jpg"]);

  const newer = join(box.folder, "newer");
  mkdirSync(newer);
  const marker = { kind: "dss cluster on one machine", format: 99 };
  writeFileSync(join(newer, "cluster.json"), JSON.stringify(marker));
  for (const args of [["up"], ["down", "--purge"], ["status"]]) {
    const command = ["cluster", ...args, "--data", newer];
    await refused(t, box, command, { code: 1, says: /format 99[\s\S]*version of dss/ });
  }
  t.ok(existsSync(join(newer, "cluster.json")));
});

const skip = existsSync("/dev/nbd0") && "this machine's kernel has nbd";
t.test("a kernel without nbd is said at once", { skip }, async (t) => {
  const box = sandbox(t);
  const says = /no nbd module[\s\S]*dss volume serve mydevice --unix/;
  await refused(t, box, ["volume", "attach", "mydevice"], { code: 1, says });
  await refused(t, box, ["volume", "detach", "mydevice"], { code: 1, says: /is not attached/ });
  t.notOk(existsSync(box.env["DSS_DATA"]!), "nothing was created");
});

t.test("attach and detach say what they miss", async (t) => {
  const box = sandbox(t);
  for (const args of [["attach"], ["attach", "--all", "x"], ["detach"], ["detach", "x", "--all"]]) {
    await refused(t, box, ["volume", ...args], { code: 2, says: /which volume|takes no name/ });
  }
  const table = join(box.folder, "no-table");
  const all = ["volume", "attach", "--all", "--table", table];
  await refused(t, box, all, { code: 1, says: /there is no table/ });
});

t.test("every command has help with an example, and answers quickly", async (t) => {
  const { env } = sandbox(t);
  const help = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await run(t, ...dss(...args, "--help"), { env });
    t.equal(code, 0, `dss ${args.join(" ")} --help`);
    t.equal(stderr, "");
    return stdout;
  };
  const commandsIn = (text: string): string[] => {
    const list = /\nCommands:\n([\s\S]*?)(\n\n|$)/.exec(text)?.[1] ?? "";
    return [...list.matchAll(/^ {2}([a-z]+)/gm)].map((match) => match[1]!);
  };
  const verbs = commandsIn(await help());
  t.ok(verbs.includes("cluster") && verbs.includes("volume"), "the verbs are listed");
  let leaves = 0;
  const example = /Examples?:\n {2}\$ dss /;
  await all(verbs, async (verb) => {
    const text = await help(verb);
    const inner = commandsIn(text);
    for (const name of inner) t.match(await help(verb, name), example, `${verb} ${name}`);
    if (inner.length === 0) t.match(text, example, verb);
    leaves += Math.max(1, inner.length);
  });
  t.ok(leaves >= 30, `${leaves} commands`);
  t.match(await help("device", "list"), /list the volumes/, "device is volume");

  // The bar is 300 ms; the best of several, and more when other work shares the processors.
  const limit = 300 * Math.max(1, (1.5 * loadavg()[0]!) / availableParallelism());
  let best = Infinity;
  for (let attempt = 0; attempt < 5; attempt++) {
    const start = performance.now();
    await help();
    best = Math.min(best, performance.now() - start);
  }
  t.ok(best < limit, `dss --help took ${Math.round(best)} ms`);
});

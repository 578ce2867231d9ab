/**
 * A cluster on this machine through the command line alone: up, what it shows, what happens after a
 * kill, wrong calls against a live cluster, down and up again, purge.
 */
import t, { type Test } from "tap";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg } from "node:os";
import { join } from "node:path";
import { dss, run, start, succeed } from "../support/process.js";
import type { RunResult } from "../support/process.js";
import { tempFolder, waitFor } from "../support/temp.js";

interface LocalStatus {
  data: string;
  mount: string;
  zookeeper: string;
  processes: { name: string; role: string; pid: number | null; running: boolean; log: string }[];
}

const UP_MS = 60_000;
/** What is promised for a second `up`. */
const AGAIN_MS = 10_000;

class Sandbox {
  readonly folder: string;
  readonly mount: string;
  readonly data: string;
  readonly env: Record<string, string>;

  constructor(private readonly t: Test) {
    this.folder = tempFolder(t, "up");
    this.mount = join(this.folder, "mnt");
    this.data = join(this.folder, "data");
    this.env = { DSS_DATA: this.data, DSS_ZOOKEEPER: "" };
  }

  async dss(...args: string[]): Promise<string> {
    return await succeed(this.t, ...dss(...args), { env: this.env, withinMs: UP_MS });
  }
  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.dss(...args, "--json")) as T;
  }
  async fail(...args: string[]): Promise<RunResult> {
    return await run(this.t, ...dss(...args), { env: this.env, withinMs: UP_MS });
  }
  async pids(): Promise<Record<string, number | null>> {
    const { processes } = await this.json<LocalStatus>("cluster", "status");
    return Object.fromEntries(processes.map(({ name, pid }) => [name, pid]));
  }
}

const ALL = ["mds.0", "mds.1", "mount", "osd.0", "osd.1", "osd.2", "zookeeper.1"];

t.test("a cluster on this machine", async (t) => {
  const box = new Sandbox(t);
  const { mount, data } = box;
  t.teardown(() => run(t, ...dss("cluster", "down", "--force", "--purge"), { env: box.env }));

  await t.test("up ends with a mount and HEALTH_OK", async (t) => {
    const printed = await box.dss("cluster", "up", "--mount", mount);
    t.match(printed, /HEALTH_OK/);
    t.match(printed, /dss volume create/, "says how to go on");
    const pids = await box.pids();
    t.same(Object.keys(pids).sort(), ALL);
    t.ok(Object.values(pids).every((pid) => pid !== null));
    t.match(readFileSync("/proc/mounts", "utf8"), `dss ${mount} fuse.dss`);
    writeFileSync(join(mount, "kept"), "bytes", { flush: true });
  });

  await t.test("up again changes nothing", async (t) => {
    const before = await box.pids();
    const begin = performance.now();
    const { started } = await box.json<{ started: string[] }>("cluster", "up");
    t.ok(performance.now() - begin < AGAIN_MS);
    t.same(started, []);
    t.same(await box.pids(), before);
  });

  await t.test("the documents have the members that scripts rely on", async (t) => {
    const status = await box.json("status");
    t.match(status, {
      health: { status: "HEALTH_OK", checks: [] },
      epoch: Number,
      osds: [0, 1, 2].map((id) => ({
        ...{ id, up: true, in: true, state: "active", address: String },
        ...{ used: Number, total: Number },
      })),
      mds: { leader: Number, standbys: [Number] },
      pgs: { total: 128, clean: 128, degraded: 0, recovering: 0, misplaced: 0, inactive: 0 },
      usage: { used: Number, available: Number, total: Number },
      clients: [{ id: Number, type: "mount", address: String, mount }],
      io: {
        readBytesPerSecond: Number,
        writeBytesPerSecond: Number,
        ...{ readOps: Number, writeOps: Number, recoveryBytesPerSecond: Number },
      },
    });
    const local = await box.json<LocalStatus>("cluster", "status");
    t.equal(local.data, data);
    t.equal(local.mount, mount);
    t.match(local.zookeeper, /^127\.0\.0\.1:\d+$/);
    for (const { log } of local.processes) t.ok(existsSync(log), log);
    const pgs = await box.json<object[]>("pg", "ls");
    t.equal(pgs.length, 128);
    t.match(pgs[0], {
      ...{ pg: "1.0", state: "active+clean", primary: Number, objects: Number, bytes: Number },
      ...{ up: [Number, Number, Number], inSync: [Number, Number, Number] },
    });
    for (const verb of ["topology", "health", "osd ls", "mds ls", "pool ls", "volume ls"]) {
      t.ok(await box.json(...verb.split(" ")), verb);
    }
  });

  await t.test("a command that asks answers in under 300 ms", async (t) => {
    // The best of some, and more when other work shares the processors.
    const limit = 300 * Math.max(1, (1.5 * loadavg()[0]!) / availableParallelism());
    let best = Infinity;
    for (let attempt = 0; attempt < 8 && best >= limit; attempt++) {
      const begin = performance.now();
      await box.dss("status", "--json");
      best = Math.min(best, performance.now() - begin);
    }
    t.ok(best < limit, `dss status took ${Math.round(best)} of ${Math.round(limit)} ms`);
  });

  await t.test("a volume's bytes are on three OSDs, equal", async (t) => {
    t.match(await box.dss("device", "create", "mydevice", "1"), /created volume mydevice of 1 GiB/);
    await box.dss("volume", "write", "mydevice", "4194300", "across");
    t.equal(await box.dss("volume", "read", "mydevice", "4194300", "6"), "across");
    const input = Buffer.alloc(3_000_000, "pattern ");
    const write = dss("volume", "write", "mydevice", "10M", "-");
    await succeed(t, ...write, { env: box.env, input });
    const read = await run(t, ...dss("volume", "read", "mydevice", "10M", "3000000"), {
      env: box.env,
    });
    t.ok(read.stdoutBytes.equals(input), "what came from a pipe is read again");
    const info = await box.json<{ objects: { object: string; osds: number[] }[] }>(
      ...["volume", "info", "mydevice", "--objects"],
    );
    t.same(
      info.objects.map(({ object }) => object),
      ["v1.0", "v1.1", "v1.2", "v1.3"],
    );
    for (const { object, osds } of info.objects) {
      t.same([...osds].sort(), [0, 1, 2], object);
      const place = await box.json<{ equal: boolean; copies: { digest: string }[] }>(
        ...["pg", "locate", "data", object, "--verify"],
      );
      t.equal(place.equal, true, object);
      t.equal(place.copies.length, 3);
      t.equal(new Set(place.copies.map(({ digest }) => digest)).size, 1);
    }
  });

  await t.test("wrong calls against a live cluster", async (t) => {
    const osd1 = join(data, "osd.1");
    const used = String(
      (await box.json<{ osds: { address: string }[] }>("status")).osds[0]!.address,
    );
    const port = used.split(":")[1]!;
    const fresh = join(box.folder, "fresh");
    const cases: [string[], RegExp][] = [
      [["volume", "create", "mydevice", "1"], /volume mydevice exists[\s\S]*another name/],
      [["volume", "info", "nothing"], /there is no volume nothing[\s\S]*dss volume ls/],
      [["volume", "rm", "nothing"], /there is no volume nothing/],
      [["volume", "read", "nothing", "0"], /there is no volume nothing/],
      [["volume", "read", "mydevice", "1G", "1"], /beyond the end of mydevice/],
      [["volume", "write", "mydevice", "1073741820", "five!"], /beyond the end of mydevice/],
      [["volume", "create", "x", "1", "--pool", "none"], /there is no pool "none"[\s\S]*data/],
      [["osd", "out", "7"], /there is no osd\.7[\s\S]*0, 1, 2/],
      [["pg", "show", "1.fff"], /there is no placement group/],
      [["pg", "locate", "none", "x"], /there is no pool "none"/],
      [["mount", mount], /already mounted[\s\S]*dss umount/],
      [["osd", "start", "1", "--data", osd1, "--port", port], /in use/],
      [["osd", "start", "8", "--data", fresh, "--port", port], /already in use[\s\S]*another port/],
      [["mds", "start", "5", "--port", port], /already in use/],
    ];
    for (const [args, says] of cases) {
      const { code, stderr } = await box.fail(...args);
      t.equal(code, 1, args.join(" "));
      t.match(stderr, says, args.join(" "));
      t.notMatch(stderr, /\n\s+at /, "no stack");
    }
    t.equal((await box.json<{ health: { status: string } }>("status")).health.status, "HEALTH_OK");
    t.equal((await box.json<{ osds: object[] }>("status")).osds.length, 3, "nobody joined");
  });

  await t.test("a mount that is in use stays, and says who uses it", async (t) => {
    const user = start(t, "/bin/sleep", ["600"], { cwd: mount });
    await waitFor("the program runs there", () => user.running);
    for (const args of [
      ["umount", mount],
      ["cluster", "down"],
    ]) {
      const { code, stderr } = await box.fail(...args);
      t.equal(code, 1);
      t.match(stderr, new RegExp(`is in use by sleep \\(${user.pid}\\)`));
    }
    t.ok(
      Object.values(await box.pids()).every((pid) => pid !== null),
      "nothing was stopped",
    );
    await user.kill();
  });

  await t.test("up starts what was killed, and nothing else", async (t) => {
    const before = await box.pids();
    for (const name of ["osd.1", "mount"]) process.kill(before[name]!, "SIGKILL");
    await waitFor("they are gone", async () => {
      const now = await box.pids();
      return now["osd.1"] === null && now["mount"] !== before["mount"];
    });
    const { started } = await box.json<{ started: string[] }>("cluster", "up");
    t.same(started, ["osd.1"], "the mount has another worker already");
    const after = await box.pids();
    for (const name of ALL) {
      if (["osd.1", "mount"].includes(name)) t.not(after[name], before[name], name);
      else t.equal(after[name], before[name], name);
    }
    t.equal(readFileSync(join(mount, "kept"), "utf8"), "bytes");
  });

  await t.test("two at once do not collide", async (t) => {
    await box.dss("umount", mount);
    const [one, two] = await Promise.all([
      box.json<{ started: string[] }>("cluster", "up"),
      box.json<{ started: string[] }>("cluster", "up"),
    ]);
    t.same([...one.started, ...two.started], ["mount"], "one of them mounted");
  });

  await t.test("a number that became another program's is not touched", async (t) => {
    const path = join(data, "cluster.json");
    await box.dss("cluster", "down");
    const state = JSON.parse(readFileSync(path, "utf8")) as { processes: object[] };
    t.same(state.processes, [], "nothing is left running");
    t.notMatch(readFileSync("/proc/mounts", "utf8"), mount);
    const other = start(t, "/bin/sleep", ["600"]);
    const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    const identity = { pid: other.pid, startTicks: 1, bootId };
    state.processes = [{ ...identity, name: "osd.0", role: "osd", data: "", log: "" }];
    writeFileSync(path, JSON.stringify(state));
    t.equal((await box.pids())["osd.0"], null);
    await box.dss("cluster", "down");
    t.ok(other.running);
    await other.kill();
  });

  await t.test("down and up again: all data is there", async (t) => {
    await box.dss("cluster", "up");
    t.equal(readFileSync(join(mount, "kept"), "utf8"), "bytes");
    t.equal(await box.dss("volume", "read", "mydevice", "4194300", "6"), "across");
  });

  await t.test("a data folder of another OSD is refused", async (t) => {
    await box.dss("osd", "ls");
    const pids = await box.pids();
    process.kill(pids["osd.2"]!, "SIGKILL");
    await waitFor("it is gone", async () => (await box.pids())["osd.2"] === null);
    const args = ["osd", "start", "7", "--data", join(data, "osd.2"), "--port", "19107"];
    const { code, stderr } = await box.fail(...args);
    t.equal(code, 1);
    t.match(stderr, /dss: .*osd\.2/);
  });

  await t.test("purge leaves nothing behind", async (t) => {
    await box.dss("cluster", "down", "--purge");
    t.notOk(existsSync(data));
    t.notMatch(readFileSync("/proc/mounts", "utf8"), mount);
    mkdirSync(data);
    const { code, stderr } = await box.fail("cluster", "status");
    t.equal(code, 1);
    t.match(stderr, /there is no cluster in/);
  });
});

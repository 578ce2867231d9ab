/** The helpers of real-process tests keep their own promises, above all: nothing stays behind. */
import { existsSync } from "node:fs";
import t from "tap";
import { run, start, succeed } from "../../support/process.js";
import { freePort, tempFolder, waitFor, withDeadline } from "../../support/temp.js";
import { fourLetterWord, startZooKeeper } from "../../support/zookeeper.js";

const alive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

t.test("a temporary folder goes with its test", async (t) => {
  let folder = "";
  await t.test("inner", (t) => {
    folder = tempFolder(t);
    t.ok(existsSync(folder));
    t.end();
  });
  t.notOk(existsSync(folder));
});

t.test("a program and what it started end with their test", async (t) => {
  const pids: number[] = [];
  await t.test("inner", async (t) => {
    const shell = start(t, "sh", ["-c", "sleep 300 & echo child $!; wait"]);
    const match = await shell.output(/child (\d+)/);
    pids.push(shell.pid, Number(match[1]));
    t.ok(pids.every(alive));
  });
  t.equal(pids.length, 2);
  await waitFor("both are gone", () => !pids.some(alive));
});

t.test("one that ignores SIGTERM or is stopped is ended too", async (t) => {
  const stubborn = start(t, "sh", ["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
  await stubborn.output(/ready/);
  stubborn.signal("SIGSTOP");
  await stubborn.stop({ graceMs: 100 });
  t.notOk(alive(stubborn.pid));
});

t.test("output, exit codes and missing programs", async (t) => {
  const both = await run(t, "sh", ["-c", "cat; echo err >&2; exit 3"], { input: "in" });
  t.match(both, { code: 3, stdout: "in", stderr: "err\n" });
  t.equal(await succeed(t, "echo", ["x"]), "x\n");
  await t.rejects(succeed(t, "sh", ["-c", "echo why; exit 4"]), /exit code 4\nwhy/);
  await t.rejects(run(t, "no-such-program"), /cannot start/);
  await t.rejects(run(t, "sleep", ["60"], { withinMs: 50 }), /took longer than 50 ms/);
  await t.rejects(start(t, "echo", ["a"]).output(/b/), /ended without .*\na/s);
});

t.test("deadlines", async (t) => {
  await t.rejects(withDeadline(5, "nothing", new Promise(() => undefined)), /nothing took/);
  t.equal(await withDeadline(1_000, "x", Promise.resolve(4)), 4);
  await t.rejects(
    waitFor("never", () => false, { withinMs: 30 }),
    /not within 30 ms: never/,
  );
  t.ok((await freePort()) > 1_023);
});

t.test("a real ZooKeeper answers, is killed and comes back on its port", async (t) => {
  const zookeeper = await startZooKeeper(t);
  t.match(await fourLetterWord(zookeeper.port, "mntr"), /zk_server_state\s+standalone/);
  await zookeeper.kill();
  t.equal(await fourLetterWord(zookeeper.port, "ruok"), "");
  await zookeeper.restart();
  t.equal(await fourLetterWord(zookeeper.port, "ruok"), "imok");
});

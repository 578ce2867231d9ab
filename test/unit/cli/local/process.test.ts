/** Identity, start, end and last words of detached processes. */
import t from "tap";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  failureIn,
  identify,
  isAlive,
  parseStat,
  signal,
  startDetached,
  stop,
  waitForEnd,
} from "../../../../cli/local/process.js";
import { tempFolder } from "../../../support/temp.js";

t.test("a process is its number and its start, whatever its name holds", (t) => {
  const tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
  t.same(parseStat(`77 (a) b) (c) ${tail}\n`), { state: "S", startTicks: 4242 });
  t.equal(parseStat("77 (short) S 1 2"), undefined);
  t.equal(parseStat(""), undefined);
  t.end();
});

t.test("a recycled number is neither alive nor signalled", (t) => {
  const self = identify(process.pid)!;
  t.ok(isAlive(self));
  const others = [
    { ...self, startTicks: self.startTicks + 1 },
    { ...self, bootId: "another boot" },
  ];
  for (const other of others) {
    t.notOk(isAlive(other));
    t.equal(signal(other, "SIGKILL"), false, "we are still here");
  }
  t.equal(identify(2 ** 22 + 1), undefined);
  t.end();
});

t.test("a started process has its own session and log, and is stopped", async (t) => {
  const folder = tempFolder(t, "proc");
  const log = join(folder, "log");
  writeFileSync(log, "earlier\n");
  const script = "console.log(process.env.MARK, process.cwd()); setInterval(() => {}, 1e6)";
  const started = await startDetached({
    program: process.execPath,
    args: ["-e", script],
    log,
    env: { MARK: "here" },
  });
  t.equal(started.logStart, 8);
  t.equal(started.ended(), undefined);
  t.equal(await stop(started, 10_000), "ended");
  t.notOk(isAlive(started));
  t.equal(await stop(started, 10), "was not running");
  t.match(readFileSync(log, "utf8"), /^earlier\n/);
});

t.test("one that ignores SIGTERM is killed, and that is said", async (t) => {
  const log = join(tempFolder(t, "proc"), "log");
  const started = await startDetached({
    program: "/bin/sh",
    args: ["-c", "trap '' TERM; while :; do sleep 1; done"],
    log,
  });
  // Until the shell has set the trap it would end.
  while (!/^SigIgn:.*[4-7c-f]\d{3}$/m.test(readFileSync(`/proc/${started.pid}/status`, "utf8"))) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.equal(await stop(started, 50), "killed");
});

t.test("a program that does not exist is an error with its name", async (t) => {
  const log = join(tempFolder(t, "proc"), "log");
  await t.rejects(startDetached({ program: "/nonexistent/x", args: [], log }), {
    code: "Configuration",
    message: "cannot start /nonexistent/x",
  });
});

t.test("a failed start is told in the words of the process", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "words-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const log = join(folder, "log");
  writeFileSync(log, "dss: an old failure\n");
  const start = readFileSync(log).length;
  writeFileSync(
    log,
    "dss: an old failure\n{}\ndss: port 9100 is taken\n     choose another port\n",
  );
  const told = failureIn(log, start, "osd.0 did not start", "exit code 1");
  t.equal(told.message, "osd.0 did not start: port 9100 is taken");
  t.equal(told.hint, "choose another port");

  writeFileSync(
    log,
    '{"level":"error","message":"stopping","error":{"message":"disk"}}\n   at x\n',
  );
  t.match(failureIn(log, 0, "osd.0", "exit code 1").message, /exit code 1\): stopping: disk$/);
  t.match(
    failureIn(join(folder, "none"), 0, "osd.0", "gone").message,
    /its process ended \(gone\)$/,
  );
});

t.test("the end of a process is noticed, also when nobody waits for it", async (t) => {
  const log = join(tempFolder(t, "proc"), "log");
  const started = await startDetached({ program: "/bin/sh", args: ["-c", "exit 3"], log });
  t.equal(await waitForEnd(started, 10_000), true);
});

/**
 * Locks of real programs over two mounts of a real cluster: python3 with flock and fcntl, flock(1),
 * sqlite3, while metadata servers and mounts are killed.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import type { Cluster } from "../support/cluster.js";
import { start, succeed, type Program } from "../support/process.js";

/** `second`: another mount of the cluster. */
export async function locksSuite(t: Test, cluster: Cluster, second: string): Promise<void> {
  const third = await cluster.mountAgain("third");
  mkdirSync(join(cluster.mount, "l"));
  const [a, b, c] = [cluster.mount, second, third].map((mount) => join(mount, "l")) as [
    string,
    string,
    string,
  ];

  const PRELUDE = `
import ctypes, errno, fcntl, os, signal, struct, sys, time
def lock(fd, kind, start=0, length=0, wait=False):
    fcntl.lockf(fd, kind | (0 if wait or kind == fcntl.LOCK_UN else fcntl.LOCK_NB), length, start)
def refused(call):
    try:
        call()
    except OSError as error:
        return "EDEADLK" if error.errno == errno.EDEADLK else errno.errorcode[error.errno]
    return "granted"
def say(*words):
    print(*words, flush=True)
`;
  function python(script: string, ...args: string[]): Program {
    return start(t, "python3", ["-c", PRELUDE + script, ...args]);
  }
  async function ran(program: Program): Promise<string> {
    const { code } = await program.exited;
    if (code !== 0) throw new Error(`exit code ${String(code)}\n${program.tail()}`);
    return program.stdout;
  }
  const HOLD = `
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX); lock(fd, fcntl.LOCK_EX, 100, 10)
say("held"); time.sleep(600)
`;
  const TRY = `
fd = os.open(sys.argv[1], os.O_RDWR)
say(refused(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    refused(lambda: lock(fd, fcntl.LOCK_SH, 109, 1)),
    refused(lambda: lock(fd, fcntl.LOCK_EX, 110, 1)))
`;
  const WAIT = `
fd = os.open(sys.argv[1], os.O_RDWR)
say("waiting"); lock(fd, fcntl.LOCK_EX, 100, 1, True); fcntl.flock(fd, fcntl.LOCK_EX); say("got it")
`;

  await t.test(
    "held on one mount, refused on the other, freed by the end of the program",
    async (t) => {
      const holder = python(HOLD, join(a, "held"));
      await holder.output(/held/);
      t.equal(await ran(python(TRY, join(b, "held"))), "EAGAIN EAGAIN granted\n");
      t.equal(await ran(python(TRY, join(a, "held"))), "EAGAIN EAGAIN granted\n");
      const waiter = python(WAIT, join(b, "held"));
      await waiter.output(/waiting/);
      await holder.kill();
      await waiter.output(/got it/);
      t.pass("and the waiter has it");
    },
  );

  await t.test(
    "circles are refused, waits are interrupted, F_GETLK tells the holder",
    async (t) => {
      const circle = `
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
mine, other = int(sys.argv[2]), int(sys.argv[3])
lock(fd, fcntl.LOCK_EX, mine, 1); say("ready"); sys.stdin.readline()
say(refused(lambda: lock(fd, fcntl.LOCK_EX, other, 1, True)))
`;
      const go = circle.replace("sys.stdin.readline()", "time.sleep(1.5)");
      const both = [
        python(go, join(a, "circle"), "0", "1"),
        python(go, join(b, "circle"), "1", "0"),
      ];
      const said = await Promise.all(both.map(ran));
      t.same(said.map((each) => each.split("\n")[1]).sort(), ["EDEADLK", "granted"]);
      const told = `
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
lock(fd, fcntl.LOCK_EX, 5, 5)
if os.fork() == 0:
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    say(kind == fcntl.F_WRLCK, start, length, pid == os.getppid())
    def alarm(*_): raise InterruptedError(errno.EINTR, "alarm")
    signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.3)
    say(refused(lambda: lock(fd, fcntl.LOCK_EX, 5, 1, True)))
    os._exit(0)
os.wait()
`;
      t.equal(await ran(python(told, join(a, "told"))), "True 5 5 True\nEINTR\n");
    },
  );

  const COUNT = `
path, rounds, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
fd = os.open(path, os.O_RDWR)
for _ in range(rounds):
    if how == "flock": fcntl.flock(fd, fcntl.LOCK_EX)
    else: lock(fd, fcntl.LOCK_EX, 0, 0, True)
    number = int(os.pread(fd, 20, 0) or b"0")
    os.pwrite(fd, b"%d" % (number + 1), 0)
    if how == "flock": fcntl.flock(fd, fcntl.LOCK_UN)
    else: lock(fd, fcntl.LOCK_UN)
`;
  const ROUNDS = 100;
  await t.test(`a counter under a lock on two mounts, ${2 * ROUNDS} steps`, async (t) => {
    for (const how of ["flock", "fcntl"]) {
      const name = `counter-${how}`;
      await succeed(t, "sh", ["-c", ': > "$1"', "sh", join(a, name)]);
      const both = [a, b].map((mount) => python(COUNT, join(mount, name), String(ROUNDS), how));
      await Promise.all(both.map(ran));
      t.equal(await succeed(t, "cat", [join(c, name)]), String(2 * ROUNDS), how);
    }
  });

  await t.test("sqlite3 from both mounts at once, the leader killed in the middle", async (t) => {
    const set = "pragma journal_mode=delete; create table t(who, n); pragma integrity_check;";
    t.match(await succeed(t, "sqlite3", [join(a, "db"), set]), /ok/);
    const insert = (mount: string, who: string) => {
      const one = `insert into t select '${who}', coalesce(max(n), 0) + 1 from t;`;
      return succeed(t, "sqlite3", ["-bail", "-cmd", ".timeout 60000", join(mount, "db")], {
        input: one.repeat(60),
        withinMs: 120_000,
      });
    };
    const holder = python(HOLD, join(c, "across"));
    await holder.output(/held/);
    const both = [insert(a, "a"), insert(b, "b")];
    await new Promise((resolve) => setTimeout(resolve, 700));
    await cluster.kill([await cluster.leaderPid()]);
    await Promise.all(both);
    const check = "select count(*), count(distinct n), max(n) from t; pragma integrity_check;";
    t.equal(await succeed(t, "sqlite3", [join(c, "db"), check]), "120|120|120\nok\n");
    t.equal(await ran(python(TRY, join(b, "across"))), "EAGAIN EAGAIN granted\n", "still held");
    const waiter = python(WAIT, join(b, "across"));
    await waiter.output(/waiting/);
    // A mount that dies. Its successor at the same place has it fenced at once; without one its
    // lease would end first.
    const whole = `mount(-supervisor-program.js)? ${third}( |$)`;
    const pids = (await succeed(t, "pgrep", ["-f", whole])).trim().split("\n").map(Number);
    t.equal(pids.length, 2, "supervisor and worker");
    await cluster.kill(pids);
    await cluster.ok(["mount", third], { withinMs: 60_000 });
    await waiter.output(/got it/, 40_000);
    // Its mount is dead: it may have ended by itself.
    await holder.kill().catch(() => undefined);
    t.pass("and its lock is free");
  });
  await cluster.ok(["umount", third], { withinMs: 60_000 });
}

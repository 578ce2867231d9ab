/** Quick wake-ups: when they are asked of the kernel, with a file in place of its device. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import t from "tap";
import { silentLogger } from "../../../../cluster/base/log.js";
import { QuickWakeups } from "../../../../cluster/platform/node-wakeups.js";
import { ManualClock } from "../../mds/harness.js";

function setUp(folder: string) {
  const clock = new ManualClock();
  const paths = { requests: join(folder, "requests"), idleDriver: join(folder, "driver") };
  if (existsSync(folder)) writeFileSync(paths.requests, "");
  const wakeups = new QuickWakeups(clock, silentLogger, paths);
  const isHeld = (): boolean =>
    readdirSync("/proc/self/fd").some((fd) => {
      const path = `/proc/self/fd/${fd}`;
      return existsSync(path) && readlinkSync(path) === paths.requests;
    });
  const work = async (pieces: number, ms: number): Promise<void> => {
    for (let i = 0; i < pieces; i++) wakeups.noteWork();
    await clock.advance(ms);
  };
  return { wakeups, paths, isHeld, work };
}

t.test("a process that works asks for quick wake-ups, one that is idle does not", async (t) => {
  const { paths, isHeld, work } = setUp(t.testdir());
  await work(9, 40);
  t.notOk(isHeld(), "450 pieces of work a second");
  for (let i = 0; i < 50; i++) await work(1, 20);
  t.notOk(isHeld(), "50 a second, for a second");
  await work(10, 20);
  t.ok(isHeld(), "500 a second");
  t.equal(readFileSync(paths.requests).readInt32LE(0), 10, "microseconds");
  await work(10, 190);
  t.ok(isHeld(), "not long ago");
  await work(0, 60);
  t.notOk(isHeld(), "long ago");
  await work(10, 20);
  t.ok(isHeld(), "again");
  await work(0, 1_000);
  t.notOk(isHeld());
});

t.test("a virtual machine's processors poll", async (t) => {
  const { paths, isHeld, work } = setUp(t.testdir({ driver: "haltpoll\n" }));
  await work(10, 20);
  t.ok(isHeld());
  t.equal(readFileSync(paths.requests).readInt32LE(0), 0);
  await work(0, 1_000);
});

t.test("a kernel that refuses is asked once", async (t) => {
  const { paths, isHeld, work } = setUp(t.testdir());
  rmSync(paths.requests);
  await work(10, 20);
  t.notOk(isHeld());
  t.notOk(existsSync(paths.requests));
  paths.requests = join(t.testdir(), "requests");
  writeFileSync(paths.requests, "");
  await work(10, 20);
  t.notOk(isHeld());
});

t.test("nothing is held or begun after the end", async (t) => {
  const { wakeups, isHeld, work } = setUp(t.testdir());
  await work(10, 20);
  t.ok(isHeld());
  wakeups.end();
  t.notOk(isHeld());
  await work(10, 20);
  t.notOk(isHeld());
});

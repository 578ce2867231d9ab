/** The status folder of a mount, and the figures of its operations. */
import t from "tap";
import { DssError } from "../../../cluster/base/errors.js";
import { OWN_FOLDER, type FileSystem } from "../../../client-fs/file-system.js";
import { observe } from "../../../client-fs/observed.js";
import { silentLogger } from "../../../cluster/base/log.js";
import { SimClock } from "../../sim/sim-clock.js";
import { CALLER } from "./vfs/world.js";

function setUp(methods: Partial<FileSystem>) {
  const time = new SimClock();
  const clock = time.forNode(() => true);
  const warnings: unknown[] = [];
  const logger = { ...silentLogger, warn: (...words: unknown[]) => void warnings.push(words) };
  const about = (): Record<string, unknown> => ({ mountpoint: "/m" });
  const notAsked = (): Promise<never> => Promise.reject(new Error("not asked"));
  const others = { open: notAsked, read: notAsked, release: notAsked };
  const stuck: string[] = [];
  let drops = 0;
  const dropCaches = async (): Promise<void> => void drops++;
  const observed = observe({ ...others, ...methods } as FileSystem, {
    ...{ clock, logger, about, dropCaches, abortStuckMs: 600_000 },
    onStuck: (what) => void stuck.push(what),
  });
  const stop = (): void => observed.stop();
  return { clock: time, warnings, stuck, drops: () => drops, fs: observed.fileSystem, stop };
}
interface Status {
  mountpoint: string;
  operations: Record<string, { count: number; failures: number; maxUs: number; p50Us: number }>;
  inFlight: { op: string; ino: number; ms: number }[];
}
async function statusOf(fs: FileSystem): Promise<Status> {
  const folder = (await fs.lookup(1, Buffer.from(".dss"), CALLER)).attributes.ino;
  const { ino } = (await fs.lookup(folder, Buffer.from("status"), CALLER)).attributes;
  const { handle, directIo } = await fs.open(ino, 0, CALLER);
  t.ok(directIo, "its length is not known before");
  const first = await fs.read(ino, handle, 0, 10);
  const rest = await fs.read(ino, handle, 10, 2 ** 20);
  await fs.release(ino, handle, 0);
  return JSON.parse(Buffer.concat([...first, ...rest]).toString()) as Status;
}

t.test("what waits without end is told once, but for locks", async (t) => {
  const never = (): Promise<never> => new Promise(() => undefined);
  const { clock, fs, stuck, stop } = setUp({ fsync: never, setlk: never });
  const lock = { kind: "posix", owner: 1n, mode: "exclusive", start: 0n, end: 9n, pid: 1 } as const;
  void fs.setlk!(6, 1, lock, { wait: true }, CALLER);
  await clock.advance(700_000);
  t.same(stuck, []);
  void fs.fsync(7, 1, false);
  await clock.advance(590_000);
  t.same(stuck, []);
  await clock.advance(700_000);
  t.same(stuck, ["fsync of inode 7 has had no answer for 600 s"]);
  stop();
});

t.test("operations are counted and timed", async (t) => {
  let finish = (): void => undefined;
  const { clock, fs, warnings, stop } = setUp({
    readlink: () => Promise.reject(new DssError("NotFound", "x")),
    lookup: () => Promise.reject(new DssError("NotFound", "no such name")),
    fsync: () => new Promise<void>((resolve) => (finish = resolve)),
  });
  await t.rejects(fs.readlink(5));
  await t.rejects(fs.lookup(1, Buffer.from("other"), CALLER), { code: "NotFound" });
  const syncing = fs.fsync(7, 1, false);
  await clock.advance(45_000);
  t.equal(warnings.length, 1, "one that waits for long is named once");
  let status = await statusOf(fs);
  t.match(status, { mountpoint: "/m", inFlight: [{ op: "fsync", ino: 7, ms: 45_000 }] });
  t.match(status.operations, { readlink: { count: 1, failures: 1 }, lookup: { count: 1 } });
  finish();
  await syncing;
  status = await statusOf(fs);
  t.same(status.inFlight, []);
  t.match(status.operations["fsync"], { count: 1, failures: 0, maxUs: 45_000_000 });
  t.ok(status.operations["fsync"]!.p50Us >= 45_000_000);
  t.equal(fs.tmpfile, undefined, "what the file system lacks is lacking");
  stop();
});

t.test("the folder is only to be looked at", async (t) => {
  const { fs, stop } = setUp({
    mkdir: () => Promise.reject(new Error("not asked")),
    readdir: () => Promise.reject(new Error("not asked")),
    lookup: (...asked) => {
      t.same(asked, [OWN_FOLDER, Buffer.from("x"), CALLER], "it may look for names of its own");
      return Promise.reject(new DssError("NotFound", "no such name"));
    },
    open: () => Promise.reject(new Error("not asked")),
  });
  const { ino } = (await fs.lookup(1, Buffer.from(".dss"), CALLER)).attributes;
  await t.rejects(fs.mkdir(ino, Buffer.from("x"), 0o755, CALLER), { code: "NotPermitted" });
  await t.rejects(fs.lookup(ino, Buffer.from("x"), CALLER), { code: "NotFound" });
  await t.rejects(fs.open(ino + 1, 1, CALLER), { code: "NotPermitted" });
  const listed = await fs.readdir(ino, 0, 0, { maxEntries: 10, plus: false });
  t.same(
    [...listed].map((entry) => entry.name.toString()),
    [".", "..", "status", "drop_caches"],
  );
  stop();
});

t.test("a write to drop_caches drops them", async (t) => {
  const notAsked = (): Promise<never> => Promise.reject(new Error("not asked"));
  const { fs, drops, stop } = setUp({ lookup: notAsked, setattr: notAsked, write: notAsked });
  const folder = (await fs.lookup(1, Buffer.from(".dss"), CALLER)).attributes.ino;
  const { ino, mode } = (await fs.lookup(folder, Buffer.from("drop_caches"), CALLER)).attributes;
  t.equal(mode & 0o777, 0o200, "root's alone");
  await t.rejects(fs.open(ino, 0, CALLER), { code: "NotPermitted" });
  const { handle } = await fs.open(ino, 1, CALLER);
  await fs.setattr(ino, { size: 0 }, CALLER);
  t.equal(drops(), 0);
  const options = { flags: 1, killPrivileges: false, fromPageCache: false };
  t.equal(await fs.write(ino, handle, 0, Buffer.from("1\n"), options), 2);
  t.equal(drops(), 1);
  stop();
});

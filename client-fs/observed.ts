/**
 * What a mount is doing, for people: every operation of the kernel is counted and timed on its way
 * to the file system, and `cat MOUNT/.dss/status` shows that, open files and memory, as JSON. An
 * operation that waits for long is logged once, and one that waits without end ends the mount. A
 * write to `MOUNT/.dss/drop_caches` empties the mount's caches. `.dss` is in no listing, and hides
 * a name of the root that is spelled so.
 *
 * Owns: figures of operations, those in flight, and open status files.
 */
import { DssError, describeError } from "../cluster/base/errors.js";
import type { Ino } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { OWN_FOLDER as FOLDER, OWN_FOLDER_NAME } from "./file-system.js";
import type { Attributes, Caller, DirEntry, Entry, FileSystem } from "./file-system.js";

const ROOT: Ino = 1;
const STATUS: Ino = FOLDER + 1;
const DROP_CACHES: Ino = FOLDER + 2;
const FILES: ReadonlyMap<string, Ino> = new Map([
  ["status", STATUS],
  ["drop_caches", DROP_CACHES],
]);

/** Operations that wait longer are logged; locks may wait as long as they like. */
const SLOW_MS = 30_000;
const LOOK_MS = 10_000;
const MAY_WAIT: ReadonlySet<string> = new Set(["setlk"]);
/** What is not an operation of the kernel. */
const UNCOUNTED: ReadonlySet<string> = new Set([
  "init",
  "destroy",
  "forget",
  "entriesTaken",
  "readDone",
]);
/** Powers of two of a microsecond. */
const BUCKETS = 32;

interface Figures {
  count: number;
  failures: number;
  totalUs: number;
  maxUs: number;
  buckets: Uint32Array;
}
interface Flight {
  op: string;
  ino: Ino;
  /** Later than the beginning if the process was frozen meanwhile. */
  since: number;
  isLogged: boolean;
}

export interface Observed {
  fileSystem: FileSystem;
  stop(): void;
}

export interface ObservedParts {
  clock: Clock;
  logger: Logger;
  /** What else the status tells. */
  about: () => Record<string, unknown>;
  /** Resolves when everything that can be asked for again is gone from this process. */
  dropCaches: () => Promise<void>;
  /** After so long an operation is stuck; 0: never. */
  abortStuckMs: number;
  /** Called once, with what is stuck. */
  onStuck: (what: string) => void;
}

export function observe(target: FileSystem, parts: ObservedParts): Observed {
  const observer = new Observer(target, parts);
  return { fileSystem: observer.fileSystem(), stop: () => observer.stop() };
}

type Method = (...args: unknown[]) => unknown;

class Observer {
  private readonly figures = new Map<string, Figures>();
  private readonly flights = new Set<Flight>();
  private readonly texts = new Map<number, Buffer>();
  private nextHandle = 1;
  private timer: Timer | undefined;
  private readonly startedMs: number;

  constructor(
    private readonly target: FileSystem,
    private readonly parts: ObservedParts,
  ) {
    this.startedMs = parts.clock.now();
    this.watch();
  }
  stop(): void {
    this.timer?.cancel();
  }

  /** Every method of the target, counted; those about the status folder are this one's. */
  fileSystem(): FileSystem {
    const own = this.ownMethods();
    const methods: Record<string, Method> = {};
    const source = this.target as unknown as Record<string, Method | undefined>;
    for (const name of methodNames(this.target)) {
      const method: Method = source[name]!.bind(this.target);
      const counted = UNCOUNTED.has(name) ? method : this.counted(name, method);
      methods[name] = (...args) => {
        const [ino, second] = args;
        const isOwn = typeof ino === "number" && ino >= FOLDER;
        const isAsked = name === "lookup" && ino === ROOT && isName(second, OWN_FOLDER_NAME);
        if (!isOwn && !isAsked) return counted(...args);
        return (own[name] ?? refuse)(...args);
      };
    }
    return methods as unknown as FileSystem;
  }

  private counted(op: string, method: Method): Method {
    const figures: Figures = {
      ...{ count: 0, failures: 0, totalUs: 0, maxUs: 0 },
      buckets: new Uint32Array(BUCKETS),
    };
    this.figures.set(op, figures);
    const { clock } = this.parts;
    const { flights } = this;
    return (...args) => {
      const flight: Flight = { op, ino: args[0] as Ino, since: clock.now(), isLogged: false };
      flights.add(flight);
      const end = (failed: boolean): void => {
        flights.delete(flight);
        const us = (clock.now() - flight.since) * 1_000;
        figures.count++;
        if (failed) figures.failures++;
        figures.totalUs += us;
        if (us > figures.maxUs) figures.maxUs = us;
        figures.buckets[Math.min(BUCKETS - 1, 32 - Math.clz32(us))]!++;
      };
      try {
        const answer = method(...args) as Promise<unknown>;
        answer.then(
          () => end(false),
          () => end(true),
        );
        return answer;
      } catch (error) {
        end(true);
        throw error;
      }
    };
  }

  /** Names what waits for long, once. */
  private watch(): void {
    const { abortStuckMs, clock } = this.parts;
    const lookMs = abortStuckMs > 0 ? Math.min(LOOK_MS, abortStuckMs / 2) : LOOK_MS;
    const due = clock.now() + lookMs;
    this.timer = clock.setTimer(lookMs, () => {
      // A process that was frozen has had no chance to answer.
      const frozenMs = clock.now() - due;
      if (frozenMs > lookMs) for (const flight of this.flights) flight.since += frozenMs;
      if (!this.look()) this.watch();
    });
  }
  /** True when something is stuck. */
  private look(): boolean {
    const { clock, logger, abortStuckMs, onStuck } = this.parts;
    const now = clock.now();
    for (const flight of this.flights) {
      const { op, ino, since, isLogged } = flight;
      const ms = Math.round(now - since);
      if (MAY_WAIT.has(op)) continue;
      if (abortStuckMs > 0 && ms >= abortStuckMs) {
        onStuck(`${op} of inode ${ino} has had no answer for ${Math.round(ms / 1_000)} s`);
        return true;
      }
      if (isLogged || ms < SLOW_MS) continue;
      flight.isLogged = true;
      logger.warn({ op, ino, ms }, "an operation waits for long");
    }
    return false;
  }

  // ---- The status folder -----------------------------------------------------------------------

  private status(): Buffer {
    const now = this.parts.clock.now();
    const operations: Record<string, unknown> = {};
    for (const [op, figures] of this.figures) {
      const { count, failures, totalUs, maxUs } = figures;
      if (count === 0) continue;
      const about = { meanUs: Math.round(totalUs / count), maxUs: Math.round(maxUs) };
      const [p50Us, p99Us] = [quantile(figures, 0.5), quantile(figures, 0.99)];
      operations[op] = { count, failures, p50Us, p99Us, ...about };
    }
    const inFlight = [...this.flights].map(({ op, ino, since }) => ({
      ...{ op, ino, ms: Math.round(now - since) },
    }));
    const upSeconds = Math.round((now - this.startedMs) / 1_000);
    const status = { upSeconds, ...this.parts.about(), operations, inFlight };
    return Buffer.from(`${JSON.stringify(status, null, 2)}\n`);
  }

  private ownMethods(): Readonly<Record<string, Method>> {
    const names = [...FILES].map(([name, ino]) => ({ name, ino, type: S_IFREG }));
    const folders = [
      { name: ".", ino: FOLDER, type: S_IFDIR },
      { name: "..", ino: ROOT, type: S_IFDIR },
    ];
    const entries = [...folders, ...names].map(({ name, ino, type }, index): DirEntry => {
      return { name: Buffer.from(name), ino, type, cookie: index + 1 };
    });
    return {
      lookup: (parent, name, caller) => {
        if (parent === ROOT) return Promise.resolve(entryOf(FOLDER));
        const ino = parent === FOLDER ? FILES.get(String(name)) : undefined;
        if (ino !== undefined) return Promise.resolve(entryOf(ino));
        // What the file system itself looks for, or nothing.
        return this.target.lookup(FOLDER, name as Buffer, caller as Caller);
      },
      getattr: (ino) => Promise.resolve(entryOf(ino as Ino)),
      // A shell cuts what it writes to.
      setattr: (ino) => (ino === DROP_CACHES ? Promise.resolve(entryOf(DROP_CACHES)) : refuse()),
      forget: () => undefined,
      open: (ino, flags) => {
        const mode = (flags as number) & O_ACCMODE;
        if (mode !== (ino === STATUS ? O_RDONLY : O_WRONLY)) return refuse();
        if (ino !== STATUS) return Promise.resolve({ handle: 0, directIo: true, keepCache: false });
        const handle = this.nextHandle++;
        try {
          this.texts.set(handle, this.status());
        } catch (error) {
          return Promise.reject(new DssError("Disk", `no status: ${describeError(error)}`));
        }
        return Promise.resolve({ handle, directIo: true, keepCache: false });
      },
      read: (_ino, handle, offset, length) => {
        const text = this.texts.get(handle as number) ?? Buffer.alloc(0);
        const start = offset as number;
        return Promise.resolve([text.subarray(start, start + (length as number))]);
      },
      write: this.counted("dropCaches", async (_ino, _handle, _offset, data) => {
        const { length } = data as Buffer;
        await this.parts.dropCaches();
        return length;
      }),
      flush: done,
      fsync: done,
      release: (_ino, handle) => {
        this.texts.delete(handle as number);
        return done();
      },
      opendir: () => Promise.resolve({ handle: 0, cacheListing: false, keepListing: false }),
      readdir: (_ino, _handle, cookie) =>
        Promise.resolve(entries.filter((entry) => entry.cookie > (cookie as number))),
      releasedir: done,
      fsyncdir: done,
      statfs: () => this.target.statfs(ROOT),
      getxattr: () => Promise.reject(new DssError("NoAttribute", "no such attribute")),
      listxattr: () => Promise.resolve(Buffer.alloc(0)),
    };
  }
}

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const O_ACCMODE = 3;
const O_RDONLY = 0;
const O_WRONLY = 1;
const done = (): Promise<void> => Promise.resolve();
function refuse(): Promise<never> {
  return Promise.reject(new DssError("NotPermitted", `${OWN_FOLDER_NAME} is not changed`));
}
function isName(value: unknown, name: string): boolean {
  return Buffer.isBuffer(value) && value.length === name.length && value.toString() === name;
}

/** Methods of the object and its classes. */
function methodNames(target: FileSystem): Set<string> {
  const names = new Set<string>();
  for (let at: object | null = target; at !== null && at !== Object.prototype;) {
    for (const name of Object.getOwnPropertyNames(at)) {
      const value: unknown = Object.getOwnPropertyDescriptor(at, name)?.value;
      if (name !== "constructor" && typeof value === "function") names.add(name);
    }
    at = Object.getPrototypeOf(at) as object | null;
  }
  return names;
}

function entryOf(ino: Ino): Entry {
  const isFolder = ino === FOLDER;
  const rights = ino === DROP_CACHES ? 0o200 : 0o444;
  const attributes: Attributes = {
    ino,
    mode: isFolder ? S_IFDIR | 0o555 : S_IFREG | rights,
    nlink: isFolder ? 2 : 1,
    ...{ uid: 0, gid: 0, rdev: 0, size: 0, blocks: 0, blksize: 4_096 },
    ...{ atimeNs: 0n, mtimeNs: 0n, ctimeNs: 0n, btimeNs: 0n },
  };
  return { attributes, generation: 0, entryValidMs: 0, attributesValidMs: 0 };
}

/** Upper end of the bucket that holds it. */
function quantile({ buckets, count }: Figures, part: number): number {
  let left = count * part;
  for (let at = 0; at < BUCKETS; at++) {
    left -= buckets[at]!;
    if (left <= 0) return 2 ** at;
  }
  return 2 ** BUCKETS;
}

/**
 * The option table: every setting of every dss program with its unit, type, default, range, the
 * range from which the simulator draws, and help. Help texts, validation, environment variables
 * and the simulator's random settings are all generated from it. Pure; load.ts finds the values.
 *
 * A section's options are written `osd.walSegments` (file, messages), `--osd-wal-segments` (flag)
 * and `DSS_OSD_WAL_SEGMENTS` (environment); those of the section `cluster` have no prefix.
 */

const KiB = 2 ** 10;
const MiB = 2 ** 20;
const GiB = 2 ** 30;
const TiB = 2 ** 40;
const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** The unit of a number: bytes and ms accept suffixes (64K, 2s); a ratio is a fraction of 1. */
export type Unit = "bytes" | "ms" | "count" | "ratio";

export interface NumberOption {
  readonly kind: "number";
  readonly unit: Unit;
  readonly default: number;
  readonly min: number;
  readonly max: number;
  /** The simulator draws from here, to meet limits and races that the defaults rarely meet. */
  readonly simulate: readonly [low: number, high: number];
  readonly powerOfTwo: boolean;
  readonly help: string;
}

export interface Endpoint {
  readonly host: string;
  readonly port: number;
}

export interface EndpointsOption {
  readonly kind: "endpoints";
  readonly default: readonly Endpoint[];
  readonly help: string;
}

export interface ChoiceOption<T extends string = string> {
  readonly kind: "choice";
  readonly values: readonly T[];
  readonly default: T;
  readonly help: string;
}

export type Option = NumberOption | EndpointsOption | ChoiceOption;

interface Range {
  default: number;
  min: number;
  max: number;
  /** Without it the simulator keeps the default. */
  simulate?: readonly [number, number];
  powerOfTwo?: boolean;
}
function number(unit: Unit, range: Range, help: string): NumberOption {
  const { simulate = [range.default, range.default], powerOfTwo = false, ...rest } = range;
  return { kind: "number", unit, ...rest, simulate, powerOfTwo, help };
}
const bytes = (range: Range, help: string): NumberOption => number("bytes", range, help);
const ms = (range: Range, help: string): NumberOption => number("ms", range, help);
const count = (range: Range, help: string): NumberOption => number("count", range, help);
const ratio = (range: Range, help: string): NumberOption => number("ratio", range, help);
function choice<const T extends string>(
  values: readonly T[],
  fallback: NoInfer<T>,
  help: string,
): ChoiceOption<T> {
  return { kind: "choice", values, default: fallback, help };
}

export const OPTIONS = {
  /** What all programs share. */
  cluster: {
    zookeeper: {
      kind: "endpoints",
      default: [{ host: "127.0.0.1", port: 2181 }],
      help: "ZooKeeper servers of the cluster, host:port separated by commas",
    },
    zkSessionMs: ms(
      { default: 6 * SECOND, min: SECOND, max: 2 * MINUTE, simulate: [2 * SECOND, 10 * SECOND] },
      "a program that ZooKeeper has not heard for this long is taken for dead",
    ),
    heartbeatMs: ms(
      { default: SECOND, min: 50, max: 10 * SECOND, simulate: [200, 1_500] },
      "pause between heartbeats of OSDs that share placement groups",
    ),
    heartbeatGraceMs: ms(
      { default: 5 * SECOND, min: 200, max: MINUTE, simulate: [2 * SECOND, 8 * SECOND] },
      "silence after which an OSD reports a peer to the coordinator",
    ),
    leaderHeartbeatMs: ms(
      { default: 500, min: 50, max: 10 * SECOND, simulate: [100, 800] },
      "pause between heartbeats of MDS leader and standby",
    ),
    leaderGraceMs: ms(
      { default: 3 * SECOND, min: 200, max: MINUTE, simulate: [SECOND, 5 * SECOND] },
      "silence after which a standby doubts the leader",
    ),
    downOutMs: ms(
      { default: 10 * MINUTE, min: SECOND, max: 7 * 24 * HOUR, simulate: [2 * SECOND, MINUTE] },
      "an OSD that is down for this long is put out, and its data is replicated elsewhere",
    ),
    replicaTimeoutMs: ms(
      { default: 3 * SECOND, min: 100, max: MINUTE, simulate: [500, 5 * SECOND] },
      "a primary that misses a member's answer for this long asks for its removal",
    ),
    readLeaseMs: ms(
      { default: SECOND, min: 50, max: SECOND, simulate: [200, SECOND] },
      "how long a member's grant lets a primary serve reads",
    ),
    connectTimeoutMs: ms(
      { default: 3 * SECOND, min: 100, max: MINUTE, simulate: [500, 4 * SECOND] },
      "deadline for opening a connection, handshake included",
    ),
    reconnectMaxMs: ms(
      { default: 2 * SECOND, min: 50, max: MINUTE, simulate: [100, 2 * SECOND] },
      "longest pause between attempts to connect again",
    ),
    connectionInFlightBytesMax: bytes(
      { default: 64 * MiB, min: 8 * MiB, max: 4 * GiB, simulate: [8 * MiB, 64 * MiB] },
      "unanswered bytes on one connection before its senders wait",
    ),
    quickWakeups: choice(
      ["on", "off"],
      "on",
      "whether busy programs ask the kernel for processors that wake quickly, at the cost of power",
    ),
    logLevel: choice(["debug", "info", "warn", "error"], "info", "least severity that is logged"),
  },
  osd: {
    walSegmentBytes: bytes(
      { default: 64 * MiB, min: 16 * MiB, max: GiB, simulate: [16 * MiB, 32 * MiB] },
      "size of one preallocated segment of the write-ahead log",
    ),
    walSegments: count(
      { default: 4, min: 3, max: 64, simulate: [3, 5] },
      "segments of the write-ahead log, recycled in turn",
    ),
    groupCommitBytes: bytes(
      { default: 8 * MiB, min: 64 * KiB, max: 256 * MiB, simulate: [64 * KiB, 8 * MiB] },
      "bytes gathered into one write and sync of the log at most",
    ),
    groupCommitOps: count(
      { default: 1_024, min: 1, max: 65_536, simulate: [1, 256] },
      "operations gathered into one write and sync of the log at most",
    ),
    directWriteBytes: bytes(
      { default: 64 * KiB, min: 4 * KiB, max: 64 * MiB, simulate: [4 * KiB, 128 * KiB] },
      "writes of at least this size go to fresh space instead of through the log",
    ),
    largeWrites: choice(
      ["direct", "cached"],
      "direct",
      "whether such writes and large reads pass by the page cache, where the file system allows it",
    ),
    overlayBytesMax: bytes(
      { default: 48 * MiB, min: MiB, max: 4 * GiB, simulate: [MiB, 16 * MiB] },
      "bytes in the log that have not reached their objects before writers wait",
    ),
    cacheBytes: bytes(
      { default: 32 * MiB, min: 0, max: 64 * GiB, simulate: [0, 4 * MiB] },
      "memory for object records and recently used blocks",
    ),
    inFlightBytesMax: bytes(
      { default: 128 * MiB, min: 8 * MiB, max: 16 * GiB, simulate: [8 * MiB, 64 * MiB] },
      "bytes of unanswered writes before connections are paused",
    ),
    nearFullRatio: ratio(
      { default: 0.85, min: 0.01, max: 0.99, simulate: [0.7, 0.9] },
      "used part of the disk at which health warns (of a new cluster)",
    ),
    fullRatio: ratio(
      { default: 0.95, min: 0.02, max: 0.99, simulate: [0.92, 0.97] },
      "used part of the disk at which writes are refused (of a new cluster)",
    ),
    backfillFullRatio: ratio(
      { default: 0.97, min: 0.03, max: 0.99, simulate: [0.97, 0.98] },
      "used part of the disk at which it takes no more copies of other disks' data (of a new cluster)",
    ),
    reserveBytes: bytes(
      { default: 64 * MiB, min: 4 * MiB, max: 64 * GiB, simulate: [4 * MiB, 32 * MiB] },
      "space kept back so that log, index and deletes work on a full disk",
    ),
    scrubIntervalMs: ms(
      { default: 24 * HOUR, min: 10 * SECOND, max: 365 * 24 * HOUR },
      "copies of a placement group are compared this often",
    ),
    deepScrubIntervalMs: ms(
      { default: 7 * 24 * HOUR, min: 10 * SECOND, max: 365 * 24 * HOUR },
      "and all their bytes are read and verified this often",
    ),
    scrubsMax: count(
      { default: 1, min: 1, max: 16 },
      "placement groups that one OSD scrubs at a time as their primary",
    ),
    damageShownMs: ms(
      { default: HOUR, min: 0, max: 30 * 24 * HOUR },
      "how long health tells that an OSD has met damage, after it was repaired",
    ),
    pgLogEntries: count(
      { default: 2_048, min: 1_024, max: 65_536, simulate: [1_024, 4_096] },
      "entries kept in a placement group's log: longer absences are repaired by comparison",
    ),
    workProfile: choice(
      ["client", "balanced", "recovery"],
      "client",
      "what comes first when an OSD is busy; `dss cluster profile` overrides it for all of them",
    ),
  },
  mds: {
    journalBatchBytes: bytes(
      { default: 64 * KiB, min: 4 * KiB, max: 512 * KiB, simulate: [4 * KiB, 64 * KiB] },
      "bytes of one journal batch at most",
    ),
    journalBatchMs: ms(
      { default: 10, min: 0, max: SECOND, simulate: [0, 20] },
      "longest wait of a change for others to share its journal batch",
    ),
    journalBatchesMax: count(
      { default: 256, min: 4, max: 16_384, simulate: [4, 64] },
      "journal batches kept before pages are written back and the journal is trimmed",
    ),
    purgeDelayMs: ms(
      { default: 5 * SECOND, min: 0, max: HOUR, simulate: [0, 10 * SECOND] },
      "the object of a deleted file that has only one is freed this much later",
    ),
    sessionLeaseMs: ms(
      { default: 10 * SECOND, min: SECOND, max: 10 * MINUTE, simulate: [3 * SECOND, 30 * SECOND] },
      "a client session that is silent for this long is evicted and fenced",
    ),
    recallTimeoutMs: ms(
      { default: MINUTE, min: 200, max: 10 * MINUTE, simulate: [SECOND, 15 * SECOND] },
      "a client that is heard of and keeps a recalled capability for this long is evicted",
    ),
    capabilitiesMax: count(
      { default: 131_072, min: 16, max: 2 ** 24, simulate: [16, 256] },
      "capabilities that a client session holds before the oldest are asked back",
    ),
    pageCacheBytes: bytes(
      { default: 64 * MiB, min: MiB, max: 64 * GiB, simulate: [MiB, 8 * MiB] },
      "memory for pages of inodes and directories",
    ),
    inoRange: count(
      { default: 65_536, min: 128, max: 2 ** 24, simulate: [128, 1_024] },
      "inode numbers reserved in the journal at a time",
    ),
    leftoversIntervalMs: ms(
      {
        default: 6 * HOUR,
        min: 0,
        max: 365 * 24 * HOUR,
        simulate: [2 * SECOND, 60 * SECOND],
      },
      "objects that belonged to deleted files are looked for, and removed, this often (0: never)",
    ),
  },
  client: {
    restartWorker: choice(
      ["never", "always"],
      "always",
      "whether another worker goes on when a mount's worker has died",
    ),
    abortStuckMs: ms(
      { default: HOUR, min: 0, max: 365 * 24 * HOUR },
      "a mount ends when one of its operations has waited for this long; 0: waits for ever",
    ),
    cacheBytes: bytes(
      { default: 64 * MiB, min: 0, max: 64 * GiB, simulate: [0, 16 * MiB] },
      "memory of a mount for file data that was read",
    ),
    writeBackBytesMax: bytes(
      { default: 64 * MiB, min: MiB, max: 16 * GiB, simulate: [MiB, 16 * MiB] },
      "unwritten bytes that a mount buffers before writers wait",
    ),
    writeBackAgeMs: ms(
      { default: 5 * SECOND, min: 0, max: 10 * MINUTE, simulate: [0, 5 * SECOND] },
      "buffered data is written back when it is this old",
    ),
    readAheadBytes: bytes(
      { default: 8 * MiB, min: 0, max: GiB, simulate: [0, 4 * MiB] },
      "how far a sequential reader is read ahead of",
    ),
    inodesMax: count(
      { default: 131_072, min: 1_024, max: 2 ** 23 },
      "inodes that a mount keeps before it has the kernel forget names of files",
    ),
    requestDeadlineMs: ms(
      { default: 2 * MINUTE, min: SECOND, max: 24 * HOUR, simulate: [30 * SECOND, 2 * MINUTE] },
      "a request that is not answered for this long, with all retries, fails",
    ),
    attributeLeaseMs: ms(
      { default: 5 * SECOND, min: 0, max: MINUTE, simulate: [0, 6 * SECOND] },
      "how long the kernel may keep attributes and names without asking; the lease bounds it",
    ),
  },
  /** What a new pool gets; a pool keeps its values. */
  pool: {
    replicas: count({ default: 3, min: 1, max: 8 }, "copies of every object"),
    minimum: count({ default: 2, min: 1, max: 8 }, "in-sync copies below which writes wait"),
    pgs: count(
      { default: 128, min: 1, max: 32_768, simulate: [4, 16], powerOfTwo: true },
      "placement groups of the pool, a power of two",
    ),
    virtualNodes: count(
      { default: 1_000, min: 1, max: 10_000, simulate: [50, 200] },
      "points on the placement ring of an OSD of weight 1",
    ),
    objectBytes: bytes(
      { default: 4 * MiB, min: 64 * KiB, max: 64 * MiB, powerOfTwo: true },
      "size of the objects into which files and volumes are cut",
    ),
  },
  /** An NBD server; the longest request that every client may send is 32M. */
  nbd: {
    connectionsMax: count(
      { default: 256, min: 1, max: 65_536 },
      "connections before further ones are refused",
    ),
    connectionRequestsMax: count(
      { default: 256, min: 1, max: 65_536 },
      "requests in flight on one connection before it is read no further",
    ),
    connectionBytesMax: bytes(
      { default: 64 * MiB, min: 32 * MiB, max: 16 * GiB },
      "bytes in flight on one connection, unsent answers included, before it is read no further",
    ),
    requestsMax: count(
      { default: 4_096, min: 1, max: 2 ** 20 },
      "requests in flight on all connections before they are read no further",
    ),
    inFlightBytesMax: bytes(
      { default: 256 * MiB, min: 32 * MiB, max: 256 * GiB },
      "bytes in flight on all connections before they are read no further",
    ),
    handshakeMs: ms(
      { default: 30 * SECOND, min: 100, max: 10 * MINUTE },
      "a client that has not chosen a volume by then is dropped",
    ),
    stallMs: ms(
      { default: 30 * SECOND, min: 100, max: 10 * MINUTE },
      "a client that holds memory others wait for and moves nothing for so long is dropped",
    ),
    stopMs: ms(
      { default: 10 * SECOND, min: 100, max: 10 * MINUTE },
      "how long a server that stops waits for requests in flight, and then for flushes",
    ),
  },
} as const satisfies Record<string, Record<string, Option>>;

/** Largest size that any option or command accepts where nothing narrower is stated. */
export const SIZE_MAX = 8_192 * TiB - 1;

export type Section = keyof typeof OPTIONS;

type ValueOf<O> = O extends NumberOption
  ? number
  : O extends ChoiceOption<infer T>
    ? T
    : readonly Endpoint[];
type ValuesOf<S> = { readonly [K in keyof S]: ValueOf<S[K]> };

/** The validated, frozen settings: `config.osd.walSegments`. */
export type Config = { readonly [S in Section]: ValuesOf<(typeof OPTIONS)[S]> };

/** One row of the table with its names. */
export interface NamedOption {
  readonly section: Section;
  readonly key: string;
  /** As in files and messages: `osd.walSegments`, `zkSessionMs`. */
  readonly name: string;
  /** `--osd-wal-segments` */
  readonly flag: string;
  /** `DSS_OSD_WAL_SEGMENTS` */
  readonly environment: string;
  readonly option: Option;
}

const toKebab = (name: string): string =>
  name.replaceAll(".", "-").replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** Every row, in the table's order. */
export const ALL_OPTIONS: readonly NamedOption[] = Object.entries(OPTIONS).flatMap(
  ([section, rows]) =>
    Object.entries<Option>(rows).map(([key, option]): NamedOption => {
      const name = section === "cluster" ? key : `${section}.${key}`;
      const kebab = toKebab(name);
      return {
        section: section as Section,
        key,
        name,
        flag: `--${kebab}`,
        environment: `DSS_${kebab.replaceAll("-", "_").toUpperCase()}`,
        option,
      };
    }),
);

const SUFFIXES: readonly (readonly [number, string])[] = [
  [TiB, "T"],
  [GiB, "G"],
  [MiB, "M"],
  [KiB, "K"],
];

/** A value as people write it: 64M, 2s, 0.85, host:port. */
export function formatValue(option: Option, value: unknown): string {
  if (option.kind === "endpoints") {
    const text = ({ host, port }: Endpoint): string =>
      host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
    return (value as readonly Endpoint[]).map(text).join(",");
  }
  if (option.kind === "choice") return String(value);
  const amount = value as number;
  if (option.unit === "bytes" && amount !== 0) {
    const suffix = SUFFIXES.find(([size]) => amount % size === 0);
    if (suffix) return `${amount / suffix[0]}${suffix[1]}`;
  }
  if (option.unit === "ms") {
    if (amount >= HOUR && amount % HOUR === 0) return `${amount / HOUR}h`;
    if (amount >= MINUTE && amount % MINUTE === 0) return `${amount / MINUTE}m`;
    return amount >= SECOND && amount % SECOND === 0 ? `${amount / SECOND}s` : `${amount}ms`;
  }
  return String(amount);
}

/** What an option accepts, for errors and help. */
export function formatRange(option: Option): string {
  switch (option.kind) {
    case "endpoints":
      return "host:port, separated by commas";
    case "choice":
      return `one of ${option.values.join(", ")}`;
    case "number": {
      const range = `${formatValue(option, option.min)} to ${formatValue(option, option.max)}`;
      return option.powerOfTwo ? `a power of two, ${range}` : range;
    }
  }
}

/** Help for some sections, one option a line, for `--help` and the docs. */
export function optionHelp(sections: readonly Section[]): string {
  const rows = ALL_OPTIONS.filter((row) => sections.includes(row.section));
  const width = Math.max(...rows.map((row) => row.flag.length));
  return rows
    .map(({ flag, option }) => {
      const fallback = formatValue(option, option.default);
      return `${flag.padEnd(width)}  ${option.help} (${fallback}; ${formatRange(option)})`;
    })
    .join("\n");
}

/**
 * Values for the option table: flags over environment over file over defaults, checked one by one
 * and then against each other, and frozen. Pure: the caller reads the file and passes its text.
 * Every complaint names the source, the option, the value and what is permitted.
 */
import { assert } from "../base/assert.js";
import { DssError } from "../base/errors.js";
import type { Prng } from "../base/prng.js";
import { ALL_OPTIONS, formatRange, formatValue, OPTIONS } from "./options.js";
import type { Config, Endpoint, NamedOption, NumberOption, Option } from "./options.js";

export interface ConfigSources {
  /** By flag without dashes (`osd-wal-segments`), by camel case (`osdWalSegments`) or by name. */
  flags?: Readonly<Record<string, unknown>>;
  environment?: Readonly<Record<string, string | undefined>>;
  /** JSON: `{"zookeeper": "a:2181", "osd": {"walSegments": 4}}`. */
  file?: { name: string; text: string };
}

/** Throws `Configuration` on the first thing that is wrong. */
export function loadConfig(sources: ConfigSources = {}): Config {
  const values = new Map<string, unknown>();
  const take = (found: readonly Found[]): void => {
    for (const { row, value, source } of found) {
      values.set(row.name, parseValue(row, value, source));
    }
  };
  if (sources.file) take(fromFile(sources.file));
  if (sources.environment) take(fromEnvironment(sources.environment));
  if (sources.flags) take(fromFlags(sources.flags));
  const config = assemble((row) => values.get(row.name) ?? row.option.default);
  checkRelations(config);
  return config;
}

/** Settings drawn from the table's simulation ranges that satisfy the relations. */
export function simulatedConfig(prng: Prng, fixed: Readonly<Record<string, number>> = {}): Config {
  for (let attempt = 0; attempt < 1_000; attempt++) {
    const config = assemble((row) => fixed[row.name] ?? draw(prng, row.option));
    if (brokenRelation(config) === undefined) return config;
  }
  throw new DssError("Configuration", "the simulation ranges contradict the relations");
}

function draw(prng: Prng, option: Option): unknown {
  if (option.kind !== "number") return option.default;
  const [low, high] = option.simulate;
  if (option.unit === "ratio") return low + prng.float() * (high - low);
  if (option.powerOfTwo) return 2 ** prng.int(Math.log2(low), Math.log2(high));
  // Sizes and times act by their magnitude, so that is what is drawn evenly.
  if (low > 0 && high / low > 4) {
    const value = Math.exp(Math.log(low) + prng.float() * Math.log(high / low));
    return Math.min(high, Math.max(low, Math.round(value)));
  }
  return prng.int(low, high);
}

function assemble(valueOf: (row: NamedOption) => unknown): Config {
  const sections: Record<string, Record<string, unknown>> = {};
  for (const row of ALL_OPTIONS) (sections[row.section] ??= {})[row.key] = valueOf(row);
  for (const section of Object.values(sections)) Object.freeze(section);
  return Object.freeze(sections) as unknown as Config;
}

// ---- Sources -----------------------------------------------------------------------------------

interface Found {
  readonly row: NamedOption;
  readonly value: unknown;
  readonly source: string;
}

const ROW_BY_NAME = new Map(ALL_OPTIONS.map((row) => [row.name, row]));
const ROW_BY_ENVIRONMENT = new Map(ALL_OPTIONS.map((row) => [row.environment, row]));
/** Dashes, dots and capitals are three ways of writing the same flag. */
const flagKey = (name: string): string => name.replace(/[^A-Za-z0-9]/g, "").toLowerCase();
const ROW_BY_FLAG = new Map(ALL_OPTIONS.map((row) => [flagKey(row.name), row]));

function fromFlags(flags: Readonly<Record<string, unknown>>): Found[] {
  return Object.entries(flags).flatMap(([name, value]) => {
    if (value === undefined) return [];
    const row = ROW_BY_FLAG.get(flagKey(name));
    if (row) return [{ row, value, source: row.flag }];
    const flag = `--${name.replace(/^-+/, "")}`;
    const known = ALL_OPTIONS.map((each) => each.flag);
    throw unknownName(flag, "flag", known, nearest(flag, known));
  });
}

/** Sections own their prefix, so that a misspelt name below it cannot go unnoticed. */
const OWNED_PREFIX = new RegExp(
  `^DSS_(${Object.keys(OPTIONS)
    .filter((section) => section !== "cluster")
    .join("|")})_`,
  "i",
);

function fromEnvironment(environment: Readonly<Record<string, string | undefined>>): Found[] {
  return Object.entries(environment).flatMap(([name, value]) => {
    if (value === undefined || value === "" || !name.startsWith("DSS_")) return [];
    const row = ROW_BY_ENVIRONMENT.get(name);
    if (row) return [{ row, value, source: `environment variable ${name}` }];
    // Other DSS_ variables belong to commands and tests; one that is nearly an option is a slip.
    const known = [...ROW_BY_ENVIRONMENT.keys()];
    const close = nearest(name, known);
    const slip = close !== undefined && distance(name, close) <= 2;
    if (!slip && !OWNED_PREFIX.test(name)) return [];
    throw unknownName(name, "environment variable", known, close);
  });
}

function fromFile(file: { name: string; text: string }): Found[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(file.text);
  } catch (cause) {
    throw new DssError("Configuration", `${file.name} is not valid JSON`, { cause });
  }
  if (!isRecord(parsed)) {
    throw new DssError("Configuration", `${file.name} must hold one JSON object`);
  }
  const found: Found[] = [];
  const add = (name: string, value: unknown): void => {
    const row = ROW_BY_NAME.get(name);
    const known = [...ROW_BY_NAME.keys()];
    if (!row) throw unknownName(name, `option in ${file.name}`, known, nearest(name, known));
    found.push({ row, value, source: `${file.name}: ${name}` });
  };
  for (const [name, value] of Object.entries(parsed)) {
    if (!Object.hasOwn(OPTIONS, name)) add(name, value);
    else if (isRecord(value)) {
      const prefix = name === "cluster" ? "" : `${name}.`;
      for (const [key, inner] of Object.entries(value)) add(`${prefix}${key}`, inner);
    } else {
      const message = `${file.name}: ${name} must be an object of options`;
      throw new DssError("Configuration", message);
    }
  }
  return found;
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function unknownName(
  name: string,
  kind: string,
  known: readonly string[],
  close: string | undefined,
): DssError {
  assert(known.length > 0, "the option table is empty");
  const hint = close === undefined ? "see --help for the options" : `did you mean ${close}?`;
  return new DssError("Configuration", `unknown ${kind} ${name}`, { hint });
}

// ---- Values ------------------------------------------------------------------------------------

const MULTIPLIERS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  bytes: { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 },
  ms: { "": 1, ms: 1, s: 1_000, m: 60_000, h: 3_600_000 },
  count: { "": 1 },
  ratio: { "": 1, "%": 0.01 },
};

function parseValue(row: NamedOption, value: unknown, source: string): unknown {
  const { option } = row;
  const refuse = (): never => {
    const shown = typeof value === "string" ? `"${value}"` : JSON.stringify(value);
    throw new DssError(
      "Configuration",
      `${source}: ${shown} is not permitted; ${row.name} takes ${formatRange(option)}`,
    );
  };
  switch (option.kind) {
    case "number":
      return parseNumber(option, value) ?? refuse();
    case "choice":
      return option.values.includes(String(value)) ? String(value) : refuse();
    case "endpoints":
      return parseEndpoints(value) ?? refuse();
  }
}

/** A number in the option's unit, or undefined when it is none or out of range. */
export function parseNumber(option: NumberOption, value: unknown): number | undefined {
  let amount: number;
  if (typeof value === "number") amount = value;
  else if (typeof value === "string") {
    const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z%]{0,3})$/.exec(value.trim());
    if (!match) return undefined;
    const written = match[2] ?? "";
    const suffix = option.unit === "bytes" ? written.replace(/i?B$/i, "").toUpperCase() : written;
    const multiplier = MULTIPLIERS[option.unit]?.[suffix];
    if (multiplier === undefined) return undefined;
    amount = Number(match[1]) * multiplier;
  } else return undefined;
  if (!Number.isFinite(amount) || amount < option.min || amount > option.max) return undefined;
  if (option.unit !== "ratio" && !Number.isSafeInteger(amount)) return undefined;
  if (option.powerOfTwo && !Number.isInteger(Math.log2(amount))) return undefined;
  return amount;
}

/** `host:port,[v6]:port,host`; a missing port is 2181. Undefined when any part is malformed. */
export function parseEndpoints(value: unknown): readonly Endpoint[] | undefined {
  const parts: unknown = typeof value === "string" ? value.split(",") : value;
  if (!Array.isArray(parts)) return undefined;
  const endpoints: Endpoint[] = [];
  for (const part of parts as unknown[]) {
    if (typeof part !== "string") return undefined;
    const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(part.trim());
    const host = match?.[1] ?? match?.[2];
    const port = Number(match?.[3] ?? 2181);
    if (host === undefined || port < 1 || port > 65_535) return undefined;
    endpoints.push(Object.freeze({ host, port }));
  }
  return endpoints.length > 0 && endpoints.length <= 16 ? Object.freeze(endpoints) : undefined;
}

// ---- Relations ---------------------------------------------------------------------------------

/** What must hold between options: [holds, the sentence that says so]. */
function relations(config: Config): readonly (readonly [boolean, string])[] {
  const { cluster, osd, mds, client, pool } = config;
  return [
    [cluster.heartbeatMs * 3 <= cluster.heartbeatGraceMs, "heartbeatGraceMs >= 3 * heartbeatMs"],
    [
      cluster.leaderHeartbeatMs * 3 <= cluster.leaderGraceMs,
      "leaderGraceMs >= 3 * leaderHeartbeatMs",
    ],
    // Put out before it is down for certain, an OSD's data would be copied for nothing.
    [cluster.downOutMs >= cluster.readLeaseMs, "downOutMs >= readLeaseMs"],
    // A primary renews its grants within the time in which it would give up a silent member.
    [cluster.readLeaseMs <= cluster.replicaTimeoutMs, "readLeaseMs <= replicaTimeoutMs"],
    [osd.nearFullRatio < osd.fullRatio, "osd.nearFullRatio < osd.fullRatio"],
    [osd.fullRatio <= osd.backfillFullRatio, "osd.fullRatio <= osd.backfillFullRatio"],
    [osd.groupCommitBytes <= osd.walSegmentBytes, "osd.groupCommitBytes <= osd.walSegmentBytes"],
    // Writers must wait for objects to be written before the log has no segment left to recycle.
    [
      osd.overlayBytesMax <= osd.walSegmentBytes * (osd.walSegments - 1),
      "osd.overlayBytesMax <= osd.walSegmentBytes * (osd.walSegments - 1)",
    ],
    [pool.objectBytes <= osd.inFlightBytesMax, "pool.objectBytes <= osd.inFlightBytesMax"],
    [
      pool.objectBytes <= cluster.connectionInFlightBytesMax,
      "pool.objectBytes <= connectionInFlightBytesMax",
    ],
    // Whoever waits for the recall must not fail before its holder is evicted.
    [
      2 * mds.recallTimeoutMs <= client.requestDeadlineMs,
      "2 * mds.recallTimeoutMs <= client.requestDeadlineMs",
    ],
    // A failover must fit into a request's deadline, or it would be seen as an error.
    [
      client.requestDeadlineMs >= 2 * cluster.zkSessionMs,
      "client.requestDeadlineMs >= 2 * zkSessionMs",
    ],
    [pool.minimum <= pool.replicas, "pool.minimum <= pool.replicas"],
  ];
}

function brokenRelation(config: Config): string | undefined {
  return relations(config).find(([holds]) => !holds)?.[1];
}

/** Throws `Configuration` naming the relation that does not hold and the values involved. */
export function checkRelations(config: Config): void {
  const broken = brokenRelation(config);
  if (broken === undefined) return;
  const involved = [...new Set(broken.match(/[a-z]+[.A-Z][A-Za-z.]*|\bpool\.[a-z]+/g) ?? [])]
    .map((name) => ROW_BY_NAME.get(name))
    .filter((row) => row !== undefined);
  const shown = involved.map((row) => {
    const section = config[row.section] as Readonly<Record<string, unknown>>;
    return `${row.name} is ${formatValue(row.option, section[row.key])}`;
  });
  throw new DssError("Configuration", `${broken} must hold: ${shown.join(", ")}`);
}

// ---- Nearest name ------------------------------------------------------------------------------

/** The known name with the smallest edit distance, if it is close enough to be what was meant. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const each of known) {
    const far = distance(name.toLowerCase(), each.toLowerCase());
    if (far >= bestDistance) continue;
    best = each;
    bestDistance = far;
  }
  return best;
}

/** Levenshtein distance, one row at a time. */
function distance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replace = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(replace, previous[j]! + 1, row[j - 1]! + 1));
    }
    previous = row;
  }
  return previous[b.length]!;
}

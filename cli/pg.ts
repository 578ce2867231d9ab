/** `dss pg`: placement groups, and where the copies of an object are and whether they are equal. */
import type { Command } from "commander";
import { DssError, describeError, isDssError } from "../cluster/base/errors.js";
import { formatPg, parsePg, pgIndex, type OsdId } from "../cluster/base/ids.js";
import {
  allPgs,
  osdOf,
  pgOf,
  poolNamed,
  type ClusterMap,
  type OsdEntry,
  type PgEntry,
  type PoolEntry,
} from "../cluster/map/cluster-map.js";
import { isInactive, pgCondition } from "../cluster/map/health.js";
import { objectToPg, upSet } from "../cluster/map/placement.js";
import type { OsdDigestReply } from "../osd/proto.js";
import type { ClusterClient, OsdReport } from "./context.js";
import { UsageError } from "./failure.js";
import { examples, useCluster, withJson } from "./options.js";
import { note, printJson, printLine, printTable } from "./output.js";
import { formatSize } from "./sizes.js";

/** As the OSDs accept them. */
const OBJECT_NAME_MAX = 200;

interface PgRow {
  pg: string;
  pool: string;
  state: string;
  /** Where its copies belong. */
  up: readonly number[];
  /** Where they are. */
  inSync: readonly number[];
  primary: number;
  interval: number;
  /** As the primary reports; null when it does not answer. */
  objects: number | null;
  bytes: number | null;
  reason: string;
  /** Objects with damaged blocks, and on which OSDs. */
  damaged: { object: string; osds: number[] }[];
  /** When its copies were compared and read through last; null: never, or nobody answers. */
  lastScrub: string | null;
  lastDeepScrub: string | null;
  scrub: string;
}

type PgFigures = NonNullable<OsdReport["status"]>["pgs"][number];
interface Figures {
  /** What the primary of each PG reports about it. */
  ofPrimary: Map<number, PgFigures>;
  /** Damage that any OSD has in its copy. */
  damage: Map<number, Map<string, number[]>>;
}

export function register(command: Command): void {
  const list = withJson(command.command("ls").alias("list").description("list placement groups"));
  list.action(async (options: { json?: boolean }) => {
    const rows = await useCluster(list, async (client) => {
      const map = client.needMap();
      const figures = figuresOf(map, await client.osdReports());
      return [...allPgs(map)].map((each) => rowOf(map, each, figures));
    });
    if (options.json === true) {
      printJson(rows);
      return;
    }
    const head = ["PG", "POOL", "STATE", "UP", "IN SYNC", "PRIMARY", "OBJECTS", "BYTES"];
    printTable(head, rows.map(cellsOf));
  });
  examples(list, "dss pg ls", "dss pg ls --json | jq '.[] | select(.state != \"active+clean\")'");

  const show = withJson(
    command
      .command("show")
      .description("show one placement group")
      .argument("<pg>", "such as 1.7f"),
  );
  show.action(async (name: string, options: { json?: boolean }) => {
    const row = await useCluster(show, async (client) => {
      const map = client.needMap();
      const pg = parsePg(name);
      if (pg === undefined) {
        throw new UsageError(`"${name}" does not name a placement group`, "write POOL.INDEX: 1.7f");
      }
      const found = [...allPgs(map)].find((each) => each.pg === pg);
      if (found === undefined) {
        throw new DssError("NotFound", `there is no placement group ${name}`, {
          hint: "see dss pg ls",
        });
      }
      return rowOf(map, found, figuresOf(map, await client.osdReports()));
    });
    if (options.json === true) printJson(row);
    else {
      const { damaged, ...plain } = row;
      for (const [key, value] of Object.entries(plain))
        printLine(`${key.padEnd(13)} ${shown(value)}`);
      for (const { object, osds } of damaged) {
        const places = osds.map((osd) => `osd.${osd}`).join(", ");
        printLine(`${"damaged".padEnd(13)} ${object} on ${places}`);
      }
    }
  });
  examples(show, "dss pg show 1.7f");

  const locate = withJson(
    command
      .command("locate")
      .description("show where the copies of an object are")
      .argument("<pool>", "name of the pool")
      .argument("<object>", "name of the object")
      .option("--verify", "read every copy, check its checksums and compare them"),
  );
  locate.action(
    async (pool: string, object: string, options: { json?: boolean; verify?: boolean }) => {
      const found = await useCluster(locate, (client) =>
        locateObject(client, { pool, object, verify: options.verify === true }),
      );
      if (options.json === true) printJson(found);
      else describeLocation(found);
      if (found.equal === false) {
        throw new DssError("Corrupt", `the copies of ${object} are not equal, or one is missing`, {
          hint: "see dss health detail; recovery brings a member that is behind up to date",
        });
      }
    },
  );
  examples(locate, "dss pg locate data 1.0 --verify");
}

const shown = (value: readonly number[] | string | number | null): string =>
  Array.isArray(value) ? value.join(", ") || "-" : String((value as string | number) ?? "?") || "-";

function cellsOf(row: PgRow): unknown[] {
  return [
    row.pg,
    row.pool,
    row.state,
    shown(row.up),
    shown(row.inSync),
    row.primary < 0 ? "none" : row.primary,
    row.objects ?? "?",
    row.bytes === null ? "?" : formatSize(row.bytes),
  ];
}

function figuresOf(map: ClusterMap, reports: readonly OsdReport[]): Figures {
  const figures: Figures = { ofPrimary: new Map(), damage: new Map() };
  for (const { osd, status } of reports) {
    for (const pg of status?.pgs ?? []) {
      if (pgOf(map, pg.pg)?.primary === osd.id) figures.ofPrimary.set(pg.pg, pg);
      for (const { object } of pg.damagedObjects) {
        const objects = figures.damage.get(pg.pg) ?? new Map<string, number[]>();
        figures.damage.set(pg.pg, objects);
        objects.set(object, [...(objects.get(object) ?? []), osd.id]);
      }
    }
  }
  return figures;
}

function rowOf(
  map: ClusterMap,
  about: { pg: number; entry: PgEntry; pool: PoolEntry },
  figures: Figures,
): PgRow {
  const { pg, entry, pool } = about;
  const report = figures.ofPrimary.get(pg);
  const damaged = [...(figures.damage.get(pg) ?? [])].map(([object, osds]) => ({ object, osds }));
  const condition = pgCondition(map, { entry, pool, index: pgIndex(pg) });
  const isServing = !isInactive(condition);
  const activity = report?.state ?? "unknown";
  return {
    pg: formatPg(pg),
    pool: pool.name,
    state:
      (isServing ? `${activity}+${condition}` : condition) +
      recoveryOf(report) +
      (damaged.length > 0 ? "+inconsistent" : "") +
      (report?.scrub?.state === "running" ? "+scrubbing" : ""),
    up: upSet(map, pg),
    inSync: entry.inSync,
    primary: entry.primary,
    interval: entry.interval,
    objects: report?.objects ?? null,
    bytes: report?.bytes ?? null,
    reason: [report?.reason ?? "", ...(report?.learners ?? []).map(describeLearner)]
      .filter((part) => part !== "")
      .join("; "),
    damaged,
    lastScrub: whenOf(report?.scrub?.lightMs),
    lastDeepScrub: whenOf(report?.scrub?.deepMs),
    scrub: describeScrub(report?.scrub),
  };
}

const whenOf = (ms = 0): string | null => (ms > 0 ? new Date(ms).toISOString() : null);
function describeScrub(scrub: PgFigures["scrub"]): string {
  if (scrub === undefined) return "";
  const { state, deep, done, found, left } = scrub;
  if (state !== "idle") return `${deep ? "deep " : ""}scrub ${state}, ${done} objects compared`;
  return `last scrub found ${found} errors, ${left} left`;
}

/** What is being done about missing copies, as part of the state. */
function recoveryOf(report: PgFigures | undefined): string {
  const learners = report?.learners ?? [];
  if (learners.length === 0) return "";
  if (learners.every(({ tooFull }) => tooFull)) return "+backfill-waits";
  return learners.some(({ backfill }) => backfill) ? "+backfilling" : "+recovering";
}
function describeLearner(learner: PgFigures["learners"][number]): string {
  const { osd, phase, missing, missingBytes, compared, tooFull } = learner;
  if (tooFull) return `osd.${osd} is too full to take copies`;
  const left = missing > 0 ? `, ${missing} objects (${formatSize(missingBytes)}) to copy` : "";
  const seen = compared > 0 ? `, ${compared} objects compared` : "";
  return `osd.${osd} is ${phase}${left}${seen}`;
}

// ---- One object --------------------------------------------------------------------------------

export interface Copy {
  osd: OsdId;
  address: string;
  /** With --verify. `digest` is over the checksums of all blocks, each read and verified. */
  exists?: boolean;
  size?: number;
  version?: string;
  digest?: string;
  allocated?: number;
  /** Why this copy could not be read. */
  error?: string;
}

export interface Location {
  pool: string;
  object: string;
  pg: string;
  up: readonly OsdId[];
  inSync: readonly OsdId[];
  primary: OsdId;
  copies: Copy[];
  /** With --verify: as many copies as the pool wants, all readable and all the same. */
  equal?: boolean;
}

export async function locateObject(
  client: ClusterClient,
  wanted: { pool: string; object: string; verify: boolean },
): Promise<Location> {
  const map = client.needMap();
  const pool = poolNamed(map, wanted.pool);
  if (pool === undefined) {
    throw new DssError("NotFound", `there is no pool "${wanted.pool}"`, {
      hint: `the cluster has: ${map.pools.map((each) => each.name).join(", ")}`,
    });
  }
  // Printable ASCII, as OSDs accept it.
  if (!/^[\x21-\x7e]+$/.test(wanted.object) || wanted.object.length > OBJECT_NAME_MAX) {
    throw new UsageError(
      `"${wanted.object}" is not the name of an object`,
      "objects of a file are named <inode hex>.<index hex>; see dss volume info NAME --objects",
    );
  }
  const pg = objectToPg(map, pool.id, wanted.object);
  const entry = pgOf(map, pg)!;
  const copies = await Promise.all(
    entry.inSync.map(async (osd): Promise<Copy> => {
      const entry = osdOf(map, osd);
      if (entry === undefined) return { osd, address: "?" };
      const copy: Copy = { osd, address: `${entry.address.host}:${entry.address.port}` };
      if (!wanted.verify) return copy;
      return { ...copy, ...(await digestOf(client, entry, pg, wanted.object)) };
    }),
  );
  return {
    pool: pool.name,
    object: wanted.object,
    pg: formatPg(pg),
    up: upSet(map, pg),
    inSync: entry.inSync,
    primary: entry.primary,
    copies,
    ...(wanted.verify && { equal: areEqual(copies, pool.replicas) }),
  };
}

async function digestOf(
  client: ClusterClient,
  osd: OsdEntry,
  pg: number,
  object: string,
): Promise<Partial<Copy>> {
  try {
    return copyOf(await client.digestObject(osd, { pg, object }));
  } catch (error) {
    if (isDssError(error)) return { error: describeError(error) };
    throw error;
  }
}

function copyOf(reply: OsdDigestReply): Partial<Copy> {
  if (!reply.exists) return { exists: false };
  return {
    exists: true,
    size: reply.size,
    version: `${reply.versionInterval}.${reply.versionSeq}`,
    digest: reply.digest.toString(16).padStart(8, "0"),
    allocated: reply.allocated,
  };
}

function areEqual(copies: readonly Copy[], replicas: number): boolean {
  const same = (a: Copy, b: Copy): boolean =>
    a.exists === b.exists && a.size === b.size && a.version === b.version && a.digest === b.digest;
  if (copies.some((copy) => copy.error !== undefined || copy.exists === undefined)) return false;
  return copies.length >= replicas && copies.every((copy) => same(copy, copies[0]!));
}

function describeLocation(found: Location): void {
  printLine(`${found.object} is in placement group ${found.pg} of pool ${found.pool}`);
  const rows = found.copies.map((copy) => [
    `osd.${copy.osd}${copy.osd === found.primary ? " (primary)" : ""}`,
    copy.address,
    ...(found.equal === undefined
      ? []
      : copy.exists === true
        ? [formatSize(copy.size ?? 0), copy.version, copy.digest]
        : [copy.error ?? "no such object", "-", "-"]),
  ]);
  const head = [
    "OSD",
    "ADDRESS",
    ...(found.equal === undefined ? [] : ["SIZE", "VERSION", "DIGEST"]),
  ];
  printTable(head, rows);
  if (found.equal === true) {
    const exists = found.copies[0]?.exists === true;
    note(exists ? `${found.copies.length} equal copies` : "the object exists on none of them");
  }
}

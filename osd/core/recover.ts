/**
 * Decisions about learners (design §4 Joining, §5 Recovery): where a learner's log leaves the
 * primary's, what it lacks, and what one step of backfill has to do. Pure; osd/learner.ts carries
 * it out.
 *
 * One primary numbers an interval, and every member takes entries strictly in order: so two logs
 * that have an entry in common are equal up to it.
 */
import { compareVersions, type Version } from "./version.js";

/** What a learner is doing, for people; the only order in which it happens. */
export type LearnerPhase = "asking" | "adopting" | "recovering" | "backfilling" | "joining";
const LEGAL: Record<LearnerPhase, readonly LearnerPhase[]> = {
  asking: ["adopting"],
  adopting: ["recovering"],
  recovering: ["backfilling", "joining"],
  backfilling: ["recovering"], // What a step of backfill found is copied like any missing object.
  joining: [],
};
export function legalPhase(from: LearnerPhase, to: LearnerPhase): boolean {
  return LEGAL[from].includes(to);
}

export interface LogPart {
  /** The version before the first entry: an entry of the past, or the beginning. */
  tail: Version;
  entries: readonly { version: Version; object: string }[];
}

export type RecoveryPlan =
  /** The learner takes over our entries after `common`; the objects in `missing` are copied. */
  | { plan: "delta"; common: Version; missing: string[] }
  /** The logs do not tell what differs: everything is compared. */
  | { plan: "backfill" };

export interface LearnerInfo {
  exists: boolean;
  /** How many it has; for estimates. */
  objects: number;
  missing: readonly string[];
  /** Backfill has come up to here; undefined: it is not needed. */
  cursor: string | undefined;
  log: LogPart;
}

/** More names than this are cheaper to compare than to list. */
export const MISSING_MAX = 8_000;

export function planRecovery(ours: LogPart, learner: LearnerInfo): RecoveryPlan {
  const common = learner.exists ? lastCommon(ours, learner.log) : undefined;
  if (common === undefined) return { plan: "backfill" };
  const missing = new Set(learner.missing);
  for (const part of [ours, learner.log]) {
    for (const { version, object } of part.entries) {
      if (compareVersions(version, common) > 0) missing.add(object);
    }
  }
  const { cursor } = learner;
  const known = [...missing].filter((object) => cursor === undefined || object <= cursor);
  if (known.length > MISSING_MAX) return { plan: "backfill" };
  return { plan: "delta", common, missing: known };
}

/** The newest version that both logs show. */
export function lastCommon(a: LogPart, b: LogPart): Version | undefined {
  const key = ({ interval, seq }: Version): string => `${interval}.${seq}`;
  const inA = new Set([key(a.tail), ...a.entries.map(({ version }) => key(version))]);
  for (let i = b.entries.length - 1; i >= 0; i--) {
    const { version } = b.entries[i]!;
    if (inA.has(key(version))) return version;
  }
  return inA.has(key(b.tail)) ? b.tail : undefined;
}

export interface Listed {
  object: string;
  version: Version;
}

/**
 * One step of backfill: of the objects after `cursor` in both listings (name order), which ones
 * differ up to where both listings reach. `cursor` of the result is undefined when that is the end.
 */
export function compareListings(
  ours: { objects: readonly Listed[]; complete: boolean },
  theirs: { objects: readonly Listed[]; complete: boolean },
): { differing: string[]; cursor: string | undefined } {
  const ends = [ours, theirs]
    .filter(({ complete }) => !complete)
    .map(({ objects }) => objects[objects.length - 1]!.object);
  const cursor = ends.length === 0 ? undefined : ends.reduce((a, b) => (a < b ? a : b));
  const within = ({ object }: Listed): boolean => cursor === undefined || object <= cursor;
  const have = new Map(theirs.objects.filter(within).map((row) => [row.object, row.version]));
  const differing: string[] = [];
  for (const { object, version } of ours.objects.filter(within)) {
    const theirVersion = have.get(object);
    have.delete(object);
    if (theirVersion === undefined || compareVersions(theirVersion, version) !== 0) {
      differing.push(object);
    }
  }
  // Objects that we do not have (any more) are discarded there.
  return { differing: [...differing, ...have.keys()], cursor };
}

/**
 * Peering's decision (design §4): from what the in-sync members say, who has the authoritative log,
 * what each lacks, and where to get it. Pure; osd/peering-driver.ts carries it out.
 *
 * Every in-sync member has every acknowledged write, and members append strictly in version order,
 * so the longest log contains all others. The primary becomes active only after all members have
 * synced it.
 */
import type { OsdId } from "../../cluster/base/ids.js";
import type { PgState } from "../proto.js";
import { compareVersions, VERSION_ZERO, type Version } from "./version.js";

export interface MemberInfo {
  member: OsdId;
  exists: boolean;
  last: Version;
  logTail: Version;
  objects: number;
  /**
   * Objects its log names but whose bytes it has not received yet (an earlier peering was cut
   * short).
   */
  missing: readonly string[];
  /** Where its log ended when something was first missing: it had every acknowledged write then. */
  base: Version;
  /** Its backfill has not ended. */
  unfinished: boolean;
}

export type PeeringPlan =
  /** No member has the PG: it is new. */
  | { plan: "create" }
  | {
      plan: "catch-up";
      /** Has the longest log. */
      authority: OsdId;
      target: Version;
      /** Members whose log ends earlier, with where theirs ends; new ones start at zero. */
      lagging: { member: OsdId; after: Version; create: boolean }[];
    }
  /**
   * Some object is whole nowhere: an earlier peering gave out its log entry, then lost the member
   * that had the bytes. Such an entry was never acknowledged. All logs are cut back to `common`,
   * and of every object in `missing` or in a log after `common` one copy, the newest, becomes
   * everybody's.
   */
  | { plan: "roll-back"; authority: OsdId; common: Version; missing: string[] }
  /**
   * Members that have lost what they had (a damaged index): they leave the set, and come back as
   * learners. Until then the others are like a set of which members are down.
   */
  | { plan: "expel"; members: OsdId[]; reason: string }
  /** People must help: the data of a member is gone. */
  | { plan: "incomplete"; reason: string };

export function planPeering(infos: readonly MemberInfo[]): PeeringPlan {
  const present = infos.filter((info) => info.exists);
  if (present.length === 0) return { plan: "create" };
  const sound = present.filter((info) => !info.unfinished);
  const authority = (sound.length > 0 ? sound : present).reduce(better);
  const hasEntries = compareVersions(authority.last, VERSION_ZERO) > 0;
  const broken = infos.filter((info) => (info.exists ? info.unfinished : hasEntries));
  if (broken.length > 0) {
    const [first] = broken as [MemberInfo];
    const what = first.exists ? "must be compared with the others" : "does not have the PG";
    const reason = `osd.${first.member} is in the in-sync set but ${what}`;
    if (sound.length === 0) return { plan: "incomplete", reason };
    return { plan: "expel", members: broken.map(({ member }) => member), reason };
  }
  const lagging = infos
    .filter((info) => !info.exists || compareVersions(info.last, authority.last) < 0)
    .map((info) => ({
      member: info.member,
      after: info.exists ? info.last : VERSION_ZERO,
      create: !info.exists,
    }));
  for (const { member, after } of lagging) {
    if (compareVersions(after, authority.logTail) < 0) {
      return {
        plan: "incomplete",
        reason: `the log of osd.${authority.member} does not reach back to that of osd.${member}`,
      };
    }
  }
  const complete = infos.filter(
    (info) => info.exists && compareVersions(info.last, authority.last) === 0,
  );
  const isNowhere = (object: string): boolean =>
    complete.every((info) => info.missing.includes(object));
  if (authority.missing.some(isNowhere)) return rollBack(authority.member, infos);
  return { plan: "catch-up", authority: authority.member, target: authority.last, lagging };
}

/** The one with the longer log, or with more of what it names. */
function better(a: MemberInfo, b: MemberInfo): MemberInfo {
  const order = compareVersions(b.last, a.last) || a.missing.length - b.missing.length;
  return (order || compareVersions(a.logTail, b.logTail)) > 0 ? b : a;
}

/** To where every member had every acknowledged write. */
function rollBack(authority: OsdId, infos: readonly MemberInfo[]): PeeringPlan {
  const ends = infos.map((info) => (info.missing.length > 0 ? info.base : info.last));
  const common = ends.reduce((a, b) => (compareVersions(a, b) < 0 ? a : b));
  const missing = [...new Set(infos.flatMap((info) => info.missing))];
  return { plan: "roll-back", authority, common, missing };
}

/** What a PG does on this OSD. Only the listed transitions exist; any other is a bug. */
export type PgActivity = PgState;

/*
 *   stray ◄──► replica ◄──► peering ──► active
 *                              ├──────► waiting      (a member is down)
 *                              └──────► incomplete
 *
 * A new interval leads from every state to replica, peering or stray; within an interval a primary
 * goes from peering to one of the other three.
 */
const WITHIN_INTERVAL: Record<PgActivity, readonly PgActivity[]> = {
  stray: [],
  replica: [],
  waiting: [],
  peering: ["active", "waiting", "incomplete"],
  active: [],
  incomplete: [],
};
export function legalWithinInterval(from: PgActivity, to: PgActivity): boolean {
  return WITHIN_INTERVAL[from].includes(to);
}

/**
 * Which OSDs are taken for gone although ZooKeeper hears them (design §4 Failure detection): those
 * that most of their peers cannot hear. Pure; in memory only: a new leader is told again.
 *
 * A report counts for a short while, from an OSD that is itself up, and only two or more reporters
 * that are more than half of the OSD's living heartbeat peers outweigh its own word. The OSD with
 * the most reporters goes first and its own reports are void from then on, so that of two sides
 * the smaller one goes. It comes back when it says that it hears most of its peers again; who goes
 * again and again comes back later each time.
 */
import type { OsdId } from "../../cluster/base/ids.js";
import { osdOf, type ClusterMap } from "../../cluster/map/cluster-map.js";
import type { OsdInfo } from "../../cluster/map/daemon-info.js";
import type { HealthCheck } from "../../cluster/map/health.js";
import { heartbeatPeers } from "../../cluster/map/placement.js";

/** A reporter repeats itself every heartbeat; it is believed for this many of them. */
const REPORT_BEATS = 3;
/** Going down this often within the window is put down to chance. */
const DOWNS_FREE = 2;
const FLAP_WINDOW_MS = 600_000;
const HOLD_FIRST_MS = 10_000;
const HOLD_MAX_MS = 300_000;

interface Report {
  incarnation: string;
  atMs: number;
}
export interface Verdict {
  id: OsdId;
  incarnation: string;
  /** Who cannot hear it. */
  reporters: OsdId[];
}
interface Silent {
  incarnation: string;
  /** Not before this may it come back. */
  holdUntilMs: number;
}

export class SilenceBook {
  private readonly reports = new Map<OsdId, Map<OsdId, Report>>();
  private readonly silent = new Map<OsdId, Silent>();
  /** When each OSD was found silent. */
  private readonly history = new Map<OsdId, number[]>();

  /** `heartbeatMs`: how often a reporter repeats itself. All times are of one monotonic clock. */
  constructor(private readonly heartbeatMs: number) {}

  /** `reporter` cannot hear this start of the OSD. */
  report(osd: { id: OsdId; incarnation: string }, reporter: OsdId, nowMs: number): void {
    const { id, incarnation } = osd;
    const known = this.reports.get(id) ?? new Map<OsdId, Report>();
    known.set(reporter, { incarnation, atMs: nowMs });
    this.reports.set(id, known);
  }

  /** Those that are to be taken for gone now; they are noted as silent. */
  judge(map: ClusterMap, nowMs: number): Verdict[] {
    const found: Verdict[] = [];
    for (;;) {
      let worst: Verdict | undefined;
      for (const id of this.reports.keys()) {
        const reporters = this.reportersOf(map, id, nowMs);
        if (reporters.length <= (worst?.reporters.length ?? 0)) continue;
        worst = { id, incarnation: osdOf(map, id)!.incarnation, reporters };
      }
      if (worst === undefined) return found;
      this.reports.delete(worst.id);
      this.note(worst.id, worst.incarnation, nowMs);
      found.push(worst);
    }
  }

  /** Enough to outweigh the OSD's own word, else none. */
  private reportersOf(map: ClusterMap, id: OsdId, nowMs: number): OsdId[] {
    const osd = osdOf(map, id);
    if (osd?.up !== true || this.isSilent(osd)) return [];
    const isHeard = (other: OsdId): boolean => {
      const entry = osdOf(map, other);
      return entry?.up === true && !this.isSilent(entry);
    };
    const reporters: OsdId[] = [];
    for (const [reporter, { incarnation, atMs }] of this.reports.get(id)!) {
      if (nowMs - atMs > REPORT_BEATS * this.heartbeatMs) continue;
      if (incarnation === osd.incarnation && isHeard(reporter)) reporters.push(reporter);
    }
    const peers = heartbeatPeers(map, id).filter(isHeard);
    return reporters.length >= 2 && reporters.length > peers.length / 2 ? reporters : [];
  }

  private note(id: OsdId, incarnation: string, nowMs: number): void {
    const recent = (this.history.get(id) ?? []).filter((at) => nowMs - at < FLAP_WINDOW_MS);
    recent.push(nowMs);
    this.history.set(id, recent);
    const excess = recent.length - DOWNS_FREE;
    const holdMs = excess <= 0 ? 0 : Math.min(HOLD_FIRST_MS * 2 ** (excess - 1), HOLD_MAX_MS);
    this.silent.set(id, { incarnation, holdUntilMs: nowMs + holdMs });
  }

  /** Taken for gone: its liveness znode says nothing. */
  isSilent({ id, incarnation }: { id: OsdId; incarnation: string }): boolean {
    return this.silent.get(id)?.incarnation === incarnation;
  }

  /** It hears most of its peers. True when it is taken back (or was never silent). */
  alive(id: OsdId, incarnation: string, nowMs: number): boolean {
    const silent = this.silent.get(id);
    if (silent?.incarnation !== incarnation) return true;
    if (nowMs < silent.holdUntilMs) return false;
    this.silent.delete(id);
    this.reports.delete(id);
    return true;
  }

  /** The liveness znodes: one that is gone or of a later start needs no remark any more. */
  onLive(live: readonly OsdInfo[]): void {
    for (const [id, { incarnation }] of this.silent) {
      const isThere = live.some((info) => info.id === id && info.incarnation === incarnation);
      if (!isThere) this.silent.delete(id);
    }
  }

  warnings(nowMs: number): HealthCheck[] {
    const detail: string[] = [];
    const held: string[] = [];
    for (const [id, { holdUntilMs }] of this.silent) {
      const often = (this.history.get(id) ?? []).filter((at) => nowMs - at < FLAP_WINDOW_MS).length;
      if (holdUntilMs > nowMs) {
        const seconds = Math.ceil((holdUntilMs - nowMs) / 1000);
        held.push(`osd.${id} went ${often} times; it may come back in ${seconds} s`);
      }
      detail.push(`osd.${id} has its ZooKeeper session, but most other OSDs cannot reach it`);
    }
    const checks: HealthCheck[] = [];
    if (detail.length > 0) {
      const summary = `${detail.length} OSD(s) cut off from the other OSDs`;
      checks.push({ code: "OSD_UNREACHABLE", severity: "HEALTH_WARN", summary, detail });
    }
    if (held.length > 0) {
      const summary = `${held.length} OSD(s) going down and coming back again and again`;
      checks.push({ code: "OSD_FLAPPING", severity: "HEALTH_WARN", summary, detail: held });
    }
    return checks;
  }
}

/**
 * Read leases (design §4 Leases), both sides. Pure: times are milliseconds of the own monotonic
 * clock.
 *
 * A primary serves reads while every other member has granted it; it counts from when it *sent* the
 * request, a grantor from when it *received* it, so the grantor's promise always outlasts the
 * primary's belief (cluster/base/lease.ts). A new primary waits until no member remembers a promise
 * to anyone else.
 */
import type { OsdId, PgId } from "../../cluster/base/ids.js";

/** Not an OSD: promised to someone, or to more than one. */
export const NOBODY_KNOWN = -1;

/** What this OSD has promised. */
export class GrantBook {
  private readonly grants = new Map<PgId, { grantee: OsdId; until: number }>();
  /** A daemon does not know what its earlier life promised. */
  private readonly unknownUntil: number;

  constructor(
    startedMs: number,
    private readonly leaseMs: number,
  ) {
    this.unknownUntil = startedMs + leaseMs;
  }

  /**
   * The caller has checked that its own map names the grantee primary of the PG in the interval
   * asked for.
   */
  grant(pg: PgId, grantee: OsdId, nowMs: number): void {
    const known = this.grants.get(pg);
    if (known === undefined) {
      this.grants.set(pg, { grantee, until: nowMs + this.leaseMs });
      return;
    }
    if (known.grantee !== grantee) known.grantee = known.until > nowMs ? NOBODY_KNOWN : grantee;
    known.until = nowMs + this.leaseMs;
  }

  /**
   * How long someone other than `asking` may still be serving reads on a promise of this OSD, and
   * who that is (NOBODY_KNOWN: it cannot tell).
   */
  remaining(pg: PgId, asking: OsdId, nowMs: number): { ms: number; holder: number } {
    const known = this.grants.get(pg);
    const promised = known === undefined || known.grantee === asking ? 0 : known.until - nowMs;
    const unknown = this.unknownUntil - nowMs;
    if (unknown > 0) return { ms: Math.max(promised, unknown), holder: NOBODY_KNOWN };
    return { ms: Math.max(promised, 0), holder: known?.grantee ?? NOBODY_KNOWN };
  }
}

/** What a primary holds for one PG in one interval. */
export class ReadLease {
  /** Reads may be served before this instant; a plain number, because every read looks at it. */
  until = -Infinity;
  private readonly held = new Map<OsdId, number>();
  private grantors: readonly OsdId[] = [];

  /** Every OSD whose grant is needed, from now on; none of them: reads need no grant. */
  require(grantors: readonly OsdId[]): void {
    this.grantors = grantors;
    this.compute();
  }
  /** A new interval: nothing that was granted counts. */
  reset(): void {
    this.held.clear();
    this.grantors = [];
    this.until = -Infinity;
  }
  granted(by: OsdId, untilMs: number): void {
    this.held.set(by, Math.max(this.held.get(by) ?? -Infinity, untilMs));
    this.compute();
  }
  private compute(): void {
    let until = Infinity;
    for (const osd of this.grantors) until = Math.min(until, this.held.get(osd) ?? -Infinity);
    this.until = until;
  }
}

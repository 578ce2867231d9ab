/** Positions in a PG's log. Pure. */

/**
 * The interval of the primary that gave the number, and the count, which goes on across intervals.
 */
export interface Version {
  interval: number;
  seq: number;
}
export const VERSION_ZERO: Version = Object.freeze({ interval: 0, seq: 0 });
export function compareVersions(a: Version, b: Version): number {
  return a.interval - b.interval || a.seq - b.seq;
}

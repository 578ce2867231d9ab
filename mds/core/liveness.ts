/**
 * When a missing liveness node means a dead OSD. While ZooKeeper was gone, or nobody led, nodes may
 * have expired of daemons that are well and could not renew them: for a while after that a missing
 * node says nothing by itself, and only an OSD whose address refuses connections counts as gone.
 * Pure.
 *
 * Owns: the end of that while, and which missing incarnations were found to refuse.
 */
import type { OsdId } from "../../cluster/base/ids.js";
import type { OsdEntry } from "../../cluster/map/cluster-map.js";

export class LivenessGrace {
  private until = Number.NEGATIVE_INFINITY;
  private readonly refusing = new Map<OsdId, string>();

  constructor(private readonly graceMs: number) {}

  /** Nodes may be late from now on: this coordinator begins, or ZooKeeper is back. */
  begin(nowMs: number): void {
    this.until = nowMs + this.graceMs;
  }

  isOver(nowMs: number): boolean {
    return nowMs >= this.until;
  }

  /** Nobody listens where this incarnation of the OSD did. */
  refused(osd: Pick<OsdEntry, "id" | "incarnation">): void {
    this.refusing.set(osd.id, osd.incarnation);
  }

  /** Is an OSD whose node is missing gone? */
  isGone(osd: Pick<OsdEntry, "id" | "incarnation">, nowMs: number): boolean {
    return this.isOver(nowMs) || this.refusing.get(osd.id) === osd.incarnation;
  }
}

/**
 * What one OSD knows of damage in its copy of a PG that is not repaired, for health and `dss pg`.
 * Owner of the state: the PlacementGroup. It is not durable: scrub finds again what is left.
 */
import type { OsdId } from "../cluster/base/ids.js";
import type { DamagedObject } from "./proto.js";

/** Names kept at most: enough to see what is affected; the count goes on. */
const OBJECTS_MAX = 100;
/** And told to people in one answer. */
const SHOWN_MAX = 10;

export class PgDamage {
  private readonly objects = new Map<string, DamagedObject>();
  /** When damage was met last, repaired or not; milliseconds of the OSD's clock. */
  lastSeenMs = -Infinity;

  get count(): number {
    return this.objects.size;
  }
  blocksOf(object: string): number {
    return this.objects.get(object)?.blocks ?? 0;
  }
  note(object: string, found: { blocks: number; waitsFor: readonly OsdId[] }): void {
    if (!this.objects.has(object) && this.objects.size >= OBJECTS_MAX) return;
    const { blocks, waitsFor } = found;
    this.objects.set(object, { object, blocks, waitsFor: [...waitsFor] });
  }
  forget(object: string): void {
    this.objects.delete(object);
  }
  seen(nowMs: number): void {
    this.lastSeenMs = nowMs;
  }
  names(): string[] {
    return [...this.objects.keys()];
  }
  shown(): DamagedObject[] {
    return [...this.objects.values()].slice(0, SHOWN_MAX);
  }
}

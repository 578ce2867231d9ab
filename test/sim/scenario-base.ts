/** What scenarios have in common: waiting on simulated time, failures, the end of all faults. */
import { strict as assert } from "node:assert";
import { DssError } from "../../cluster/base/errors.js";
import type { Prng } from "../../cluster/base/prng.js";
import { allPgs } from "../../cluster/map/cluster-map.js";
import type { ClusterWorld } from "./cluster-world.js";

/** A healed cluster has this long to become whole. */
export const CLEAN_WITHIN_MS = 900_000;
/** More than any object of a scenario. */
const OBJECT_BYTES = 2 ** 20;
export const WORK_WITHIN_MS = 3_600_000;

export abstract class ScenarioBase {
  protected readonly random: Prng;
  private failure: Error | undefined;

  constructor(readonly world: ClusterWorld) {
    this.random = world.random.fork();
  }

  protected async until(done: () => boolean, withinMs: number, what: string): Promise<void> {
    const { world } = this;
    const stop = (): boolean => this.failure !== undefined || world.fatal.length > 0 || done();
    const ended = await world.clock.runUntil(stop, withinMs);
    if (this.failure !== undefined) throw this.failure;
    if (world.fatal.length > 0) throw world.fatal[0]!;
    assert.ok(ended, what);
  }
  /** Lets time pass until the promise settles. */
  protected async settled<T>(work: Promise<T>, withinMs: number, what: string): Promise<T> {
    let isOver = false;
    const outcome = work.finally(() => (isOver = true));
    outcome.catch(() => undefined); // Reported where it is awaited.
    await this.until(() => isOver, withinMs, what);
    return outcome;
  }
  /** Its failure is the scenario's. */
  protected guard(work: Promise<void>): void {
    work.catch((error: unknown) => {
      this.failure ??= error instanceof Error ? error : new Error(String(error));
    });
  }
  protected fail(what: string): void {
    this.failure ??= new Error(what);
  }
  protected pause(ms: number): Promise<void> {
    return this.world.pause(ms);
  }

  protected async begin(): Promise<void> {
    // Nobody decides anything by the time of day; other programs' may be anything.
    this.world.skew.wallMs = this.random.pick([0, 20_000]);
    // Leases are made for two clocks that differ by twice this.
    this.world.skew.rate = this.random.pick([0, 0.004]);
    this.world.start();
    await this.until(() => this.world.allClean(), 120_000, "the PGs never became active");
  }

  /** Every member holds the same objects at the same versions. */
  protected checkReplicas(): void {
    for (const { pg, entry } of allPgs(this.world.map)) {
      const copies = entry.inSync.map((osd) => {
        const { store } = this.world.running.get(osd)!;
        const objects = store.list(pg, "", 1_000).map(({ object, info }) => {
          return [object, info.size, info.version, info.allocated];
        });
        return JSON.stringify({ last: store.pgInfo(pg)!.last, objects });
      });
      for (const copy of copies) assert.equal(copy, copies[0], `replicas of pg ${pg} differ`);
    }
  }
  /** Every block of every copy has the bytes that its checksum says: nothing is torn. */
  protected async checkBlocks(): Promise<void> {
    for (const { id, store } of this.world.running.values()) {
      for (const { pg } of allPgs(this.world.map)) {
        for (const { object } of store.pgInfo(pg) === undefined ? [] : store.list(pg, "", 1_000)) {
          const found = await store.check(pg, object, 0, OBJECT_BYTES);
          const bad = (found?.bad ?? []).map(({ offset }) => offset).join();
          assert.equal(bad, "", `osd.${id} object ${object}: damaged blocks at ${bad}`);
        }
      }
    }
  }
}

/** For the message of a failure that is an operating error. */
export function explain(error: unknown): string {
  return error instanceof DssError ? `${error.code}: ${error.message}` : String(error);
}

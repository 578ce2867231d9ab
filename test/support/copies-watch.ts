/**
 * Watches a cluster's map while it is changed: how many good copies the worst placement group had
 * at any look, how the OSDs' counters rose, and when everything is where it belongs.
 */
import { ClusterClient } from "../../cli/context.js";
import { recoveryOf } from "../../cli/gather.js";
import { allPgs, osdOf, type ClusterMap } from "../../cluster/map/cluster-map.js";
import { upSet } from "../../cluster/map/placement.js";
import { waitFor, type Teardown } from "./temp.js";

const LOOK_MS = 200;

export class CopiesWatch {
  /** Living in-sync members of the placement group that had fewest, since `reset`. */
  lowest = Infinity;
  looks = 0;
  private running = true;
  private readonly ended: Promise<void>;
  private failure: unknown;

  private constructor(private readonly client: ClusterClient) {
    this.ended = this.loop().catch((error: unknown) => {
      this.failure = error;
    });
  }
  static async start(t: Teardown, zookeeper: string): Promise<CopiesWatch> {
    const watch = new CopiesWatch(await ClusterClient.open(zookeeper));
    t.teardown(() => watch.stop());
    return watch;
  }

  get map(): ClusterMap {
    return this.client.needMap();
  }

  reset(): void {
    this.lowest = Infinity;
    this.looks = 0;
  }

  private async loop(): Promise<void> {
    while (this.running) {
      await this.client.refresh();
      const { map } = this;
      for (const { entry } of allPgs(map)) {
        const living = entry.inSync.filter((osd) => osdOf(map, osd)?.up === true).length;
        this.lowest = Math.min(this.lowest, living);
      }
      this.looks++;
      await new Promise((done) => setTimeout(done, LOOK_MS));
    }
  }

  /** Every PG on its whole up set, led by the preferred member, and nothing left over elsewhere. */
  async settled(withinMs: number): Promise<void> {
    let last = "";
    await waitFor(
      "everything is where it belongs",
      async () => {
        if (this.failure !== undefined) throw new Error("the watch ended", { cause: this.failure });
        const { map } = this;
        const misplaced = [...allPgs(map)].filter(({ pg, entry }) => {
          const wanted = upSet(map, pg);
          const isThere = wanted.every((osd) => entry.inSync.includes(osd));
          return !isThere || entry.inSync.length !== wanted.length || entry.primary !== wanted[0];
        });
        const reports = await this.client.osdReports(2_000);
        const { objectsLeft } = recoveryOf(map, reports);
        last = `${misplaced.length} placement groups misplaced, ${objectsLeft} objects left`;
        return misplaced.length === 0 && objectsLeft === 0;
      },
      { withinMs, everyMs: 300 },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}: ${last}`, { cause });
    });
  }

  /** A counter of each OSD that answers. */
  async counters(name: string): Promise<Map<number, number>> {
    const reports = await this.client.osdReports(2_000);
    const found = new Map<number, number>();
    for (const { osd, status } of reports) {
      if (status !== undefined) found.set(osd.id, status.counters[name] ?? 0);
    }
    return found;
  }
  /** How much a counter rose over all OSDs; one that started anew counts from zero. */
  async rise(name: string, before: ReadonlyMap<number, number>): Promise<number> {
    let sum = 0;
    for (const [id, now] of await this.counters(name)) {
      const was = before.get(id) ?? 0;
      sum += now >= was ? now - was : now;
    }
    return sum;
  }
  /** Bytes of objects on each OSD that answers. */
  async used(): Promise<Map<number, number>> {
    const reports = await this.client.osdReports(2_000);
    return new Map(reports.map(({ osd, status }) => [osd.id, status?.used ?? 0]));
  }

  async stop(): Promise<void> {
    if (!this.running) return;
    this.running = false;
    await this.ended;
    await this.client.close();
  }
}

/**
 * A simulated cluster whose disks can be damaged: bits of stored blocks change behind the back of
 * the running OSDs, which keep their objects in memory stores.
 */
import type { OsdId } from "../../cluster/base/ids.js";
import { objectToPg } from "../../cluster/map/placement.js";
import { pgOf, type PgEntry } from "../../cluster/map/cluster-map.js";
import { MemoryStore } from "../../osd/store/memory-store.js";
import type { ObjectAddress } from "../../osd/client/object-access.js";
import { NO_TRUNCATION } from "../../osd/client/object-access.js";
import type { ScrubStatus } from "../../osd/proto.js";
import { ClusterWorld, type DiskFactory, type SimClient } from "../sim/cluster-world.js";

const POOL = 1;
const OPTIONS = { truncation: NO_TRUNCATION, minEpoch: 0 };

export class DamageWorld {
  readonly stores = new Map<OsdId, MemoryStore>();
  readonly world: ClusterWorld;
  client!: SimClient;

  constructor(options: { osds?: number; seed?: number } = {}) {
    const disk: DiskFactory = (osd, _random, clock) => {
      const uuid = `00000000-0000-4000-8000-00000000000${osd}`;
      const store = new MemoryStore(
        clock.forNode(() => true),
        uuid,
      );
      this.stores.set(osd, store);
      return { open: () => Promise.resolve(store), crash: () => undefined };
    };
    const { osds = 3, seed = 1 } = options;
    this.world = new ClusterWorld({ seed, osds, disk, settings: { "pool.pgs": 2 } });
  }

  async start(osds = [...this.stores.keys()]): Promise<void> {
    this.world.start(osds);
    this.client = await this.wait(this.world.startClient());
    await this.until("all PGs are clean", () => this.world.allClean());
  }

  address(object: string): ObjectAddress {
    return { pool: POOL, object };
  }
  pgOf(object: string): number {
    return objectToPg(this.world.map, POOL, object);
  }
  entry(object: string): PgEntry {
    return pgOf(this.world.map, this.pgOf(object))!;
  }
  replicas(object: string): OsdId[] {
    const { inSync, primary } = this.entry(object);
    return inSync.filter((osd) => osd !== primary);
  }

  write(object: string, offset: number, data: Buffer): Promise<number> {
    const options = { ...OPTIONS, mtimeNs: 1n };
    return this.wait(this.client.objects.write(this.address(object), offset, [data], options));
  }
  async read(object: string, offset: number, length: number): Promise<Buffer> {
    const found = this.client.objects.read(this.address(object), offset, length, OPTIONS);
    return (await this.wait(found)).data;
  }
  /** A bit of the block changes on the disks of these OSDs. */
  damage(object: string, offset: number, osds: readonly OsdId[]): void {
    for (const osd of osds) this.stores.get(osd)!.damage(this.pgOf(object), object, offset);
  }
  async badBlocks(object: string, osd: OsdId): Promise<number[]> {
    const found = await this.stores.get(osd)!.check(this.pgOf(object), object, 0, 2 ** 22);
    return (found?.bad ?? []).map(({ offset }) => offset);
  }
  counter(osd: OsdId, name: string): number {
    return this.world.running.get(osd)!.daemon.status().counters[name] ?? 0;
  }
  damagedObjects(object: string, osd: OsdId): string[] {
    const status = this.world.running.get(osd)!.daemon.status();
    const pg = status.pgs.find((row) => row.pg === this.pgOf(object));
    return (pg?.damagedObjects ?? []).map((row) => row.object);
  }

  /** Scrubs the object's PG and waits for the end; returns the outcome. */
  async scrub(object: string, deep: boolean): Promise<ScrubStatus> {
    const pg = this.pgOf(object);
    const status = (): ScrubStatus | undefined => {
      const primary = this.world.running.get(this.entry(object).primary);
      return primary?.daemon.status().pgs.find((row) => row.pg === pg)?.scrub;
    };
    await this.until("a primary has taken it up", () => status() !== undefined);
    const since = this.world.running.get(this.entry(object).primary)!.daemon.startScrub(pg, deep);
    await this.until("the scrub has ended", () => {
      const found = status();
      if (found === undefined || found.state !== "idle") return false;
      return (deep ? found.deepMs : found.lightMs) >= since;
    });
    return status()!;
  }

  async wait<T>(promise: Promise<T>, withinMs = 60_000): Promise<T> {
    let settled = false;
    promise.then(
      () => (settled = true),
      () => (settled = true),
    );
    await this.until("the operation ends", () => settled, withinMs);
    return promise;
  }
  async until(what: string, done: () => boolean, withinMs = 60_000): Promise<void> {
    if (await this.world.clock.runUntil(done, withinMs)) return;
    throw new Error(`not within ${withinMs} ms: ${what}\n${this.world.describe()}`);
  }
}

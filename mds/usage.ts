/**
 * How full the cluster is, asked of its OSDs now and then: what statfs tells. Bytes as one copy of
 * the data counts.
 */
import type { ClusterMap } from "../cluster/map/cluster-map.js";
import { upSets } from "../cluster/map/placement.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { GetOsdStatus } from "../osd/proto.js";

const EVERY_MS = 2_000;
const DEADLINE_MS = 2_000;

interface Level {
  used: number;
  total: number;
}

export class ClusterUsage {
  private readonly known = new Map<number, Level>();
  private timer: Timer | undefined;
  private stopped = false;

  constructor(
    private readonly parts: {
      clock: Clock;
      messenger: Messenger;
      /** undefined before the first map. */
      map(): ClusterMap | undefined;
    },
  ) {}

  start(): void {
    void this.ask().finally(() => {
      if (!this.stopped) this.timer = this.parts.clock.setTimer(EVERY_MS, () => this.start());
    });
  }
  stop(): void {
    this.stopped = true;
    this.timer?.cancel();
  }
  now(): { total: number; available: number } {
    const map = this.parts.map();
    return map === undefined ? { total: 0, available: 0 } : usageOf(map, this.known);
  }

  private async ask(): Promise<void> {
    const osds = this.parts.map()?.osds ?? [];
    for (const id of this.known.keys()) {
      if (!osds.some((osd) => osd.id === id)) this.known.delete(id);
    }
    await Promise.all(
      osds
        .filter((osd) => osd.up)
        .map(async (osd) => {
          try {
            const peer = this.parts.messenger.peer(osd.address);
            const { message } = await peer.call(GetOsdStatus, {}, { deadlineMs: DEADLINE_MS });
            this.known.set(osd.id, { used: message.used, total: message.total });
          } catch {
            // The last figures stay: they are an estimate anyway, and failures are the
            // coordinator's concern.
          }
        }),
    );
  }
}

/**
 * `available`: what can still be written, in the pool of files, before the first OSD is full: data
 * are spread by PGs, so each OSD takes its share of every byte. `total`: that and what is used.
 */
export function usageOf(
  map: ClusterMap,
  levels: ReadonlyMap<number, Level>,
): { total: number; available: number } {
  const pool = [...map.pools].sort((a, b) => a.id - b.id)[0];
  if (pool === undefined) return { total: 0, available: 0 };
  const shares = new Map<number, number>();
  for (const set of upSets(map, pool)) {
    for (const osd of set) shares.set(osd, (shares.get(osd) ?? 0) + 1);
  }
  let available = Infinity;
  let used = 0;
  for (const osd of map.osds) {
    const level = levels.get(osd.id);
    if (level === undefined) continue;
    used += level.used;
    const share = (shares.get(osd.id) ?? 0) / pool.pgCount;
    // Beyond the full mark nothing is written.
    const room = Math.max(0, level.total * map.fullRatio - level.used);
    if (share > 0) available = Math.min(available, room / share);
  }
  if (available === Infinity) return { total: 0, available: 0 };
  const inUse = used / pool.replicas;
  return { total: Math.floor(inUse + available), available: Math.floor(available) };
}

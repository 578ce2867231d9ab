/**
 * How full the cluster is, asked of its OSDs now and then: what statfs tells. Bytes as one copy of
 * the data counts.
 */
import type { ClusterMap } from "../cluster/map/cluster-map.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { GetOsdStatus } from "../osd/proto.js";

const EVERY_MS = 10_000;
const DEADLINE_MS = 2_000;

export class ClusterUsage {
  private readonly known = new Map<number, { used: number; total: number }>();
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
    if (map === undefined) return { total: 0, available: 0 };
    const pool = [...map.pools].sort((a, b) => a.id - b.id)[0];
    const copies = pool?.replicas ?? 1;
    let total = 0;
    let free = 0;
    for (const osd of map.osds) {
      const usage = osd.in ? this.known.get(osd.id) : undefined;
      if (usage === undefined) continue;
      total += usage.total;
      // Beyond the full mark nothing is written.
      free += Math.max(0, usage.total * map.fullRatio - usage.used);
    }
    return { total: Math.floor(total / copies), available: Math.floor(free / copies) };
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

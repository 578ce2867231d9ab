/**
 * Heartbeats between OSDs that share PGs (design §4 Failure detection): an OSD that refuses
 * connections, or is silent for the grace time, is reported to the coordinator, which looks for
 * itself. They matter where no write or read would notice. The answers tell how full the OSD is.
 */
import { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import { allPgs, osdOf, type ClusterMap } from "../cluster/map/cluster-map.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { PingOsd, type OsdFillLevel } from "./proto.js";

export interface HeartbeatOptions {
  id: OsdId;
  clock: Clock;
  messenger: Messenger;
  heartbeatMs: number;
  graceMs: number;
  map: () => ClusterMap;
  report: (osd: OsdId, incarnation: string) => void;
  level: (osd: OsdId, level: OsdFillLevel) => void;
}

export class Heartbeats {
  /** By epoch: walking all PGs for every beat would cost more than the beats. */
  private peers: { epoch: number; ids: OsdId[] } = { epoch: 0, ids: [] };
  private readonly waiting = new Set<OsdId>();
  private timer: Timer | undefined;

  constructor(private readonly options: HeartbeatOptions) {}

  start(): void {
    this.timer = this.options.clock.setTimer(this.options.heartbeatMs, () => {
      this.beat();
      this.start();
    });
  }
  stop(): void {
    this.timer?.cancel();
  }

  private beat(): void {
    const map = this.options.map();
    if (osdOf(map, this.options.id)?.up !== true) return;
    if (this.peers.epoch !== map.epoch) {
      this.peers = { epoch: map.epoch, ids: sharers(map, this.options.id) };
    }
    for (const osd of this.peers.ids) if (!this.waiting.has(osd)) this.ping(map, osd);
  }

  private ping(map: ClusterMap, osd: OsdId): void {
    const entry = osdOf(map, osd);
    if (entry?.up !== true) return;
    this.waiting.add(osd);
    const { messenger, graceMs } = this.options;
    messenger
      .peer(entry.address)
      .call(PingOsd, {}, { deadlineMs: graceMs })
      .then(
        ({ message }) => {
          this.waiting.delete(osd);
          this.options.level(osd, message);
        },
        (error: unknown) => {
          this.waiting.delete(osd);
          if (!(error instanceof DssError)) throw error;
          const isGone = error.code === "Unreachable" || error.code === "TimedOut";
          if (isGone) this.options.report(osd, entry.incarnation);
        },
      );
  }
}

/** Every OSD that is with `id` in some in-sync set. */
function sharers(map: ClusterMap, id: OsdId): OsdId[] {
  const ids = new Set<OsdId>();
  for (const { entry } of allPgs(map)) {
    if (entry.inSync.includes(id)) for (const osd of entry.inSync) ids.add(osd);
  }
  ids.delete(id);
  return [...ids];
}

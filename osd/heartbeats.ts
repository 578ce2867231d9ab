/**
 * Heartbeats between OSDs that share PGs (design §4 Failure detection). An OSD that refuses
 * connections is reported at once (the coordinator looks for itself), one that is silent for the
 * grace time is reported with every beat (the coordinator counts the reporters). They matter where
 * no write or read would notice. The answers tell how full the OSD is.
 *
 * An OSD that the map shows as down although it lives was found silent by others: it goes on
 * asking, and says so when most of its peers answer again.
 */
import { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import { osdOf, type ClusterMap } from "../cluster/map/cluster-map.js";
import { heartbeatPeers } from "../cluster/map/placement.js";
import type { Messenger, Peer } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { PingOsd, type OsdFillLevel } from "./proto.js";

export interface HeartbeatOptions {
  id: OsdId;
  incarnation: string;
  clock: Clock;
  messenger: Messenger;
  heartbeatMs: number;
  graceMs: number;
  map: () => ClusterMap;
  /** `silent`: not refused, but not heard either. */
  report: (osd: OsdId, incarnation: string, silent: boolean) => void;
  /** The map shows this OSD as down, and most of its peers answer it. */
  reportAlive: () => void;
  level: (osd: OsdId, level: OsdFillLevel) => void;
}

/** A beat that comes this much late shows that this process stood still, not its peers. */
const LATE_BEATS = 2;

export class Heartbeats {
  /** By epoch: walking all PGs for every beat would cost more than the beats. */
  private peers: { epoch: number; ids: OsdId[] } = { epoch: 0, ids: [] };
  private readonly waiting = new Set<OsdId>();
  /** Since when a peer is asked, or when its newest answer came. */
  private heardAt = new Map<OsdId, { incarnation: string; at: number; answered: boolean }>();
  /** Peers whose lost connections are noticed. */
  private readonly watched = new WeakSet<Peer>();
  private timer: Timer | undefined;
  private stopped = false;

  constructor(private readonly options: HeartbeatOptions) {}

  start(): void {
    const { clock, heartbeatMs } = this.options;
    const due = clock.now() + heartbeatMs;
    this.timer = clock.setTimer(heartbeatMs, () => {
      if (clock.now() - due > LATE_BEATS * heartbeatMs) this.heardAt.clear();
      this.beat();
      this.start();
    });
  }
  stop(): void {
    this.stopped = true;
    this.timer?.cancel();
  }

  private beat(): void {
    const map = this.options.map();
    const own = osdOf(map, this.options.id);
    // Before that the map shows an earlier life.
    if (own?.incarnation !== this.options.incarnation) return;
    if (this.peers.epoch !== map.epoch) {
      this.peers = { epoch: map.epoch, ids: heartbeatPeers(map, this.options.id) };
    }
    const alive = this.peers.ids.filter((osd) => osdOf(map, osd)?.up === true);
    for (const osd of this.heardAt.keys()) if (!alive.includes(osd)) this.heardAt.delete(osd);
    for (const osd of alive) {
      this.judge(map, osd, own.up);
      if (!this.waiting.has(osd)) this.ping(map, osd);
    }
    if (!own.up && this.hearsMost(alive)) this.options.reportAlive();
  }

  private judge(map: ClusterMap, osd: OsdId, isUp: boolean): void {
    const { incarnation } = osdOf(map, osd)!;
    const now = this.options.clock.now();
    const heard = this.heardAt.get(osd);
    if (heard?.incarnation !== incarnation) {
      this.heardAt.set(osd, { incarnation, at: now, answered: false });
    } else if (isUp && now - heard.at >= this.options.graceMs) {
      this.options.report(osd, incarnation, true);
    }
  }

  private hearsMost(alive: readonly OsdId[]): boolean {
    const now = this.options.clock.now();
    const heard = alive.filter((osd) => {
      const { at, answered } = this.heardAt.get(osd)!;
      return answered && now - at < 2 * this.options.heartbeatMs;
    });
    return heard.length * 2 > alive.length || alive.length === 0;
  }

  private ping(map: ClusterMap, osd: OsdId): void {
    const entry = osdOf(map, osd);
    if (entry?.up !== true) return;
    const { incarnation } = entry;
    this.waiting.add(osd);
    const { messenger, graceMs, clock } = this.options;
    const peer = messenger.peer(entry.address);
    this.watch(peer, osd);
    peer.call(PingOsd, {}, { deadlineMs: graceMs }).then(
      ({ message }) => {
        this.waiting.delete(osd);
        this.heardAt.set(osd, { incarnation, at: clock.now(), answered: true });
        this.options.level(osd, message);
      },
      (error: unknown) => {
        this.waiting.delete(osd);
        if (!(error instanceof DssError)) throw error;
        const isUp = osdOf(this.options.map(), this.options.id)?.up === true;
        if (error.code === "Unreachable" && isUp) this.options.report(osd, incarnation, false);
      },
    );
  }

  /** A lost connection may be the end of its process: asked at once, not with the next beat. */
  private watch(peer: Peer, osd: OsdId): void {
    if (this.watched.has(peer)) return;
    this.watched.add(peer);
    peer.onUp((link) => {
      link.onClose(() => {
        if (this.stopped || this.waiting.has(osd)) return;
        const map = this.options.map();
        const entry = osdOf(map, osd);
        // The map says so already, or the address is another's by now.
        if (entry?.up !== true || this.options.messenger.peer(entry.address) !== peer) return;
        this.ping(map, osd);
      });
    });
  }
}

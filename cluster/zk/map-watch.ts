/**
 * The cluster map as ZooKeeper has it: a MapSource that watches /dss/map. Epochs only rise; a map
 * that cannot be read, is older, or is another cluster's is reported and ignored.
 */
import { DssError, describeError } from "../base/errors.js";
import type { Epoch } from "../base/ids.js";
import type { Logger } from "../base/log.js";
import type { ClusterMap, MapSource } from "../map/cluster-map.js";
import { decodeMap } from "../map/map-codec.js";
import type { Clock } from "../platform/ports.js";
import type { Coordination, Znode } from "./coordination.js";
import { MAP_PATH } from "./schema.js";
import { watchData, type Watch } from "./watch.js";

interface Waiter {
  epoch: Epoch;
  resolve(map: ClusterMap): void;
}

export class MapWatch implements MapSource {
  private map: ClusterMap | undefined;
  private fault: DssError | undefined;
  private readonly listeners = new Set<(map: ClusterMap) => void>();
  private readonly waiters = new Set<Waiter>();
  private readonly watch: Watch;

  constructor(
    private readonly coordination: Coordination,
    private readonly clock: Clock,
    private readonly log: Logger,
  ) {
    this.watch = watchData(coordination, MAP_PATH, log, (node) => this.onNode(node));
  }

  /** The newest map known; `atLeast(1, …)` must have resolved once. */
  current(): ClusterMap {
    if (!this.map) throw new DssError("NotFound", "no cluster map has been read yet");
    return this.map;
  }

  onChange(listener: (map: ClusterMap) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  /**
   * `deadlineMs` is milliseconds from now. Errors: TimedOut; Corrupt or IncompatibleVersion of the
   * first map.
   */
  async atLeast(epoch: Epoch, deadlineMs: number): Promise<ClusterMap> {
    if (this.map && this.map.epoch >= epoch) return this.map;
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        epoch,
        resolve: (map) => {
          timer.cancel();
          resolve(map);
        },
      };
      this.waiters.add(waiter);
      const timer = this.clock.setTimer(deadlineMs, () => {
        this.waiters.delete(waiter);
        reject(this.lateness(epoch, deadlineMs));
      });
      this.readNow().catch((error: unknown) => {
        // The watch delivers when ZooKeeper answers again; the deadline is the limit.
        this.log.debug({ error: describeError(error) }, "could not ask for a newer map");
      });
    });
  }

  /** No more deliveries. */
  close(): void {
    this.watch.stop();
    this.listeners.clear();
  }

  private lateness(epoch: Epoch, deadlineMs: number): DssError {
    if (this.fault && !this.map) return this.fault;
    if (!this.map) {
      return new DssError("TimedOut", `${this.coordination.servers} holds no cluster yet`, {
        hint: 'start a metadata server: "dss mds start ID"',
      });
    }
    const have = this.map.epoch;
    return new DssError("TimedOut", `map ${epoch} did not come in ${deadlineMs} ms (have ${have})`);
  }

  /** A read that sees everything committed before it, unlike the watch, which may lag. */
  private async readNow(): Promise<void> {
    await this.watch.refresh();
    if (this.waiters.size === 0) return;
    await this.coordination.sync();
    await this.watch.refresh();
  }

  private onNode(node: Znode | undefined): void {
    if (!node) {
      if (this.map) this.log.error({ path: MAP_PATH }, "the cluster map was deleted");
      return;
    }
    let map: ClusterMap;
    try {
      map = decodeMap(node.data);
    } catch (error) {
      this.fault = error instanceof DssError ? error : undefined;
      this.log.error({ error: describeError(error) }, "the cluster map cannot be used");
      return;
    }
    if (this.map && map.clusterId !== this.map.clusterId) {
      this.log.error({ ours: this.map.clusterId, found: map.clusterId }, "another cluster's map");
      return;
    }
    if (this.map && map.epoch <= this.map.epoch) {
      if (map.epoch < this.map.epoch) {
        this.log.error({ have: this.map.epoch, found: map.epoch }, "the cluster map went back");
      }
      return;
    }
    this.map = map;
    for (const listener of [...this.listeners]) listener(map);
    for (const waiter of [...this.waiters]) {
      if (map.epoch < waiter.epoch) continue;
      this.waiters.delete(waiter);
      waiter.resolve(map);
    }
  }
}

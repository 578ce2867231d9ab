/**
 * Tells the metadata leader now and then what the volumes of a server do, for `dss volume top`.
 * Nothing waits for it: figures that do not arrive are lost, the next ones follow.
 */
import { isDssError } from "../cluster/base/errors.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import type { Request, VolumeActivity } from "../mds/proto.js";
import type { BlockImage } from "./block-image.js";
import { VolumeImage } from "./image.js";
import type { Activity } from "./meter.js";

const EVERY_MS = 1_000;

export class ActivityReporter {
  private timer: Timer | undefined;
  private stopped = false;
  /** The leader has figures that are not empty. */
  private isKnown = false;

  constructor(
    private readonly parts: {
      clock: Clock;
      mds: { call(request: Request): Promise<unknown> };
      activity(): readonly { image: BlockImage; activity: Activity }[];
    },
  ) {}

  start(): void {
    if (this.stopped) return;
    this.timer = this.parts.clock.setTimer(EVERY_MS, () => {
      void this.report().finally(() => this.start());
    });
  }
  stop(): void {
    this.stopped = true;
    this.timer?.cancel();
  }

  private async report(): Promise<void> {
    const volumes: VolumeActivity[] = [];
    for (const { image, activity } of this.parts.activity()) {
      if (image instanceof VolumeImage) volumes.push({ volume: image.volume.id, ...activity });
    }
    if (volumes.length === 0 && !this.isKnown) return;
    try {
      await this.parts.mds.call({ op: "volumeReport", volumes });
      this.isKnown = volumes.length > 0;
    } catch (error) {
      // No leader, or the session is over, which others notice too.
      if (!isDssError(error)) throw error;
    }
  }
}

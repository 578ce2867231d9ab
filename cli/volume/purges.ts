/** What the leader does to volumes in the background: deletes, rollbacks, making independent. */
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { VolumePurge } from "../../mds/proto.js";
import { Progress } from "../progress.js";

const LOOK_MS = 100;

export function describePurge({ name, what, shrinking }: VolumePurge): string {
  if (what === "clones") return `freeing the space of removed snapshots of ${name}`;
  if (what === "rollback") return `rolling ${name} back`;
  if (what === "flatten") return `making ${name} independent of its parent`;
  return shrinking ? `shrinking ${name}` : `freeing the space of ${name}, which was removed`;
}
export function percentOf({ done, total }: VolumePurge): number {
  return total === 0 ? 0 : Math.floor((100 * done) / total);
}

/** Waits until nothing is done to the volume any more, and shows how far that is. */
export async function purged(mds: MdsClient, volume: number, title: string): Promise<void> {
  const progress = new Progress(title);
  try {
    for (;;) {
      const { answer } = await mds.call({ op: "volumeList" });
      const purge = answer.volumePurges?.find((each) => each.volume === volume);
      if (purge === undefined) return;
      const { done, total } = purge;
      progress.update(done, Math.max(total, 1), `${percentOf(purge)} % of its objects`);
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  } finally {
    progress.end();
  }
}

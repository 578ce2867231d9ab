/** Which parts of a volume may differ between two of its snapshots: asked of the OSDs, unread. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import { pgId } from "../../cluster/base/ids.js";
import { isObjectOf, listedFrom, objectIndex } from "../../cluster/base/object-name.js";
import { osdOf, poolOf } from "../../cluster/map/cluster-map.js";
import type { VolumeImage } from "../../nbd/image.js";
import { isSameAt } from "../../nbd/object-versions.js";
import { objectCount } from "../../osd/client/striper.js";
import type { ClusterClient } from "../context.js";
import { useCluster } from "../options.js";
import { inOrder } from "./transfer.js";

/** Of a larger volume placement groups are asked which objects there are. */
const EVERY_MAX = 65_536;
const LIST_LIMIT = 10_000;
/** Objects asked about at a time. */
const PART = 64;

/**
 * Indexes of objects that may differ, ascending; `from` and `to` are snapshot ids, 0 is now. The
 * image is of the volume, at whatever snapshot.
 */
export async function* changedObjects(
  command: Command,
  image: VolumeImage,
  { from, to, size }: { from: number; to: number; size: number },
): AsyncGenerator<number> {
  const count = objectCount(image.volume.layout, size);
  const indexes =
    count <= EVERY_MAX
      ? upTo(count)
      : await useCluster(command, (client) => listed(client, image, count));
  const parts = inOrder(partsOf(indexes), async (part) => {
    const states = await Promise.all(part.map((index) => image.objectState(index)));
    return part.filter((_, i) => !isSameAt(states[i]!, from, to));
  });
  for await (const part of parts) yield* part;
}

function* upTo(count: number): Generator<number> {
  for (let index = 0; index < count; index++) yield index;
}
function* partsOf(indexes: Iterable<number>): Generator<number[]> {
  let part: number[] = [];
  for (const index of indexes) {
    part.push(index);
    if (part.length < PART) continue;
    yield part;
    part = [];
  }
  if (part.length > 0) yield part;
}

/** What the volume does not have itself has not changed. */
async function listed(client: ClusterClient, image: VolumeImage, count: number): Promise<number[]> {
  const map = client.needMap();
  const { layout, objectPrefix } = image.volume;
  const pool = poolOf(map, layout.pool);
  if (pool === undefined) throw new DssError("NotFound", `pool ${layout.pool} is not there`);
  const found = new Set<number>();
  const first = listedFrom(objectPrefix);
  const list = async (index: number): Promise<void> => {
    const { primary, interval, inSync } = map.pgs[pool.id]![index]!;
    const osd = osdOf(map, primary);
    if (osd === undefined) {
      if (inSync.length === 0) return; // Never created: it holds nothing.
      throw new DssError(
        "NotActive",
        `placement group ${index} of pool ${pool.name} is not active`,
      );
    }
    for (let after = first; ;) {
      const request = { pg: pgId(pool.id, index), interval, after, limit: LIST_LIMIT };
      const objects = await client.listActive(osd, request);
      for (const { object } of objects) {
        if (isObjectOf(objectPrefix, object)) found.add(objectIndex(object));
      }
      const last = objects.at(-1);
      if (last === undefined || objects.length < LIST_LIMIT) return;
      if (!last.object.startsWith(first)) return;
      after = last.object;
    }
  };
  await Promise.all((map.pgs[pool.id] ?? []).map((_, index) => list(index)));
  return [...found].filter((index) => index < count).sort((a, b) => a - b);
}

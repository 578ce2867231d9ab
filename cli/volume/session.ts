/** What the commands of `dss volume` share: a session with the leader, a volume's record. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import type { Actor, Volume, VolumeSnapshot } from "../../mds/proto.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { ClusterClient } from "../context.js";
import { useCluster } from "../options.js";

/** Runs the action in a short session with the metadata leader. */
export async function inSession<T>(
  command: Command,
  action: (mds: MdsClient, client: ClusterClient) => Promise<T>,
): Promise<T> {
  return await useCluster(command, async (client) => {
    client.needMap();
    return await client.withSession("dss volume", (mds) => action(mds, client));
  });
}

export async function infoOf(mds: MdsClient, name: string): Promise<Volume> {
  const { volume } = (await mds.call({ op: "volumeInfo", name })).answer;
  if (volume !== undefined) return volume;
  throw new DssError("Malformed", `the metadata server did not say what ${name} is`);
}

/** The snapshot with this name of a volume. Errors: NotFound. */
export function snapshotOf(volume: Volume, name: string): VolumeSnapshot {
  const found = volume.snapshots.find((each) => each.name === name);
  if (found !== undefined) return found;
  throw new DssError("NotFound", `there is no snapshot ${volume.name}@${name}`, {
    hint: `see dss volume snap ls ${volume.name}`,
  });
}

export const dateOf = (ns: bigint): string => new Date(Number(ns / 1_000_000n)).toISOString();

/** NAME@SNAPSHOT that it was cloned from; undefined: it is independent. */
export function parentOf({ ancestors }: Volume): string | undefined {
  const [parent] = ancestors;
  return parent && `${parent.name}@${parent.snapshot}`;
}

export const viewOf = (volume: Volume): object => ({
  id: volume.id,
  name: volume.name,
  size: volume.size,
  pool: volume.layout.pool,
  objectSize: volume.layout.objectSize,
  stripeUnit: volume.layout.stripeUnit,
  stripeCount: volume.layout.stripeCount,
  objectPrefix: volume.objectPrefix,
  features: volume.features,
  snapshots: volume.snapshots.map(({ name }) => name),
  parent: parentOf(volume) ?? null,
  overlap: volume.parent?.overlap ?? null,
  flattening: volume.isFlattening,
  clones: volume.children.map(({ name }) => name),
  shrinkingTo: volume.shrinkTo === 0 ? null : volume.shrinkTo,
  iops: volume.iopsLimit,
  bandwidth: volume.bandwidthLimit,
  created: dateOf(volume.createdNs),
  owner: volume.owner,
  ownerSince: volume.owner === "" ? "" : dateOf(volume.ownerSinceNs),
});

/** Names of the volumes that were cloned from a snapshot of this one. */
export const clonesOf = ({ children }: Volume, { id }: VolumeSnapshot): string[] =>
  children.filter((child) => child.snap === id).map((child) => child.name);

export function snapshotViewOf(snapshot: VolumeSnapshot, volume: Volume): object {
  const { id, name, size, createdNs, isProtected } = snapshot;
  return {
    ...{ id, name, size, created: dateOf(createdNs), protected: isProtected },
    clones: clonesOf(volume, snapshot),
  };
}

/** Who does it, and when. */
export function actorOf(): Actor {
  return {
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    timeNs: BigInt(Date.now()) * 1_000_000n,
  };
}

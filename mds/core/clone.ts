/**
 * Clones of volumes (design §8): volumes that begin as what another one was at a snapshot, and
 * have its objects until they change them (docs/decisions/0010). Pure.
 *
 * Invariant: a snapshot that a volume names as its parent exists, so that nothing of it is ever
 * collected.
 */
import { DssError } from "../../cluster/base/errors.js";
import { ANCESTORS_MAX, clonePrefix } from "../../cluster/base/object-name.js";
import type { Request, Volume, VolumeAncestor, VolumeSnapshot } from "../proto.js";
import type { Access } from "./capability.js";
import type { Delta } from "./delta.js";
import { Draft } from "./draft.js";
import type { Metadata } from "./metadata.js";
import { NO_WRITER, volumePageKey, type PurgeEntry, type VolumeRecord } from "./page.js";
import { emptyPlan, type Plan } from "./plan.js";
import { snapshotNamed } from "./snapshot.js";
import { checkName, VOLUMES_KEY, wholeOf, type Volumes } from "./volume.js";

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;
export type CloneRequest = Of<"volumeClone" | "volumeFlatten">;
export function isCloneRequest(request: Request): request is CloneRequest {
  return request.op === "volumeClone" || request.op === "volumeFlatten";
}

export class Clones {
  constructor(
    private readonly metadata: Metadata,
    private readonly volumes: Volumes,
  ) {}

  plan(access: Access, request: CloneRequest): Plan {
    access.see(VOLUMES_KEY);
    return request.op === "volumeClone" ? this.clone(request) : this.flatten(request);
  }

  private clone({ name, snapshot, newName, actor }: Of<"volumeClone">): Plan {
    const parent = this.volumes.named(name);
    const { id: snap, size } = snapshotNamed(parent, snapshot);
    checkName(newName);
    this.volumes.refuseTaken(newName);
    if (ancestorsOf(this.metadata, parent).length + 1 > ANCESTORS_MAX) {
      const text = `${name}@${snapshot} is the end of ${ANCESTORS_MAX} clones of clones`;
      throw new DssError("TooBig", text, {
        hint: `make it independent first: dss volume flatten ${name}`,
      });
    }
    const draft = new Draft(this.metadata);
    const id = Math.max(1, draft.counter("nextVolume"));
    draft.setCounter("nextVolume", id + 1);
    const { layout, objectPrefix } = parent;
    const volume: VolumeRecord = {
      ...{ id, name: newName, size, layout, createdNs: actor.timeNs },
      objectPrefix: clonePrefix(objectPrefix, id),
      parent: { volume: parent.id, snap, overlap: size },
      features: [],
      ...{ revision: 1, shrinkTo: 0, iopsLimit: 0, bandwidthLimit: 0, isFlattening: false },
      ...{ writer: NO_WRITER, snapSeq: 0, snapshots: [], rollbackTo: 0 },
    };
    draft.add({ d: "volumePut", volume });
    this.metadata.cache.get(volumePageKey(id));
    return {
      ...emptyPlan(),
      record: draft.finish(),
      answer: { volume: this.volumes.describe(volume) },
      hides: [VOLUMES_KEY],
      durable: true,
    };
  }

  /** Also of a volume in use: nobody sees a difference. */
  private flatten({ name }: Of<"volumeFlatten">): Plan {
    const volume = this.volumes.named(name);
    if (volume.isFlattening) {
      return { ...emptyPlan(), answer: { volume: this.volumes.describe(volume) } };
    }
    if (volume.parent === null) {
      throw new DssError("InvalidArgument", `volume ${name} has no parent: it is independent`);
    }
    this.volumes.refuseRest(volume);
    const draft = new Draft(this.metadata);
    draft.purge({ ...wholeOf(volume), what: "flatten", from: 0 });
    return this.volumes.change({ ...volume, isFlattening: true }, draft);
  }

  /** Facts for the journal when every object that the volume's parent has is its own. */
  flattened(entry: PurgeEntry): Delta[] {
    const volume = this.metadata.volume(entry.volume);
    if (entry.what !== "flatten" || volume === undefined) return [];
    const revision = volume.revision + 1;
    const independent = { ...volume, parent: null, isFlattening: false, revision };
    return [{ d: "volumePut", volume: independent }];
  }
}

/** The parent, its parent, and so on: as far as volumes are not independent. */
export function ancestorsOf(metadata: Metadata, volume: VolumeRecord): VolumeAncestor[] {
  const ancestors: VolumeAncestor[] = [];
  for (let at = volume; at.parent !== null;) {
    const { snap } = at.parent;
    const parent = metadata.volume(at.parent.volume);
    const snapshot = parent?.snapshots.find(({ id }) => id === snap);
    if (parent === undefined || snapshot === undefined) {
      const text = `volume ${at.name} is a clone of volume ${at.parent.volume}`;
      throw new DssError("Corrupt", `${text} at snapshot ${snap}, which is not there`);
    }
    const { name, objectPrefix } = parent;
    const { name: taken, size } = snapshot;
    ancestors.push({ name, snapshot: taken, objectPrefix, snap, size });
    at = parent;
  }
  return ancestors;
}

/** The clones of a volume's snapshots. */
export function childrenOf(metadata: Metadata, volume: number): Volume["children"] {
  const children: Volume["children"] = [];
  for (const { name, parent } of metadata.volumes()) {
    if (parent?.volume === volume) children.push({ name, snap: parent.snap });
  }
  return children.sort((a, b) => (a.name < b.name ? -1 : 1));
}

const NAMED_MAX = 5;
/** Errors: Busy, with the names of those that need the snapshot. */
export function refuseChildren(
  metadata: Metadata,
  { id, name }: VolumeRecord,
  { id: snap, name: snapshot }: VolumeSnapshot,
): void {
  const children = childrenOf(metadata, id).filter((child) => child.snap === snap);
  if (children.length === 0) return;
  const named = children.slice(0, NAMED_MAX).map((child) => child.name);
  const rest = children.length - named.length;
  const who = `${named.join(", ")}${rest > 0 ? ` and ${rest} more` : ""}`;
  const text = `snapshot ${name}@${snapshot} has clones: ${who}`;
  throw new DssError("Busy", text, {
    hint: "make them independent (dss volume flatten NAME) or remove them first",
  });
}

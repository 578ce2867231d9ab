/**
 * Snapshots of volumes (design §8). Pure. Their ids rise and are never used again.
 *
 * Whoever writes to a volume has a capability of its *context*: while it has it, it changes objects
 * under the snapshots that its record of the volume names. A change of the snapshots recalls
 * it: the holder stops, lets what is under way end, gives it back, and asks for it with the new
 * record. A holder that does not answer is evicted, and fenced, as with any capability.
 */
import { DssError } from "../../cluster/base/errors.js";
import { SNAP_ID_MAX } from "../../cluster/base/object-name.js";
import { contextKey, type Request, type VolumeSnapshot } from "../proto.js";
import type { Access } from "./capability.js";
import { refuseChildren } from "./clone.js";
import type { Delta } from "./delta.js";
import { Draft } from "./draft.js";
import type { Metadata } from "./metadata.js";
import { emptyPlan, type Plan } from "./plan.js";
import type { PurgeEntry, VolumeRecord } from "./page.js";
import { VOLUMES_KEY, wholeOf, type Volumes } from "./volume.js";

/** A page has the records of several volumes and has to stay well below 1 MiB. */
export const VOLUME_SNAPSHOTS_MAX = 500;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;

type Of<Op extends Request["op"]> = Extract<Request, { op: Op }>;
export type SnapshotRequest = Of<
  "volumeSnapCreate" | "volumeSnapRemove" | "volumeSnapProtect" | "volumeRollback" | "volumeContext"
>;
export function isSnapshotRequest(request: Request): request is SnapshotRequest {
  return request.op.startsWith("volumeSnap") || OTHERS.has(request.op);
}
const OTHERS: ReadonlySet<string> = new Set(["volumeRollback", "volumeContext"]);

export class Snapshots {
  constructor(
    private readonly metadata: Metadata,
    private readonly volumes: Volumes,
  ) {}

  plan(access: Access, request: SnapshotRequest): Plan {
    access.see(VOLUMES_KEY);
    switch (request.op) {
      case "volumeSnapCreate":
        return this.create(access, request);
      case "volumeSnapRemove":
        return this.remove(access, request);
      case "volumeSnapProtect":
        return this.protect(request);
      case "volumeRollback":
        return this.rollback(access, request);
      case "volumeContext":
        return this.context(access, request);
    }
  }

  private create(access: Access, request: Of<"volumeSnapCreate">): Plan {
    const { name, snapshot, actor, origin = "" } = request;
    const volume = this.volumes.named(name);
    if (!NAME.test(snapshot)) {
      const text = `${JSON.stringify(snapshot)} is no name for a snapshot`;
      throw new DssError("InvalidArgument", text, {
        hint: "use 1 to 64 letters, digits, dots, underscores or hyphens, not beginning with . or -",
      });
    }
    this.volumes.refuseRest(volume);
    if (find(volume, snapshot) !== undefined) {
      throw new DssError("Exists", `snapshot ${name}@${snapshot} exists`, {
        hint: "choose another name, or remove it first: dss volume snap rm",
      });
    }
    if (volume.snapshots.length >= VOLUME_SNAPSHOTS_MAX || volume.snapSeq >= SNAP_ID_MAX) {
      throw new DssError("TooBig", `volume ${name} has ${volume.snapshots.length} snapshots`, {
        hint: "remove some: dss volume snap rm",
      });
    }
    this.drain(access, volume);
    const id = volume.snapSeq + 1;
    const { size } = volume;
    const taken: VolumeSnapshot = {
      ...{ id, name: snapshot, size, createdNs: actor.timeNs, isProtected: false, origin },
    };
    return this.volumes.change({
      ...volume,
      snapSeq: id,
      snapshots: [...volume.snapshots, taken],
    });
  }

  private remove(access: Access, { name, snapshot }: Of<"volumeSnapRemove">): Plan {
    const volume = this.volumes.named(name);
    const found = this.snapshotOf(volume, snapshot);
    if (found.isProtected) {
      throw new DssError("Busy", `snapshot ${name}@${snapshot} is protected`, {
        hint: `if you mean it: dss volume snap unprotect ${name}@${snapshot}`,
      });
    }
    refuseChildren(this.metadata, volume, found);
    this.volumes.refuseRest(volume);
    this.volumes.refuseUse(access, volume, found.id);
    // A holder with the old record would go on preserving objects for it.
    this.drain(access, volume);
    const draft = new Draft(this.metadata);
    draft.purge({ ...wholeOf(volume), what: "clones", from: 0 });
    const snapshots = volume.snapshots.filter(({ id }) => id !== found.id);
    return this.volumes.change({ ...volume, snapshots }, draft);
  }

  private protect({ name, snapshot, isProtected }: Of<"volumeSnapProtect">): Plan {
    const volume = this.volumes.named(name);
    const { id } = this.snapshotOf(volume, snapshot);
    const snapshots = volume.snapshots.map((each) =>
      each.id === id ? { ...each, isProtected } : each,
    );
    return this.volumes.change({ ...volume, snapshots });
  }

  private rollback(access: Access, { name, snapshot }: Of<"volumeRollback">): Plan {
    const volume = this.volumes.named(name);
    const { id, size } = this.snapshotOf(volume, snapshot);
    this.volumes.refuseRest(volume);
    this.volumes.refuseFlatten(volume);
    this.volumes.endUse(access, volume);
    const draft = new Draft(this.metadata);
    const bound = Math.max(volume.size, size);
    draft.purge({ ...wholeOf(volume), what: "rollback", from: 0, bound, snap: id });
    return this.volumes.change({ ...volume, rollbackTo: id }, draft);
  }

  /** Facts for the journal when every object is as it was. */
  rolledBack(entry: PurgeEntry): Delta[] {
    const volume = this.metadata.volume(entry.volume);
    if (entry.what !== "rollback" || volume?.rollbackTo !== entry.snap) return [];
    const size = volume.snapshots.find(({ id }) => id === entry.snap)?.size ?? volume.size;
    const revision = volume.revision + 1;
    return [{ d: "volumePut", volume: { ...volume, size, rollbackTo: 0, revision } }];
  }

  private context(access: Access, { id }: Of<"volumeContext">): Plan {
    const volume = this.metadata.volume(id);
    const isHolder = this.metadata.session(access.session)?.volumes.get(id) === true;
    if (volume === undefined || !isHolder) {
      throw new DssError("NotPermitted", `volume ${id} is not open for writing in this session`);
    }
    access.queue(contextKey(id));
    const answer = { volume: this.volumes.describe(volume) };
    return { ...emptyPlan(), answer, shared: [contextKey(id)] };
  }

  /** Nobody issues changes under the volume's present snapshots when this is not waited for. */
  private drain(access: Access, { id, name }: VolumeRecord): void {
    const key = contextKey(id);
    if (access.capabilities.mode(access.session, key) !== "none") {
      throw new DssError("Busy", `volume ${name} is open for writing in this very session`);
    }
    access.change(key);
  }
  private snapshotOf(volume: VolumeRecord, name: string): VolumeSnapshot {
    return snapshotNamed(volume, name);
  }
}

function find(volume: VolumeRecord, name: string): VolumeSnapshot | undefined {
  return volume.snapshots.find((each) => each.name === name);
}
export function snapshotNamed(volume: VolumeRecord, name: string): VolumeSnapshot {
  const found = find(volume, name);
  if (found !== undefined) return found;
  throw new DssError("NotFound", `there is no snapshot ${volume.name}@${name}`, {
    hint: `see dss volume snap ls ${volume.name}`,
  });
}

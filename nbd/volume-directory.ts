/**
 * The cluster's volumes as NBD exports. A volume is opened with the MDS (for writing under its
 * exclusive lock) when a client asks for it, or earlier by `hold`, and given back when no client
 * uses it any more, or at the end.
 *
 * Invariants: an image works under one metadata session, the one that opened it, and sends its
 * requests under that session's id; when the session ends by eviction all its images are lost for
 * good, because others may have the locks. A volume has one image, also when it is opened by an old
 * and a new name; it keeps the name under which it was opened first. Owner of the open images.
 */
import { DssError, isDssError } from "../cluster/base/errors.js";
import type { ClientId } from "../cluster/base/ids.js";
import type { Clock } from "../cluster/platform/ports.js";
import { NO_CACHE, type SessionCache } from "../mds/client/session-cache.js";
import {
  contextKey,
  volumeUse,
  type Answer,
  type Grant,
  type MdsReply,
  type Recall,
  type Released,
  type Request,
  type Volume,
} from "../mds/proto.js";
import type { ObjectAccess } from "../osd/client/object-access.js";
import type { BlockImage, ExportDirectory, ExportEntry } from "./block-image.js";
import { VolumeImage } from "./image.js";

/** The part of `MdsClient` that volumes need. */
export interface VolumeSession {
  /** 0 while there is none. */
  readonly client: ClientId;
  call(request: Request, options?: { wait?: "unsafe" | "safe" }): Promise<MdsReply>;
  setCache(cache: SessionCache): void;
  release(released: Released): boolean;
}

export interface SessionAccess extends ObjectAccess {
  close(): void;
}

export interface VolumeLocking {
  /** Takes the lock away from its owner, who is fenced first. */
  readonly force?: boolean;
  /** Line of succession of this server. */
  readonly holder?: string;
  /** An earlier server of the line had the volume, and its clients go on. */
  readonly continues?: boolean;
}

const CONTEXT_AGAIN_MS = 50;

export interface VolumeDirectoryOptions {
  readonly mds: VolumeSession;
  readonly clock: Clock;
  /** Access to objects under this id; it is closed when the session is over. */
  readonly accessAs: (client: ClientId) => SessionAccess;
  /** The only volumes that clients may use; empty: all. */
  readonly names: readonly string[];
  readonly readOnly: boolean;
  /** How locks are asked for; see `volumeOpen`. */
  readonly lock?: VolumeLocking;
  /** The session was ended by the leader while these volumes were open: they are lost. */
  readonly onLost: (error: DssError) => void;
}

export class VolumeDirectory implements ExportDirectory {
  /** Open images and how often each was opened. */
  private readonly images = new Map<VolumeImage, number>();
  /** Openings under way: one may be of a volume that is about to be given back. */
  private readonly openings = new Set<Promise<unknown>>();
  /** Open whether or not a client uses them, by name. */
  private readonly held = new Map<string, VolumeImage>();
  private access: { client: ClientId; objects: SessionAccess } | undefined;
  /** Rights to change objects under the snapshots that are known, by `contextKey`. */
  private readonly contexts = new Map<number, Grant>();
  /** The newest number under which each was given back. */
  private readonly given = new Map<number, number>();

  constructor(private readonly options: VolumeDirectoryOptions) {
    options.mds.setCache({
      ...NO_CACHE,
      evicted: (reason) => this.onEvicted(reason),
      held: () => [...this.contexts.values()],
      apply: (_, { grants }) => {
        for (const grant of grants) {
          // A recall may have overtaken it.
          if (grant.seq > (this.given.get(grant.ino) ?? 0)) this.contexts.set(grant.ino, grant);
        }
      },
      recall: (recall) => this.onRecall(recall),
      volumeChanged: (volume) => this.onChanged(volume),
      // What was told over a lost connection is asked for.
      resumed: () => void this.refresh(),
    });
  }

  async list(): Promise<ExportEntry[]> {
    const { volumes = [] } = await this.ask({ op: "volumeList" });
    return volumes
      .filter(({ name }) => this.isOffered(name))
      .map(({ name, id }) => ({ name, description: `dss volume ${id}` }));
  }

  async open(name: string): Promise<VolumeImage> {
    const held = this.held.get(name);
    if (held !== undefined) return held;
    if (!this.isOffered(name)) {
      throw new DssError("NotFound", `volume ${name} is not offered by this server`);
    }
    const opening = this.openNew(name);
    this.openings.add(opening);
    try {
      return await opening;
    } finally {
      this.openings.delete(opening);
    }
  }
  private async openNew(name: string): Promise<VolumeImage> {
    const { mds, clock, lock } = this.options;
    const readOnly = this.options.readOnly || name.includes("@");
    const locking = readOnly ? {} : lock;
    const current = await this.nameInLine(name);
    const request = { op: "volumeOpen", name: current, write: !readOnly } as const;
    const answer = await this.ask({ ...request, ...locking });
    const { volume, minEpoch = 0 } = answer;
    if (volume === undefined) {
      throw new DssError("Malformed", `the metadata server did not say what ${name} is`);
    }
    for (const [image, count] of this.images) {
      if (volumeUse(image.volume) !== volumeUse(volume)) continue;
      this.images.set(image, count + 1);
      image.update(volume);
      return image;
    }
    // The reply is the present session's: those of an evicted one fail.
    const access = this.accessAs(mds.client);
    const renew = (stale: VolumeImage): Promise<void> => this.takeContext(stale);
    const image = new VolumeImage({ volume, access, clock, readOnly, minEpoch, renew });
    this.images.set(image, 1);
    if (!readOnly && !this.contexts.has(contextKey(volume.id))) {
      // Its snapshots are being changed just now.
      await image.gate.close();
      await this.takeContext(image).catch((error: unknown) => {
        this.images.delete(image);
        throw error;
      });
    }
    return image;
  }

  /** The leader changes the volume's snapshots: what is under way ends first. */
  private onRecall(recall: Recall): void {
    const { ino, seq } = recall;
    const held = this.contexts.get(ino);
    if (held !== undefined && held.seq > seq) return;
    const image = [...this.images.keys()].find(
      (each) => !each.readOnly && contextKey(each.volume.id) === ino,
    );
    // It was given back already, or it is not used yet.
    if (held === undefined || image === undefined) this.giveBackContext(ino, seq);
    else if (image.gate.isOpen) void this.yieldContext(image, recall);
  }
  private giveBackContext(ino: number, seq: number): void {
    this.contexts.delete(ino);
    this.given.set(ino, seq);
    this.options.mds.release({ ino, mode: "none", seq, open: false });
  }
  private async yieldContext(image: VolumeImage, { ino, seq }: Recall): Promise<void> {
    // Who cannot tell what is under way lets itself be fenced.
    if (!(await image.gate.close())) return;
    this.giveBackContext(ino, seq);
    if (!this.images.has(image)) return;
    try {
      await this.takeContext(image);
    } catch (error) {
      if (!isDssError(error)) throw error;
      image.lose(error);
      image.gate.open();
    }
  }
  /** Goes on under the snapshots that there are now. */
  private async takeContext(image: VolumeImage): Promise<void> {
    const { id } = image.volume;
    for (;;) {
      const { volume } = await this.ask({ op: "volumeContext", id });
      if (volume !== undefined) image.update(volume);
      if (this.contexts.has(contextKey(id))) break;
      // They are about to change again.
      await new Promise<void>((done) => void this.options.clock.setTimer(CONTEXT_AGAIN_MS, done));
    }
    image.gate.open();
  }

  /** What the volume is called by now that an earlier server of this line has opened as `name`. */
  private async nameInLine(name: string): Promise<string> {
    const { lock } = this.options;
    if (lock?.continues !== true || lock.holder === undefined) return name;
    const { volumes = [] } = await this.ask({ op: "volumeList" });
    return volumes.find(({ writer }) => writer.holder === lock.holder)?.name ?? name;
  }

  async close(image: BlockImage): Promise<void> {
    if ([...this.held.values()].some((held) => held === image)) return; // By whatever name.
    await this.giveBack(image);
  }

  /** Opens the volume at once and keeps it until `release`. Errors: those of `open`. */
  async hold(name: string): Promise<void> {
    this.held.set(name, await this.open(name));
  }

  /** Gives back what is held; after the last use of the directory. */
  async release(): Promise<void> {
    const images = [...this.held.values()];
    this.held.clear();
    await Promise.all(images.map((image) => this.giveBack(image)));
  }

  /** Requests under way fail; nothing can be opened under this session any more. */
  shutDown(): void {
    this.access?.objects.close();
  }

  private async giveBack(image: BlockImage): Promise<void> {
    if (!(image instanceof VolumeImage)) return;
    // The leader would answer an opening of the same volume first and then take its lock away.
    while (this.openings.size > 0 && this.images.get(image) === 1) {
      await Promise.allSettled(this.openings);
    }
    const count = this.images.get(image);
    if (count === undefined) return; // A lost one is not ours to give back.
    if (count > 1) {
      this.images.set(image, count - 1);
      return;
    }
    this.images.delete(image);
    const ino = contextKey(image.volume.id);
    const held = image.readOnly ? undefined : this.contexts.get(ino);
    if (held !== undefined) this.giveBackContext(ino, held.seq);
    await this.ask({ op: "volumeClose", id: volumeUse(image.volume) });
  }

  private isOffered(name: string): boolean {
    const { names } = this.options;
    return names.length === 0 || names.includes(name);
  }

  private accessAs(client: ClientId): SessionAccess {
    if (client === 0) throw new DssError("NoSession", "there is no session with the MDS");
    if (this.access?.client !== client) {
      this.access = { client, objects: this.options.accessAs(client) };
    }
    return this.access.objects;
  }

  private onChanged(volume: Volume): void {
    for (const image of this.images.keys()) image.update(volume);
  }
  private async refresh(): Promise<void> {
    if (this.images.size === 0) return;
    try {
      const { volumes = [] } = await this.ask({ op: "volumeList" });
      for (const volume of volumes) this.onChanged(volume);
    } catch (error) {
      // The session ended again or is closing: the next one asks anew.
      if (!isDssError(error)) throw error;
    }
  }

  private onEvicted(reason: DssError): void {
    const lost = [...this.images.keys()];
    this.images.clear();
    this.held.clear();
    this.contexts.clear();
    for (const image of lost) {
      image.lose(reason);
      image.gate.open();
    }
    this.access?.objects.close();
    this.access = undefined;
    if (lost.length > 0) {
      const names = lost.map((image) => image.name).join(", ");
      this.options.onLost(
        new DssError("Fenced", `lost the right to use ${names}: evicted by the metadata server`, {
          cause: reason,
          hint: "start the server again",
        }),
      );
    }
  }

  private async ask(request: Request): Promise<Answer> {
    return (await this.options.mds.call(request, { wait: "safe" })).answer;
  }
}

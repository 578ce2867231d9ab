/**
 * A daemon's liveness znode: ephemeral, replaced as a whole, made again after the session expired.
 * A restarted daemon takes its predecessor's node over at once (same id and, for an OSD, same
 * store).
 */
import { DssError, describeError, isDssError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import {
  decodeMdsInfo,
  decodeOsdInfo,
  encodeInfo,
  type MdsInfo,
  type OsdInfo,
} from "../map/daemon-info.js";
import type { RandomSource } from "../platform/ports.js";
import type { Coordination, CoordinationOp, Znode } from "./coordination.js";
import { LIVE_MDS_PATH, LIVE_OSD_PATH, liveMdsPath, liveOsdPath } from "./schema.js";
import { watchData, watchDirectory, type Watch } from "./watch.js";

export interface Registration {
  /** Removes the znode: the daemon leaves in good order. */
  close(): Promise<void>;
}

export interface RegistrationEvents {
  /** A later start of the same daemon has taken the place: this process must end. */
  onReplaced(): void;
}

/** A name for one start of a daemon. */
export function newIncarnation(random: RandomSource): string {
  return random.bytes(8).toString("hex");
}

const ATTEMPTS_MAX = 20;

/**
 * Errors: Conflict when a daemon with another store is registered under this id; those of a
 * request.
 */
export async function registerOsd(
  coordination: Coordination,
  info: OsdInfo,
  events: RegistrationEvents,
  log: Logger,
): Promise<Registration> {
  const path = liveOsdPath(info.id);
  return new Registered(coordination, path, encodeInfo(info), events, log, (node) => {
    const other = decodeOsdInfo(node.data, path);
    if (other.uuid === info.uuid) return other.incarnation === info.incarnation;
    const { host, port } = other.address;
    const message = `osd.${info.id} is running with another store at ${host}:${port}`;
    throw new DssError("Conflict", message, { hint: "stop that daemon, or choose another id" });
  }).begin();
}

/** Errors: those of a request. */
export async function registerMds(
  coordination: Coordination,
  info: MdsInfo,
  events: RegistrationEvents,
  log: Logger,
): Promise<Registration> {
  const path = liveMdsPath(info.id);
  return new Registered(coordination, path, encodeInfo(info), events, log, (node) => {
    return decodeMdsInfo(node.data, path).incarnation === info.incarnation;
  }).begin();
}

class Registered implements Registration {
  private watch: Watch | undefined;
  private unsubscribe: (() => void) | undefined;
  private isClosed = false;

  constructor(
    private readonly coordination: Coordination,
    private readonly path: string,
    private readonly data: Buffer,
    private readonly events: RegistrationEvents,
    private readonly log: Logger,
    /** Is this our own node? Throws if it must not be replaced. */
    private readonly isOurs: (node: Znode) => boolean,
  ) {}

  async begin(): Promise<this> {
    await this.take();
    this.watch = watchData(this.coordination, this.path, this.log, (node) => this.onChange(node));
    this.unsubscribe = this.coordination.onEvent((event) => {
      if (event === "connected") this.retake();
    });
    return this;
  }

  async close(): Promise<void> {
    if (this.isClosed) return;
    this.stop();
    if (this.coordination.state === "closed") return;
    const node = await this.coordination.get(this.path);
    if (!node || node.ephemeralOwner !== this.coordination.sessionId) return;
    await this.coordination.remove(this.path, node.version).catch((error: unknown) => {
      if (!isDssError(error, "NotFound")) throw error;
    });
  }

  /** Makes the node ours: the predecessor's is removed in the same transaction. */
  private async take(): Promise<void> {
    for (let attempt = 1; !this.isClosed; attempt++) {
      const present = await this.coordination.get(this.path);
      const isOurs = present !== undefined && this.isOurs(present);
      if (isOurs && present.ephemeralOwner === this.coordination.sessionId) return;
      const ops: CoordinationOp[] = [
        { op: "create", path: this.path, data: this.data, ephemeral: true },
      ];
      if (present) ops.unshift({ op: "remove", path: this.path, version: present.version });
      try {
        await this.coordination.multi(ops);
        return;
      } catch (error) {
        // A race, or an unknown outcome: the next look tells.
        const isRace = isDssError(error, "Exists") || isDssError(error, "Conflict");
        const isWorthAnother =
          isRace || isDssError(error, "NotFound") || isDssError(error, "ConnectionLost");
        if (!isWorthAnother || attempt >= ATTEMPTS_MAX) throw error;
        // The folder may be missing.
        const folder = this.path.slice(0, this.path.lastIndexOf("/"));
        if (!isRace) await this.coordination.ensurePath(folder);
      }
    }
  }

  private onChange(node: Znode | undefined): void {
    if (this.isClosed) return;
    let isOurs: boolean;
    try {
      isOurs = node !== undefined && this.isOurs(node);
    } catch (error) {
      this.log.error({ path: this.path, error: describeError(error) }, "registration was taken");
      isOurs = false;
    }
    if (node && !isOurs) {
      this.stop();
      this.events.onReplaced();
      return;
    }
    if (node?.ephemeralOwner === this.coordination.sessionId) return;
    this.log.warn({ path: this.path }, "the registration vanished; registering again");
    this.retake();
  }

  private retake(): void {
    this.take().catch((error: unknown) => {
      // The next connection tries again.
      this.log.warn({ path: this.path, error: describeError(error) }, "could not register again");
    });
  }

  private stop(): void {
    this.isClosed = true;
    this.watch?.stop();
    this.unsubscribe?.();
  }
}

/**
 * All OSDs alive, now and after every change. Nodes that cannot be read are logged and left out.
 */
export function watchLiveOsds(
  coordination: Coordination,
  log: Logger,
  listener: (infos: OsdInfo[]) => void,
): Watch {
  return watchInfos(coordination, LIVE_OSD_PATH, log, decodeOsdInfo, listener);
}

/** All MDSs alive, leader and standbys. */
export function watchLiveMdss(
  coordination: Coordination,
  log: Logger,
  listener: (infos: MdsInfo[]) => void,
): Watch {
  return watchInfos(coordination, LIVE_MDS_PATH, log, decodeMdsInfo, listener);
}

function watchInfos<T extends { id: number }>(
  coordination: Coordination,
  path: string,
  log: Logger,
  decode: (data: Buffer, what: string) => T,
  listener: (infos: T[]) => void,
): Watch {
  return watchDirectory(coordination, path, log, (children) => {
    const infos: T[] = [];
    for (const [name, node] of children) {
      try {
        const info = decode(node.data, `${path}/${name}`);
        if (String(info.id) === name) infos.push(info);
        else log.error({ path, name, id: info.id }, "a liveness node under the wrong name");
      } catch (error) {
        log.error({ error: describeError(error) }, "a liveness node cannot be read");
      }
    }
    listener(infos.sort((a, b) => a.id - b.id));
  });
}

/**
 * A mount's session outlives the process that used it (design §6, §7): the next worker of the same
 * mount takes it over, with its open and unlinked files, its locks and its requests.
 *
 * 1. *Admission.* The predecessor's object operations are fenced and its connection is cut; the new
 *    worker gets an id of its own for object operations, which is journaled with its generation.
 *    From then on the predecessor is refused, should it live. What it held stays held.
 * 2. The worker claims open files and locks (`SessionOpen`) and sends again, under their numbers,
 *    the requests that are not known to be safe; the leader knows those it has executed.
 * 3. *End.* Everything that the predecessor did under its capabilities has been told: they end. Of
 *    files that it may have written since their sizes were told last, the objects tell.
 *
 * Invariants: nobody is given anything of what the session holds before that end, so changes that
 * the predecessor made alone and that only its record knew come first; a lock that the worker does
 * not claim was not known to any program. Owns: lock requests of dead workers that must not run.
 */
import { DssError } from "../cluster/base/errors.js";
import type { ClientId, Ino } from "../cluster/base/ids.js";
import type { Logger } from "../cluster/base/log.js";
import { inParallel } from "../cluster/base/parallel.js";
import type { Incoming, Link } from "../cluster/messenger/messenger.js";
import type { CapabilityTable } from "./core/capability.js";
import type { Metadata } from "./core/metadata.js";
import { endGrants, type Recovered } from "./core/session.js";
import type { LockService } from "./lock-service.js";
import type { Operations } from "./operations.js";
import type { MdsCall, MdsReply, SessionOpen, TakenOver } from "./proto.js";

/** Files whose objects are asked at the same time. */
const PROBES_MAX = 16;
const LOCK_OPERATIONS = new Set(["lock", "unlock", "lockTest", "lockCancel"]);

type Call = Incoming<MdsCall, MdsReply>;
/** What of a live session a takeover is about. */
export interface TakenSession {
  readonly id: ClientId;
  link: Link | undefined;
  requests: Map<number, { incoming: Call; reply?: MdsReply }>;
  replays: Promise<void>;
  restoring: boolean;
  taking: Promise<void> | undefined;
  evicting: Promise<void> | undefined;
  recalls: Map<Ino, unknown>;
}

export class Takeovers {
  private readonly void = new WeakSet<Call>();

  constructor(
    private readonly parts: {
      metadata: Metadata;
      operations: Operations;
      capabilities: CapabilityTable;
      locks: LockService;
      logger: Logger;
      /** Resolves when the fence is in the map; later grants name its epoch. */
      fence(client: ClientId): Promise<void>;
      allocateClient(): Promise<ClientId>;
      safe(seq: number): Promise<void>;
      probe(id: ClientId, ino: Ino): Promise<Recovered | undefined>;
    },
  ) {}

  /**
   * Lets the session's present worker, or a later one, go on with it. Errors: Conflict (there is a
   * later one), NoSession, those of the fence.
   */
  async admit(session: TakenSession, open: SessionOpen): Promise<void> {
    const { metadata } = this.parts;
    const generation = open.generation ?? 0;
    // It may have asked before, over a connection that was lost. How that ended its asker is told.
    while (session.taking !== undefined) await session.taking.catch(() => undefined);
    const known = metadata.session(session.id)?.generation ?? generation;
    if (generation < known) {
      throw new DssError("Conflict", "a later worker of this mount has taken its session over");
    }
    if (generation > known) {
      session.taking = this.take(session, open, generation).finally(() => {
        session.taking = undefined;
      });
      await session.taking;
    }
    if (session.evicting !== undefined) throw sessionOver(session);
  }

  private async take(session: TakenSession, open: SessionOpen, generation: number): Promise<void> {
    const { metadata, operations, locks, logger } = this.parts;
    const { id } = session;
    const started = metadata.session(id);
    if (started === undefined) throw sessionOver(session);
    session.link?.destroy();
    // It would give a lock to somebody who is no more. Changes are asked for again by number.
    for (const { incoming, reply } of session.requests.values()) {
      const { op } = incoming.message.request;
      if (reply === undefined && LOCK_OPERATIONS.has(op)) this.void.add(incoming);
    }
    await this.parts.fence(started.worker);
    const worker = await this.parts.allocateClient();
    if (session.evicting !== undefined) throw sessionOver(session);
    const seq = await operations.change(() => {
      if (metadata.session(id) === undefined) throw sessionOver(session);
      return [{ d: "sessionWorker", id, worker, generation, pid: open.pid }];
    });
    await this.parts.safe(seq);
    session.restoring = true;
    locks.retain(id, open);
    logger.warn({ client: id, worker, generation }, "another worker goes on with a session");
  }

  /** Refuses what a dead worker had asked for and nobody may get any more. */
  checkAlive(incoming: Call | undefined): void {
    if (incoming === undefined || !this.void.has(incoming)) return;
    throw new DssError("ConnectionLost", "the worker that asked is no more");
  }

  /** Repeated after a lost answer it finds nothing left to do. */
  async end(session: TakenSession, written: readonly Ino[]): Promise<TakenOver> {
    const { metadata, operations, capabilities, probe, safe } = this.parts;
    const { id } = session;
    await session.replays;
    const granted = metadata.session(id)?.exclusive ?? new Map<Ino, number>();
    const recovered = new Map<Ino, Recovered>();
    const asked = written.filter((ino) => granted.has(ino));
    await inParallel(asked, PROBES_MAX, async (ino) => {
      const found = await probe(id, ino);
      if (found !== undefined) recovered.set(ino, found);
    });
    if (session.evicting !== undefined) throw sessionOver(session);
    const hides = [...recovered.keys()];
    const seq = await operations.change(() => endGrants(metadata, id, recovered), id, hides);
    await safe(seq);
    session.restoring = false;
    const freed = new Set([...capabilities.ofSession(id)].map(([ino]) => ino));
    for (const ino of freed) capabilities.lower(id, ino, "none");
    for (const ino of session.recalls.keys()) freed.add(ino);
    session.recalls.clear();
    for (const ino of freed) operations.released(ino);
    return { sizes: [...recovered].map(([ino, { size }]) => ({ ino, size })) };
  }
}

function sessionOver({ id }: { id: ClientId }): DssError {
  return new DssError("NoSession", `session ${id} has ended`);
}

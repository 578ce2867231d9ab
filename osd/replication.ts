/**
 * What a PG's primary has sent to the other members and not all of them have synced. Each entry
 * goes to each member until it is acknowledged or the interval ends; whoever could not be reached
 * gets all that it lacks again, in order, and recognises what it has.
 *
 * Owns: the entries under way and who still lacks them. All of it ends with the interval.
 */
import type { DssError } from "../cluster/base/errors.js";
import type { OsdId } from "../cluster/base/ids.js";
import type { Receiver } from "../cluster/messenger/messenger.js";
import type { Timer } from "../cluster/platform/ports.js";
import type { PgHost, PlacementGroup } from "./placement-group.js";
import { RepOp, type OsdFillLevel, type OsdRepOp } from "./proto.js";
import type { SharedMemory } from "./shared-memory.js";

/** One log entry that members have not all synced. */
export class Replicating {
  readonly seq: number;
  private encoded: Buffer | undefined;

  constructor(
    readonly message: OsdRepOp,
    readonly data: readonly Buffer[],
    readonly sums: Uint32Array,
    /** Members (and this OSD) that have not synced it. */
    readonly waitingFor: OsdId[],
    readonly done: () => void,
    /** Of `data`. */
    readonly memory: SharedMemory,
  ) {
    this.seq = message.seq;
  }

  /** The message for every member. */
  get body(): Buffer {
    return (this.encoded ??= RepOp.request.encode(this.message));
  }
}

/** A member that cannot be reached is asked again after this. */
const RESEND_MS = 50;

export class Replication {
  /** In the order of the log. */
  private readonly entries = new Map<number, Replicating>();
  private readonly resendTimers = new Map<OsdId, Timer>();

  constructor(
    private readonly pg: PlacementGroup,
    private readonly host: PgHost,
  ) {}

  /** The interval is over. */
  reset(): void {
    for (const timer of this.resendTimers.values()) timer.cancel();
    this.resendTimers.clear();
    this.entries.clear();
  }

  add(entry: Replicating): void {
    this.entries.set(entry.seq, entry);
  }

  send(member: OsdId, entry: Replicating): void {
    const peer = this.host.peer(member);
    entry.memory.use(); // For ever, if the call fails: it may wait in a socket, or be sent again.
    if (peer === undefined) return this.resendLater(member);
    const { body, data, sums } = entry;
    const options = { deadlineMs: this.host.replicaTimeoutMs, data, sums };
    peer.send(RepOp, body, options, new Acknowledgement(this, this.pg, this.host, member, entry));
  }

  /** `entry` of this interval. */
  acknowledged(member: OsdId, entry: Replicating): void {
    const { waitingFor } = entry;
    const at = waitingFor.indexOf(member);
    if (at < 0) return;
    waitingFor.splice(at, 1);
    if (waitingFor.length > 0) return;
    this.entries.delete(entry.seq);
    entry.done();
  }
  /** Nothing waits for this one any more. */
  release(member: OsdId): void {
    for (const entry of [...this.entries.values()]) this.acknowledged(member, entry);
  }

  resendLater(member: OsdId): void {
    if (this.resendTimers.has(member)) return;
    const timer = this.host.clock.setTimer(RESEND_MS, () => {
      this.resendTimers.delete(member);
      for (const entry of this.entries.values()) {
        if (entry.waitingFor.includes(member)) this.send(member, entry);
      }
    });
    this.resendTimers.set(member, timer);
  }
}

/** What a member says to one entry. */
class Acknowledgement implements Receiver<OsdFillLevel> {
  private readonly generation: number;

  constructor(
    private readonly replication: Replication,
    private readonly pg: PlacementGroup,
    private readonly host: PgHost,
    private readonly member: OsdId,
    private readonly entry: Replicating,
  ) {
    this.generation = pg.generation;
  }

  answered(level: OsdFillLevel): void {
    const { member, entry } = this;
    this.host.fullness.report(member, level);
    entry.memory.release();
    if (this.generation !== this.pg.generation) return;
    this.pg.memberAnswered(member);
    this.replication.acknowledged(member, entry);
  }

  failed(error: DssError): void {
    if (this.generation !== this.pg.generation) return;
    this.pg.memberFailed(this.member, error);
    this.replication.resendLater(this.member);
  }
}

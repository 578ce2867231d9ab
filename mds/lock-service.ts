/**
 * Locks on files at the leader: requests against the table, outcomes to those who wait, and the end
 * of sessions that stand in others' way without being heard of. The table is not journaled: a new
 * leader answers no lock request before every session of its predecessor has come back, with its
 * locks, or was fenced.
 *
 * Owns: the lock table.
 */
import { unreachable } from "../cluster/base/assert.js";
import { DssError } from "../cluster/base/errors.js";
import type { ClientId } from "../cluster/base/ids.js";
import { LockTable, type LockRequest, type Woken } from "./core/lock-table.js";
import { emptyPlan, type Plan } from "./core/plan.js";
import { LOCK_END, type Answer, type LockOutcomeMessage, type Request } from "./proto.js";
import type { SessionOpen } from "./proto.js";

export type LockOperation = Extract<Request, { op: "lock" | "unlock" | "lockTest" | "lockCancel" }>;

export class LockService {
  readonly table = new LockTable();

  constructor(
    private readonly parts: {
      /** To the session's link, if it has one: otherwise it asks again when it is back. */
      send(session: ClientId, message: LockOutcomeMessage): void;
      lapsed(session: ClientId): boolean;
      evict(session: ClientId): void;
    },
  ) {}

  /** Runs once: no lock waits for a page or for another session's changes. */
  plan(session: ClientId, request: LockOperation): Plan {
    return { ...emptyPlan(), answer: { lock: this.execute(session, request) } };
  }
  private execute(session: ClientId, request: LockOperation): NonNullable<Answer["lock"]> {
    switch (request.op) {
      case "lock": {
        const wanted = lockRequest(session, request);
        const woken: Woken[] = [];
        const outcome = this.table.lock(wanted, request.waiter, woken);
        this.tell(woken);
        // Who only tries again and again gets it some day, too.
        if (outcome === "conflict") this.evictLapsed(this.table.blockers(wanted));
        return { outcome };
      }
      case "unlock": {
        const { kind, ino, owner, start, end } = request;
        checkRange(request);
        const woken: Woken[] = [];
        this.table.unlock({ session, kind, ino, owner, start, end }, woken);
        this.tell(woken);
        return { outcome: "granted" };
      }
      case "lockTest": {
        const found = this.table.test(lockRequest(session, request));
        if (found === undefined) return { outcome: "granted" };
        const { mode, start, end, pid } = found.range;
        return { outcome: "conflict", holder: { client: found.session, mode, start, end, pid } };
      }
      case "lockCancel":
        return { outcome: this.table.cancel(session, request.waiter) ? "cancelled" : "unknown" };
      default:
        return unreachable(request, "lock operation");
    }
  }

  /** A session is back at a new leader. False: what it says contradicts what others hold. */
  claim(session: ClientId, open: SessionOpen): boolean {
    return this.table.claim(session, open.locks ?? []);
  }
  /** Its next worker claims what its programs hold. */
  retain(session: ClientId, open: SessionOpen): void {
    const woken: Woken[] = [];
    this.table.retain(session, open.locks ?? [], woken);
    this.tell(woken);
  }
  /** The session is over, and nothing that it sent can still take effect. */
  ended(session: ClientId): void {
    const woken: Woken[] = [];
    this.table.dropSession(session, woken);
    this.tell(woken);
  }
  /** Now and then: a holder that is gone must not be waited for longer than its lease. */
  check(): void {
    if (this.table.waiterCount > 0) this.evictLapsed(this.table.allBlockers());
  }

  private evictLapsed(sessions: Iterable<ClientId>): void {
    for (const id of sessions) if (this.parts.lapsed(id)) this.parts.evict(id);
  }
  private tell(woken: readonly Woken[]): void {
    for (const { session, waiter, outcome } of woken) this.parts.send(session, { waiter, outcome });
  }
}

function lockRequest(
  session: ClientId,
  request: Extract<LockOperation, { op: "lock" | "lockTest" }>,
): LockRequest {
  checkRange(request);
  const { kind, ino, owner, mode, start, end, pid } = request;
  return { session, kind, ino, owner, mode, start, end, pid };
}
function checkRange(request: { kind: string; start: bigint; end: bigint }): void {
  const { kind, start, end } = request;
  if (start > end) throw new DssError("InvalidArgument", `a lock from ${start} to ${end}`);
  if (kind === "flock" && (start !== 0n || end !== LOCK_END)) {
    throw new DssError("InvalidArgument", "flock covers the whole file");
  }
}

/**
 * What a session's owner keeps of its requests over its own death, so that the next worker of the
 * same mount can go on (mds/takeover.ts): changes that may not be in the journal yet, and changes
 * whose caller may not have heard of their outcome. A mount keeps it in its worker's record.
 */
import type { DssError } from "../../cluster/base/errors.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import type { MdsReply, Operation, Request } from "../proto.js";

/** Requests that change something, or tell a size. Others may be asked again at will. */
export const LOGGED: ReadonlySet<Operation> = new Set<Operation>([
  "create",
  "tmpfile",
  "link",
  "unlink",
  "rmdir",
  "rename",
  "setattr",
  "publish",
  "orphanRelease",
  "setxattr",
  "removexattr",
]);

export interface LoggedRequest {
  id: number;
  /** The kernel's request that it was made for; 0: none. */
  cause: number;
  /** Done by the mount itself, under a sole capability: its caller has been answered. */
  promised: boolean;
  /**
   * sent: perhaps. answered: executed by a leader, perhaps not journaled. done: it is, or it needed
   * not be.
   */
  state: "sent" | "answered" | "done";
  /** The inode that the answer was about, if it said so. */
  ino: Ino;
  request: Request;
}

/** All methods are synchronous. What they note is kept before anything leaves this process. */
export interface RequestLog {
  /** `client`: of the session; object operations may go under another id. */
  session(client: ClientId): void;
  entered(request: LoggedRequest): void;
  /** It says more than when it was entered, and is on no way yet. */
  amended(id: number, more: Partial<Request>): void;
  answered(id: number, ino: Ino): void;
  /** It is over; not `executed`: refused, or lost with its session. */
  settled(id: number, executed: boolean): void;
  /** Before something is sent that rests on what was noted. */
  commit(): void;
}
export const NO_LOG: RequestLog = {
  session: () => undefined,
  entered: () => undefined,
  amended: () => undefined,
  answered: () => undefined,
  settled: () => undefined,
  commit: () => undefined,
};

/** A session that an earlier worker has left. */
export interface Inheritance {
  client: ClientId;
  requests: readonly LoggedRequest[];
}

/** What became of a request of the earlier worker; `reply` only if it had to be asked again. */
export interface InheritedOutcome {
  /** The session ended meanwhile, and with it the memory of what was executed: look. */
  unsure: boolean;
  request: Request;
  ino: Ino;
  reply: MdsReply | undefined;
}
interface Heir {
  logged: LoggedRequest;
  outcome: Promise<InheritedOutcome>;
  resolve(reply: MdsReply | undefined): void;
  reject(error: DssError): void;
}

/**
 * The earlier worker's requests by their cause: the kernel asks again what was not answered, and
 * gets the first outcome. Owns them until they are taken.
 */
export class InheritedRequests {
  private readonly byCause = new Map<number, Heir[]>();

  /** Its outcome is told with `resolve` or `reject`. */
  add(logged: LoggedRequest): Pick<Heir, "resolve" | "reject"> {
    let resolve: Heir["resolve"] = () => undefined;
    let reject: Heir["reject"] = () => undefined;
    const outcome = new Promise<InheritedOutcome>((done, fail) => {
      resolve = (reply) => {
        const ino = reply?.answer.inode?.ino ?? logged.ino;
        done({ unsure: false, request: logged.request, ino, reply });
      };
      reject = fail;
    });
    outcome.catch(() => undefined); // Perhaps nobody asks.
    const heirs = this.byCause.get(logged.cause);
    const heir = { logged, outcome, resolve, reject };
    if (heirs === undefined) this.byCause.set(logged.cause, [heir]);
    else heirs.push(heir);
    return heir;
  }
  /** The outcome of this operation of the same request of the kernel, once. */
  take(cause: number, op: Operation): Promise<InheritedOutcome> | undefined {
    if (cause === 0 || this.byCause.size === 0) return undefined;
    const heirs = this.byCause.get(cause);
    const at = heirs?.findIndex(({ logged }) => logged.request.op === op) ?? -1;
    if (heirs === undefined || at < 0) return undefined;
    const [heir] = heirs.splice(at, 1);
    return heir!.outcome;
  }
  /** The session is over: only what is known to be in the journal is known to be done. */
  lose(): void {
    for (const heirs of this.byCause.values()) {
      for (const heir of heirs) {
        const { state, request, ino } = heir.logged;
        if (state === "done") continue;
        heir.outcome = Promise.resolve({ unsure: true, request, ino, reply: undefined });
      }
    }
  }
}

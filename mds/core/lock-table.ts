/**
 * Locks on files (design §6): flock(2) and fcntl(2) byte ranges, as Linux gives them, over all
 * sessions. Pure and synchronous: requests in, outcomes and the waiters that became free out.
 *
 * An owner is what a session says that it is (an open file for flock, a process or an open file
 * for ranges); owners of different sessions differ. The two kinds know nothing of each other.
 * Ranges of one owner are disjoint, sorted, and merged where they touch in the same mode.
 *
 * Waiters are tried in the order of their arrival whenever something is released; who does not
 * conflict with what is *held* gets it at once, as in Linux. A blocking range request that closes
 * a circle of owners waiting for each other is refused (EDEADLK), also when the circle comes about
 * later, because somebody else was served first. flock looks for no circles.
 *
 * Owns: every lock and every waiter. Nothing here is journaled: after a change of leader the
 * sessions say what they hold (`claim`), see docs/decisions/0008.
 */
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import { firstReaching, setRange, type LockedRange } from "../../cluster/base/lock-ranges.js";
import { LOCK_END, type LockClaim, type LockKind, type LockMode } from "../proto.js";

/** Pieces of ranges that one session may hold, and requests that it may have waiting. */
export const LOCKS_PER_SESSION = 65_536;
export const WAITERS_PER_SESSION = 16_384;

export interface LockRequest extends LockClaim {
  session: ClientId;
}
/** A request that waits; `id` is the session's number for it. */
export interface Waiter {
  readonly id: number;
  readonly request: LockRequest;
}
/** What became of waiters without a request of their own. */
export interface Woken {
  session: ClientId;
  waiter: number;
  outcome: "granted" | "deadlock";
}
export type LockOutcome = "granted" | "queued" | "conflict" | "deadlock" | "full";

interface Owner {
  readonly session: ClientId;
  readonly name: string;
  readonly ranges: LockedRange[];
}
/** One inode's locks of one kind. */
interface File {
  readonly key: string;
  readonly owners: Map<string, Owner>;
  /** In the order of arrival. */
  waiters: Waiter[];
}

export class LockTable {
  private readonly files = new Map<string, File>();
  private readonly waiting = new Map<ClientId, Map<number, Waiter>>();
  /** Waiting range requests by owner: the edges of the graph that circles are looked for in. */
  private readonly byOwner = new Map<string, Set<Waiter>>();
  private readonly pieces = new Map<ClientId, number>();
  /** Files in which the session holds something. */
  private readonly bySession = new Map<ClientId, Set<File>>();

  constructor(
    private readonly limits = { locks: LOCKS_PER_SESSION, waiters: WAITERS_PER_SESSION },
  ) {}

  /**
   * Takes the lock, or says why not. `waiter` 0 does not wait; otherwise a conflict queues the
   * request under that number, unless it waits already.
   */
  lock(request: LockRequest, waiter: number, woken: Woken[]): LockOutcome {
    let file = this.fileOf(request.kind, request.ino);
    const known = this.waiting.get(request.session)?.get(waiter);
    if (known !== undefined) return "queued";
    const { session, kind } = request;
    if ((this.pieces.get(session) ?? 0) >= this.limits.locks) return this.full(file);
    if (kind === "flock") {
      const held = file.owners.get(ownerKey(request))?.ranges[0];
      if (held?.mode === request.mode) return "granted";
      // As in Linux a conversion first gives up what was held; two that both convert do not hang.
      if (held !== undefined) {
        this.take(file, request, undefined, woken);
        file = this.fileOf(kind, request.ino); // It may have been the last to know the file.
      }
    }
    if (!this.conflicts(file, request)) {
      this.take(file, request, request.mode, woken);
      return "granted";
    }
    if (waiter === 0) return "conflict";
    const mine = this.waiting.get(session);
    if ((mine?.size ?? 0) >= this.limits.waiters) return "full";
    const entry: Waiter = { id: waiter, request };
    if (kind === "posix" && this.closesCircle(entry)) return "deadlock";
    file.waiters.push(entry);
    if (mine === undefined) this.waiting.set(session, new Map([[waiter, entry]]));
    else mine.set(waiter, entry);
    if (kind === "posix") this.link(entry);
    return "queued";
  }
  private full(file: File): LockOutcome {
    this.drop(file);
    return "full";
  }

  unlock(request: Omit<LockRequest, "mode" | "pid">, woken: Woken[]): void {
    const file = this.files.get(fileKey(request.kind, request.ino));
    if (file === undefined || !file.owners.has(ownerKey(request))) return;
    this.take(file, { ...request, mode: "shared", pid: 0 }, undefined, woken);
  }

  /** The first lock that stands in the request's way, lowest range first. */
  test(request: LockRequest): { session: ClientId; range: LockedRange } | undefined {
    const file = this.files.get(fileKey(request.kind, request.ino));
    let found: { session: ClientId; range: LockedRange } | undefined;
    for (const { session, range } of file === undefined ? [] : this.blocking(file, request)) {
      if (found === undefined || range.start < found.range.start) found = { session, range };
    }
    return found;
  }
  /** Sessions whose locks stand in the way of a request. */
  blockers(request: LockRequest): Set<ClientId> {
    const file = this.files.get(fileKey(request.kind, request.ino));
    const found = new Set<ClientId>();
    for (const { session } of file === undefined ? [] : this.blocking(file, request)) {
      found.add(session);
    }
    return found;
  }
  /** Sessions that stand in the way of somebody who waits in another one. */
  allBlockers(): Set<ClientId> {
    const found = new Set<ClientId>();
    for (const waiters of this.waiting.values()) {
      for (const { request } of waiters.values()) {
        for (const session of this.blockers(request)) {
          if (session !== request.session) found.add(session);
        }
      }
    }
    return found;
  }
  get waiterCount(): number {
    let count = 0;
    for (const waiters of this.waiting.values()) count += waiters.size;
    return count;
  }
  count(session: ClientId): number {
    return this.pieces.get(session) ?? 0;
  }
  /** The locks of a session, for tests and for people. */
  *held(session: ClientId): Iterable<LockClaim> {
    for (const file of this.bySession.get(session) ?? []) {
      const [kind, ino] = splitKey(file.key);
      for (const owner of file.owners.values()) {
        if (owner.session !== session) continue;
        for (const range of owner.ranges) yield { kind, ino, owner: owner.name, ...range };
      }
    }
  }

  /** False: it is not waiting (any more). */
  cancel(session: ClientId, waiter: number): boolean {
    const entry = this.waiting.get(session)?.get(waiter);
    if (entry === undefined) return false;
    const { request } = entry;
    const file = this.files.get(fileKey(request.kind, request.ino))!;
    this.removeWaiter(file, entry);
    this.drop(file);
    return true;
  }

  /** The session is over: all its locks and waiters go. */
  dropSession(session: ClientId, woken: Woken[]): void {
    for (const id of [...(this.waiting.get(session)?.keys() ?? [])]) this.cancel(session, id);
    const files = [...(this.bySession.get(session) ?? [])];
    for (const file of files) {
      for (const [key, owner] of [...file.owners]) {
        if (owner.session === session) file.owners.delete(key);
      }
    }
    this.bySession.delete(session);
    this.pieces.delete(session);
    for (const file of files) this.serve(file, woken);
  }

  /**
   * Another worker goes on with the session: of its locks stays what is claimed, which is never
   * more than it has, and nobody waits for it any more.
   */
  retain(session: ClientId, claims: readonly LockClaim[], woken: Woken[]): void {
    for (const id of [...(this.waiting.get(session)?.keys() ?? [])]) this.cancel(session, id);
    const byOwner = new Map<string, LockClaim[]>();
    const keyOf = ({ kind, ino, owner }: LockClaim): string => `${fileKey(kind, ino)}.${owner}`;
    for (const held of this.held(session)) byOwner.set(keyOf(held), []);
    const owners = new Map([...this.held(session)].map((held) => [keyOf(held), held]));
    for (const claim of claims) byOwner.get(keyOf(claim))?.push(claim);
    for (const [key, kept] of byOwner) {
      const held = owners.get(key)!;
      kept.sort((a, b) => (a.start < b.start ? -1 : 1));
      let at = 0n;
      for (const claim of kept) {
        if (claim.start > at) {
          this.unlock({ ...held, session, start: at, end: claim.start - 1n }, woken);
        }
        if (claim.mode === "shared") this.lock({ ...claim, session }, 0, woken);
        at = claim.end + 1n;
      }
      if (at <= LOCK_END) this.unlock({ ...held, session, start: at, end: LOCK_END }, woken);
    }
  }

  /**
   * A session says, to a new leader, what it holds. False when that conflicts with what another
   * one said: then one of them is wrong, and nothing was taken over.
   */
  claim(session: ClientId, claims: readonly LockClaim[]): boolean {
    for (const claim of claims) {
      const file = this.files.get(fileKey(claim.kind, claim.ino));
      if (file !== undefined && this.conflicts(file, { ...claim, session })) return false;
    }
    for (const claim of claims) {
      const request = { ...claim, session };
      this.take(this.fileOf(claim.kind, claim.ino), request, claim.mode, []);
    }
    return true;
  }

  // Ranges.

  private fileOf(kind: LockKind, ino: Ino): File {
    const key = fileKey(kind, ino);
    let file = this.files.get(key);
    if (file === undefined) {
      file = { key, owners: new Map(), waiters: [] };
      this.files.set(key, file);
    }
    return file;
  }
  private drop(file: File): void {
    if (file.owners.size === 0 && file.waiters.length === 0) this.files.delete(file.key);
  }

  /** Locks of others that a request collides with. */
  private *blocking(
    file: File,
    request: LockRequest,
  ): Generator<{ key: string; session: ClientId; range: LockedRange }, void> {
    const own = ownerKey(request);
    for (const [key, owner] of file.owners) {
      if (key === own) continue;
      const { ranges, session } = owner;
      for (let at = firstReaching(ranges, request.start); at < ranges.length; at++) {
        const range = ranges[at]!;
        if (range.start > request.end) break;
        if (range.mode === "exclusive" || request.mode === "exclusive") {
          yield { key, session, range };
        }
      }
    }
  }
  private conflicts(file: File, request: LockRequest): boolean {
    return this.blocking(file, request).next().done !== true;
  }

  /** Sets [start, end] of the owner to `mode` (undefined: unlocked), then serves who waited. */
  private take(file: File, request: LockRequest, mode: LockMode | undefined, woken: Woken[]): void {
    if (this.replace(file, request, mode)) this.serve(file, woken);
    else this.drop(file);
  }
  /** True when somebody may have become free by it. */
  private replace(file: File, request: LockRequest, mode: LockMode | undefined): boolean {
    const key = ownerKey(request);
    const { session, start, end, pid } = request;
    let owner = file.owners.get(key);
    if (owner === undefined) {
      if (mode === undefined) return false;
      owner = { session, name: request.owner, ranges: [] };
      file.owners.set(key, owner);
    }
    const { ranges } = owner;
    const before = ranges.length;
    let lessened = false;
    for (let at = firstReaching(ranges, start); at < before && !lessened; at++) {
      const range = ranges[at]!;
      if (range.start > end) break;
      lessened = mode === undefined || (mode === "shared" && range.mode === "exclusive");
    }
    setRange(ranges, { start, end }, mode === undefined ? undefined : { mode, pid });
    this.counted(file, key, before);
    return lessened;
  }
  /** An owner's ranges have changed; there were `before` of them. */
  private counted(file: File, key: string, before: number): void {
    const { session, ranges } = file.owners.get(key)!;
    const count = (this.pieces.get(session) ?? 0) + ranges.length - before;
    if (count > 0) this.pieces.set(session, count);
    else this.pieces.delete(session);
    const files = this.bySession.get(session);
    if (ranges.length > 0) {
      if (files === undefined) this.bySession.set(session, new Set([file]));
      else files.add(file);
      return;
    }
    file.owners.delete(key);
    if (files?.has(file) === true && !holdsIn(file, session)) {
      files.delete(file);
      if (files.size === 0) this.bySession.delete(session);
    }
  }

  // Waiters.

  private removeWaiter(file: File, entry: Waiter): void {
    file.waiters = file.waiters.filter((other) => other !== entry);
    const { session } = entry.request;
    const mine = this.waiting.get(session);
    mine?.delete(entry.id);
    if (mine?.size === 0) this.waiting.delete(session);
    const key = ownerKey(entry.request);
    const edges = this.byOwner.get(key);
    edges?.delete(entry);
    if (edges?.size === 0) this.byOwner.delete(key);
  }
  private link(entry: Waiter): void {
    const key = ownerKey(entry.request);
    const edges = this.byOwner.get(key);
    if (edges === undefined) this.byOwner.set(key, new Set([entry]));
    else edges.add(entry);
  }

  /** Something was released: gives it to those who waited for it. */
  private serve(file: File, woken: Woken[]): void {
    let served = false;
    // Whoever is served may give something up by it (a range that becomes shared): look again.
    for (let again = true; again;) {
      again = false;
      for (const entry of file.waiters) {
        const { request } = entry;
        if (this.conflicts(file, request)) continue;
        this.removeWaiter(file, entry);
        again = this.replace(file, request, request.mode) || again;
        served = true;
        woken.push({ session: request.session, waiter: entry.id, outcome: "granted" });
      }
    }
    // The others now wait for those who were served.
    for (const entry of served ? file.waiters : []) {
      if (entry.request.kind !== "posix" || !this.closesCircle(entry)) continue;
      this.removeWaiter(file, entry);
      const { session } = entry.request;
      woken.push({ session, waiter: entry.id, outcome: "deadlock" });
    }
    this.drop(file);
  }

  /** Does one of those whom `entry` waits for wait, directly or not, for its owner? */
  private closesCircle(entry: Waiter): boolean {
    const self = ownerKey(entry.request);
    const seen = new Set<string>();
    const next: Waiter[] = [entry];
    for (let waiter = next.pop(); waiter !== undefined; waiter = next.pop()) {
      const { request } = waiter;
      const file = this.files.get(fileKey(request.kind, request.ino));
      if (file === undefined) continue;
      for (const { key } of this.blocking(file, request)) {
        if (key === self) return true;
        if (seen.has(key)) continue;
        seen.add(key);
        for (const edge of this.byOwner.get(key) ?? []) next.push(edge);
      }
    }
    return false;
  }
}

function fileKey(kind: LockKind, ino: Ino): string {
  return `${kind === "posix" ? "p" : "f"}${ino}`;
}
function splitKey(key: string): [LockKind, Ino] {
  return [key.startsWith("p") ? "posix" : "flock", Number(key.slice(1))];
}
function ownerKey({ session, owner }: { session: ClientId; owner: string }): string {
  return `${session}.${owner}`;
}
function holdsIn(file: File, session: ClientId): boolean {
  for (const owner of file.owners.values()) if (owner.session === session) return true;
  return false;
}

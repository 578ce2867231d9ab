/**
 * Who may cache what (design §6 Capabilities). Pure. Shared capabilities live only here; exclusive
 * ones are also journaled in the session's page. Several sessions may hold an inode shared, or one
 * exclusive.
 *
 * Fairness: `pending` names the oldest waiting operation that recalls an inode; while there is one,
 * nobody else is granted anything on that inode.
 */
import { faults } from "../../cluster/base/faults.js";
import type { ClientId, Ino } from "../../cluster/base/ids.js";
import { covers, type CapabilityMode } from "../proto.js";

export interface Held {
  mode: CapabilityMode;
  seq: number;
}

/** Grants of one leader are numbered from its term up, so that they rise across leaders. */
const GRANTS_PER_TERM = 2 ** 32;

export class CapabilityTable {
  private readonly byIno = new Map<Ino, Map<ClientId, Held>>();
  /** In order of first grant: the oldest are recalled when a session holds too many. */
  private readonly bySession = new Map<ClientId, Map<Ino, Held>>();
  private readonly openers = new Map<Ino, Set<ClientId>>();
  private readonly pending = new Map<Ino, number[]>();
  private lastSeq: number;

  constructor(term: number) {
    this.lastSeq = term * GRANTS_PER_TERM;
  }
  nextSeq(): number {
    return ++this.lastSeq;
  }
  held(session: ClientId, ino: Ino): Held | undefined {
    return this.byIno.get(ino)?.get(session);
  }
  mode(session: ClientId, ino: Ino): CapabilityMode {
    return this.byIno.get(ino)?.get(session)?.mode ?? "none";
  }
  /** Sessions other than `session` that hold more than `mode`. */
  above(ino: Ino, session: ClientId, mode: CapabilityMode): ClientId[] {
    const holders = this.byIno.get(ino);
    if (holders === undefined) return [];
    const found: ClientId[] = [];
    for (const [id, held] of holders) {
      if (id !== session && !covers(mode, held.mode)) found.push(id);
    }
    return found;
  }
  exclusiveHolder(ino: Ino): ClientId | undefined {
    for (const [id, held] of this.byIno.get(ino) ?? []) if (held.mode === "exclusive") return id;
    return undefined;
  }
  /**
   * Sets what the session holds; undefined when it holds at least that. `seq`: 0 for a new number.
   */
  raise(session: ClientId, ino: Ino, mode: CapabilityMode, seq = 0): Held | undefined {
    const known = this.held(session, ino);
    if (known !== undefined && covers(known.mode, mode)) return undefined;
    const held: Held = { mode, seq: seq === 0 ? this.nextSeq() : seq };
    if (seq > this.lastSeq) this.lastSeq = seq;
    let holders = this.byIno.get(ino);
    if (holders === undefined) this.byIno.set(ino, (holders = new Map<ClientId, Held>()));
    holders.set(session, held);
    let inos = this.bySession.get(session);
    if (inos === undefined) this.bySession.set(session, (inos = new Map<Ino, Held>()));
    inos.set(ino, held);
    return held;
  }
  /** The session holds at most `mode` from now on. */
  lower(session: ClientId, ino: Ino, mode: CapabilityMode): void {
    const held = this.held(session, ino);
    if (held === undefined || covers(mode, held.mode)) return;
    if (mode !== "none") {
      held.mode = mode;
      return;
    }
    const holders = this.byIno.get(ino);
    holders?.delete(session);
    if (holders?.size === 0) this.byIno.delete(ino);
    this.bySession.get(session)?.delete(ino);
  }
  /** Whether the session has the file open without holding anything. */
  setOpen(session: ClientId, ino: Ino, open: boolean): void {
    let sessions = this.openers.get(ino);
    if (open) {
      if (sessions === undefined) this.openers.set(ino, (sessions = new Set()));
      sessions.add(session);
    } else if (sessions?.delete(session) === true && sessions.size === 0) {
      this.openers.delete(ino);
    }
  }
  /** No other session holds anything of it, has it open, or waits for it. */
  alone(ino: Ino, session: ClientId): boolean {
    const holders = this.byIno.get(ino);
    const others = holders === undefined ? 0 : holders.size - (holders.has(session) ? 1 : 0);
    if (others > 0 || this.pending.has(ino)) return false;
    const openers = this.openers.get(ino);
    return openers === undefined || (openers.size === 1 && openers.has(session));
  }
  /** Everything that somebody has for itself. */
  *atLeastSole(): Iterable<[Ino, ClientId]> {
    for (const [ino, holders] of this.byIno) {
      for (const [session, { mode }] of holders) if (covers(mode, "sole")) yield [ino, session];
    }
  }
  openElsewhere(ino: Ino, session: ClientId): ClientId[] {
    return [...(this.openers.get(ino) ?? [])].filter((id) => id !== session);
  }
  count(session: ClientId): number {
    return this.bySession.get(session)?.size ?? 0;
  }
  /** The longest held first. */
  inosOf(session: ClientId): Iterable<Ino> {
    return this.bySession.get(session)?.keys() ?? [];
  }
  /** What the session holds, oldest first. */
  ofSession(session: ClientId): Iterable<[Ino, Held]> {
    return this.bySession.get(session) ?? [];
  }
  /** The inode is gone. */
  forget(ino: Ino): void {
    for (const id of this.byIno.get(ino)?.keys() ?? []) this.bySession.get(id)?.delete(ino);
    this.byIno.delete(ino);
    this.openers.delete(ino);
  }
  dropSession(session: ClientId): void {
    for (const ino of [...(this.bySession.get(session)?.keys() ?? [])]) {
      this.lower(session, ino, "none");
    }
    this.bySession.delete(session);
    for (const ino of [...this.openers.keys()]) this.setOpen(session, ino, false);
  }

  // Waiting operations, by their number of arrival.

  addPending(ino: Ino, operation: number): void {
    const waiting = this.pending.get(ino);
    if (waiting === undefined) this.pending.set(ino, [operation]);
    else if (!waiting.includes(operation)) {
      waiting.push(operation);
      waiting.sort((a, b) => a - b);
    }
  }
  removePending(ino: Ino, operation: number): void {
    const waiting = this.pending.get(ino)?.filter((number) => number !== operation);
    if (waiting === undefined || waiting.length === 0) this.pending.delete(ino);
    else this.pending.set(ino, waiting);
  }
  /** An operation that came before `operation` waits to have this inode for itself. */
  pendingBefore(ino: Ino, operation: number): number | undefined {
    const first = this.pending.get(ino)?.[0];
    return first !== undefined && first < operation ? first : undefined;
  }
}

/** The changes of one session that others must not see yet. */
export class UnsafeChanges {
  private readonly marks = new Map<number, { session: ClientId; seq: number }>();
  private readonly order: { key: number; seq: number }[] = [];

  mark(key: number, session: ClientId, seq: number): void {
    if (faults.showUnsafe) return;
    this.marks.set(key, { session, seq });
    this.order.push({ key, seq });
  }
  /** Number of the batch that must be safe before `session` may look at `key`; 0: it may. */
  hiddenUntil(key: number, session: ClientId): number {
    const mark = this.marks.get(key);
    return mark === undefined || mark.session === session ? 0 : mark.seq;
  }
  safe(seq: number): void {
    let done = 0;
    for (const { key, seq: at } of this.order) {
      if (at > seq) break;
      done++;
      if (this.marks.get(key)?.seq === at) this.marks.delete(key);
    }
    if (done > 0) this.order.splice(0, done);
  }
}

/** What stands between one run of an operation and its success, collected while it looks around. */
export class Access {
  /** Inodes with the most that others may keep. */
  readonly recalls = new Map<Ino, { mode: CapabilityMode; sessions: ClientId[] }>();
  /** The batch that must be safe first; 0: none. */
  safeAfter = 0;
  /** An earlier operation waits for one of these inodes. */
  behind: number | undefined;
  /** Deleted data of this inode must be gone first. */
  purging = false;
  /** Its caller has had an answer already: no quota refuses it. */
  answered = false;

  constructor(
    readonly session: ClientId,
    /** Number of arrival. */
    readonly operation: number,
    readonly capabilities: CapabilityTable,
    private readonly unsafe: UnsafeChanges,
  ) {}

  get blocked(): boolean {
    const { safeAfter, recalls, behind, purging } = this;
    return safeAfter > 0 || recalls.size > 0 || behind !== undefined || purging;
  }
  /**
   * A refusal may rest on what another session's change makes untrue: it is not safe yet, or its
   * holder has not told. Nobody is asked for a volume on account of a refusal.
   */
  sawOld(): boolean {
    for (const key of this.recalls.keys()) if (key < 0) this.recalls.delete(key);
    return this.safeAfter > 0 || this.recalls.size > 0;
  }
  /**
   * Looks at names in a directory, or at what no capability covers. `key`: an inode, or a negative
   * number.
   */
  see(key: number): void {
    const seq = this.unsafe.hiddenUntil(key, this.session);
    if (seq > this.safeAfter) this.safeAfter = seq;
  }
  /** True when `see` and `attributes` would not wait: for what can be left out. */
  ready(ino: Ino): boolean {
    return (
      this.unsafe.hiddenUntil(ino, this.session) === 0 &&
      this.capabilities.above(ino, this.session, "shared").length === 0
    );
  }
  /** Looks at an inode's attributes. */
  attributes(ino: Ino): void {
    this.see(ino);
    this.recall(ino, "shared");
  }
  /** Changes an inode, or names in a directory: nobody else may cache it. */
  change(ino: Ino): void {
    this.see(ino);
    this.recall(ino, "none");
    this.queue(ino);
  }
  /**
   * Wants a lasting grant: waits its turn. Not behind those who wait for what this session holds:
   * what it did under the capability comes before it is given back.
   */
  queue(ino: Ino): void {
    if (covers(this.capabilities.mode(this.session, ino), "sole")) return;
    const before = this.capabilities.pendingBefore(ino, this.operation);
    if (before !== undefined) this.behind = before;
  }
  /** Others may keep this much of it. */
  lower(ino: Ino, mode: CapabilityMode): void {
    this.recall(ino, mode);
  }
  private recall(ino: Ino, mode: CapabilityMode): void {
    const known = this.recalls.get(ino);
    if (known !== undefined && known.mode === "none") return;
    const sessions = this.capabilities.above(ino, this.session, mode);
    if (sessions.length > 0) this.recalls.set(ino, { mode, sessions });
  }
}

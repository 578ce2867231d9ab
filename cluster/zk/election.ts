/**
 * Leader election of the MDS and its fence. Each candidate has an ephemeral sequential node; the
 * lowest leads. A new leader first takes the next **term** by compare-and-set; every later write of
 * it is a transaction that checks the term node's version, so a deposed leader can write nothing,
 * however late it learns of its end.
 *
 * State: this candidate's node, the candidates as last seen, and the term while it leads.
 */
import { DssError, describeError, isDssError } from "../base/errors.js";
import type { MdsId } from "../base/ids.js";
import type { Logger } from "../base/log.js";
import {
  ANY_VERSION,
  MultiError,
  type Coordination,
  type CoordinationOp,
  type OpResult,
  type Znode,
} from "./coordination.js";
import { ELECTION_PATH, LEADER_PATH, TERM_PATH } from "./schema.js";
import { watchData, watchDirectory, type Watch } from "./watch.js";

export interface Candidate {
  id: MdsId;
  address: { host: string; port: number };
  /** Differs for every start of the process. */
  incarnation: string;
}
export interface LeaderInfo extends Candidate {
  term: number;
}

/** The right to write as leader. */
export interface Term {
  readonly number: number;
  /** Version of the term node. */
  readonly version: number;
}

/**
 * Runs `ops` only if the term is still ours: all or nothing. Errors: Fenced when another leader has
 * taken over; MultiError with the index into `ops`; those of every request.
 */
export async function multiUnder(
  coordination: Coordination,
  term: Term,
  ops: readonly CoordinationOp[],
): Promise<OpResult[]> {
  try {
    const check: CoordinationOp = { op: "check", path: TERM_PATH, version: term.version };
    const results = await coordination.multi([check, ...ops]);
    return results.slice(1);
  } catch (error) {
    if (!(error instanceof MultiError)) throw error;
    if (error.index > 0) throw new MultiError(error.code, error.message, error.index - 1);
    const message = `term ${term.number} is over: another MDS leads`;
    throw new DssError("Fenced", message, { cause: error });
  }
}

export interface ElectionEvents {
  /** We lead, and may write under `term`. */
  onLeading(term: Term): void;
  /** Another leads, or (undefined) nobody does yet. Also told at once after `onDeposed`. */
  onFollowing(leader: Candidate | undefined): void;
  /** We led and do no longer: stop acting as leader at once. Candidacy goes on. */
  onDeposed(reason: string): void;
  /** A later start of the same MDS id has taken our place: this process must end. */
  onReplaced(): void;
}

/** A candidate that finds things changed this often in a row waits for the next event. */
const RACES_MAX = 20;

interface Seen extends Candidate {
  name: string;
  sequence: number;
}

function parse(data: Buffer): Candidate | undefined {
  try {
    const value = JSON.parse(data.toString("utf8")) as Partial<LeaderInfo>;
    const { id, address, incarnation } = value;
    if (typeof id !== "number" || typeof incarnation !== "string" || !address) return undefined;
    return { id, address, incarnation };
  } catch {
    return undefined; // Not ours; it can only be removed by hand, and does not lead.
  }
}
const encode = (value: object): Buffer => Buffer.from(JSON.stringify(value), "utf8");

export function decodeLeader(node: Znode | undefined): LeaderInfo | undefined {
  const candidate = node && parse(node.data);
  if (!candidate) return undefined;
  const { term } = JSON.parse(node.data.toString("utf8")) as { term?: unknown };
  return typeof term === "number" ? { ...candidate, term } : undefined;
}

/**
 * Who leads, now and whenever it changes; undefined while nobody does. For clients and `dss mds
 * ls`.
 */
export function watchLeader(
  coordination: Coordination,
  log: Logger,
  listener: (leader: LeaderInfo | undefined) => void,
): Watch {
  return watchData(coordination, LEADER_PATH, log, (node) => listener(decodeLeader(node)));
}

export class Election {
  private term: Term | undefined;
  private candidates: Seen[] = [];
  private watch: Watch | undefined;
  private unsubscribe: (() => void) | undefined;
  private isClosed = false;
  private isDirty = false;
  private running: Promise<void> | undefined;
  private followed: string | undefined;
  /**
   * Our node was made: its absence later means that it was removed. `isListed`: it was in a list
   * that ZooKeeper gave, which then has every candidate before us, too; an older list may lack the
   * one that leads.
   */
  private enrolled: { session: bigint; name: string; isListed: boolean } | undefined;

  constructor(
    private readonly coordination: Coordination,
    private readonly self: Candidate,
    private readonly events: ElectionEvents,
    private readonly log: Logger,
  ) {}

  /** Present while this process leads. */
  get leading(): Term | undefined {
    return this.term;
  }

  /** Becomes a candidate; the folders of the schema must be there. */
  start(): void {
    this.unsubscribe = this.coordination.onEvent((event) => {
      if (event === "expired") {
        this.enrolled = undefined;
        this.depose("the ZooKeeper session expired");
      }
      if (event === "connected") this.kick();
    });
    this.watch = watchDirectory(this.coordination, ELECTION_PATH, this.log, (children) => {
      this.candidates = seen(children);
      if (this.enrolled !== undefined && children.has(this.enrolled.name)) {
        this.enrolled.isListed = true;
      }
      this.kick();
    });
  }

  /**
   * Removes the present leader's candidacy: for a standby that finds it silent. The term fences it.
   */
  async challenge(silent: Candidate): Promise<void> {
    const incumbent = this.candidates.find((c) => c.incarnation === silent.incarnation);
    if (!incumbent || silent.incarnation === this.self.incarnation) return;
    this.log.warn({ leader: silent.id }, "removing a silent leader's candidacy");
    await this.removeNode(incumbent.name);
  }

  /** A write under the term was refused: whatever the candidates look like, that term is over. */
  superseded(term: Term): void {
    if (this.term?.number !== term.number) return;
    this.depose("its term is over");
    this.kick();
  }

  /** Stops leading and being a candidate. */
  async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    this.watch?.stop();
    this.unsubscribe?.();
    await this.running;
    const { term } = this;
    this.term = undefined;
    if (this.coordination.state === "closed") return;
    if (term !== undefined) {
      // Under the term: the node may be a successor's by now, and versions begin at 0 in both.
      const remove: CoordinationOp = { op: "remove", path: LEADER_PATH, version: ANY_VERSION };
      await multiUnder(this.coordination, term, [remove]).catch((error: unknown) => {
        if (!isDssError(error, "Fenced")) ignoreRace(error);
      });
    }
    for (const mine of this.candidates.filter((c) => c.incarnation === this.self.incarnation)) {
      await this.removeNode(mine.name);
    }
  }

  private async removeNode(name: string): Promise<void> {
    await this.coordination.remove(`${ELECTION_PATH}/${name}`, ANY_VERSION).catch(ignoreRace);
  }

  private kick(): void {
    if (this.isClosed) return;
    this.isDirty = true;
    this.running ??= this.run().finally(() => (this.running = undefined));
  }

  private async run(): Promise<void> {
    let races = 0;
    while (this.isDirty && !this.isClosed) {
      this.isDirty = false;
      try {
        await this.evaluate();
      } catch (error) {
        const fields = { error: describeError(error) };
        if (error instanceof MultiError && ++races <= RACES_MAX) {
          // The nodes are not as last seen: look again.
          this.log.debug(fields, "the election moved on meanwhile");
          await this.watch?.refresh();
          this.isDirty = true;
        } else {
          // The event "connected", or a change of the candidates, starts the next evaluation.
          this.log.warn(fields, "the election waits for ZooKeeper");
        }
      }
    }
  }

  private async evaluate(): Promise<void> {
    if (this.candidates.length === 0) await this.watch?.refresh();
    const mine = this.candidates.find((c) => c.incarnation === this.self.incarnation);
    const session = this.coordination.sessionId;
    if (mine && this.enrolled?.session === session) {
      if (this.candidates[0] === mine) {
        if (!this.term && this.enrolled.isListed) await this.lead(mine);
      } else {
        if (this.term) this.depose("another candidate comes first");
        this.follow(this.candidates[0]);
      }
      return;
    }
    if (!mine && this.enrolled && this.candidates.some((c) => c.id === this.self.id)) {
      this.depose("a later start of this MDS has taken over");
      this.isClosed = true;
      this.watch?.stop();
      this.unsubscribe?.();
      this.events.onReplaced();
      return;
    }
    if (!mine && this.enrolled) this.depose("its candidacy was removed");
    await this.enrol();
  }

  /**
   * Takes a place in the queue, and in the same transaction removes what an earlier start of this
   * MDS left behind, so that a restart does not wait for the old session's end.
   */
  private async enrol(): Promise<void> {
    const session = this.coordination.sessionId;
    const prefix = `${ELECTION_PATH}/n-`;
    const leftovers = this.candidates.filter((c) => c.id === this.self.id);
    const results = await this.coordination.multi([
      ...leftovers.map(({ name }): CoordinationOp => ({
        op: "remove",
        path: `${ELECTION_PATH}/${name}`,
        version: ANY_VERSION,
      })),
      { op: "create", path: prefix, data: encode(this.self), ephemeral: true, sequential: true },
    ]);
    const path = results[results.length - 1]!.path!;
    const name = path.slice(ELECTION_PATH.length + 1);
    this.enrolled = { session, name, isListed: false };
    // Known now, not when the next list arrives: an old list would look as if we were replaced.
    const others = this.candidates.filter((c) => !leftovers.includes(c));
    this.candidates = [...others, { ...this.self, name, sequence: sequenceOf(name) }];
    this.isDirty = true;
  }

  private follow(leader: Candidate | undefined): void {
    const key = leader?.incarnation ?? "";
    if (this.followed === key) return;
    this.followed = key;
    this.events.onFollowing(leader);
  }

  private depose(reason: string): void {
    if (!this.term) return;
    this.log.warn({ term: this.term.number, reason }, "no longer the leader");
    this.term = undefined;
    this.followed = undefined;
    this.events.onDeposed(reason);
  }

  private async lead(mine: Seen): Promise<void> {
    this.follow(undefined);
    const [termNode, leaderNode] = await Promise.all([
      this.coordination.get(TERM_PATH),
      this.coordination.get(LEADER_PATH),
    ]);
    const last = decodeLeader(termNode);
    if (termNode && !last) throw new DssError("Corrupt", `${TERM_PATH} cannot be read`);
    if (termNode && last?.incarnation === this.self.incarnation && leaderNode) {
      const leader = decodeLeader(leaderNode);
      const isOurs = leader?.term === last.term && leader.incarnation === last.incarnation;
      // Read back after a lost connection: the transaction had been executed.
      if (isOurs && leaderNode.ephemeralOwner === this.coordination.sessionId) {
        return this.led({ number: last.term, version: termNode.version });
      }
    }
    const info: LeaderInfo = { ...this.self, term: (last?.term ?? 0) + 1 };
    const data = encode(info);
    const setTerm: CoordinationOp = termNode
      ? { op: "set", path: TERM_PATH, data, version: termNode.version }
      : { op: "create", path: TERM_PATH, data };
    const ops: CoordinationOp[] = [
      { op: "check", path: `${ELECTION_PATH}/${mine.name}`, version: ANY_VERSION },
      setTerm,
    ];
    if (leaderNode) ops.push({ op: "remove", path: LEADER_PATH, version: leaderNode.version });
    ops.push({ op: "create", path: LEADER_PATH, data, ephemeral: true });
    await this.coordination.multi(ops);
    this.led({ number: info.term, version: termNode ? termNode.version + 1 : 0 });
  }

  private led(term: Term): void {
    if (this.isClosed) return;
    this.term = term;
    this.followed = undefined;
    this.log.info({ term: term.number }, "leading");
    this.events.onLeading(term);
  }
}

/** ZooKeeper appends ten digits. */
function sequenceOf(name: string): number {
  return Number(name.slice(-10));
}

function seen(children: Map<string, Znode>): Seen[] {
  const list: Seen[] = [];
  for (const [name, node] of children) {
    const candidate = parse(node.data);
    if (candidate) list.push({ ...candidate, name, sequence: sequenceOf(name) });
  }
  return list.sort((a, b) => a.sequence - b.sequence);
}

function ignoreRace(error: unknown): void {
  if (isDssError(error, "NotFound") || isDssError(error, "Conflict")) return;
  throw error;
}

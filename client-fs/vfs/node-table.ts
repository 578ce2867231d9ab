/**
 * The inodes that this mount knows, and its capabilities (design §6): grants and recalls,
 * attributes and names that answers bring, and what the kernel must be told before anything is
 * given back.
 *
 * Recalls. New data operations wait (`gate`) until those under way (`pins`) have ended; then
 * buffered data are made durable, size and mtime are published, the kernel drops its pages, and
 * only then the leader gets `Released`. While the kernel drops pages it may wait for pages that a
 * READ or WRITE of ours has locked, and it writes mapped pages back first: so in that stage data
 * operations are let through under the capability being recalled (writes of mapped pages at once,
 * others when they have been held up for HOLD_MS), and flushing and dropping begin again.
 *
 * Owns: the nodes, and which of them are idle.
 */
import { DssError, describeError, isDssError } from "../../cluster/base/errors.js";
import type { Ino } from "../../cluster/base/ids.js";
import type { Logger } from "../../cluster/base/log.js";
import type { Clock, RandomSource, Timer } from "../../cluster/platform/ports.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { SessionCache } from "../../mds/client/session-cache.js";
import {
  covers,
  ROOT_INO,
  type CapabilityMode,
  type Grant,
  type Inode,
  type MdsReply,
  type Recall,
  type Released,
  type Request,
} from "../../mds/proto.js";
import { AccessTimes, type AccessTimeMode } from "./access-times.js";
import { HOLD_MS, KernelCache } from "./kernel-cache.js";
import { KernelTrim } from "./kernel-trim.js";
import { FileData, type DataEnvironment } from "./file-data.js";
import { DataMarks } from "./data-marks.js";
import { LocalChanges } from "./local-changes.js";
import { Names } from "./names.js";
import { Node } from "./node.js";
import type { WorkerRecord } from "./worker-record.js";

/** Sizes are told to the MDS this long after a file's data became durable. */
const PUBLISH_MS = 500;
/** Files that are gone: of no use, but for answers that were given before and arrive late. */
const GONE_MAX = 1_024;
/** Given back at a time when there are too many. */
const TRIM_BATCH = 256;
const RETRY_MS = 1_000;
/** How often it is looked whether everything has been given back. */
const GIVE_BACK_MS = 10;
/** A recall waits this long for an answer that it seems to have overtaken. */
const EARLY_MS = 1_000;

export interface NodeTableOptions {
  mds: MdsClient;
  clock: Clock;
  random: RandomSource;
  logger: Logger;
  data: Omit<DataEnvironment, "onError" | "onClean" | "onChanging">;
  /** Every change waits for the journal. */
  sync?: boolean;
  record?: WorkerRecord;
  /** What reads do to the time of access; relatime when left out. */
  atime?: { mode: AccessTimeMode; directories: boolean };
  /**
   * So many inodes are kept, capabilities included: half as many that nobody uses, and when they
   * are more with those of which the kernel knows a name, it is asked to forget some.
   */
  inodesMax: number;
}

export class NodeTable implements SessionCache {
  private readonly nodes = new Map<Ino, Node>();
  /** Without users, the longest idle first. */
  private readonly idle = new Set<Node>();
  /** What was given back while there was no session to say it in. */
  private readonly unsaid = new Map<Ino, Released>();
  /** Of files that do not exist any more. */
  private readonly idleGone = new Set<Node>();
  private readonly mds: MdsClient;
  private readonly clock: Clock;
  private readonly logger: Logger;
  private readonly dataEnvironment: DataEnvironment;
  /** Without users. */
  private readonly idleMax: number;
  private readonly inodesMax: number;
  private readonly toPublish = new Set<Node>();
  private failure: DssError | undefined;
  private publishTimer: Timer | undefined;
  private publishing: Promise<void>[] = [];
  private trimming = false;
  readonly names: Names;
  readonly local: LocalChanges;
  readonly accessTimes: AccessTimes;
  readonly marks: DataMarks;
  /** The kernel had this connection with an earlier worker: it may know of any inode. */
  readonly isHeir: boolean;
  readonly kernel: KernelCache;
  private readonly kernelTrim: KernelTrim;
  /** Counts sessions: work begun under an earlier one is void. */
  private generation = 0;

  constructor(options: NodeTableOptions) {
    this.mds = options.mds;
    this.clock = options.clock;
    this.logger = options.logger;
    this.inodesMax = options.inodesMax;
    this.idleMax = Math.ceil(this.inodesMax / 2);
    this.marks = new DataMarks(options.record);
    this.isHeir = options.record?.inherited !== undefined;
    this.kernel = new KernelCache({
      clock: this.clock,
      logger: this.logger,
      random: options.random,
      isHeir: this.isHeir,
      peek: (ino) => this.peek(ino),
      valid: (node) => this.valid(node),
    });
    this.kernelTrim = new KernelTrim(this, this.kernel, this.clock, this.inodesMax);
    this.names = new Names(this);
    this.local = new LocalChanges(options.mds, this, options.sync !== true);
    const { mode, directories } = options.atime ?? { mode: "relatime", directories: true };
    this.accessTimes = new AccessTimes(this.mds, this.clock, this.logger, mode, directories);
    this.addLookup(this.get(ROOT_INO)); // The kernel has it without a look-up.
    this.dataEnvironment = {
      ...options.data,
      onError: (node, error) => this.onDataError(node, error),
      onClean: (node) => this.onDataClean(node),
      onChanging: (node) => this.marks.changing(node),
    };
  }

  get size(): number {
    return this.nodes.size;
  }
  get(ino: Ino): Node {
    let node = this.nodes.get(ino);
    if (node === undefined) {
      node = new Node(ino);
      node.kernelMayBeStale = this.isHeir;
      this.nodes.set(ino, node);
      this.idle.add(node);
      if (this.surplus > 0) this.trimSoon();
    }
    return node;
  }
  peek(ino: Ino): Node | undefined {
    return this.nodes.get(ino);
  }
  /** A new inode, made here. */
  adopt(inode: Inode, mode: CapabilityMode, parent: Ino): Node {
    const node = this.get(inode.ino);
    node.inode = inode;
    node.mode = mode;
    node.parent = parent;
    node.noteTold(inode);
    node.unshared = true;
    if (node.isDirectory) {
      node.names = new Map();
      node.complete = true;
    }
    return node;
  }
  all(): IterableIterator<Node> {
    return this.nodes.values();
  }

  dataOf(node: Node): FileData {
    node.data ??= new FileData(node, this.dataEnvironment);
    return node.data;
  }

  /** Attributes, names and xattrs of the node may be believed. */
  valid(node: Node): boolean {
    return node.mode !== "none" && node.inode !== undefined && this.mds.trusted;
  }
  /** As `valid`, and nobody has asked for it back. */
  lasting(node: Node): boolean {
    return node.recall === undefined && this.valid(node);
  }

  // ---- Use -------------------------------------------------------------------------------------

  /** True when a data operation may start at once under at least `mode`; it then holds a pin. */
  tryPin(node: Node, mode: "shared" | "exclusive"): boolean {
    if (node.recall !== undefined || !covers(node.mode, mode) || !this.mds.usable) return false;
    node.pins++;
    return true;
  }
  /** Waits for the capability and for recalls. `writeBack`: the kernel writes a mapped page. */
  async pin(node: Node, mode: "shared" | "exclusive", writeBack: boolean): Promise<void> {
    let admit = writeBack;
    for (;;) {
      if (node.recall === undefined) {
        if (this.tryPin(node, mode)) return;
        await this.acquire(node, mode);
      } else if (admit && node.recall.stage === "invalidate" && covers(node.mode, mode)) {
        node.recall.admitted++;
        node.pins++;
        return;
      } else {
        admit = (await this.waitInGate(node)) || admit;
      }
    }
  }
  unpin(node: Node): void {
    node.pins--;
    if (node.pins > 0) return;
    if (node.recall?.stage === "drain") this.surrender(node);
    else this.noteIdle(node);
  }

  /** Asks for the capability when it is not held. */
  async acquire(node: Node, mode: "shared" | "exclusive"): Promise<void> {
    if (covers(node.mode, mode) && this.mds.trusted) return;
    const { acquiring } = node;
    if (acquiring !== undefined && covers(acquiring.mode, mode)) return acquiring.done;
    const asked = { mode, done: this.ask(node, mode) };
    node.acquiring = asked;
    try {
      await asked.done;
    } finally {
      if (node.acquiring === asked) node.acquiring = undefined;
      // After those who waited for the answer: each use of a capability makes some progress.
      if (node.early !== undefined) this.clock.defer(() => this.afterEarly(node));
    }
  }
  private async ask(node: Node, mode: "shared" | "exclusive"): Promise<void> {
    await this.mds.call({ op: "acquire", ino: node.ino, mode });
  }
  private afterEarly(node: Node): void {
    const { early } = node;
    if (early === undefined) return;
    node.early = undefined;
    this.recall(early, true);
  }

  /** True when the operation has been held up long enough to fear that the kernel waits for it. */
  private waitInGate(node: Node): Promise<boolean> {
    return new Promise((resolve) => {
      let timer: Timer | undefined;
      const wake = (held: boolean): void => {
        timer?.cancel();
        const at = node.gate.indexOf(opened);
        if (at >= 0) node.gate.splice(at, 1);
        resolve(held);
      };
      const opened = (): void => wake(false);
      const arm = (): void => {
        timer = this.clock.setTimer(HOLD_MS, () => {
          if (node.recall?.stage === "invalidate") wake(true);
          else arm();
        });
      };
      arm();
      node.gate.push(opened);
    });
  }

  addLookup(node: Node, count = 1): void {
    if (node.lookups === 0) node.kernelSize = undefined; // What it knew before is gone.
    node.lookups += count;
    this.idle.delete(node);
  }
  forget(ino: Ino, count: number): void {
    const node = this.nodes.get(ino);
    if (node === undefined) return;
    node.lookups = Math.max(0, node.lookups - count);
    this.noteIdle(node);
  }
  noteUsed(node: Node): void {
    this.idle.delete(node);
  }
  noteIdle(node: Node): void {
    if (!node.idle || this.nodes.get(node.ino) !== node) return;
    this.idle.delete(node);
    this.idle.add(node);
    if (node.mode === "none" && node.inode?.nlink === 0) this.noteGone(node);
    if (this.surplus > 0) this.trimSoon();
  }
  private noteGone(node: Node): void {
    this.idleGone.add(node);
    if (this.idleGone.size <= GONE_MAX) return;
    const [oldest] = this.idleGone;
    this.idleGone.delete(oldest!);
    if (this.idle.has(oldest!) && oldest!.idle && this.drop(oldest!)) this.idle.delete(oldest!);
  }

  private get surplus(): number {
    return Math.max(this.idle.size - this.idleMax, this.nodes.size - this.inodesMax);
  }
  /** Gives back what has not been used for long. */
  private trimSoon(): void {
    if (this.trimming) return;
    this.trimming = true;
    this.clock.defer(() => this.trim());
  }
  private trim(): void {
    let left = Math.min(TRIM_BATCH, this.surplus);
    let stuck = false;
    for (const node of this.idle) {
      if (left-- <= 0) break;
      if (!node.idle) {
        this.idle.delete(node);
      } else if (node.unpublished) {
        this.idle.delete(node); // Its size is told first; then it comes back.
        this.publishSoon(node);
      } else if (this.drop(node)) {
        this.idle.delete(node);
      } else {
        stuck = true; // There is no session: later.
        break;
      }
    }
    this.kernelTrim.look();
    const more = this.surplus > 0 && this.idle.size > 0;
    if (more && stuck) this.clock.setTimer(RETRY_MS, () => this.trim());
    else if (more) this.clock.defer(() => this.trim());
    else this.trimming = false;
  }
  private drop(node: Node): boolean {
    if (node.mode !== "none") {
      // While there is no session, what is held must stay known for the next leader.
      if (!this.mds.release(this.released(node, "none"))) return false;
      node.mode = "none";
    }
    node.data?.dropCache();
    this.nodes.delete(node.ino);
    return true;
  }
  private released(node: Node, mode: CapabilityMode): Released {
    const released: Released = {
      ino: node.ino,
      mode,
      seq: node.seq,
      open: node.opens > 0 && !node.orphan,
    };
    if (node.mode === "exclusive" && node.resizing === 0 && node.inode !== undefined) {
      released.last = node.lastWord();
    }
    return released;
  }

  // ---- Answers ---------------------------------------------------------------------------------

  apply(request: Request, reply: MdsReply, repeated: boolean): void {
    const { answer } = reply;
    const authority = new Set<Ino>();
    for (const grant of reply.grants) {
      if (request.op === "extend" && this.peek(grant.ino)?.mode !== "exclusive") {
        this.refuse(grant);
      } else {
        this.grant(grant, authority);
      }
    }
    if (repeated) return; // Attributes in the answer to a replay may be older than ours.
    this.learn(answer.inode, reply.id, authority);
    this.learn(answer.parent, reply.id, authority);
    this.learn(answer.newParent, reply.id, authority);
    this.learn(answer.removed, reply.id, authority);
    this.learn(answer.other, reply.id, authority);
    if (answer.entries !== undefined) {
      for (const entry of answer.entries) this.learn(entry.inode, reply.id, authority);
    }
    this.names.apply(request, reply);
  }

  /** More room under a capability that was given back meanwhile: somebody else waits for it. */
  private refuse({ ino, seq }: Grant): void {
    const node = this.get(ino);
    if (seq <= node.seq) return;
    node.seq = seq;
    this.mds.release(this.released(node, node.mode));
  }

  /** `fresh` collects files of which this mount is the authority only from now on. */
  private grant(grant: Grant, fresh: Set<Ino>): void {
    const node = this.get(grant.ino);
    if (node.removed) return; // Of a file that is gone here, and soon there.
    if (grant.seq < node.seq) return; // A recall overtook it.
    if (grant.seq === node.seq) {
      if (node.mode === "exclusive") node.maxSize = Math.max(node.maxSize, grant.maxSize);
      node.minEpoch = Math.max(node.minEpoch, grant.minEpoch);
      return;
    }
    node.seq = grant.seq;
    node.minEpoch = Math.max(node.minEpoch, grant.minEpoch);
    if (node.mode === "none") {
      node.xattrs = undefined;
      node.unshared = false;
      node.dropNames();
    }
    if (grant.mode === "exclusive") {
      if (node.mode !== "exclusive") {
        fresh.add(grant.ino);
        node.space = undefined;
        node.maxSize = grant.maxSize;
      } else {
        node.maxSize = Math.max(node.maxSize, grant.maxSize);
      }
    }
    if (!covers(node.mode, grant.mode)) node.mode = grant.mode;
  }

  /** `id`: of the request that this answers. */
  private learn(inode: Inode | undefined, id: number, fresh: ReadonlySet<Ino>): void {
    if (inode === undefined) return;
    const node = this.get(inode.ino);
    const known = node.inode;
    if (node.removed) return;
    if (known !== undefined && node.promised > 0 && id < node.promisedUpTo) {
      const { publishedMtimeNs } = node; // This and the rest is older than what was changed since.
      node.noteTold({ ...inode, mtimeNs: publishedMtimeNs });
      return;
    }
    // Overtaken by the answer to a later change of ours.
    if (known !== undefined && inode.truncateSeq < known.truncateSeq) return;
    if (known !== undefined && node.mode === "exclusive" && !fresh.has(inode.ino)) {
      // Size, mtime and blocks are ours; a change of them that we asked for is set by who asked.
      const { size, mtimeNs, allocated, recount } = known;
      node.inode = { ...inode, size, mtimeNs, allocated, recount };
      node.noteTold(inode);
      if (known.mtimeNs > inode.ctimeNs && known.ctimeNs > inode.ctimeNs) {
        node.inode.ctimeNs = known.ctimeNs;
      }
    } else {
      node.inode = inode;
      node.noteTold(inode);
    }
    this.accessTimes.keep(node);
    if (inode.xattrCount === 0) node.xattrs = undefined;
    // Another mount took its last name away while we have it open.
    if (inode.nlink === 0 && node.opens > 0 && node.removing === undefined) node.orphan = true;
  }

  // ---- Recalls ---------------------------------------------------------------------------------

  recall(recall: Recall, late = false): void {
    const { ino, mode } = recall;
    const node = this.get(ino);
    node.unshared = false;
    // One that is older than the last grant still says that somebody waits, and costs little.
    const seq = Math.max(recall.seq, node.seq);
    if (covers(mode, node.mode) && node.acquiring !== undefined && !late) {
      // It overtook the grant that it takes back: to refuse that would let two mounts take it from
      // each other for ever.
      node.early = recall;
      this.clock.setTimer(EARLY_MS, () => {
        if (node.early === recall) this.afterEarly(node);
      });
      return;
    }
    node.seq = seq;
    if (covers(mode, node.mode)) {
      // We gave it up meanwhile.
      this.mds.release({ ...this.released(node, node.mode), seq });
      if (node.opens > 0) node.toldOpen = true;
      return;
    }
    this.idle.delete(node);
    if (node.recall !== undefined) {
      node.recall.seq = seq;
      if (covers(node.recall.mode, mode)) node.recall.mode = mode;
      return;
    }
    node.recall = { mode, seq, stage: "drain", admitted: 0 };
    if (node.pins === 0) this.surrender(node);
  }

  private surrender(node: Node): void {
    const { recall } = node;
    if (recall === undefined) return;
    recall.stage = "flush";
    const { generation } = this;
    void this.giveBack(node, generation).catch((error: unknown) => {
      if (!isDssError(error)) throw error;
      if (generation !== this.generation) return;
      // The leader will evict this session if it cannot be done in time.
      this.logger.warn(
        { ino: node.ino, error: describeError(error) },
        "a capability cannot be given back yet",
      );
      this.clock.setTimer(RETRY_MS, () => {
        if (generation === this.generation && node.recall === recall) this.surrender(node);
      });
    });
  }

  private async giveBack(node: Node, generation: number): Promise<void> {
    const recall = node.recall!;
    const over = (): boolean => generation !== this.generation || node.recall !== recall;
    const { isDirectory } = node;
    let mode: CapabilityMode;
    for (let round = 0; ; round++) {
      mode = recall.mode;
      if (isDirectory && mode === "none") node.dropNames();
      recall.stage = "flush";
      if (node.mode === "exclusive" && node.data !== undefined) {
        await node.data.flush({ untilDone: true, recalled: true });
        if (over()) return;
      }
      // From exclusive to shared the pages stay good, except that mapped ones may still be written.
      const drops = mode === "none" || node.writers > 0;
      const endTurn = drops ? await this.kernel.turn(round > 0) : undefined;
      if (over()) return endTurn?.();
      recall.stage = "invalidate"; // Not before its turn: what is let through makes another round.
      recall.admitted = 0;
      if (endTurn !== undefined) await this.kernel.drop(node, isDirectory, endTurn);
      if (over()) return;
      // Neither the size before a truncation on its way can be told, nor yet the one after it. The
      // leader executes it without waiting for whoever waits for us: it is under the capability.
      while (node.pins > 0 || (node.resizing > 0 && node.mode === "exclusive")) {
        await new Promise<void>((resolve) => this.clock.setTimer(1, resolve));
        if (over()) return;
      }
      if (recall.admitted > 0 || !(node.data?.clean ?? true)) continue;
      recall.stage = "flush"; // Nothing is let through any more.
      if (node.unpublished && node.resizing === 0) {
        await this.publishBeforeRelease(node);
        if (over()) return;
      }
      if (recall.mode === mode) break;
    }
    if (mode === "none") {
      node.xattrs = undefined;
      node.data?.dropCache();
    }
    const released = this.released(node, mode);
    node.endSpace();
    node.mode = mode;
    node.seq = recall.seq;
    node.recall = undefined;
    if (released.open) node.toldOpen = true;
    this.releaseSoon({ ...released, seq: recall.seq });
    if (mode !== "exclusive") this.marks.told(node);
    for (const wake of node.gate.splice(0)) wake();
    this.noteIdle(node);
  }

  /** The session may just be opening, by a message that says the capability is held. */
  private releaseSoon(released: Released): void {
    if (!this.mds.release(released)) this.unsaid.set(released.ino, released);
  }
  releaseUnsaid(): void {
    const unsaid = [...this.unsaid.values()];
    this.unsaid.clear();
    for (const released of unsaid) this.releaseSoon(released);
  }

  /** In the journal before the capability is gone: afterwards nobody here may say it any more. */
  private async publishBeforeRelease(node: Node): Promise<void> {
    try {
      await this.publish(node, "safe");
    } catch (error) {
      if (!isDssError(error) || error.retry !== "never") throw error;
      this.logger.warn(
        { ino: node.ino, error: describeError(error) },
        "the leader did not take a file's size; the release says it again",
      );
    }
  }

  /** Something else than this kernel's own write changed [offset, offset + length). Never waits. */
  invalidateLater(ino: Ino, offset: number, length: number): void {
    void this.kernel.tell(ino, offset, length);
  }

  // ---- Session ---------------------------------------------------------------------------------

  held(): { ino: Ino; mode: CapabilityMode; seq: number }[] {
    this.unsaid.clear(); // By not being named.
    const held: { ino: Ino; mode: CapabilityMode; seq: number }[] = [];
    for (const node of this.nodes.values()) {
      if (node.mode !== "none") held.push({ ino: node.ino, mode: node.mode, seq: node.seq });
    }
    return held;
  }
  orphans(): Ino[] {
    return this.openInos((node) => node.orphan);
  }
  opened(): Ino[] {
    return this.openInos((node) => node.toldOpen && !node.orphan);
  }
  private openInos(wanted: (node: Node) => boolean): Ino[] {
    const inos: Ino[] = [];
    for (const node of this.nodes.values()) if (node.opens > 0 && wanted(node)) inos.push(node.ino);
    return inos;
  }

  confirmed(request: Request): void {
    this.local.confirmed(request);
  }
  refused(request: Request, error: DssError): void {
    this.local.refused(request, error);
  }
  /** What is known of it is wrong: it is given back, and asked for again. */
  distrust(node: Node): void {
    node.dropNames();
    this.recall({ ino: node.ino, mode: "none", seq: node.seq }, true);
  }

  /** As if the leader had asked for every capability; resolves when it has been told of all. */
  async giveAllBack(): Promise<void> {
    const held = [...this.nodes.values()].filter((node) => node.mode !== "none");
    for (const { ino, seq } of held) this.recall({ ino, mode: "none", seq }, true);
    const { generation } = this;
    // Not for what others ask for meanwhile.
    const recalls = held.map((node) => ({ node, recall: node.recall }));
    const isUnderWay = (): boolean => {
      for (let last = recalls.at(-1); last !== undefined; last = recalls.at(-1)) {
        if (last.recall !== undefined && last.node.recall === last.recall) return true;
        recalls.pop();
      }
      return false;
    };
    while (generation === this.generation && isUnderWay()) {
      await new Promise<void>((resolve) => this.clock.setTimer(GIVE_BACK_MS, resolve));
    }
  }

  evicted(reason: DssError, lostRequests: readonly Request[]): void {
    this.generation++;
    let lost = 0;
    for (const node of this.nodes.values()) {
      if (node.data !== undefined) {
        if (!node.data.clean) {
          lost++;
          const message = "buffered data was lost with the metadata session";
          this.failNode(node, new DssError("Fenced", message, { cause: reason }));
        }
        node.data.discard();
      }
      node.mode = "none";
      node.space = undefined;
      node.seq = 0;
      node.recall = undefined;
      node.early = undefined;
      node.unshared = false;
      node.xattrs = undefined;
      node.resizing = 0;
      node.toldOpen = false;
      node.promised = 0;
      node.promisedNames = undefined;
      node.removed = false;
      node.dropNames();
      if (node.orphan) node.stale = true;
      for (const wake of node.gate.splice(0)) wake();
      this.marks.dropped(node);
    }
    this.toPublish.clear();
    this.accessTimes.clear();
    this.local.evicted(lostRequests, reason);
    this.kernel.forgetNames();
    this.dropInKernel();
    this.logger.error({ files: lost }, "the session was lost; unwritten files report EIO");
  }
  lapsed(): void {
    this.kernel.forgetNames();
    this.dropInKernel();
  }
  /** Listings first: the kernel keeps them without a term, and there may be many files. */
  private dropInKernel(): void {
    const known = [...this.nodes.values()].filter((node) => this.kernel.mayKnow(node));
    for (const node of known) if (node.opens > 0 && node.isRegular) node.sizeUnsure = true;
    for (const isListed of [true, false]) {
      for (const { ino, kernelListing } of known) {
        if ((kernelListing !== undefined) === isListed) this.invalidateLater(ino, 0, 0);
      }
    }
  }
  resumed(): void {
    for (const node of this.nodes.values()) {
      if (node.unpublished && (node.data?.clean ?? true)) this.publishSoon(node);
    }
  }
  /** For a worker that follows another one: what the kernel knows is that one's. */
  async forgetInKernel(inos: readonly Ino[]): Promise<void> {
    this.kernel.forgetNames();
    await Promise.all(inos.map((ino) => this.kernel.tell(ino, 0, 0)));
  }
  /** Nothing that answers have brought so far is held. Before anything is done under it. */
  disownAll(): void {
    for (const node of this.nodes.values()) {
      node.mode = "none";
      node.seq = 0;
      node.maxSize = 0;
      node.unshared = false;
      node.xattrs = undefined;
      node.dropNames();
    }
  }
  // ---- Data ------------------------------------------------------------------------------------

  failNode(node: Node, error: DssError): void {
    node.fail(error);
    this.marks.failed(node);
    this.failure ??= error;
  }
  private onDataError(node: Node, error: DssError): void {
    node.space?.failed();
    this.failNode(node, error);
    if (error.code === "Fenced") this.mds.checkSession();
  }
  private onDataClean(node: Node): void {
    this.marks.durable(node);
    node.space?.settled();
    if (node.unpublished && node.writers === 0) this.publishSoon(node);
    else this.noteIdle(node);
  }
  /** Says it with the creation of a file that the leader has not heard of. */
  private publishMade(node: Node): boolean {
    if (!node.unpublished || node.resizing > 0 || !this.local.publish(node)) return false;
    this.marks.told(node);
    this.noteIdle(node);
    return true;
  }

  publishSoon(node: Node): void {
    if ((node.data?.clean ?? true) && this.publishMade(node)) return;
    this.toPublish.add(node);
    this.publishTimer ??= this.clock.setTimer(PUBLISH_MS, () => {
      this.publishTimer = undefined;
      this.publishNow();
    });
  }
  private publishNow(): void {
    for (const node of this.toPublish) {
      this.toPublish.delete(node);
      // What is dirty again comes back when it is clean.
      if (!node.unpublished || node.resizing > 0 || !(node.data?.clean ?? true)) continue;
      const work = this.publish(node, "unsafe").then(
        () => this.noteIdle(node),
        (error: unknown) => {
          if (!isDssError(error)) throw error;
          this.logger.warn(
            { ino: node.ino, error: describeError(error) },
            "size and time of a file were not published",
          );
        },
      );
      this.publishing.push(work);
      void work.finally(() => this.publishing.splice(this.publishing.indexOf(work), 1));
    }
  }
  /** Tells the MDS the size and mtime of data that is durable. */
  async publish(node: Node, wait: "unsafe" | "safe"): Promise<void> {
    const request = { op: "publish" as const, ino: node.ino, ...node.lastWord() };
    await (wait === "safe" ? this.mds.call(request, { wait }) : this.mds.callLater(request));
    this.marks.told(node);
  }
  /**
   * Before the first hole is punched: should this mount die, a file that had none is not taken for
   * one that has none still.
   */
  async announceHoles(node: Node): Promise<void> {
    if (node.publishedRecount) return;
    const { publishedSize: size, publishedMtimeNs: mtimeNs, publishedAllocated: allocated } = node;
    const told = { size, mtimeNs, allocated, recount: true };
    await this.mds.call({ op: "publish", ino: node.ino, ...told }, { wait: "safe" });
    node.noteTold(told);
  }
  /** Publishes everything that is durable and not yet told; resolves when the leader has it. */
  async publishAll(): Promise<void> {
    for (const node of this.nodes.values()) if (node.unpublished) this.toPublish.add(node);
    this.publishTimer?.cancel();
    this.publishTimer = undefined;
    this.publishNow();
    this.mds.sendBatch();
    await Promise.all([...this.publishing]);
  }

  /**
   * Everything is published and the session ends: the leader need not look at objects for the
   * sizes.
   */
  releaseAll(): void {
    for (const node of this.nodes.values()) {
      if (node.mode !== "exclusive" || node.resizing > 0 || !(node.data?.clean ?? true)) continue;
      if (this.mds.release(this.released(node, "none"))) node.mode = "none";
    }
  }

  /**
   * Resolves when everything buffered is durable; fails with the last error, after trying all
   * files.
   */
  async flushAll(): Promise<void> {
    const busy = [...this.nodes.values()].filter((node) => node.data && !node.data.clean);
    const outcomes = await Promise.allSettled(busy.map((node) => node.data!.flush()));
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }
  /** Data that were lost with an earlier worker, and nobody has asked for. */
  unseenFailure(): DssError | undefined {
    for (const node of this.nodes.values()) if (node.errorUnseen) return node.error;
    return undefined;
  }
  /** The first write-back of any file that failed since this was asked last. */
  takeFailure(): DssError | undefined {
    const { failure } = this;
    this.failure = undefined;
    return failure;
  }

  /**
   * Before the last name or the last open of ours goes: what is buffered here may be for others
   * that have the file open, and once we are no longer a keeper of it nobody may write it. Not
   * needed for a file that nobody else has seen.
   */
  async leaveToOthers(node: Node): Promise<void> {
    const dirty = node.data !== undefined && !node.data.clean;
    if (node.unshared || node.mode !== "exclusive" || !(dirty || node.unpublished)) return;
    try {
      if (dirty) await node.data!.flush({ untilDone: true });
      if (node.unpublished) await this.publish(node, "unsafe");
    } catch (error) {
      if (!isDssError(error)) throw error;
      this.logger.warn(
        { ino: node.ino, error: describeError(error) },
        "data of a removed file did not reach those who have it open",
      );
    }
  }
  /** The leader says that we do not hold what we believe to hold. */
  disown(node: Node): void {
    if (node.mode === "none" || node.recall !== undefined) return;
    this.logger.warn({ ino: node.ino, seq: node.seq }, "a capability was not the leader's to know");
    node.mode = "none";
    node.dropNames();
    node.space = undefined;
    node.xattrs = undefined;
    node.data?.dropCache();
    if (node.opens > 0 && node.isRegular) node.sizeUnsure = true;
    this.invalidateLater(node.ino, 0, 0);
  }
  /** The inode does not exist any more: nothing of it is written. */
  gone(node: Node): void {
    node.data?.discard();
    this.marks.gone(node);
    node.mode = "none";
    node.space = undefined;
    node.orphan = false;
    this.accessTimes.forget(node.ino);
    this.toPublish.delete(node);
    node.dropNames();
    this.noteIdle(node);
  }

  stop(): void {
    this.kernelTrim.stop();
    this.accessTimes.stop();
    this.publishTimer?.cancel();
    this.publishTimer = undefined;
  }
}

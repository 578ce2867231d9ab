/**
 * A standby keeps the journal since the checkpoint in memory, so that taking over needs no reading
 * of it, and watches the leader: one that answers nothing for the grace period, whose address
 * refuses connections twice, or that answers for long without leading, is challenged (the election
 * then moves on; the term keeps a challenged leader that still lives from writing).
 */
import { describeError, isDssError } from "../cluster/base/errors.js";
import type { Logger } from "../cluster/base/log.js";
import type { Messenger } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import type { Candidate } from "../cluster/zk/election.js";
import { MdsPing } from "./proto.js";
import type { MetadataReader } from "./store/metadata-store.js";

const TAIL_MS = 500;
/**
 * A leader that takes over may need long when there is much metadata; doubled with each challenge,
 * so that a cluster where everybody needs longer comes to an end.
 */
const IDLE_MAX_MS = 30_000;
/**
 * Pause before a refused connection is tried again: a second refusal means that the process is
 * gone.
 */
const REFUSED_MS = 100;
/** Batches read in one round. */
const ROUND = 256;
/** A journal longer than this is read at the take-over instead. */
const TAIL_BYTES = 64 * 2 ** 20;

export class Standby {
  readonly tail = new Map<number, Buffer>();
  private bytes = 0;
  private timers: Timer[] = [];
  private stopped = false;
  private leader: Candidate | undefined;
  private heardAt = 0;
  private refusals = 0;
  /** Since when the leader has been answering that it does not lead. */
  private idleSince: number | undefined;
  private idleMaxMs = IDLE_MAX_MS;

  constructor(
    private readonly parts: {
      clock: Clock;
      logger: Logger;
      messenger: Messenger;
      reader: MetadataReader;
      /** Milliseconds between two questions. */
      pingMs: number;
      /** Milliseconds without an answer after which the leader is challenged. */
      graceMs: number;
      challenge: (leader: Candidate) => Promise<void>;
    },
  ) {}

  start(): void {
    void this.follow();
    void this.watch();
  }
  /** The leader as the election knows it. */
  setLeader(leader: Candidate | undefined): void {
    if (leader?.incarnation !== this.leader?.incarnation) {
      this.heardAt = this.parts.clock.now();
      this.idleSince = undefined;
    }
    this.leader = leader;
  }
  stop(): void {
    this.stopped = true;
    for (const timer of this.timers) timer.cancel();
  }
  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.parts.clock.setTimer(ms, () => {
        this.timers = this.timers.filter((other) => other !== timer);
        resolve();
      });
      this.timers.push(timer);
    });
  }

  private async follow(): Promise<void> {
    while (!this.stopped) {
      try {
        await this.readTail();
      } catch (error) {
        this.parts.logger.debug({ err: describeError(error) }, "the journal cannot be read now");
      }
      await this.pause(TAIL_MS);
    }
  }
  private async readTail(): Promise<void> {
    const { reader } = this.parts;
    const present = await reader.journal();
    const checkpoint = await reader.checkpoint();
    const wanted = new Set(present.filter((seq) => seq > checkpoint));
    for (const [seq, data] of this.tail) {
      if (wanted.has(seq)) continue;
      this.tail.delete(seq);
      this.bytes -= data.length;
    }
    const missing = [...wanted].filter((seq) => !this.tail.has(seq)).slice(0, ROUND);
    for (const seq of missing) {
      if (this.stopped || this.bytes > TAIL_BYTES) return;
      const data = await reader.readBatch(seq);
      if (data === undefined) continue; // Trimmed meanwhile.
      this.tail.set(seq, data);
      this.bytes += data.length;
    }
  }

  private async watch(): Promise<void> {
    while (!this.stopped) {
      const { leader } = this;
      if (leader !== undefined) await this.ping(leader);
      await this.pause(this.refusals > 0 ? REFUSED_MS : this.parts.pingMs);
    }
  }
  private async ping(leader: Candidate): Promise<void> {
    const { clock, messenger, graceMs, pingMs, logger } = this.parts;
    const isOver = (): boolean => this.stopped || this.leader?.incarnation !== leader.incarnation;
    try {
      const peer = messenger.peer(leader.address);
      const { message } = await peer.call(MdsPing, {}, { deadlineMs: pingMs * 2 });
      if (isOver()) return;
      this.heardAt = clock.now();
      this.refusals = 0;
      if (message.leading) this.idleSince = undefined;
      else this.idleSince ??= clock.now();
    } catch (error) {
      if (isOver()) return;
      this.refusals = isDssError(error, "Unreachable") ? this.refusals + 1 : 0;
      if (this.refusals < 2 && clock.now() - this.heardAt < graceMs) return;
      logger.warn({ leader: leader.id, err: describeError(error) }, "the leader is silent");
      return this.challenge(leader);
    }
    if (this.idleSince === undefined || clock.now() - this.idleSince < this.idleMaxMs) return;
    logger.warn({ leader: leader.id, idleMs: this.idleMaxMs }, "the leader does not lead");
    this.idleMaxMs *= 2;
    await this.challenge(leader);
  }
  private async challenge(leader: Candidate): Promise<void> {
    const { clock, logger } = this.parts;
    this.heardAt = clock.now();
    this.refusals = 0;
    this.idleSince = undefined;
    await this.parts.challenge(leader).catch((problem: unknown) => {
      logger.warn({ err: describeError(problem) }, "the leader could not be challenged");
    });
  }
}

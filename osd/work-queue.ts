/**
 * Divides one OSD among clients, recovery and scrub as core/work-shares.ts decides.
 *
 * While only clients work (`contended` is false) a request passes without a look: no queue, no
 * promise, no timer. From the first turn that recovery or scrub asks for until a moment after their
 * last one, requests are counted, and wait when the OSD has as much to do as is good for it.
 *
 * Owns: the queues. What waits has not been looked at yet: map, interval and fences are checked
 * when its turn comes.
 */
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { Clock, Timer } from "../cluster/platform/ports.js";
import { COST_BASE, WorkShares, type Shares, type WorkClass } from "./core/work-shares.js";

/** After the last turn of recovery or scrub. */
const CALM_MS = 100;

/** The permission to work. Ending anything twice is allowed. */
export interface Turn {
  /** What is this OSD's part is done; the rest is the network's and the other side's. */
  release(): void;
  /** All is done. */
  end(): void;
}

interface Waiting {
  cost: number;
  start: () => void;
}

export class WorkQueue {
  /** Does anyone but clients want to work? Looked at for every request. */
  contended = false;
  private readonly queues: Record<WorkClass, Waiting[]> = { client: [], recovery: [], scrub: [] };
  private shares: WorkShares;
  /** Turns of recovery and scrub that were asked for and have not ended. */
  private background = 0;
  private timer: Timer | undefined;
  private timerAt = Infinity;
  private calm: Timer | undefined;
  private isPumping = false;
  /** Bytes that each class has done while contended; for people and for tests. */
  readonly done: Record<WorkClass, number> = { client: 0, recovery: 0, scrub: 0 };

  constructor(
    private readonly clock: Clock,
    private profile: Shares,
    private readonly depth?: number,
  ) {
    this.shares = new WorkShares(profile, depth);
  }

  /** At run time; what is queued goes on under the new shares. */
  setShares(profile: Shares): void {
    if (profile === this.profile) return;
    this.profile = profile;
    this.shares.setShares(profile);
    this.pump();
  }

  /**
   * A client's request, or an entry that a primary replicates here, which never waits: its client
   * had its turn there. Call it only while `contended`.
   */
  admit<Request, Reply>(
    request: Incoming<Request, Reply>,
    bytes: number,
    run: (request: Incoming<Request, Reply>) => void,
    mayWait = true,
  ): void {
    const cost = COST_BASE + bytes;
    const start = (): void => {
      const counted = new CountedRequest(request, this.ender("client", cost));
      try {
        run(counted);
      } catch (error) {
        counted.fail(error);
      }
    };
    this.shares.arrived("client");
    if (mayWait) {
      this.queues.client.push({ cost, start });
      this.pump();
    } else {
      this.shares.started("client", cost, this.clock.now());
      start();
    }
  }

  /** Resolves when recovery or scrub may work on that many bytes; the turn must be ended. */
  turn(work: Exclude<WorkClass, "client">, bytes: number): Promise<Turn> {
    const cost = COST_BASE + bytes;
    this.contended = true;
    this.background++;
    this.calm?.cancel();
    this.calm = undefined;
    return new Promise((resolve) => {
      const start = (): void => {
        const { shares } = this;
        const release = this.ender(work, cost);
        let hasEnded = false;
        const end = (): void => {
          if (hasEnded) return;
          hasEnded = true;
          shares.finished(work, this.clock.now());
          release();
          this.backgroundEnded();
          this.pump(); // Released earlier, it has not let anybody in by its end.
        };
        resolve({ release, end });
      };
      this.shares.arrived(work);
      this.queues[work].push({ cost, start });
      this.pump();
    });
  }

  private backgroundEnded(): void {
    if (--this.background > 0) return;
    this.calm ??= this.clock.setTimer(CALM_MS, () => {
      this.calm = undefined;
      if (this.background > 0) return;
      this.contended = false;
      this.timer?.cancel();
      this.timer = undefined;
      this.timerAt = Infinity;
      // Nothing is queued (clients alone never wait). Counts begin anew with the next contention.
      this.shares = new WorkShares(this.profile, this.depth);
    });
  }

  private ender(work: WorkClass, cost: number): () => void {
    const { shares } = this;
    let hasEnded = false;
    return () => {
      if (hasEnded) return;
      hasEnded = true;
      this.done[work] += cost;
      shares.ended(work, cost, this.clock.now());
      if (shares === this.shares) this.pump();
    };
  }

  private pump(): void {
    if (this.isPumping) return; // Started work that ends at once comes back here.
    this.isPumping = true;
    try {
      for (;;) {
        const now = this.clock.now();
        const choice = this.shares.next(now);
        if (!("work" in choice)) {
          this.wakeAt(now + choice.waitMs);
          return;
        }
        const { work, isReserved } = choice;
        const { cost, start } = this.queues[work].shift()!;
        this.shares.started(work, cost, now, isReserved);
        start();
      }
    } finally {
      this.isPumping = false;
    }
  }

  private wakeAt(instant: number): void {
    if (instant === Infinity || instant >= this.timerAt) return;
    this.timer?.cancel();
    this.timerAt = instant;
    this.timer = this.clock.setTimer(Math.max(1, instant - this.clock.now()), () => {
      this.timer = undefined;
      this.timerAt = Infinity;
      this.pump();
    });
  }
}

/** Ends its turn with its answer. */
class CountedRequest<Request, Reply> implements Incoming<Request, Reply> {
  constructor(
    private readonly request: Incoming<Request, Reply>,
    private readonly end: () => void,
  ) {}
  get message(): Request {
    return this.request.message;
  }
  get data(): Buffer {
    return this.request.data;
  }
  get sums(): Uint32Array {
    return this.request.sums;
  }
  get sender(): number {
    return this.request.sender;
  }
  get epoch(): number {
    return this.request.epoch;
  }
  get link(): Incoming<Request, Reply>["link"] {
    return this.request.link;
  }
  reply(
    message: Reply,
    data?: readonly Buffer[],
    sums?: ArrayLike<number>,
    sent?: () => void,
  ): void {
    this.request.reply(message, data, sums, sent);
    this.end();
  }
  fail(error: unknown): void {
    this.request.fail(error);
    this.end();
  }
  recycle(): void {
    this.request.recycle();
  }
}

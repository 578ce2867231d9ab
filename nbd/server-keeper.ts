/**
 * The brain of the supervisor (supervisor.ts), pure: which server process there is, and what to do
 * when it ends, breaks or says nothing. Events in, effects out; the shell drops events of servers
 * that are no longer the present one.
 *
 *            ┌────────── exited ──────────┐
 *            ▼                            │
 *   idle ► starting ──connected──► serving        broken: killed, its end awaited in "clearing"
 *            │  ▲                      │          exited soon after its start: "pausing" first
 *            ▼  │                      ▼
 *         pausing ◄──── exited ─── clearing       stop: asked to end in "stopping", then "over"
 *
 * Invariants: there is never more than one server process; the next one is started only after the
 * end of the last; only the first may fail for good for any reason, later ones only for reasons
 * that no repetition changes: the volume was somebody else's meanwhile, or it is gone.
 */
import { assert } from "../cluster/base/assert.js";
import { DssError, type ErrorCode } from "../cluster/base/errors.js";

const PAUSE_MS = 100;
const PAUSE_MS_MAX = 5_000;
/** A server that ends sooner is not started again at once. */
const STABLE_MS = 1_000;

const FINAL: ReadonlySet<ErrorCode> = new Set<ErrorCode>(["StaleHandle", "NotFound"]);

export type KeeperState =
  | { readonly at: "idle" }
  | { readonly at: "starting"; readonly tries: number }
  | { readonly at: "serving"; readonly tries: number; readonly sinceMs: number }
  | { readonly at: "clearing"; readonly tries: number }
  | { readonly at: "pausing"; readonly tries: number }
  | { readonly at: "stopping" }
  | { readonly at: "over" };

const LEGAL: Record<KeeperState["at"], readonly KeeperState["at"][]> = {
  idle: ["starting", "over"],
  starting: ["serving", "clearing", "pausing", "stopping", "over"],
  serving: ["starting", "clearing", "pausing", "stopping"],
  clearing: ["starting", "pausing", "stopping", "over"],
  pausing: ["starting", "over"],
  stopping: ["over"],
  over: [],
};

export type KeeperEvent =
  | { readonly on: "start" }
  /** The present server answers. */
  | { readonly on: "connected" }
  /** The connection to it is lost, or it does not keep the protocol, or it is silent. */
  | { readonly on: "broken"; readonly reason: string }
  /** It has ended; `failure` is what it said. */
  | { readonly on: "exited"; readonly failure?: DssError }
  | { readonly on: "paused" }
  /** Nobody uses the export any more. */
  | { readonly on: "stop" };

export type KeeperEffect =
  /** `continues`: clients have been served before. */
  | { readonly do: "spawn"; readonly continues: boolean }
  | { readonly do: "kill"; readonly reason: string }
  | { readonly do: "askToEnd" }
  /** No requests go to the server from now on. */
  | { readonly do: "disconnect" }
  | { readonly do: "pause"; readonly ms: number }
  /** The export is lost. */
  | { readonly do: "giveUp"; readonly error: DssError }
  /** There is no server and there will be none. */
  | { readonly do: "over" };

export class ServerKeeper {
  private current: KeeperState = { at: "idle" };
  private hasServed = false;

  get state(): KeeperState["at"] {
    return this.current.at;
  }

  step(event: KeeperEvent, nowMs: number): KeeperEffect[] {
    switch (event.on) {
      case "start":
        return this.spawn(0);
      case "connected":
        return this.onConnected(nowMs);
      case "broken":
        return this.onBroken(event.reason);
      case "exited":
        return this.onExited(event.failure, nowMs);
      case "paused":
        return this.current.at === "pausing" ? this.spawn(this.current.tries) : [];
      case "stop":
        return this.onStop();
    }
  }

  private spawn(tries: number): KeeperEffect[] {
    this.transition({ at: "starting", tries });
    return [{ do: "spawn", continues: this.hasServed }];
  }

  private onConnected(nowMs: number): KeeperEffect[] {
    if (this.current.at !== "starting") return [];
    this.hasServed = true;
    this.transition({ at: "serving", tries: this.current.tries, sinceMs: nowMs });
    return [];
  }

  private onBroken(reason: string): KeeperEffect[] {
    const { current } = this;
    if (current.at !== "starting" && current.at !== "serving") return [];
    this.transition({ at: "clearing", tries: current.tries });
    return [{ do: "disconnect" }, { do: "kill", reason }];
  }

  private onExited(failure: DssError | undefined, nowMs: number): KeeperEffect[] {
    const { current } = this;
    switch (current.at) {
      case "starting":
        if (!this.hasServed || (failure !== undefined && FINAL.has(failure.code))) {
          return this.giveUp(failure);
        }
        return this.pause(current.tries);
      case "serving": {
        const wasStable = nowMs - current.sinceMs >= STABLE_MS;
        const next = wasStable ? this.spawn(0) : this.pause(current.tries);
        return [{ do: "disconnect" }, ...next];
      }
      case "clearing":
        if (!this.hasServed) return this.giveUp(failure);
        return current.tries === 0 ? this.spawn(1) : this.pause(current.tries);
      case "stopping":
        this.transition({ at: "over" });
        return [{ do: "over" }];
      default:
        return [];
    }
  }

  private pause(tries: number): KeeperEffect[] {
    this.transition({ at: "pausing", tries: tries + 1 });
    return [{ do: "pause", ms: Math.min(PAUSE_MS * 2 ** Math.min(tries, 10), PAUSE_MS_MAX) }];
  }

  private giveUp(failure: DssError | undefined): KeeperEffect[] {
    this.transition({ at: "over" });
    const error = failure ?? new DssError("Unreachable", "the volume's server did not start");
    return [{ do: "giveUp", error }, { do: "over" }];
  }

  private onStop(): KeeperEffect[] {
    switch (this.current.at) {
      case "starting":
      case "serving":
        this.transition({ at: "stopping" });
        return [{ do: "disconnect" }, { do: "askToEnd" }];
      case "clearing":
        this.transition({ at: "stopping" });
        return [];
      case "idle":
      case "pausing":
        this.transition({ at: "over" });
        return [{ do: "over" }];
      default:
        return [];
    }
  }

  private transition(next: KeeperState): void {
    const { at } = this.current;
    assert(LEGAL[at].includes(next.at), `server keeper: ${at} -> ${next.at}`);
    this.current = next;
  }
}

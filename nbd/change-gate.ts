/**
 * Holds back the changes of a volume's objects while its snapshots change: those under way end
 * first, and the next ones begin under the new snapshots. Open to begin with.
 */
import { isDssError } from "../cluster/base/errors.js";

export class ChangeGate {
  isOpen = true;
  private under = 0;
  /** A change may take effect yet, although nobody waits for it any more. */
  private isUnsure = false;
  private entering: (() => void)[] = [];
  private draining: (() => void)[] = [];

  /** Runs a change of one object, when that may be. */
  async run<T>(change: () => Promise<T>): Promise<T> {
    while (!this.isOpen) await new Promise<void>((resolve) => this.entering.push(resolve));
    this.under++;
    try {
      return await change();
    } catch (error) {
      if (isDssError(error, "TimedOut")) this.isUnsure = true;
      throw error;
    } finally {
      this.under--;
      if (this.under === 0) for (const drained of this.draining.splice(0)) drained();
    }
  }

  /** Resolves when nothing is under way; false: something that was given up may be. */
  async close(): Promise<boolean> {
    this.isOpen = false;
    if (this.under > 0) await new Promise<void>((resolve) => this.draining.push(resolve));
    return !this.isUnsure;
  }
  open(): void {
    this.isOpen = true;
    for (const enter of this.entering.splice(0)) enter();
  }
}

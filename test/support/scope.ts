/**
 * What a benchmark or a step of a campaign started, ended last first: at its end, after a failure
 * and after Ctrl-C. Every action of a scope runs although an earlier one failed, and what is
 * registered after the end (a program that was starting meanwhile) is ended at once.
 */
import type { Teardown } from "./temp.js";

export class Scope implements Teardown {
  private readonly actions: (() => unknown)[] = [];
  private ending: Promise<void> | undefined;

  constructor(private readonly report: (message: string) => void = note) {}

  /** Whether the end has begun: nothing new should be started. */
  get ended(): boolean {
    return this.ending !== undefined;
  }

  teardown(action: () => unknown): void {
    this.actions.push(action);
    if (this.ending !== undefined) this.ending = this.ending.then(() => this.drain());
  }

  /** Runs every action once; who calls later waits for the same end. */
  async end(): Promise<void> {
    this.ending ??= this.drain();
    // What was registered meanwhile has prolonged the end.
    for (let seen: unknown; seen !== this.ending;) {
      seen = this.ending;
      await this.ending;
    }
  }

  /** Runs the action with a scope of its own, which ends with it or with this one. */
  async within<T>(action: (scope: Scope) => Promise<T>): Promise<T> {
    const inner = new Scope(this.report);
    const end = (): Promise<void> => inner.end();
    this.teardown(end);
    try {
      return await action(inner);
    } finally {
      await inner.end();
      const index = this.actions.lastIndexOf(end);
      if (index >= 0) this.actions.splice(index, 1);
    }
  }

  private async drain(): Promise<void> {
    for (let action = this.actions.pop(); action; action = this.actions.pop()) {
      try {
        await action();
      } catch (error) {
        this.report(`cleaning up: ${(error as Error).message}`);
        process.exitCode = 1;
      }
    }
  }
}

function note(message: string): void {
  process.stderr.write(`${message}\n`);
}

/** Ends the scope before the process, whichever way that ends; SIGKILL alone is beyond it. */
export function endWithProcess(scope: Scope): void {
  const leave = (code: number): void => {
    void scope.end().finally(() => process.exit(code));
  };
  let asked = false;
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const) {
    process.on(signal, () => {
      note(asked ? "still cleaning up, which is bounded" : "stopping and cleaning up");
      if (!asked) leave(code);
      asked = true;
    });
  }
  for (const event of ["uncaughtException", "unhandledRejection"] as const) {
    process.on(event, (error: unknown) => {
      // Programs that the end stops reject what waits for them.
      if (asked) return;
      note(error instanceof Error ? (error.stack ?? error.message) : String(error));
      asked = true;
      leave(1);
    });
  }
}

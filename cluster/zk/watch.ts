/**
 * Persistent watches over ZooKeeper's one-shot ones. Each keeps one watch armed, reads again
 * whenever it fires and after every new connection, and never misses the last state (intermediate
 * ones may be skipped). State: what was delivered last.
 */
import { describeError, isDssError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Coordination, Znode } from "./coordination.js";

export interface Watch {
  /** Resolves after the first delivery. */
  readonly ready: Promise<void>;
  stop(): void;
  /** Reads now, whatever the watch says; resolves after the delivery (or when the read failed). */
  refresh(): Promise<void>;
}

/** Failures that end with a new connection, upon which everything is read again. */
function isPassing(error: unknown): boolean {
  return (
    isDssError(error, "ConnectionLost") ||
    isDssError(error, "Unreachable") ||
    isDssError(error, "NoSession") ||
    isDssError(error, "ShuttingDown")
  );
}

/** Runs `read` once at a time, again if asked meanwhile; `read` arms the watch with `fired`. */
class Rereader implements Watch {
  readonly ready: Promise<void>;
  private isReady!: () => void;
  private isStopped = false;
  private isDirty = false;
  private running: Promise<void> | undefined;
  private readonly unsubscribe: () => void;
  /** One function object for good: the session recognises it and does not pile up watches. */
  readonly fired = (): void => void this.refresh();

  constructor(
    coordination: Coordination,
    private readonly what: string,
    private readonly log: Logger,
    private readonly read: (self: Rereader) => Promise<() => void>,
  ) {
    this.ready = new Promise((resolve) => (this.isReady = resolve));
    this.unsubscribe = coordination.onEvent((event) => {
      if (event === "connected") this.fired();
    });
  }

  stop(): void {
    this.isStopped = true;
    this.unsubscribe();
  }

  refresh(): Promise<void> {
    if (this.isStopped) return Promise.resolve();
    this.isDirty = true;
    this.running ??= this.run().finally(() => (this.running = undefined));
    return this.running;
  }

  private async run(): Promise<void> {
    while (this.isDirty && !this.isStopped) {
      this.isDirty = false;
      let deliver: () => void;
      try {
        deliver = await this.read(this);
      } catch (error) {
        const fields = { watch: this.what, error: describeError(error) };
        if (isPassing(error)) this.log.debug(fields, "a watch waits for ZooKeeper");
        else this.log.error(fields, "a watch could not read its node");
        continue;
      }
      if (this.isStopped) return;
      deliver();
      this.isReady();
    }
  }
}

const nothing = (): void => undefined;

/**
 * Calls `listener` with the node, or undefined while it is absent: first as it is, then on each
 * change.
 */
export function watchData(
  coordination: Coordination,
  path: string,
  log: Logger,
  listener: (node: Znode | undefined) => void,
): Watch {
  let last: string | undefined;
  const watch = new Rereader(coordination, path, log, async (self) => {
    const node = await coordination.get(path, self.fired);
    const seen = node ? `${node.created}/${node.version}` : "absent";
    if (seen === last) return nothing;
    return () => {
      last = seen;
      listener(node);
    };
  });
  watch.fired();
  return watch;
}

/**
 * Calls `listener` with all children and their data, first as they are, then whenever one was
 * created, removed or replaced. Changes of a child's data in place are not watched: a node under
 * watch is replaced.
 */
export function watchDirectory(
  coordination: Coordination,
  path: string,
  log: Logger,
  listener: (children: Map<string, Znode>) => void,
): Watch {
  let last: string | undefined;
  const watch = new Rereader(coordination, path, log, async (self) => {
    const listed = await coordination.children(path, self.fired);
    // Absent: wait for the folder's creation.
    if (!listed && (await coordination.get(path, self.fired))) self.fired();
    const seen = listed ? String(listed.version) : "absent";
    if (seen === last) return nothing;
    const names = listed?.names ?? [];
    const nodes = await Promise.all(names.map((name) => coordination.get(`${path}/${name}`)));
    const children = new Map<string, Znode>();
    names.forEach((name, index) => {
      // One that vanished meanwhile fires the watch again.
      const node = nodes[index];
      if (node) children.set(name, node);
    });
    return () => {
      last = seen;
      listener(children);
    };
  });
  watch.fired();
  return watch;
}

/**
 * The worker of a mount under a supervisor (mount-supervisor.ts), as `dss mount PATH --worker`: it
 * serves the kernel's requests until the mount is gone or another worker is to follow.
 */
import type { MountProcessOptions, RunningMount } from "../../client-fs/main.js";
import { describeError, isDssError } from "../../cluster/base/errors.js";
import type { ProcessLogger } from "../../cluster/platform/pino-log.js";
import type { Running } from "../daemon.js";
import { STUCK, type WorkerReady, type WorkerStart } from "./mount-supervisor.js";
import { serveParent, type ParentChannel } from "./server-process.js";

type Negotiated = NonNullable<NonNullable<MountProcessOptions["worker"]>["negotiated"]>;

type WorkerOptions = Omit<MountProcessOptions, "worker" | "onReady" | "onStuck">;

export async function serveMount(
  options: WorkerOptions & { logger: ProcessLogger },
  recordEnd: (ended: string) => void,
): Promise<void> {
  let outcome = "unmounted";
  let hasEnded = false;
  await serveParent<WorkerStart, WorkerReady>(async (start, ready, parent) => {
    const { runToEnd } = await import("../daemon.js");
    try {
      await runToEnd(options, async () => {
        const running = await begin(options, start, { ready, parent });
        void running.ended.then(() => (hasEnded = true));
        return untilHandedOver(running, parent, () => (outcome = "handed over"));
      });
      if (outcome === "unmounted") recordEnd("");
      return outcome;
    } catch (error) {
      // One that could not begin leaves the mount to the next.
      if (hasEnded) recordEnd(describeError(error));
      throw error;
    }
  });
  // Its connections are still open: whoever follows must not wait for their end.
  if (outcome === "handed over") process.exit(0);
}

async function begin(
  options: WorkerOptions,
  { fd, record, negotiated: known }: WorkerStart,
  { ready, parent }: { ready: (value: WorkerReady) => void; parent: ParentChannel },
): Promise<RunningMount> {
  const main = await import("../../client-fs/main.js");
  let negotiated = known as Negotiated | undefined;
  return main.runMount({
    ...options,
    worker: {
      ...{ fd, record, onNegotiated: (outcome) => (negotiated = outcome) },
      onBroken: () => parent.say("last"),
      ...(negotiated !== undefined && { negotiated }),
    },
    onReady: () => ready(negotiated!),
    onStuck: (what) => parent.say(`${STUCK}${what}`),
  });
}

/** Ends when the mount is gone; or without touching it when another worker is to follow. */
function untilHandedOver(
  running: RunningMount,
  parent: ParentChannel,
  onHandedOver: () => void,
): Running {
  let isHandedOver = false;
  const handedOver = new Promise<undefined>((resolve) => {
    parent.onTold((what) => {
      if (what !== "hand over") return;
      running.handOver().then(
        () => {
          isHandedOver = true;
          onHandedOver();
          resolve(undefined);
        },
        (error: unknown) => {
          if (!isDssError(error)) throw error;
          parent.say(`not everything can be written back: ${describeError(error)}`);
        },
      );
    });
  });
  void running.ended.then(() => parent.say("gone"));
  return {
    ended: Promise.race([running.ended, handedOver]),
    stop: () => (isHandedOver ? Promise.resolve() : running.stop()),
  };
}

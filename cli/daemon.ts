/**
 * Daemons in the foreground: their logger, and their end. SIGTERM and SIGINT stop in good order; a
 * second signal does not wait for that any longer. Crashes are logged before the process ends.
 */
import { describeError } from "../cluster/base/errors.js";
import type { Config } from "../cluster/config/options.js";
import { endQuickWakeups, useQuickWakeups } from "../cluster/platform/node-wakeups.js";
import { nodeClock } from "../cluster/platform/node.js";
import { createLogger, type ProcessLogger } from "../cluster/platform/pino-log.js";
import { startProfile } from "./profile.js";

export interface Running {
  /** Resolves when the process should end: undefined after `stop`, else why. */
  readonly ended: Promise<Error | undefined>;
  stop(): Promise<void>;
}

/** Logs to stderr; whoever starts a daemon in the background points that at a file. */
export function daemonLogger(name: string, config: Config): ProcessLogger {
  return createLogger({ level: config.cluster.logLevel, fields: { name } });
}

const HARD_EXIT = 130;
const START_GRACE_MS = 1_500;

/** Runs until a signal or its own end. Throws what ended it. */
export async function runToEnd(
  { config, logger }: { config: Config; logger: ProcessLogger },
  start: () => Promise<Running>,
): Promise<void> {
  if (config.cluster.quickWakeups === "on") useQuickWakeups(nodeClock, logger);
  let running: Running | undefined;
  let stopping: Promise<void> | undefined;
  let isEarly = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (stopping !== undefined || (running === undefined && isEarly)) {
      logger.warn({ signal }, "ending at once");
      process.exit(HARD_EXIT);
    }
    logger.info({ signal }, "ending in good order");
    if (running === undefined) {
      // A start may wait for its cluster without end. Nothing was acknowledged yet.
      isEarly = true;
      setTimeout(() => process.exit(HARD_EXIT), START_GRACE_MS).unref();
    } else stopping = running.stop();
    // A failure of it is thrown below.
    stopping?.catch(() => undefined);
  };
  process.on("SIGTERM", onSignal).on("SIGINT", onSignal);
  const endProfile = await startProfile(process.argv.slice(2, 5).join("-").replaceAll("/", "_"));
  process.on("uncaughtExceptionMonitor", (error) => {
    logger.error({ error }, "stopping: a bug was met");
  });
  try {
    running = await start();
    if (isEarly) stopping = running.stop();
    const reason = await running.ended;
    // Ended on its own: what is left is put away, but the reason is what is reported.
    stopping ??= running.stop().catch((error: unknown) => {
      logger.warn({ error: describeError(error) }, "while ending");
    });
    await stopping;
    if (reason !== undefined) throw reason;
  } finally {
    endQuickWakeups();
    await endProfile();
    process.off("SIGTERM", onSignal).off("SIGINT", onSignal);
  }
}

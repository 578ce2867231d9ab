/**
 * A volume's server as a child process, for a supervisor: its start, its readiness, its words at
 * the end and its heartbeat go over Node's channel between parent and child. When the parent is
 * gone the channel closes, and the server ends in good order by itself.
 *
 *   parent: {start: …}, {ping: n}        child: {ready: address}, {pong: n}, {failed: …}
 */
import { fork } from "node:child_process";
import { DssError, isDssError, type ErrorCode } from "../../cluster/base/errors.js";
import type { Address } from "../../cluster/platform/ports.js";
import type { ServerProcess } from "../../nbd/supervisor.js";

const PING_MS = 2_000;
/** A process that has said nothing for so long is hung or frozen. */
const SILENT_MS = 20_000;
/** So long it may take to say its first word: a busy machine starts programs slowly. */
const START_MS = 60_000;

interface FromServer {
  ready?: Address;
  pong?: number;
  failed?: { code: ErrorCode; message: string; hint?: string };
}

/** Starts the program, which calls `serveParent`; `start` is what that hands to it. */
export function forkServer(options: {
  program: string;
  start: object;
  /** Shown by ps. */
  title: readonly string[];
  silentMs?: number;
}): ServerProcess {
  const { program, start, title, silentMs = SILENT_MS } = options;
  const child = fork(program, title, {
    // A signal from the terminal is for the supervisor, which ends its server when it may end.
    detached: true,
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  let failure: DssError | undefined;
  let heard = performance.now() + START_MS - silentMs;
  let silent: () => void = () => undefined;
  const send = (message: object): void => {
    if (child.connected) child.send(message, () => undefined); // Its end is told by "exit".
  };
  const timer = setInterval(
    () => {
      send({ ping: 0 });
      if (performance.now() - heard > silentMs) silent();
    },
    Math.min(PING_MS, silentMs / 4),
  );
  let onReady: (address: Address) => void = () => undefined;
  const ready = new Promise<Address>((resolve) => (onReady = resolve));
  child.on("message", (message: FromServer) => {
    heard = performance.now();
    if (message.ready !== undefined) onReady(message.ready);
    if (message.failed === undefined) return;
    const { code, message: text, hint } = message.failed;
    failure = new DssError(code, text, hint === undefined ? {} : { hint });
  });
  const exited = new Promise<DssError | undefined>((resolve) => {
    child.once("error", (cause) => {
      failure = new DssError("Configuration", `cannot start the volume's server`, { cause });
      if (child.pid !== undefined) return;
      clearInterval(timer);
      resolve(failure);
    });
    child.once("exit", () => {
      clearInterval(timer);
      // What it said last may still be in the channel.
      if (!child.connected) resolve(failure);
      else child.once("disconnect", () => resolve(failure));
    });
  });
  send({ start });
  return {
    pid: child.pid ?? 0,
    ready,
    exited,
    onSilent: (callback) => (silent = callback),
    askToEnd: () => void child.kill("SIGTERM"),
    kill: () => void child.kill("SIGKILL"),
  };
}

/** The child's side: runs `serve` with what the parent sent, and tells it what becomes of it. */
export async function serveParent<Start>(
  serve: (start: Start, ready: (address: Address) => void) => Promise<void>,
): Promise<void> {
  const tell = (message: FromServer): void => {
    if (process.connected) process.send!(message);
  };
  const start = await new Promise<Start>((resolve) => {
    process.on("message", (message: { start?: Start; ping?: number }) => {
      if (message.start !== undefined) resolve(message.start);
      else if (message.ping !== undefined) tell({ pong: message.ping });
    });
  });
  // Nobody needs this server any more: the supervisor is gone, with all its clients.
  process.once("disconnect", () => process.kill(process.pid, "SIGTERM"));
  try {
    await serve(start, (address) => tell({ ready: address }));
  } catch (error) {
    const { message } = error as Error;
    const known = isDssError(error) ? error : undefined;
    const hint = known?.hint;
    tell({ failed: { code: known?.code ?? "Disk", message, ...(hint !== undefined && { hint }) } });
    process.exitCode = 1;
  } finally {
    process.removeAllListeners("disconnect");
    if (process.connected) process.disconnect();
  }
}

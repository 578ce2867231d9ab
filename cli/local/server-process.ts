/**
 * A server (of a volume, a mount's worker) as a child process, for a supervisor: its start, its
 * readiness, its words at the end and its heartbeat go over Node's channel between parent and
 * child. When the parent is gone the channel closes, and the server ends in good order by itself.
 *
 *   parent: {start: …}, {ping: n}, {tell: …}
 *   child: {ready: …}, {pong: n}, {said: …}, {ended: …}, {failed: …}
 */
import { fork } from "node:child_process";
import { DssError, isDssError, type ErrorCode } from "../../cluster/base/errors.js";
import type { Address } from "../../cluster/platform/ports.js";
import type { ServerProcess } from "../../nbd/supervisor.js";
import { daemonEnvironment, isZombie } from "./process.js";

const PING_MS = 2_000;
/** A process that has said nothing for so long is hung or frozen. */
const SILENT_MS = 20_000;
/** So long it may take to say its first word: a busy machine starts programs slowly. */
const START_MS = 60_000;

interface FromServer {
  ready?: unknown;
  pong?: number;
  /** Something between its start and its end. */
  said?: unknown;
  /** It ends in good order, with this outcome. */
  ended?: string;
  failed?: { code: ErrorCode; message: string; hint?: string };
}

export interface Child<Ready> extends Omit<ServerProcess, "ready"> {
  readonly ready: Promise<Ready>;
  /** What it said of its end when that came in good order; settled with `exited`. */
  readonly outcome: () => string | undefined;
  /** Hears what it says in between. */
  onSaid(listener: (said: unknown) => void): void;
  tell(message: string): void;
}

/** Starts the program, which calls `serveParent`; `start` is what that hands to it. */
export function forkServer<Ready = Address>(options: {
  program: string;
  start: object;
  /** Its arguments, shown by ps. */
  title: readonly string[];
  silentMs?: number;
  /** Descriptors that it inherits, from 4 on. */
  fds?: readonly number[];
  env?: Readonly<Record<string, string>>;
  /** Of Node; this process's own if absent. */
  execArgv?: readonly string[];
}): Child<Ready> {
  const { program, start, title, silentMs = SILENT_MS, fds = [], env, execArgv } = options;
  const child = fork(program, title, {
    // A signal from the terminal is for the supervisor, which ends its server when it may end.
    detached: true,
    stdio: ["ignore", "ignore", "inherit", "ipc", ...fds],
    ...(execArgv !== undefined && { execArgv: [...execArgv] }),
    env: daemonEnvironment(env),
  });
  let failure: DssError | undefined;
  let heard = performance.now() + START_MS - silentMs;
  let silent: () => void = () => undefined;
  const send = (message: object): void => {
    if (child.connected) child.send(message, () => undefined); // Its end is told by "exit".
  };
  let wasZombie = false;
  let over: () => void = () => undefined;
  const timer = setInterval(
    () => {
      // Its exit is told when its threads have left the kernel, and what they wait for there may be
      // an answer of the process that is to follow it.
      const zombie = isZombie(child.pid ?? 0);
      // Twice: what an ordinary end said last is in the channel for a moment.
      if (zombie && wasZombie) return over();
      wasZombie = zombie;
      send({ ping: 0 });
      if (performance.now() - heard > silentMs) silent();
    },
    Math.min(PING_MS, silentMs / 4),
  );
  let onReady: (value: Ready) => void = () => undefined;
  const ready = new Promise<Ready>((resolve) => (onReady = resolve));
  let outcome: string | undefined;
  let listener: (said: unknown) => void = () => undefined;
  child.on("message", (message: FromServer) => {
    heard = performance.now();
    if (message.ready !== undefined) onReady(message.ready as Ready);
    if (message.said !== undefined) listener(message.said);
    if (message.ended !== undefined) outcome = message.ended;
    if (message.failed === undefined) return;
    const { code, message: text, hint } = message.failed;
    failure = new DssError(code, text, hint === undefined ? {} : { hint });
  });
  const exited = new Promise<DssError | undefined>((resolve) => {
    child.once("error", (cause) => {
      failure = new DssError("Configuration", `cannot start ${program}`, { cause });
      if (child.pid !== undefined) return;
      clearInterval(timer);
      resolve(failure);
    });
    over = () => {
      clearInterval(timer);
      resolve(failure);
    };
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
    outcome: () => outcome,
    onSaid: (next) => (listener = next),
    tell: (message) => send({ tell: message }),
    onSilent: (callback) => (silent = callback),
    askToEnd: () => void child.kill("SIGTERM"),
    kill: () => void child.kill("SIGKILL"),
  };
}

/** What a child may do while it serves. */
export interface ParentChannel {
  say(what: unknown): void;
  onTold(listener: (message: string) => void): void;
}

/** The child's side: runs `serve` with what the parent sent, and tells it what becomes of it. */
export async function serveParent<Start, Ready = Address>(
  serve: (
    start: Start,
    ready: (value: Ready) => void,
    parent: ParentChannel,
  ) => Promise<string | void>,
): Promise<void> {
  const tell = (message: FromServer): void => {
    if (process.connected) process.send!(message);
  };
  let onTold: (message: string) => void = () => undefined;
  const start = await new Promise<Start>((resolve) => {
    process.on("message", (message: { start?: Start; ping?: number; tell?: string }) => {
      if (message.tell !== undefined) onTold(message.tell);
      if (message.start !== undefined) resolve(message.start);
      else if (message.ping !== undefined) tell({ pong: message.ping });
    });
  });
  // Nobody needs this server any more: the supervisor is gone, with all its clients.
  process.once("disconnect", () => process.kill(process.pid, "SIGTERM"));
  try {
    const outcome = await serve(start, (value) => tell({ ready: value }), {
      say: (what) => tell({ said: what }),
      onTold: (listener) => (onTold = listener),
    });
    tell({ ended: outcome ?? "" });
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

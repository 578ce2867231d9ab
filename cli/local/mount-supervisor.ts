/**
 * Keeps a mount alive over the deaths of the process that serves it (design §7 Supervisor and
 * worker). Holds the descriptor of /dev/fuse and those of the record (client-fs/vfs/
 * worker-record.ts), which a worker inherits. When it dies, hangs, or makes room for another
 * version, the next one goes on; the kernel sends again what was not answered.
 *
 * It does nothing else and imports next to nothing, so that it stays small. Decisions are those of
 * nbd/server-keeper.ts: never two workers at once, and a pause after each that ended early. Owns
 * the descriptors and the worker's process.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, closeSync, existsSync, openSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { DssError } from "../../cluster/base/errors.js";
import { closeRecordFiles, openRecordFiles } from "../../cluster/platform/node-record.js";
import type { RecordFiles } from "../../cluster/platform/node-record.js";
import { ServerKeeper, type KeeperEffect, type KeeperEvent } from "../../nbd/server-keeper.js";
import { forkServer, type Child } from "./server-process.js";

const DEVICE = "/dev/fuse";
const MEMORY = "/dev/shm";
/** The worker's numbers of the inherited descriptors. */
const WORKER_FD = 4;
const WORKER_RECORD: RecordFiles = [5, 6];
/** A worker that says nothing for so long is hung; longer than a session outlives its silence. */
const SILENT_MS = 60_000;
/** To write everything back, and for the other version to begin. */
const HAND_OVER_MS = 120_000;
const BEGIN_MS = 60_000;
const REQUEST_BYTES_MAX = 4_096;
/** What a worker says begins so when an operation waits without end; the rest is which. */
export const STUCK = "stuck: ";
/** FUSE_HAS_RESEND among the second flags of INIT. */
const HAS_RESEND = 1 << 7;
/** Larger would not fit the kernel's address of a unix socket. */
const SOCKET_PATH_MAX = 107;

export interface MountSupervision {
  mountpoint: string;
  /** cli/main.js of the version that serves. */
  program: string;
  /** Of its `mount PATH --worker`. */
  args: readonly string[];
  env: Readonly<Record<string, string>>;
  /** Where it listens for `dss mount --upgrade`; "": nowhere. */
  control: string;
  /** Another worker goes on when one has died. */
  restarts: boolean;
  /** The mount ends when nobody could serve it for so long; 0: never. */
  abortStuckMs: number;
}
/** What a worker is started with. */
export interface WorkerStart {
  fd: number;
  record: RecordFiles;
  /** Of the first worker; the kernel's and this program's choice of the protocol. */
  negotiated?: WorkerReady;
}
/** `Negotiated` of client-fs/fuse/connection.ts, handed on as it is. */
export interface WorkerReady {
  flags2: number;
}
export type ControlRequest = { upgrade: string } | { status: true };
export interface ControlReply {
  done: boolean;
  error?: string;
  pid?: number;
  program?: string;
  restarts?: number;
}

type Log = (level: "info" | "warn" | "error", message: string, fields?: object) => void;

export class MountSupervisor {
  /** The mount is gone; with why, unless somebody has unmounted it and all was written back. */
  readonly over: Promise<DssError | undefined>;
  private onOver: (error: DssError | undefined) => void = () => undefined;
  private readonly keeper = new ServerKeeper();
  private readonly fd: number;
  private readonly record: RecordFiles;
  private program: string;
  private child: Child<WorkerReady> | undefined;
  private negotiated: WorkerReady | undefined;
  private timer: NodeJS.Timeout | undefined;
  private control: Server | undefined;
  private restarts = 0;
  /** Since when nobody serves. */
  private idleSince: number | undefined;
  /** The kernel has ended the mount. */
  private isGone = false;
  /** Its record is not complete: nobody could go on after it. */
  private isLast = false;
  private isOver = false;
  private upgrade: { previous: string; end(error: string | undefined): void } | undefined;

  constructor(
    private readonly options: MountSupervision,
    private readonly log: Log,
  ) {
    this.over = new Promise((resolve) => (this.onOver = resolve));
    this.program = options.program;
    this.fd = openDevice();
    this.record = openRecordFiles(existsSync(MEMORY) ? MEMORY : tmpdir());
  }

  start(): void {
    this.listen();
    this.step({ on: "start" });
  }
  /** Unmounts, and writes everything back. */
  stop(): void {
    this.step({ on: "stop" });
  }
  /** At once: what was not written back is lost. */
  kill(): void {
    this.child?.kill();
  }

  private step(event: KeeperEvent): void {
    for (const effect of this.keeper.step(event, performance.now())) this.run(effect);
  }
  private run(effect: KeeperEffect): void {
    switch (effect.do) {
      case "spawn":
        this.spawn();
        return;
      case "kill":
        this.log("warn", "killing the mount's worker", {
          worker: this.child?.pid,
          reason: effect.reason,
        });
        this.child?.kill();
        return;
      case "askToEnd":
        this.child?.askToEnd();
        return;
      case "pause":
        this.timer = setTimeout(() => this.step({ on: "paused" }), effect.ms);
        return;
      case "giveUp":
        this.finish(effect.error);
        return;
      case "over":
        this.finish(undefined);
        return;
      case "disconnect":
        return; // The kernel keeps the requests.
    }
  }

  // ---- Workers ---------------------------------------------------------------------------------

  private spawn(): void {
    const { mountpoint, args, env } = this.options;
    const start: WorkerStart = {
      ...{ fd: WORKER_FD, record: WORKER_RECORD },
      ...(this.negotiated !== undefined && { negotiated: this.negotiated }),
    };
    const child = forkServer<WorkerReady>({
      ...{ program: this.program, start, title: ["mount", mountpoint, "--worker", ...args] },
      ...{ silentMs: SILENT_MS, fds: [this.fd, ...this.record], env, execArgv: [] },
    });
    this.child = child;
    const isPresent = (): boolean => this.child === child;
    child.onSilent(() => {
      if (isPresent()) this.step({ on: "broken", reason: "it does not answer" });
    });
    child.onSaid((said) => {
      if (said === "gone") this.isGone = true;
      else if (String(said).startsWith(STUCK)) this.abort(String(said).slice(STUCK.length));
      else if (said === "last") this.isLast = true;
      else if (isPresent()) this.upgrade?.end(`the old worker goes on: ${String(said)}`);
    });
    void child.ready.then((negotiated) => {
      if (!isPresent() || this.isOver) return;
      this.negotiated = negotiated;
      this.idleSince = undefined;
      this.step({ on: "connected" });
      this.log("info", "a worker serves the mount", { worker: child.pid, program: this.program });
      this.upgrade?.end(undefined);
    });
    void child.exited.then((failure) => {
      if (isPresent()) this.onExit(child, failure);
    });
  }

  private onExit(child: Child<WorkerReady>, failure: DssError | undefined): void {
    this.child = undefined;
    const outcome = child.outcome();
    if (this.isOver) return;
    if (this.isGone || outcome === "unmounted") {
      this.isGone = true;
      this.finish(failure ?? (outcome === undefined ? died() : undefined));
      return;
    }
    const wasServing = this.keeper.state === "serving";
    if (outcome !== "handed over" && this.keeper.state !== "stopping") {
      this.restarts++;
      const reason = failure?.message;
      this.log("warn", "the mount's worker has died", { worker: child.pid, reason });
    }
    const canResend = ((this.negotiated?.flags2 ?? 0) & HAS_RESEND) !== 0;
    const mayFollow = this.options.restarts || outcome === "handed over";
    if (wasServing && (this.isLast || !canResend || !mayFollow)) {
      // Whoever waits for an answer would wait for ever, or what was answered is not known.
      this.finish(died());
      return;
    }
    if (!wasServing && this.upgrade !== undefined) {
      const { previous, end } = this.upgrade;
      const why = failure?.message ?? "it ended at once";
      this.program = previous;
      end(`the new version does not start: ${why}; the old one goes on`);
    }
    const { abortStuckMs } = this.options;
    const now = performance.now();
    const idleMs = now - (this.idleSince ??= now);
    if (abortStuckMs > 0 && idleMs >= abortStuckMs && this.negotiated !== undefined) {
      this.abort(`nobody could serve it for ${Math.round(idleMs / 1_000)} s`);
      return;
    }
    this.step({ on: "exited", ...(failure !== undefined && { failure }) });
  }

  /** Programs that wait get an error, and the mount is gone; what was not written back is lost. */
  private abort(what: string): void {
    this.log("error", "the mount is stuck and is given up", { what });
    this.finish(
      new DssError("TimedOut", `the mount was given up: ${what}`, {
        hint: "client.abortStuckMs says how long it waits; see: dss status",
      }),
    );
    this.child?.kill();
  }

  private finish(error: DssError | undefined): void {
    if (this.isOver) return;
    this.isOver = true;
    clearTimeout(this.timer);
    this.upgrade?.end("the mount has ended");
    this.control?.close();
    if (this.options.control !== "") rmSync(this.options.control, { force: true });
    const { mountpoint } = this.options;
    if (!this.isGone && this.negotiated !== undefined) {
      spawnSync("umount", ["-i", "-l", "--", mountpoint], { stdio: "ignore" });
    }
    closeSync(this.fd);
    closeRecordFiles(this.record);
    this.onOver(error);
  }

  // ---- Another version -------------------------------------------------------------------------

  /** Resolves with what went wrong: then the version of before goes on. */
  private upgradeTo(program: string): Promise<string | undefined> {
    const { child } = this;
    if (this.keeper.state !== "serving" || child === undefined) {
      return Promise.resolve("the mount is not being served at the moment: try again");
    }
    if (this.upgrade !== undefined) return Promise.resolve("an upgrade is under way");
    if (this.isLast) return Promise.resolve("its record cannot be kept: is /dev/shm full?");
    this.log("info", "handing over to another version", { from: this.program, to: program });
    return new Promise((resolve) => {
      const late = setTimeout(() => {
        if (this.child === child) this.upgrade?.end("the old worker did not hand over in time");
        else this.step({ on: "broken", reason: "the new version does not begin" });
      }, HAND_OVER_MS + BEGIN_MS);
      const end = (error: string | undefined): void => {
        clearTimeout(late);
        const { previous } = this.upgrade!;
        this.upgrade = undefined;
        // It serves still, or again: the next one is of the same version.
        if (error !== undefined) this.program = previous;
        resolve(error);
      };
      this.upgrade = { previous: this.program, end };
      this.program = program;
      child.tell("hand over");
    });
  }

  private listen(): void {
    const { control } = this.options;
    if (control === "") return;
    if (Buffer.byteLength(control) > SOCKET_PATH_MAX) {
      this.log("warn", "no upgrades: the path is too long for a socket", { control });
      return;
    }
    rmSync(control, { force: true });
    this.control = createServer((socket) => this.onControl(socket));
    this.control.on("error", (error) => {
      this.log("warn", "no upgrades", { control, reason: error.message });
    });
    this.control.listen(control, () => chmodSync(control, 0o600));
    this.control.unref();
  }
  private onControl(socket: Socket): void {
    let text = "";
    socket.on("error", () => undefined); // Whoever asked has gone.
    socket.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (text.length > REQUEST_BYTES_MAX) socket.destroy();
      if (!text.includes("\n")) return;
      void this.answer(text).then((reply) => socket.end(`${JSON.stringify(reply)}\n`));
    });
  }
  private async answer(text: string): Promise<ControlReply> {
    let request: Partial<{ upgrade: unknown; status: unknown }>;
    try {
      request = JSON.parse(text) as typeof request;
    } catch {
      return { done: false, error: "not JSON" };
    }
    const facts = (): Omit<ControlReply, "done"> => {
      const { program, restarts, child } = this;
      return { program, restarts, ...(child !== undefined && { pid: child.pid }) };
    };
    if (typeof request.upgrade !== "string") return { done: true, ...facts() };
    const error = await this.upgradeTo(request.upgrade);
    return { done: error === undefined, ...(error !== undefined && { error }), ...facts() };
  }
}

function openDevice(): number {
  try {
    return openSync(DEVICE, "r+");
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "EACCES" || code === "EPERM") {
      throw new DssError("NotPermitted", `no permission to open ${DEVICE}`, {
        cause,
        hint: "run as root, or use the fuse-native driver",
      });
    }
    throw new DssError("Configuration", `cannot open ${DEVICE}`, {
      cause,
      hint: "load the kernel module: modprobe fuse (in a container, pass the device in)",
    });
  }
}

function died(): DssError {
  return new DssError("Disk", "the mount's process was killed");
}

/** Runs until the mount is gone. Errors: as the first worker's, or what was not written back. */
export async function superviseMount(options: MountSupervision): Promise<void> {
  const name = `mount ${options.mountpoint}`;
  const log: Log = (level, message, fields = {}) => {
    const time = new Date().toISOString();
    const line = { level, time, pid: process.pid, name, ...fields, message };
    process.stderr.write(`${JSON.stringify(line)}\n`);
  };
  const supervisor = new MountSupervisor(options, log);
  let signals = 0;
  const onSignal = (): void => {
    if (++signals === 1) supervisor.stop();
    else supervisor.kill();
  };
  process.on("SIGTERM", onSignal).on("SIGINT", onSignal);
  try {
    supervisor.start();
    const error = await supervisor.over;
    if (error !== undefined) throw error;
  } finally {
    process.off("SIGTERM", onSignal).off("SIGINT", onSignal);
  }
}

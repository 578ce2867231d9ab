/**
 * Quick wake-ups. An operation of dss is a chain of short steps in several processes: each of them
 * sleeps until the one before has sent, and a processor that has nothing to do is asleep by then.
 * What waking it takes is the kernel's choice: a virtual machine gives the processor back to its
 * host, a real one may be in a deep sleep state. While a process of dss has work, it asks the
 * kernel (PM QoS, Documentation/power/pm_qos_interface.rst) for processors that wake quickly.
 * The request is gone when its file is closed: at the latest when the process ends.
 */
import { closeSync, constants, openSync, readFileSync, writeSync } from "node:fs";
import { describeError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Clock, Timer } from "./ports.js";

/** Takes an i32, host-endian: how many microseconds waking may take while the file is open. */
const REQUESTS = "/dev/cpu_dma_latency";
const IDLE_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver";
/** Any sleep of a guest ends with a visit of the host: its idle processors poll instead. */
const GUEST_DRIVER = "haltpoll";
const GUEST_US = 0;
/** The lightest sleep (C1, 1 to 2 µs on common processors), but not the deep ones (50 to 300). */
const REAL_US = 10;

/** How often a process that works looks at how much that is. */
const LOOK_MS = 20;
/** Pieces of work in that time that are worth a request: 500 a second. */
const BUSY = 10;
/** A request outlives its cause for so long. */
const HOLD_MS = 200;

export interface WakeupPaths {
  requests: string;
  idleDriver: string;
}
const PATHS: WakeupPaths = { requests: REQUESTS, idleDriver: IDLE_DRIVER };

export class QuickWakeups {
  private work = 0;
  private timer: Timer | undefined;
  /** Of the open request. */
  private fd: number | undefined;
  private busyMs = 0;
  /** The kernel does not take requests. */
  private isRefused = false;

  constructor(
    private readonly clock: Clock,
    private readonly logger: Logger,
    private readonly paths: WakeupPaths = PATHS,
  ) {}

  /** For good. */
  end(): void {
    this.isRefused = true;
    this.timer?.cancel();
    this.close();
  }

  /** A piece of work has come in or gone out. */
  noteWork(): void {
    this.work++;
    if (this.timer === undefined && !this.isRefused) this.lookLater();
  }
  private lookLater(): void {
    this.timer = this.clock.setTimer(LOOK_MS, () => this.look());
  }
  private look(): void {
    const { work, clock } = this;
    this.work = 0;
    this.timer = undefined;
    if (work >= BUSY) {
      this.busyMs = clock.now();
      if (this.fd === undefined) this.request();
    } else if (this.fd !== undefined && clock.now() >= this.busyMs + HOLD_MS) {
      this.close();
    }
    if (this.fd !== undefined || (work > 0 && !this.isRefused)) this.lookLater();
  }
  private close(): void {
    if (this.fd !== undefined) closeSync(this.fd);
    this.fd = undefined;
  }
  private request(): void {
    try {
      const fd = openSync(this.paths.requests, constants.O_WRONLY);
      const value = new Int32Array([this.isGuest() ? GUEST_US : REAL_US]);
      try {
        writeSync(fd, value);
      } catch (error) {
        closeSync(fd);
        throw error;
      }
      this.fd = fd;
    } catch (error) {
      // Not root, or a container without the device: everything works, with slower wake-ups.
      this.isRefused = true;
      this.logger.info({ error: describeError(error) }, "no quick wake-ups: the kernel refuses");
    }
  }
  private isGuest(): boolean {
    try {
      return readFileSync(this.paths.idleDriver, "latin1").trim() === GUEST_DRIVER;
    } catch {
      return false; // A kernel that does not manage idle processors: the request has no effect.
    }
  }
}

let ofThisProcess: QuickWakeups | undefined;

/** From now on, for all that this process does. */
export function useQuickWakeups(clock: Clock, logger: Logger): void {
  ofThisProcess = new QuickWakeups(clock, logger);
}
export function endQuickWakeups(): void {
  ofThisProcess?.end();
  ofThisProcess = undefined;
}
/** What arrives at this process's devices and leaves by its sockets is told here. */
export function noteWork(): void {
  ofThisProcess?.noteWork();
}

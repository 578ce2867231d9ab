/**
 * Real programs under test: their output is captured, and they end with the test, also when the
 * test process is killed (the runner finds them by DSS_TEST_RUN, which they inherit).
 * Each runs in its own process group, so that what it starts ends with it.
 */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { appendFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { waitFor, withDeadline } from "./temp.js";
import type { Teardown } from "./temp.js";

/** The compiled tree of the running test, such as dist/. */
export const BUILD = fileURLToPath(new URL("../..", import.meta.url));
const OUTPUT_MAX = 4 * 2 ** 20;
const END_MS = 5_000;

export interface StartOptions {
  cwd?: string;
  /** Added to the test's own environment. */
  env?: Readonly<Record<string, string>>;
  /** Also appended to this file. */
  logFile?: string;
  /** Given to the program's standard input, which is then closed. */
  input?: string | Buffer;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A program that runs until it ends, is stopped or the test is over. */
export class Program {
  readonly name: string;
  readonly exited: Promise<Exit>;
  private readonly child: ChildProcess;
  private readonly chunks: { stdout: Buffer[]; stderr: Buffer[] } = { stdout: [], stderr: [] };
  private size = 0;
  private ended: Exit | undefined;

  constructor(t: Teardown, program: string, args: readonly string[], options: StartOptions = {}) {
    this.name = [program.split("/").at(-1), ...args].join(" ").slice(0, 120);
    this.child = spawn(program, args, {
      cwd: options.cwd,
      detached: true,
      stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
      env: { ...process.env, ...options.env },
    });
    for (const stream of ["stdout", "stderr"] as const) {
      this.child[stream]?.on("data", (chunk: Buffer) => {
        if (options.logFile !== undefined) appendFileSync(options.logFile, chunk);
        this.size += chunk.length;
        if (this.size <= OUTPUT_MAX) this.chunks[stream].push(chunk);
      });
    }
    // A program that ends without reading its input is judged by its exit code.
    this.child.stdin?.on("error", () => undefined);
    this.child.stdin?.end(options.input);
    this.exited = new Promise((done, fail) => {
      this.child.on("error", (cause) => fail(new Error(`cannot start ${this.name}`, { cause })));
      this.child.on("exit", (code, signal) => (this.ended = { code, signal }));
      // `close` waits for the output, `exit` for the process; a grandchild may hold the output.
      this.child.on("close", () => done(this.ended ?? { code: null, signal: null }));
      this.child.on("exit", () =>
        setTimeout(() => {
          this.child.stdout?.destroy();
          this.child.stderr?.destroy();
        }, 300).unref(),
      );
    });
    this.exited.catch(() => undefined); // Reported to whoever waits; nobody has to.
    t.teardown(() => this.stop());
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error(`${this.name} did not start`);
    return this.child.pid;
  }
  get running(): boolean {
    return this.ended === undefined && this.child.pid !== undefined;
  }
  get stdout(): string {
    return Buffer.concat(this.chunks.stdout).toString("utf8");
  }
  get stdoutBytes(): Buffer {
    return Buffer.concat(this.chunks.stdout);
  }
  get stderr(): string {
    return Buffer.concat(this.chunks.stderr).toString("utf8");
  }

  /** To this process only; `stop` ends the whole group. */
  signal(signal: NodeJS.Signals): void {
    if (this.running) process.kill(this.pid, signal);
  }

  /** `kill -9` of the process, and waits until it is gone. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await withDeadline(END_MS, `the end of ${this.name}`, this.exited);
  }

  /** Asks the program to end, after `graceMs` makes it; its whole process group. */
  async stop({ graceMs = END_MS }: { graceMs?: number } = {}): Promise<void> {
    if (this.child.pid === undefined) return;
    if (this.running) {
      this.toGroup("SIGTERM");
      this.toGroup("SIGCONT"); // One that a test has stopped could not end.
      await withDeadline(graceMs, `the end of ${this.name}`, this.exited).catch(() => undefined);
    }
    this.toGroup("SIGKILL");
    if (this.ended === undefined) {
      await withDeadline(END_MS, `the end of ${this.name}`, this.exited);
    }
  }

  private toGroup(signal: NodeJS.Signals): void {
    try {
      process.kill(-this.pid, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  }

  /** Waits for a line of output (either stream) that matches, and returns the match. */
  async output(pattern: RegExp, withinMs = 20_000): Promise<RegExpExecArray> {
    const search = (): RegExpExecArray | undefined =>
      pattern.exec(this.stdout) ?? pattern.exec(this.stderr) ?? undefined;
    let over = false;
    const found = await waitFor(
      `${this.name} prints ${String(pattern)}`,
      () => {
        const match = search();
        over = match === undefined && !this.running;
        return match ?? (over ? null : undefined);
      },
      { withinMs },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}; it printed:\n${this.tail()}`, { cause });
    });
    if (found === null) {
      throw new Error(`${this.name} ended without ${String(pattern)}; it printed:\n${this.tail()}`);
    }
    return found;
  }

  /** The end of what it printed, for messages. */
  tail(lines = 30): string {
    return `${this.stdout}${this.stderr}`.trim().split("\n").slice(-lines).join("\n");
  }
}

export function start(
  t: Teardown,
  program: string,
  args: readonly string[] = [],
  options: StartOptions = {},
): Program {
  return new Program(t, program, args, options);
}

export interface RunOptions extends StartOptions {
  withinMs?: number;
}
export interface RunResult extends Exit {
  readonly stdout: string;
  readonly stderr: string;
  readonly stdoutBytes: Buffer;
}

/** Runs a program to its end; its exit code is for the caller to judge. */
export async function run(
  t: Teardown,
  program: string,
  args: readonly string[] = [],
  options: RunOptions = {},
): Promise<RunResult> {
  const running = new Program(t, program, args, options);
  try {
    const exit = await withDeadline(options.withinMs ?? 60_000, running.name, running.exited);
    const { stdout, stderr, stdoutBytes } = running;
    return { ...exit, stdout, stderr, stdoutBytes };
  } catch (cause) {
    await running.stop();
    throw new Error(`${String(cause)}; it printed:\n${running.tail()}`, { cause });
  }
}

/** Runs a program that must succeed and returns its standard output. */
export async function succeed(
  t: Teardown,
  program: string,
  args: readonly string[] = [],
  options: RunOptions = {},
): Promise<string> {
  const { code, signal, stdout, stderr } = await run(t, program, args, options);
  if (code === 0) return stdout;
  const end = signal === null ? `exit code ${code}` : signal;
  throw new Error(`${program} ${args.join(" ")}: ${end}\n${stdout}${stderr}`);
}

/** Arguments that run the command `dss` of the tree under test: `start(t, ...dss("status"))`. */
export function dss(...args: string[]): [program: string, args: string[]] {
  return [process.execPath, ["--enable-source-maps", `${BUILD}cli/main.js`, ...args]];
}

/**
 * Looks at the own mount through a shell. A process that serves a mount must not use it: killed
 * while it waits for its own answer it would never end, and the descriptor of the connection would
 * stay open with it. The shell has neither; it ends with its input.
 *
 * Owns: that process.
 */
import { spawn, type ChildProcessByStdio } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import { DssError } from "../../cluster/base/errors.js";
import { Fifo } from "../../cluster/base/fifo.js";

/** A name on each line of the input, whether it is there on each line of the output. */
const SCRIPT =
  'while IFS= read -r name; do if [ -e "$1/$name" ]; then echo 1; else echo 0; fi; done';
const THERE = 0x31;
const NEWLINE = 0x0a;

type Shell = ChildProcessByStdio<Writable, Readable, null>;
interface Look {
  name: string;
  resolve: () => void;
  reject: (error: DssError) => void;
}

export class Looker {
  private shell: Shell | undefined;
  /** In the order of their answers. */
  private readonly looks = new Fifo<Look>();

  constructor(private readonly folder: string) {}

  /** Of the shell; there is none before the first look. */
  get pid(): number | undefined {
    return this.shell?.pid;
  }

  /** Resolves when the kernel has found the name. Rejects with Disk when it has not. */
  async look(name: string): Promise<void> {
    this.shell ??= this.start();
    const { stdin } = this.shell;
    await new Promise<void>((resolve, reject) => {
      this.looks.push({ name, resolve, reject });
      stdin.write(`${name}\n`);
    });
  }
  /** A look that is under way is over when its request has been answered. */
  stop(): void {
    const { shell } = this;
    if (shell === undefined) return;
    shell.stdin.end();
    this.ended(shell, new Error("the mount has ended"));
  }

  private start(): Shell {
    const failure = `no shell to look at ${this.folder} with`;
    let shell: Shell;
    try {
      shell = spawn("/bin/sh", ["-c", SCRIPT, "sh", this.folder], {
        cwd: "/",
        stdio: ["pipe", "pipe", "ignore"],
        detached: true, // A signal for the group of the mount is not for it.
      });
    } catch (error) {
      throw new DssError("Disk", failure, { cause: error });
    }
    this.watch(shell, failure);
    return shell;
  }
  private watch(shell: Shell, failure: string): void {
    const ended = (error: Error): void => this.ended(shell, error);
    shell.once("error", ended);
    shell.once("exit", () => ended(new Error("the shell has ended")));
    // Node leaves the pipes out when there are no more descriptors.
    if ((shell.stdin as Writable | undefined) === undefined) throw new DssError("Disk", failure);
    shell.stdin.on("error", ended);
    shell.stdout.on("error", ended);
    shell.stdout.on("data", (answers: Buffer) => this.answered(shell, answers));
    shell.unref();
    for (const pipe of [shell.stdin, shell.stdout]) (pipe as { unref?: () => void }).unref?.();
  }
  private answered(shell: Shell, answers: Buffer): void {
    if (this.shell !== shell) return;
    for (const byte of answers) {
      if (byte === NEWLINE) continue;
      const look = this.looks.shift();
      if (byte === THERE) look?.resolve();
      else look?.reject(new DssError("Disk", `the names in ${this.folder} cannot be seen`));
    }
  }
  private ended(shell: Shell, cause: Error): void {
    if (this.shell !== shell) return;
    this.shell = undefined;
    for (let look = this.looks.shift(); look !== undefined; look = this.looks.shift()) {
      look.reject(new DssError("Disk", `no look at ${this.folder}`, { cause }));
    }
  }
}

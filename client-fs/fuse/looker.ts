/**
 * Looks at the own mount through a shell. A process that serves a mount must not use it: killed
 * while it waits for its own answer it would never end, and the descriptor of the connection would
 * stay open with it. The shell has neither; it ends with its input.
 *
 * Owns: that process.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { DssError } from "../../cluster/base/errors.js";
import { Fifo } from "../../cluster/base/fifo.js";

/** A name on each line of the input, whether it is there on each line of the output. */
const SCRIPT =
  'while IFS= read -r name; do if [ -e "$1/$name" ]; then echo 1; else echo 0; fi; done';
const THERE = 0x31;
const NEWLINE = 0x0a;

interface Look {
  name: string;
  resolve: () => void;
  reject: (error: DssError) => void;
}

export class Looker {
  private shell: ChildProcess | undefined;
  /** In the order of their answers. */
  private readonly looks = new Fifo<Look>();

  constructor(private readonly folder: string) {}

  /** Of the shell; there is none before the first look. */
  get pid(): number | undefined {
    return this.shell?.pid;
  }

  /** Resolves when the kernel has found the name. Rejects with Disk when it has not. */
  look(name: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.looks.push({ name, resolve, reject });
      this.shell ??= this.start();
      this.shell.stdin!.write(`${name}\n`);
    });
  }
  /** A look that is under way is over when its request has been answered. */
  stop(): void {
    this.shell?.stdin!.end();
    this.shell = undefined;
  }

  private start(): ChildProcess {
    const shell = spawn("/bin/sh", ["-c", SCRIPT, "sh", this.folder], {
      cwd: "/",
      stdio: ["pipe", "pipe", "ignore"],
      detached: true, // A signal for the group of the mount is not for it.
    });
    const ended = (error: Error): void => this.ended(shell, error);
    shell.once("error", ended);
    shell.once("exit", () => ended(new Error("the shell has ended")));
    shell.stdin.on("error", ended);
    shell.stdout.on("error", ended);
    shell.stdout.on("data", (answers: Buffer) => this.answered(answers));
    shell.unref();
    for (const pipe of [shell.stdin, shell.stdout]) (pipe as { unref?: () => void }).unref?.();
    return shell;
  }
  private answered(answers: Buffer): void {
    for (const byte of answers) {
      if (byte === NEWLINE) continue;
      const look = this.looks.shift();
      if (byte === THERE) look?.resolve();
      else look?.reject(new DssError("Disk", `${this.folder}/${look.name} cannot be seen`));
    }
  }
  private ended(shell: ChildProcess, cause: Error): void {
    if (this.shell !== shell) return;
    this.shell = undefined;
    for (let look = this.looks.shift(); look !== undefined; look = this.looks.shift()) {
      look.reject(new DssError("Disk", `no look at ${this.folder}`, { cause }));
    }
  }
}

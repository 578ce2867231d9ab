/** Runs the writer program as a child and feeds its lines to a ledger, as long as it lives. */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import { BUILD, succeed } from "./process.js";
import type { Ledger } from "./stamped-blocks.js";
import { withDeadline } from "./temp.js";
import type { Teardown } from "./temp.js";
import type { Found, WriterRequest } from "./writer.js";

/** What every whole line of the writer ends with. */
const END_OF_LINE = " .";

const END_MS = 10_000;
const VERIFY_MS = 120_000;

export class Load {
  readonly done: Promise<void>;
  private readonly child: ChildProcess;
  private errors = "";

  constructor(t: Teardown, request: WriterRequest, ledger: Ledger) {
    this.child = spawn(
      process.execPath,
      ["--enable-source-maps", `${BUILD}test/support/writer.js`, JSON.stringify(request)],
      { stdio: ["ignore", "pipe", "pipe"] },
    );
    this.child.stderr?.on("data", (chunk: Buffer) => (this.errors += chunk.toString("utf8")));
    if (this.child.stdout === null) throw new Error("the writer has no output");
    let cut = 0;
    const lines = createInterface({ input: this.child.stdout });
    this.done = new Promise((done, fail) => {
      this.child.once("error", fail);
      lines.on("line", (line) => {
        try {
          // The last line is cut off when the writer is killed while it writes it.
          if (line.endsWith(END_OF_LINE)) ledger.onLine(line.slice(0, -END_OF_LINE.length));
          else if (++cut > 1) throw new Error(`the writer said: ${line}`);
        } catch (error) {
          fail(error);
        }
      });
      lines.once("close", () => {
        if (this.errors === "") done();
        else fail(new Error(`the writer: ${this.errors}`));
      });
    });
    this.done.catch(() => undefined); // Reported to whoever waits.
    t.teardown(() => this.child.kill("SIGKILL"));
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  /** Waits for its end after a crash; a writer that hangs in a system call is killed. */
  async end(): Promise<void> {
    const timer = setTimeout(() => this.child.kill("SIGKILL"), END_MS);
    try {
      await withDeadline(2 * END_MS, "the end of the writer", this.done);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Asks it to finish what it is doing, and waits until it has. */
  async finish(): Promise<void> {
    this.child.kill("SIGTERM");
    await withDeadline(60_000, "the end of the writer", this.done);
  }
}

export async function verify(t: Teardown, request: WriterRequest): Promise<Found> {
  const out = await succeed(
    t,
    process.execPath,
    ["--enable-source-maps", `${BUILD}test/support/writer.js`, JSON.stringify(request)],
    { withinMs: VERIFY_MS },
  );
  return JSON.parse(out) as Found;
}

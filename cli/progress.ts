/** Progress of long work, on stderr: a bar on a terminal, plain lines elsewhere. */
import type * as CliProgress from "cli-progress";
import { createRequire } from "node:module";
import { note } from "./output.js";

/** Between two plain lines. */
const LINE_MS = 2_000;

// Loaded when a bar is shown.
const load = createRequire(import.meta.url);

export class Progress {
  private bar: CliProgress.SingleBar | undefined;
  private lineAt = -Infinity;
  private line = "";

  constructor(private readonly title: string) {}

  /** `text` is the whole message of a plain line, and stands behind the bar. */
  update(done: number, total: number, text: string): void {
    if (process.stderr.isTTY) this.draw(done, total, text);
    else if (text !== this.line && performance.now() - this.lineAt >= LINE_MS) {
      this.lineAt = performance.now();
      this.line = text;
      note(`${this.title}: ${text}`);
    }
  }

  end(): void {
    this.bar?.stop();
  }

  private draw(done: number, total: number, text: string): void {
    if (this.bar === undefined) {
      const { SingleBar, Presets } = load("cli-progress") as typeof CliProgress;
      const format = `${this.title} [{bar}] {percentage} %  {text}`;
      const options = { format, stream: process.stderr, clearOnComplete: true, hideCursor: true };
      this.bar = new SingleBar(options, Presets.shades_classic);
      this.bar.start(total, done, { text });
    }
    this.bar.setTotal(total);
    this.bar.update(done, { text });
  }
}

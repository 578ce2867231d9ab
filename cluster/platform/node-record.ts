/**
 * A log in a file in memory (tmpfs) that outlives the process which writes it. Nothing is synced:
 * it need not outlive the machine. What was appended is there for the next process, whatever
 * happens to this one, because the kernel has it when the call returns.
 *
 * Owns: the descriptor of the present file; `replace` puts another file in its place.
 */
import { closeSync, openSync, readFileSync, renameSync, writeFileSync, writeSync } from "node:fs";

export class FileRecord {
  private fd: number;

  constructor(private readonly path: string) {
    this.fd = openSync(path, "a", 0o600);
  }

  read(): Buffer {
    return readFileSync(this.path);
  }
  append(bytes: Buffer): void {
    for (let at = 0; at < bytes.length;) at += writeSync(this.fd, bytes, at);
  }
  /** All or nothing: whoever reads finds the old file or the new one. */
  replace(bytes: Buffer): void {
    const next = `${this.path}.new`;
    writeFileSync(next, bytes, { mode: 0o600 });
    renameSync(next, this.path);
    closeSync(this.fd);
    this.fd = openSync(this.path, "a");
  }
}

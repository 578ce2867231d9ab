/**
 * Reads and writes that pass by the page cache (O_DIRECT). The kernel wants memory for them that is
 * aligned as the disk needs it (512 bytes mostly, 4 KiB at most), and JavaScript cannot ask where a
 * buffer lies. WebAssembly memory begins at a page, so bytes are copied there first, or from there:
 * a small part of what the way through the page cache costs.
 *
 * Owner of the process's aligned buffers.
 */
import { assert } from "../base/assert.js";
import type { DirectFile } from "./ports.js";

const ALIGNMENT = 4096;
const BUFFER_BYTES = 1024 * 1024;
/** More at a time than threads that read and write. */
const BUFFERS = 8;
const WASM_PAGE_BYTES = 64 * 1024;

/** What of it is used here: the compiler knows it only with the browser's other names. */
declare const WebAssembly: {
  Memory: new (size: { initial: number; maximum: number }) => { buffer: ArrayBuffer };
};

let free: Buffer[] | undefined;
const waiting: ((buffer: Buffer) => void)[] = [];

function take(): Buffer | Promise<Buffer> {
  if (free === undefined) {
    const initial = (BUFFERS * BUFFER_BYTES) / WASM_PAGE_BYTES;
    const { buffer } = new WebAssembly.Memory({ initial, maximum: initial });
    const at = (i: number): Buffer => Buffer.from(buffer, i * BUFFER_BYTES, BUFFER_BYTES);
    free = Array.from({ length: BUFFERS }, (_, i) => at(i));
  }
  return free.pop() ?? new Promise<Buffer>((resolve) => waiting.push(resolve));
}
function give(buffer: Buffer): void {
  const next = waiting.shift();
  if (next !== undefined) next(buffer);
  else free!.push(buffer);
}

/** Of a file that was opened with O_DIRECT. */
export class NodeDirectFile implements DirectFile {
  constructor(private readonly file: DirectFile) {}

  async read(buffer: Buffer, position: number): Promise<number> {
    const total = buffer.length;
    assert(position % ALIGNMENT === 0 && total % ALIGNMENT === 0, "whole blocks are read");
    for (let done = 0; done < total;) {
      const taken = take();
      const aligned = taken instanceof Promise ? await taken : taken;
      try {
        const part = aligned.subarray(0, Math.min(aligned.length, total - done));
        const count = await this.file.read(part, position + done);
        part.copy(buffer, done, 0, count);
        done += count;
        if (count < part.length) return done;
      } finally {
        give(aligned);
      }
    }
    return total;
  }

  async write(chunks: readonly Buffer[], position: number): Promise<void> {
    const total = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    assert(position % ALIGNMENT === 0 && total % ALIGNMENT === 0, "whole blocks are written");
    // What is next: chunks[index] from `skip`.
    let index = 0;
    let skip = 0;
    for (let done = 0; done < total;) {
      const taken = take();
      const buffer = taken instanceof Promise ? await taken : taken;
      try {
        let filled = 0;
        while (filled < buffer.length && index < chunks.length) {
          const count = chunks[index]!.copy(buffer, filled, skip);
          filled += count;
          skip += count;
          if (skip === chunks[index]!.length) {
            index++;
            skip = 0;
          }
        }
        await this.file.write([buffer.subarray(0, filled)], position + done);
        done += filled;
      } finally {
        give(buffer);
      }
    }
  }

  close(): Promise<void> {
    return this.file.close();
  }
}

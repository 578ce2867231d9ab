/** Messages of the bare pipeline: a header of 24 bytes, then data, both ways. */
import type { Socket } from "node:net";
import { BufferPool } from "../../../cluster/base/buffer-pool.js";

export const KIND = { write: 1, read: 2 } as const;

export interface Header {
  readonly kind: number;
  readonly sequence: number;
  /** Of the data that follow. */
  readonly crc: number;
  /** Where to read, in blocks of 4 KiB, and how many bytes. */
  readonly block: number;
  readonly wanted: number;
}
export interface Message extends Header {
  readonly data: Buffer;
  /** Nobody looks at the data any more. */
  release(): void;
}

const HEADER_BYTES = 24;
const NO_DATA: Buffer = Buffer.alloc(0);
const pool = new BufferPool(64 * 2 ** 20);

/** Memory of that size for data, and how to give it back. */
export function takeData(length: number): { data: Buffer; release: () => void } {
  if (length === 0) return { data: NO_DATA, release: () => undefined };
  const whole = pool.take(length);
  return { data: whole.subarray(0, length), release: () => pool.give(whole) };
}

/** What is sent in one turn of the event loop leaves together. */
export function send(socket: Socket, header: Header, data = NO_DATA, sent?: () => void): void {
  if (socket.writableCorked === 0) {
    socket.cork();
    process.nextTick(() => socket.uncork());
  }
  const head = Buffer.allocUnsafe(HEADER_BYTES);
  const { kind, sequence, crc, block, wanted } = header;
  [kind, sequence, data.length, crc, block, wanted].forEach((value, i) => {
    head.writeUInt32LE(value, i * 4);
  });
  socket.write(head, data.length === 0 ? sent : undefined);
  if (data.length > 0) socket.write(data, sent);
}

/** Cuts what arrives into messages. */
export class MessageReader {
  private readonly head = Buffer.alloc(HEADER_BYTES);
  private headFilled = 0;
  private body: ReturnType<typeof takeData> | undefined;
  private bodyFilled = 0;

  constructor(private readonly onMessage: (message: Message) => void) {}

  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length;) {
      if (this.headFilled < HEADER_BYTES) {
        const taken = chunk.copy(this.head, this.headFilled, at);
        this.headFilled += taken;
        at += taken;
        if (this.headFilled < HEADER_BYTES) return;
      }
      this.body ??= takeData(this.head.readUInt32LE(8));
      const taken = chunk.copy(this.body.data, this.bodyFilled, at);
      this.bodyFilled += taken;
      at += taken;
      if (this.bodyFilled === this.body.data.length) this.finish(this.body);
    }
  }

  private finish({ data, release }: ReturnType<typeof takeData>): void {
    const [kind, sequence, , crc, block, wanted] = [0, 1, 2, 3, 4, 5].map((i) =>
      this.head.readUInt32LE(i * 4),
    ) as [number, number, number, number, number, number];
    this.headFilled = 0;
    this.bodyFilled = 0;
    this.body = undefined;
    this.onMessage({ kind, sequence, crc, block, wanted, data, release });
  }
}

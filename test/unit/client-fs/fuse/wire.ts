/** Test helper: requests as the kernel sends them, and a connection whose replies are kept. */
import { silentLogger } from "../../../../cluster/base/log.js";
import type { FileSystem, KernelNotifier } from "../../../../client-fs/file-system.js";
import * as abi from "../../../../client-fs/fuse/abi.js";
import {
  Connection,
  type ConnectionOptions,
  type Negotiated,
} from "../../../../client-fs/fuse/connection.js";
import type { DssError } from "../../../../cluster/base/errors.js";

export interface KernelReply {
  unique: bigint;
  errno: number;
  body: Buffer;
}

const notifier: KernelNotifier = {
  invalidateInode: () => Promise.resolve(),
  invalidateEntry: () => Promise.resolve(),
  invalidateAllEntries: () => Promise.resolve(true),
};

export function requestBytes(
  opcode: number,
  body: Buffer,
  header: { unique?: bigint; ino?: number; uid?: number; gid?: number; pid?: number } = {},
): Buffer {
  const message = Buffer.alloc(abi.IN_HEADER_SIZE + body.length);
  message.writeUInt32LE(message.length, 0);
  message.writeUInt32LE(opcode, 4);
  message.writeBigUInt64LE(header.unique ?? 2n, 8);
  message.writeBigUInt64LE(BigInt(header.ino ?? 1), 16);
  message.writeUInt32LE(header.uid ?? 1000, 24);
  message.writeUInt32LE(header.gid ?? 100, 28);
  message.writeUInt32LE(header.pid ?? 4242, 32);
  body.copy(message, abi.IN_HEADER_SIZE);
  return message;
}

/** Little-endian fields: numbers are u32, bigints u64, the rest bytes. */
export function fields(...parts: (number | bigint | Buffer | string)[]): Buffer {
  return Buffer.concat(
    parts.map((part) => {
      if (typeof part === "string") return Buffer.from(part, "latin1");
      if (Buffer.isBuffer(part)) return part;
      const bytes = Buffer.alloc(typeof part === "number" ? 4 : 8);
      if (typeof part === "number") bytes.writeUInt32LE(part >>> 0);
      else bytes.writeBigInt64LE(part);
      return bytes;
    }),
  );
}

export const INIT = 26;
export function initBody(major: number, minor: number, flags = 0xffff_ffff): Buffer {
  return fields(major, minor, 131_072, flags, 0xffff_ffff, Buffer.alloc(44));
}

export class Kernel {
  readonly replies: KernelReply[] = [];
  readonly crashes: unknown[] = [];
  outcome: Negotiated | DssError | undefined;
  released = 0;
  leased = 0;
  /** What the sink answers: false plays a kernel that no longer wants replies. */
  wants = true;
  readonly connection: Connection;

  constructor(fileSystem: Partial<FileSystem>, options: Partial<ConnectionOptions> = {}) {
    this.connection = new Connection({
      fileSystem: { init: () => undefined, ...fileSystem } as FileSystem,
      notifier,
      sink: {
        send: (message, length) => this.keep(Buffer.from(message.subarray(0, length))),
        sendPieces: (header, pieces, length, written) => {
          const whole = Buffer.concat([header, ...pieces]);
          written();
          if (whole.length !== length) throw new Error("length does not match the pieces");
          return this.keep(whole);
        },
      },
      logger: silentLogger,
      crash: (error) => this.crashes.push(error),
      now: () => 0,
      onReady: (outcome) => {
        this.outcome = outcome;
      },
      ...options,
    });
  }

  private keep(message: Buffer): boolean {
    if (message.readUInt32LE(0) !== message.length) throw new Error("reply length is wrong");
    this.replies.push({
      unique: message.readBigUInt64LE(8),
      errno: -message.readInt32LE(4),
      body: message.subarray(abi.OUT_HEADER_SIZE),
    });
    return this.wants;
  }

  send(message: Buffer, length = message.length): void {
    this.leased++;
    this.connection.receive({ bytes: message, release: () => this.released++ }, length);
  }

  init(): void {
    this.send(requestBytes(INIT, initBody(7, 45)));
    this.replies.length = 0;
  }

  /** Sends one request and gives its reply, once the file system's promise has settled. */
  async ask(
    opcode: number,
    body: Buffer,
    header: Parameters<typeof requestBytes>[2] = {},
  ): Promise<KernelReply> {
    const before = this.replies.length;
    this.send(requestBytes(opcode, body, header));
    await this.connection.idle();
    const reply = this.replies[before];
    if (!reply) throw new Error(`opcode ${opcode} got no reply`);
    return reply;
  }
}

/**
 * A client of an NBD server of its own (no code of the server's) for what a disk can do: structured
 * replies with holes, block status by base:allocation, trim and zeros; any number of requests in
 * flight on a connection. What breaks the protocol is an error.
 * Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
import { connect, type Socket } from "node:net";

const OPTION_REPLY = 0x0003e889045565a9n;
const REQUEST = 0x25609513;
const STRUCTURED = 0x668e33ef;
const SIMPLE = 0x67446698;
const OPTION = { go: 7, structured: 8, context: 10 } as const;
const REPLY = { ack: 1, info: 3, context: 4 } as const;
const COMMAND = { read: 0, write: 1, disconnect: 2, trim: 4, zero: 6, status: 7 } as const;
const FLAG = { fua: 1, noHole: 2 } as const;
const CHUNK = { none: 0, data: 1, hole: 2, status: 5 } as const;
const ALLOCATION = "base:allocation";
const STATE = { hole: 1, zero: 2 } as const;

interface Request {
  command: number;
  flags: number;
  offset: number;
  length: number;
  data?: Buffer;
}
interface Status {
  length: number;
  hole: boolean;
  zero: boolean;
}
interface Waiting {
  request: Request;
  /** Of a read, and how many bytes of it have come. */
  bytes: Buffer;
  filled: number;
  extents: Status[];
  error: string | undefined;
  resolve(waiting: Waiting): void;
  reject(error: Error): void;
}

export class NbdDisk {
  /** Bytes, as told at the beginning. */
  size = 0;
  readOnly = false;
  private cookie = 0n;
  private readonly received: Buffer[] = [];
  private receivedBytes = 0;
  private readonly waiting = new Map<bigint, Waiting>();
  private wake: (() => void) | undefined;
  private failure: Error | undefined;

  private constructor(
    readonly name: string,
    private readonly socket: Socket,
  ) {
    socket.on("data", (chunk: Buffer) => {
      this.received.push(chunk);
      this.receivedBytes += chunk.length;
      this.wake?.();
    });
    socket.on("error", (error) => this.fail(error));
    socket.on("close", () => this.fail(new Error(`${name}: the NBD connection is closed`)));
  }

  /** Fails when the server refuses the export, with its words. */
  static async open(path: string, name: string): Promise<NbdDisk> {
    const socket = connect({ path });
    await new Promise<void>((done, fail) => socket.once("connect", done).once("error", fail));
    const disk = new NbdDisk(name, socket);
    try {
      await disk.negotiate();
    } catch (error) {
      socket.destroy();
      throw error;
    }
    void disk.receive();
    return disk;
  }

  async read(offset: number, length: number): Promise<Buffer[]> {
    const { bytes, filled } = await this.request({
      ...{ command: COMMAND.read, flags: 0, offset, length },
    });
    if (filled !== length) throw new Error(`${this.name}: ${filled} of ${length} bytes came`);
    return [bytes];
  }
  async write(offset: number, data: Buffer, { fua }: { fua: boolean }): Promise<void> {
    const flags = fua ? FLAG.fua : 0;
    await this.request({ command: COMMAND.write, flags, offset, length: data.length, data });
  }
  async zero(offset: number, length: number, { mayTrim }: { mayTrim: boolean }): Promise<void> {
    const flags = mayTrim ? 0 : FLAG.noHole;
    await this.request({ command: COMMAND.zero, flags, offset, length });
  }
  async trim(offset: number, length: number, { fua }: { fua: boolean }): Promise<void> {
    const flags = fua ? FLAG.fua : 0;
    await this.request({ command: COMMAND.trim, flags, offset, length });
  }
  async status(offset: number, length: number, extentsMax: number): Promise<Status[]> {
    const { extents } = await this.request({ command: COMMAND.status, flags: 0, offset, length });
    const total = extents.reduce((sum, extent) => sum + extent.length, 0);
    if (extents.length === 0 || total > length) {
      throw new Error(`${this.name}: extents of ${total} bytes for ${length}`);
    }
    return extents.slice(0, extentsMax);
  }
  /** Resolves when the connection is gone; requests in flight fail. */
  async close(): Promise<void> {
    if (this.failure !== undefined) return;
    const closed = new Promise<void>((done) => this.socket.once("close", () => done()));
    const goodbye = { command: COMMAND.disconnect, flags: 0, offset: 0, length: 0 };
    this.socket.end(header(goodbye, 0n));
    await closed;
  }

  private fail(error: Error): void {
    this.failure ??= error;
    for (const each of this.waiting.values()) each.reject(this.failure);
    this.waiting.clear();
    this.wake?.();
  }
  private async take(length: number): Promise<Buffer> {
    while (this.receivedBytes < length) {
      if (this.failure !== undefined) throw this.failure;
      await new Promise<void>((wake) => (this.wake = wake));
    }
    const all = this.received.length === 1 ? this.received[0]! : Buffer.concat(this.received);
    this.received.length = 0;
    if (all.length > length) this.received.push(all.subarray(length));
    this.receivedBytes -= length;
    return all.subarray(0, length);
  }

  // ---- Negotiation -----------------------------------------------------------------------------

  private async negotiate(): Promise<void> {
    const hello = await this.take(18);
    if (hello.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw new Error("no NBD server");
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(3); // Fixed newstyle, no zeroes.
    this.socket.write(flags);
    await this.option(OPTION.structured, Buffer.alloc(0));
    const name = withLength(this.name);
    const one = Buffer.from([0, 0, 0, 1]);
    const context = Buffer.concat([name, one, withLength(ALLOCATION)]);
    const contexts = await this.option(OPTION.context, context);
    if (!contexts.some(({ type }) => type === REPLY.context)) throw new Error("no block status");
    for (const { type, body } of await this.option(
      OPTION.go,
      Buffer.concat([name, Buffer.alloc(2)]),
    )) {
      if (type !== REPLY.info || body.readUInt16BE(0) !== 0) continue;
      this.size = Number(body.readBigUInt64BE(2));
      this.readOnly = (body.readUInt16BE(10) & 2) !== 0;
    }
  }
  private async option(number: number, data: Buffer): Promise<{ type: number; body: Buffer }[]> {
    const head = Buffer.alloc(16);
    head.write("IHAVEOPT", 0, "latin1");
    head.writeUInt32BE(number, 8);
    head.writeUInt32BE(data.length, 12);
    this.socket.write(Buffer.concat([head, data]));
    const replies: { type: number; body: Buffer }[] = [];
    for (;;) {
      const answer = await this.take(20);
      if (answer.readBigUInt64BE(0) !== OPTION_REPLY) throw new Error("no option reply");
      if (answer.readUInt32BE(8) !== number) throw new Error("a reply to another option");
      const type = answer.readUInt32BE(12);
      const body = await this.take(answer.readUInt32BE(16));
      if (type >= 0x80000000) throw new Error(`${this.name} is refused: ${body.toString()}`);
      if (type === REPLY.ack) return replies;
      replies.push({ type, body });
    }
  }

  // ---- Requests and replies --------------------------------------------------------------------

  private request(request: Request): Promise<Waiting> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    const cookie = ++this.cookie;
    this.socket.write(header(request, cookie));
    if (request.data !== undefined) this.socket.write(request.data);
    const bytes = Buffer.alloc(request.command === COMMAND.read ? request.length : 0);
    return new Promise((resolve, reject) => {
      const none = { filled: 0, extents: [], error: undefined };
      this.waiting.set(cookie, { request, bytes, ...none, resolve, reject });
    });
  }

  private async receive(): Promise<void> {
    try {
      for (;;) {
        const magic = (await this.take(4)).readUInt32BE(0);
        if (magic !== STRUCTURED && magic !== SIMPLE) throw new Error("no reply");
        const head = await this.take(magic === SIMPLE ? 12 : 16);
        const cookie = head.readBigUInt64BE(4);
        const waiting = this.waiting.get(cookie);
        if (waiting === undefined) throw new Error(`a reply to no request: ${cookie}`);
        if (magic === SIMPLE) {
          // Of what has no data a server may say so.
          const { command } = waiting.request;
          const hasChunks = command === COMMAND.read || command === COMMAND.status;
          if (hasChunks) throw new Error("a simple reply to what is answered in chunks");
          if (head.readUInt32BE(0) !== 0) waiting.error = `error ${head.readUInt32BE(0)}`;
        } else {
          accept(waiting, head.readUInt16BE(2), await this.take(head.readUInt32BE(12)));
          if ((head.readUInt16BE(0) & 1) === 0) continue;
        }
        this.waiting.delete(cookie);
        if (waiting.error === undefined) waiting.resolve(waiting);
        else waiting.reject(new Error(`${this.name}: ${waiting.error}`));
      }
    } catch (error) {
      this.fail(error instanceof Error ? error : new Error(String(error)));
      this.socket.destroy();
    }
  }
}

function accept(waiting: Waiting, type: number, body: Buffer): void {
  const { request, bytes } = waiting;
  if (type === CHUNK.none) return;
  if (type === CHUNK.data || type === CHUNK.hole) {
    const at = Number(body.readBigUInt64BE(0)) - request.offset;
    const length = type === CHUNK.data ? body.length - 8 : body.readUInt32BE(8);
    if (at < 0 || at + length > bytes.length) throw new Error("data outside what was asked for");
    if (type === CHUNK.data) body.copy(bytes, at, 8);
    waiting.filled += length;
  } else if (type === CHUNK.status) {
    for (let at = 4; at < body.length; at += 8) {
      const state = body.readUInt32BE(at + 4);
      const [hole, zero] = [(state & STATE.hole) !== 0, (state & STATE.zero) !== 0];
      waiting.extents.push({ length: body.readUInt32BE(at), hole, zero });
    }
  } else if (type >= 0x8000) {
    const text = body.toString("utf8", 6, 6 + body.readUInt16BE(4));
    waiting.error ??= `error ${body.readUInt32BE(0)}: ${text}`;
  } else throw new Error(`a chunk of type ${type}`);
}

function header({ command, flags, offset, length }: Request, cookie: bigint): Buffer {
  const head = Buffer.alloc(28);
  head.writeUInt32BE(REQUEST, 0);
  head.writeUInt16BE(flags, 4);
  head.writeUInt16BE(command, 6);
  head.writeBigUInt64BE(cookie, 8);
  head.writeBigUInt64BE(BigInt(offset), 16);
  head.writeUInt32BE(length, 24);
  return head;
}
function withLength(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/**
 * A small NBD client of its own (no code of the server's): fixed newstyle, NBD_OPT_GO, simple
 * replies, any number of requests in flight. For loads that must know exactly what was answered.
 * Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
import { connect } from "node:net";
import type { Socket } from "node:net";

const HELLO = Buffer.from("NBDMAGICIHAVEOPT", "latin1");
const OPTION_REPLY = 0x0003e889045565a9n;
const REQUEST = 0x25609513;
const SIMPLE_REPLY = 0x67446698;
const OPT_GO = 7;
const REP_ACK = 1;
const REP_INFO = 3;
const FLAG_FUA = 1;
const CMD = { read: 0, write: 1, disconnect: 2, flush: 3 } as const;

interface Waiting {
  /** Bytes of data that follow a good reply. */
  readonly length: number;
  resolve(data: Buffer): void;
  reject(error: Error): void;
}

export class NbdClient {
  size = 0;
  private cookie = 0n;
  private received = Buffer.alloc(0);
  private readonly waiting = new Map<bigint, Waiting>();
  private wake: (() => void) | undefined;
  private failure: Error | undefined;

  private constructor(private readonly socket: Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.received = Buffer.concat([this.received, chunk]);
      this.wake?.();
    });
    socket.on("error", (error) => this.fail(error));
    socket.on("close", () => this.fail(new Error("the NBD connection is closed")));
  }

  /** Connects to an export on a unix socket. Fails when the server refuses it. */
  static async connect(path: string, name: string): Promise<NbdClient> {
    const socket = connect({ path });
    await new Promise<void>((done, fail) => socket.once("connect", done).once("error", fail));
    const client = new NbdClient(socket);
    await client.negotiate(name);
    void client.receive();
    return client;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    return await this.request(CMD.read, { offset, length });
  }
  async write(offset: number, data: Buffer, { fua = false } = {}): Promise<void> {
    await this.request(CMD.write, { offset, length: data.length, data, fua });
  }
  async flush(): Promise<void> {
    await this.request(CMD.flush, { offset: 0, length: 0 });
  }
  /** Says goodbye and closes; requests in flight fail. */
  close(): void {
    if (this.failure === undefined) this.socket.end(this.header(CMD.disconnect, 0, 0, false));
  }

  private fail(error: Error): void {
    this.failure ??= error;
    for (const each of this.waiting.values()) each.reject(this.failure);
    this.waiting.clear();
    this.wake?.();
  }

  private async take(length: number): Promise<Buffer> {
    while (this.received.length < length) {
      if (this.failure !== undefined) throw this.failure;
      await new Promise<void>((wake) => (this.wake = wake));
    }
    const taken = this.received.subarray(0, length);
    this.received = this.received.subarray(length);
    return taken;
  }

  private async negotiate(name: string): Promise<void> {
    const hello = await this.take(18);
    if (!hello.subarray(0, 16).equals(HELLO)) throw new Error("not an NBD server");
    const bytes = Buffer.from(name, "utf8");
    const option = Buffer.alloc(4 + 16 + 4 + bytes.length + 2);
    option.writeUInt32BE(3, 0); // Fixed newstyle, no zeroes.
    option.write("IHAVEOPT", 4, "latin1");
    option.writeUInt32BE(OPT_GO, 12);
    option.writeUInt32BE(6 + bytes.length, 16);
    option.writeUInt32BE(bytes.length, 20);
    bytes.copy(option, 24);
    this.socket.write(option);
    for (;;) {
      const head = await this.take(20);
      if (head.readBigUInt64BE(0) !== OPTION_REPLY) throw new Error("no option reply");
      const type = head.readUInt32BE(12);
      const body = await this.take(head.readUInt32BE(16));
      if (type >= 0x80000000) throw new Error(`export ${name} refused: ${type.toString(16)}`);
      if (type === REP_INFO && body.readUInt16BE(0) === 0) {
        this.size = Number(body.readBigUInt64BE(2));
      }
      if (type === REP_ACK) return;
    }
  }

  private header(type: number, offset: number, length: number, fua: boolean): Buffer {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(REQUEST, 0);
    header.writeUInt16BE(fua ? FLAG_FUA : 0, 4);
    header.writeUInt16BE(type, 6);
    header.writeBigUInt64BE(this.cookie, 8);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    return header;
  }

  private async request(
    type: number,
    about: { offset: number; length: number; data?: Buffer; fua?: boolean },
  ): Promise<Buffer> {
    if (this.failure !== undefined) throw this.failure;
    const cookie = ++this.cookie;
    this.socket.write(this.header(type, about.offset, about.length, about.fua ?? false));
    if (about.data !== undefined) this.socket.write(about.data);
    return await new Promise((resolve, reject) => {
      this.waiting.set(cookie, { length: type === CMD.read ? about.length : 0, resolve, reject });
    });
  }

  private async receive(): Promise<void> {
    try {
      for (;;) {
        const head = await this.take(16);
        if (head.readUInt32BE(0) !== SIMPLE_REPLY) throw new Error("no simple reply");
        const error = head.readUInt32BE(4);
        const cookie = head.readBigUInt64BE(8);
        const waiting = this.waiting.get(cookie);
        if (waiting === undefined) throw new Error(`a reply to no request: ${cookie}`);
        const data = error === 0 ? Buffer.from(await this.take(waiting.length)) : Buffer.alloc(0);
        this.waiting.delete(cookie);
        if (error === 0) waiting.resolve(data);
        else waiting.reject(new Error(`NBD error ${error}`));
      }
    } catch (error) {
      this.fail(error instanceof Error ? error : new Error(String(error)));
      this.socket.destroy();
    }
  }
}

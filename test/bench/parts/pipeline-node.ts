/**
 * `pipeline-node.js FILE BYTES [PORT PORT]`: a replica of the bare pipeline, or with the ports of
 * its replicas the primary. Makes the file, prints the port at which it listens.
 */
import {
  closeSync,
  fdatasync,
  fsyncSync,
  openSync,
  readSync,
  writeSync,
  writevSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { BLOCK_SIZE, crc32 } from "../../../cluster/base/checksum.js";
import { KIND, MessageReader, send, takeData } from "./pipeline-wire.js";
import type { Header, Message } from "./pipeline-wire.js";
import { MiB } from "./part.js";

const HOST = "127.0.0.1";

/** A file that is written from its beginning to its end, over and over; synced in groups. */
class GroupLog {
  private gathered: { data: Buffer; synced: () => void }[] = [];
  private busy = false;
  private at = 0;

  constructor(
    private readonly fd: number,
    private readonly size: number,
  ) {}

  append(data: Buffer, synced: () => void): void {
    this.gathered.push({ data, synced });
    if (this.busy) return;
    this.busy = true;
    setImmediate(() => this.sync()); // With what else this turn brings.
  }

  private sync(): void {
    const group = this.gathered;
    this.gathered = [];
    const pieces = group.map(({ data }) => data);
    const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
    if (this.at + bytes > this.size) this.at = 0;
    if (writevSync(this.fd, pieces, this.at) !== bytes) throw new Error("a short write");
    this.at += bytes;
    fdatasync(this.fd, (error) => {
      if (error !== null) throw error;
      for (const { synced } of group) synced();
      if (this.gathered.length > 0) this.sync();
      else this.busy = false;
    });
  }
}

function makeFile(path: string, size: number): number {
  const made = openSync(path, "wx");
  const zeros = Buffer.alloc(MiB);
  for (let at = 0; at < size; at += zeros.length) writeSync(made, zeros, 0, zeros.length, at);
  fsyncSync(made);
  closeSync(made);
  return openSync(path, "r+");
}

const answerTo = ({ kind, sequence }: Header, crc = 0): Header => {
  return { kind, sequence, crc, block: 0, wanted: 0 };
};

class PipelineNode {
  private readonly links: Socket[] = [];
  private readonly waiting = new Map<number, () => void>();

  constructor(
    private readonly fd: number,
    private readonly log: GroupLog,
    replicas: readonly number[],
  ) {
    for (const port of replicas) {
      const reader = new MessageReader(({ sequence }) => this.waiting.get(sequence)?.());
      const link = connect({ host: HOST, port, noDelay: true });
      this.links.push(link.on("data", (chunk) => reader.push(chunk)));
    }
  }

  accept(socket: Socket): void {
    const reader = new MessageReader((message) => {
      if (message.kind === KIND.write) this.write(socket, message);
      else this.read(socket, message);
    });
    socket.on("data", (chunk) => reader.push(chunk));
    socket.on("error", () => undefined); // The other process was ended.
  }

  private write(socket: Socket, message: Message): void {
    const { data, sequence } = message;
    if (crc32(data) !== message.crc) throw new Error("wrong bytes arrived");
    let left = 1 + this.links.length;
    const stored = (): void => {
      if (--left > 0) return;
      this.waiting.delete(sequence);
      message.release();
      send(socket, answerTo(message));
    };
    if (this.links.length > 0) this.waiting.set(sequence, stored);
    for (const link of this.links) send(link, message, data);
    this.log.append(data, stored);
  }

  private read(socket: Socket, message: Message): void {
    const { data, release } = takeData(message.wanted);
    readSync(this.fd, data, 0, data.length, message.block * BLOCK_SIZE);
    send(socket, answerTo(message, crc32(data)), data, release);
  }
}

const [path = "", size = "", ...replicas] = process.argv.slice(2);
const fd = makeFile(path, Number(size));
const node = new PipelineNode(fd, new GroupLog(fd, Number(size)), replicas.map(Number));
const server = createServer({ noDelay: true }, (socket) => node.accept(socket));
server.listen({ host: HOST, port: 0 }, () => {
  process.stdout.write(`port ${(server.address() as AddressInfo).port}\n`);
});

/** The client of the bare pipeline: writes, and reads at random places of what was written. */
import { connect } from "node:net";
import { BLOCK_SIZE, crc32 } from "../../../cluster/base/checksum.js";
import { Prng } from "../../../cluster/base/prng.js";
import { keepInFlight } from "../closed-loop.js";
import { measureRows, readOrder } from "./load.js";
import type { Row } from "./part.js";
import { KIND, MessageReader, send } from "./pipeline-wire.js";
import type { ClientPlace } from "./pipeline.js";

const order = readOrder<ClientPlace>();
const random = new Prng(1);
const waiting = new Map<number, () => void>();
let sequence = 0;

const socket = connect({ host: "127.0.0.1", port: order.where.port, noDelay: true });
const reader = new MessageReader((answer) => {
  if (answer.kind === KIND.read && crc32(answer.data) !== answer.crc) {
    throw new Error("wrong bytes were read");
  }
  answer.release();
  const done = waiting.get(answer.sequence);
  waiting.delete(answer.sequence);
  done?.();
});
socket.on("data", (chunk) => reader.push(chunk));

function write(data: Buffer, done: () => void): void {
  waiting.set(++sequence, done);
  send(socket, { kind: KIND.write, sequence, crc: crc32(data), block: 0, wanted: 0 }, data);
}

function read(bytes: number, done: () => void): void {
  waiting.set(++sequence, done);
  const block = random.int(0, (order.sizes.sequential - bytes) / BLOCK_SIZE);
  send(socket, { kind: KIND.read, sequence, crc: 0, block, wanted: bytes });
}

function operationOf({ name, bytes = 0 }: Row): (done: () => void) => void {
  if (name.includes("read")) return (done) => read(bytes, done);
  const data = random.bytes(bytes);
  return (done) => write(data, done);
}

await measureRows(order, (row, seconds) => keepInFlight(row.depth ?? 1, seconds, operationOf(row)));
socket.destroy();

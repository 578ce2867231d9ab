/**
 * A program that measures how long single operations take: one lane an operation kind, each with
 * one operation under way at a time. It checks what it reads: a lane's blocks hold the number of
 * the write that filled them, and a read must show the newest acknowledged one or one under way.
 *
 * `prober.js REQUEST` with a ProberRequest as JSON. Each line on standard input is answered by one
 * line of JSON (a ProberReport) on what happened since the line before; end of input ends it.
 */
import { constants } from "node:fs";
import { mkdir, open, rmdir, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Prng } from "../../cluster/base/prng.js";
import { NbdClient } from "./nbd-client.js";

export interface ProberRequest {
  /** A folder of the mount: a file is written and read, directories are made and removed. */
  readonly folder?: string;
  /** A served volume; only bytes from `from` to `to` are touched. */
  readonly nbd?: { socket: string; volume: string; from: number; to: number };
  /** Bytes of the file. */
  readonly fileBytes: number;
  readonly seed: number;
}

export interface ProberReport {
  /** Milliseconds of the longest operation since the last report, also one that is under way. */
  readonly longest: Readonly<Record<string, number>>;
  /** Operations that ended since the last report. */
  readonly count: Readonly<Record<string, number>>;
  /** All errors and wrong bytes since the start. */
  readonly errors: readonly string[];
}

const BLOCK = 4096;
/** Apart, so that the object's placement group changes often and memory of it stays small. */
const BLOCK_STRIDE = 256 * 1024;
const PAUSE_MS = 8;
const ERRORS_MAX = 20;

const request = JSON.parse(process.argv[2] ?? "") as ProberRequest;
const random = new Prng(request.seed);
const errors: string[] = [];
const lanes: Lane[] = [];
let running = true;

/** Repeats one operation and keeps the longest time that it took. */
class Lane {
  private longest = 0;
  private count = 0;
  private since: number | undefined;

  constructor(
    readonly name: string,
    private readonly action: () => Promise<void>,
  ) {}

  async run(): Promise<void> {
    while (running) {
      this.since = performance.now();
      try {
        await this.action();
      } catch (error) {
        const { message, code } = error as NodeJS.ErrnoException;
        if (errors.length < ERRORS_MAX) errors.push(`${this.name}: ${code ?? ""} ${message}`);
      }
      this.longest = Math.max(this.longest, performance.now() - this.since);
      this.since = undefined;
      this.count++;
      await new Promise((done) => setTimeout(done, PAUSE_MS));
    }
  }
  report(): { longest: number; count: number } {
    const now = performance.now();
    const longest = Math.max(this.longest, this.since === undefined ? 0 : now - this.since);
    const { count } = this;
    this.longest = 0;
    this.count = 0;
    return { longest: Math.round(longest), count };
  }
}

interface Blocks {
  read(offset: number): Promise<Buffer>;
  write(offset: number, data: Buffer): Promise<void>;
}

/** One lane that writes numbered blocks and one that reads and checks them. */
function addBlockLanes(name: string, blocks: Blocks, count: number): void {
  const acknowledged = new Uint32Array(count);
  const issued = new Uint32Array(count);
  let number = 0;
  const lane = (what: string, action: () => Promise<void>): void => {
    lanes.push(new Lane(`${name} ${what}`, action));
  };
  lane("write", async () => {
    const block = random.int(0, count - 1);
    const value = ++number;
    issued[block] = value;
    await blocks.write(block * BLOCK_STRIDE, filled(value));
    acknowledged[block] = value;
  });
  lane("read", async () => {
    const block = random.int(0, count - 1);
    const atLeast = acknowledged[block]!;
    const data = await blocks.read(block * BLOCK_STRIDE);
    const value = data.readUInt32LE(0);
    const isWhole = data.length === BLOCK && data.equals(filled(value));
    if (isWhole && value >= atLeast && value <= issued[block]!) return;
    const what = isWhole ? `has ${value}` : "is torn";
    throw new Error(`block ${block} ${what}, but ${atLeast} was acknowledged`);
  });
}

function filled(value: number): Buffer {
  const data = Buffer.alloc(BLOCK);
  for (let at = 0; at < BLOCK; at += 4) data.writeUInt32LE(value, at);
  return data;
}

async function addMountLanes(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC | constants.O_DIRECT;
  const file: FileHandle = await open(join(folder, "blocks"), flags, 0o644);
  await file.truncate(request.fileBytes);
  const blocks: Blocks = {
    read: async (offset) => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(BLOCK), 0, BLOCK, offset);
      return buffer.subarray(0, bytesRead);
    },
    write: async (offset, data) => {
      const { bytesWritten } = await file.write(data, 0, BLOCK, offset);
      if (bytesWritten !== BLOCK) throw new Error(`wrote ${bytesWritten} bytes`);
    },
  };
  addBlockLanes("mount", blocks, Math.floor(request.fileBytes / BLOCK_STRIDE));
  let next = 0;
  const directory = await open(folder, constants.O_RDONLY);
  lanes.push(
    new Lane("mount names", async () => {
      const path = join(folder, `d${next++}`);
      await mkdir(path);
      await rmdir(path);
      // Without it the mount does both by itself, as long as it holds the directory alone.
      await directory.sync();
    }),
  );
}

async function addNbdLanes(nbd: NonNullable<ProberRequest["nbd"]>): Promise<void> {
  const client = await NbdClient.connect(nbd.socket, nbd.volume);
  const blocks: Blocks = {
    read: (offset) => client.read(nbd.from + offset, BLOCK),
    write: (offset, data) => client.write(nbd.from + offset, data),
  };
  addBlockLanes("nbd", blocks, Math.floor((nbd.to - nbd.from) / BLOCK_STRIDE));
}

function report(): ProberReport {
  const longest: Record<string, number> = {};
  const count: Record<string, number> = {};
  for (const lane of lanes) {
    const figures = lane.report();
    longest[lane.name] = figures.longest;
    count[lane.name] = figures.count;
  }
  return { longest, count, errors };
}

if (request.folder !== undefined) await addMountLanes(request.folder);
if (request.nbd !== undefined) await addNbdLanes(request.nbd);
const input = createInterface({ input: process.stdin });
input.on("line", () => process.stdout.write(`${JSON.stringify(report())}\n`));
input.on("close", () => (running = false));
process.stdout.write(`${JSON.stringify(report())}\n`);
await Promise.all(lanes.map((lane) => lane.run()));
process.exit(0);

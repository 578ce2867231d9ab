/**
 * The load of the crash tests, as a program: `writer.js JSON`. It says on standard output what it
 * is about to do before it does it, and what was acknowledged after it was; one line each, ended by
 * " ." so that one cut off by a kill is recognised:
 *
 *     a GENERATION FILE FIRST COUNT   stamped blocks will be written
 *     k GENERATION…                   these were acknowledged (fsync, O_DSYNC, NBD flush or FUA)
 *     n? N / n+ N / n- N              file N will be made or removed / is there / is gone
 *     e TEXT                          it stops
 *
 * It ends by itself at the first error, which is what a crash of the file system looks like. With
 * `verify` it prints what it finds instead, as one JSON document.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { Prng } from "../../cluster/base/prng.js";
import { NbdClient } from "./nbd-client.js";
import { BLOCK, describeGarbage, GARBAGE, generationOf, stamp } from "./stamped-blocks.js";

export interface WriterRequest {
  do: "write" | "verify";
  /** Files in a folder, or a volume on a unix socket. */
  target: { folder: string } | { socket: string; volume: string };
  /** Blocks of each file, or of the volume. */
  blocks: number;
  seed: number;
  /** Generations start here. */
  from: number;
}

export interface Found {
  blocks: [file: number, block: number, generation: number][];
  /** Names that are there whole, and that are there damaged. */
  names: number[];
  damaged: number[];
  /** The first blocks that are neither old nor new, for people. */
  garbage: string[];
}

/** How a file is written; its number is its place. */
export const FILE_KINDS = ["buffered", "dsync", "direct"] as const;
/** The number under which a volume's blocks are known. */
export const VOLUME_FILE = 100;
const IN_FLIGHT = 12;
const WRITE_BLOCKS_MAX = 8;
const NAMES_KEPT = 40;
const O_DIRECT = (fs.constants as { O_DIRECT?: number }).O_DIRECT ?? 0o40000;
const FLAGS = { buffered: 0, dsync: fs.constants.O_DSYNC, direct: O_DIRECT } as const;

const request = JSON.parse(process.argv[2] ?? "{}") as WriterRequest;
const random = new Prng(request.seed);
let generation = request.from;
let stopping = false;

/** Synchronously: what was said is in the pipe before the next step is taken. */
const say = (line: string): void => print(`${line} .\n`);
const print = (text: string): void => {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length;) done += fs.writeSync(1, bytes, done);
};

function range(random: Prng, blocks: number): { first: number; count: number } {
  const count = random.chance(0.5) ? 1 : random.int(1, WRITE_BLOCKS_MAX);
  return { first: random.int(0, blocks - count), count };
}

function stamped(file: number, first: number, count: number, generation: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, i) => stamp(file, first + i, generation)));
}

// ---- Files -------------------------------------------------------------------------------------

async function writeFile(folder: string, file: number, random: Prng): Promise<void> {
  const kind = FILE_KINDS[file] ?? "buffered";
  const flags = fs.constants.O_RDWR | fs.constants.O_CREAT | FLAGS[kind];
  const handle = await fs.promises.open(join(folder, `blocks-${file}`), flags, 0o644);
  const unsynced: number[] = [];
  while (!stopping) {
    const { first, count } = range(random, request.blocks);
    const mine = ++generation;
    say(`a ${mine} ${file} ${first} ${count}`);
    const data = stamped(file, first, count, mine);
    const { bytesWritten } = await handle.write(data, 0, data.length, first * BLOCK);
    if (bytesWritten !== data.length) throw new Error(`short write: ${bytesWritten}`);
    unsynced.push(mine);
    if (kind !== "dsync") {
      if (!random.chance(kind === "direct" ? 0.2 : 0.3)) continue;
      if (random.chance(0.5)) await handle.sync();
      else await handle.datasync();
    }
    say(`k ${unsynced.join(" ")}`);
    unsynced.length = 0;
  }
  await handle.close();
}

/** Makes files the way careful programs do, and removes old ones; each step is made durable. */
async function writeNames(folder: string): Promise<void> {
  const directory = await fs.promises.open(folder, fs.constants.O_RDONLY);
  const kept: number[] = [];
  while (!stopping) {
    const name = ++generation;
    say(`n? ${name}`);
    const draft = join(folder, `draft-${name}`);
    const handle = await fs.promises.open(draft, "wx");
    await handle.write(stamp(name, 0, name));
    await handle.sync();
    await handle.close();
    await fs.promises.rename(draft, join(folder, `name-${name}`));
    await directory.sync();
    say(`n+ ${name}`);
    kept.push(name);
    const old = kept.length > NAMES_KEPT ? kept.shift() : undefined;
    if (old === undefined) continue;
    say(`n? ${old}`);
    await fs.promises.unlink(join(folder, `name-${old}`));
    await directory.sync();
    say(`n- ${old}`);
  }
  await directory.close();
}

async function writeFolder(folder: string): Promise<void> {
  await Promise.all([
    ...FILE_KINDS.map((_, file) => writeFile(folder, file, random.fork())),
    writeNames(folder),
  ]);
}

const GARBAGE_MAX = 4;

function note(found: Found, data: Buffer, file: number, block: number): void {
  const generation = generationOf(data, file, block);
  found.blocks.push([file, block, generation]);
  if (generation !== GARBAGE || found.garbage.length >= GARBAGE_MAX) return;
  const what = describeGarbage(data, { file, block, generationMax: request.from });
  found.garbage.push(`file ${file} block ${block}: ${what}`);
}

function verifyFolder(folder: string): Found {
  const found: Found = { blocks: [], names: [], damaged: [], garbage: [] };
  for (let file = 0; file < FILE_KINDS.length; file++) {
    const path = join(folder, `blocks-${file}`);
    const bytes = fs.existsSync(path) ? fs.readFileSync(path) : Buffer.alloc(0);
    for (let block = 0; block < request.blocks; block++) {
      const data = bytes.subarray(block * BLOCK, (block + 1) * BLOCK);
      note(found, data, file, block);
    }
  }
  for (const entry of fs.readdirSync(folder)) {
    const name = Number(/^name-(\d+)$/.exec(entry)?.[1] ?? 0);
    if (name === 0) continue;
    const data = fs.readFileSync(join(folder, entry));
    (generationOf(data, name, 0) === name ? found.names : found.damaged).push(name);
  }
  return found;
}

// ---- Volumes -----------------------------------------------------------------------------------

async function writeVolume(socket: string, volume: string): Promise<void> {
  const client = await NbdClient.connect(socket, volume);
  const busy = new Set<number>();
  let answered: number[] = [];
  const writer = async (random: Prng): Promise<void> => {
    while (!stopping) {
      const { first, count } = range(random, request.blocks);
      const own = Array.from({ length: count }, (_, i) => first + i);
      // Two writes of one block in flight have no order, so that none could be expected.
      if (own.some((block) => busy.has(block))) continue;
      for (const block of own) busy.add(block);
      const mine = ++generation;
      const fua = random.chance(0.2);
      say(`a ${mine} ${VOLUME_FILE} ${first} ${count}`);
      await client.write(first * BLOCK, stamped(VOLUME_FILE, first, count, mine), { fua });
      for (const block of own) busy.delete(block);
      if (fua) say(`k ${mine}`);
      else answered.push(mine);
    }
  };
  const flusher = async (): Promise<void> => {
    while (!stopping) {
      await new Promise((done) => setTimeout(done, 5));
      const covered = answered;
      answered = [];
      await client.flush();
      if (covered.length > 0) say(`k ${covered.join(" ")}`);
    }
  };
  await Promise.all([flusher(), ...Array.from({ length: IN_FLIGHT }, () => writer(random.fork()))]);
  client.close();
}

async function verifyVolume(socket: string, volume: string): Promise<Found> {
  const client = await NbdClient.connect(socket, volume);
  const found: Found = { blocks: [], names: [], damaged: [], garbage: [] };
  const step = 64;
  for (let first = 0; first < request.blocks; first += step) {
    const count = Math.min(step, request.blocks - first);
    const data = await client.read(first * BLOCK, count * BLOCK);
    for (let i = 0; i < count; i++) {
      const block = data.subarray(i * BLOCK, (i + 1) * BLOCK);
      note(found, block, VOLUME_FILE, first + i);
    }
  }
  client.close();
  return found;
}

// ---- The program -------------------------------------------------------------------------------

process.on("SIGTERM", () => (stopping = true));
const { target } = request;
try {
  if (request.do === "verify") {
    const found =
      "folder" in target
        ? verifyFolder(target.folder)
        : await verifyVolume(target.socket, target.volume);
    print(JSON.stringify(found));
  } else {
    if ("folder" in target) await writeFolder(target.folder);
    else await writeVolume(target.socket, target.volume);
    say("e asked to stop");
  }
} catch (error) {
  if (request.do === "verify") throw error;
  say(`e ${String(error).replaceAll("\n", " ")}`);
  process.exit(0); // Requests that hang must not keep it alive.
}

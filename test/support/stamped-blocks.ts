/**
 * Blocks that say what they are: (file, block, generation) and a checksum over all of it, so that
 * a reader can tell an old block from a new one and both from garbage; and the ledger of what was
 * attempted and what was acknowledged, kept by the test process, outside of what is killed.
 */
import { crc32 } from "../../cluster/base/checksum.js";
import { Prng } from "../../cluster/base/prng.js";

export const BLOCK = 4096;
const MAGIC = 0x6b6c6244;

export function stamp(file: number, block: number, generation: number): Buffer {
  const data = new Prng(generation * 31 + block).bytes(BLOCK);
  data.writeUInt32LE(MAGIC, 0);
  data.writeUInt32LE(file, 4);
  data.writeUInt32LE(block, 8);
  data.writeUInt32LE(generation, 12);
  data.writeUInt32LE(crc32(data.subarray(0, BLOCK - 4)), BLOCK - 4);
  return data;
}

export const NEVER_WRITTEN = 0;
export const GARBAGE = -1;

/** The generation of a block (from 1 on), NEVER_WRITTEN for zeros, GARBAGE for all else. */
export function generationOf(data: Buffer, file: number, block: number): number {
  if (data.length !== BLOCK) return data.length === 0 ? NEVER_WRITTEN : GARBAGE;
  if (data.every((byte) => byte === 0)) return NEVER_WRITTEN;
  const good =
    data.readUInt32LE(0) === MAGIC &&
    data.readUInt32LE(BLOCK - 4) === crc32(data.subarray(0, BLOCK - 4)) &&
    data.readUInt32LE(4) === file &&
    data.readUInt32LE(8) === block;
  return good ? data.readUInt32LE(12) : GARBAGE;
}

const SECTOR = 512;

/** What a block of garbage is made of: which generation each of its sectors is of. */
export function describeGarbage(
  data: Buffer,
  about: { file: number; block: number; generationMax: number },
): string {
  const { file, block, generationMax } = about;
  const sectors = Array.from({ length: Math.ceil(data.length / SECTOR) }, (_, i) =>
    data.subarray(i * SECTOR, (i + 1) * SECTOR),
  );
  const found = sectors.map((sector): string =>
    sector.every((byte) => byte === 0) ? "zeros" : "?",
  );
  for (let generation = 1; generation <= generationMax; generation++) {
    const whole = stamp(file, block, generation);
    sectors.forEach((sector, i) => {
      if (sector.equals(whole.subarray(i * SECTOR, i * SECTOR + sector.length))) {
        found[i] = String(generation);
      }
    });
  }
  const header = data.length >= 16 ? data.subarray(0, 16).toString("hex") : "";
  return `${data.length} bytes, header ${header}, sectors of generations ${found.join(" ")}`;
}

interface BlockHistory {
  /** The newest generation that was acknowledged or read after a crash; older must not return. */
  acknowledged: number;
  /** Newer ones that may have been written. */
  readonly attempted: Set<number>;
}

interface Attempt {
  readonly file: number;
  readonly first: number;
  readonly count: number;
  readonly generation: number;
}

export interface Name {
  present: "must" | "may" | "must-not";
}

/** Fed with the lines that the writer prints (writer.ts says what they are). */
export class Ledger {
  readonly names = new Map<number, Name>();
  acknowledgements = 0;
  generationMax = 0;
  /** What the writer said when it ended. */
  ended = "";
  private readonly blocks = new Map<string, BlockHistory>();
  private readonly attempts = new Map<number, Attempt>();

  private history(file: number, block: number): BlockHistory {
    const key = `${file}:${block}`;
    let found = this.blocks.get(key);
    if (found === undefined) {
      found = { acknowledged: NEVER_WRITTEN, attempted: new Set() };
      this.blocks.set(key, found);
    }
    return found;
  }

  onLine(line: string): void {
    const [kind, ...rest] = line.split(" ");
    const numbers = rest.map(Number);
    const [a = 0, b = 0, c = 0, d = 0] = numbers;
    switch (kind) {
      case "a": // generation file first count
        this.attempts.set(a, { generation: a, file: b, first: c, count: d });
        this.generationMax = Math.max(this.generationMax, a);
        for (let block = c; block < c + d; block++) this.history(b, block).attempted.add(a);
        break;
      case "k":
        for (const generation of numbers) this.acknowledge(generation);
        this.acknowledgements++;
        break;
      case "n?": // The name is being made or removed: it may be there or not.
        this.names.set(a, { present: "may" });
        this.generationMax = Math.max(this.generationMax, a);
        break;
      case "n+":
        this.names.set(a, { present: "must" });
        this.acknowledgements++;
        break;
      case "n-":
        this.names.set(a, { present: "must-not" });
        this.acknowledgements++;
        break;
      case "e":
        this.ended = rest.join(" ");
        break;
      default:
        throw new Error(`the writer said: ${line}`);
    }
  }

  private acknowledge(generation: number): void {
    const attempt = this.attempts.get(generation);
    if (attempt === undefined) throw new Error(`generation ${generation} was never attempted`);
    this.attempts.delete(generation);
    for (let block = attempt.first; block < attempt.first + attempt.count; block++) {
      const history = this.history(attempt.file, block);
      history.acknowledged = Math.max(history.acknowledged, generation);
    }
  }

  /**
   * Compares what was found after a crash, and takes it over: what has been read must not be lost
   * by a later crash, and what was not found died with its writer. Returns what is wrong.
   */
  check(found: Iterable<readonly [file: number, block: number, generation: number]>): string[] {
    const wrong: string[] = [];
    const seen = new Set<string>();
    for (const [file, block, generation] of found) {
      const history = this.history(file, block);
      seen.add(`${file}:${block}`);
      const where = `file ${file} block ${block}`;
      const { acknowledged, attempted } = history;
      if (generation === GARBAGE) wrong.push(`${where}: torn or foreign bytes`);
      else if (generation < acknowledged) {
        wrong.push(`${where}: generation ${generation}, but ${acknowledged} was acknowledged`);
      } else if (generation > acknowledged && !attempted.has(generation)) {
        wrong.push(`${where}: generation ${generation} was never written there`);
      } else {
        history.acknowledged = generation;
        attempted.clear();
      }
    }
    for (const [key, { acknowledged }] of this.blocks) {
      if (acknowledged > 0 && !seen.has(key)) wrong.push(`block ${key} could not be read at all`);
    }
    return wrong;
  }

  /** The same for names: those that are there whole, and those that are there damaged. */
  checkNames(names: Iterable<number>, damaged: Iterable<number>): string[] {
    const there = new Set(names);
    const wrong = [...damaged].map((name) => `name ${name} has wrong contents`);
    for (const [name, expected] of this.names) {
      if (expected.present === "must" && !there.has(name)) wrong.push(`name ${name} is lost`);
      if (expected.present === "must-not" && there.has(name)) wrong.push(`name ${name} is back`);
      // What was found is settled; what was not found must stay away.
      expected.present = there.has(name) ? "must" : "must-not";
    }
    for (const name of there) {
      if (!this.names.has(name)) wrong.push(`name ${name} was never made`);
    }
    return wrong;
  }
}

/**
 * One process that works on one mount for as long as the suite takes (agent-program.ts), and the
 * two of a pair: what either is asked and answers is kept, so that a round that went wrong can be
 * told call by call.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import type { Prng } from "../../../cluster/base/prng.js";
import { withDeadline, type Teardown } from "../../support/temp.js";
import { AGENT_PROGRAM } from "./agent-program.js";

/** Longer than any failover or eviction takes; a call that takes longer hangs. */
const CALL_MS = 90_000;
const TRACE_MAX = 40;
const SHOWN_MAX = 400;

export type Call = readonly [operation: string, ...args: unknown[]];

/** What became of one call; times are microseconds of the machine's monotonic clock. */
export interface Outcome<T = unknown> {
  readonly begin: number;
  readonly end: number;
  readonly value: T;
  /** Name of the errno, or null. */
  readonly error: string | null;
}

export interface Attributes {
  readonly ino: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtimeMs: number;
}

/** A mount showed what cannot be: a stale or wrong result, an error, or a call without an end. */
export class Incoherence extends Error {}

/** The last calls of both sides, oldest first. */
export class Trace {
  private readonly lines: string[] = [];

  add(who: string, call: Call, answer: string): void {
    const asked = JSON.stringify(call);
    this.lines.push(`${who} ${short(asked)} -> ${short(answer)}`);
    if (this.lines.length > TRACE_MAX) this.lines.shift();
  }
  mark(text: string): void {
    this.lines.push(`-- ${text}`);
  }
  toString(): string {
    return this.lines.join("\n");
  }
}
function short(text: string): string {
  const brief = text.replace(
    /"([\w+/=]{24})[\w+/=]{24,}"/g,
    (all, head: string) => `"${head}…${all.length}"`,
  );
  return brief.length <= SHOWN_MAX ? brief : `${brief.slice(0, SHOWN_MAX)}…`;
}

type Raw = [begin: number, end: number, value: unknown, error: string | null];

function outcomeOf([begin, end, value, error]: Raw): Outcome {
  return { begin, end, value, error };
}

export class Agent {
  private readonly child: ChildProcess;
  private readonly waiting: { done(line: string): void; fail(error: Error): void }[] = [];
  private readonly complaints: Buffer[] = [];

  constructor(
    t: Teardown,
    readonly name: string,
    readonly root: string,
    private readonly trace: Trace,
  ) {
    this.child = spawn("python3", ["-c", AGENT_PROGRAM, root], {
      detached: true,
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.child.stdin?.on("error", () => undefined); // Whoever waits hears of its end.
    this.child.stderr?.on("data", (chunk: Buffer) => this.complaints.push(chunk));
    createInterface({ input: this.child.stdout! }).on("line", (line) =>
      this.waiting.shift()?.done(line),
    );
    this.child.on("error", (error) => this.over(error.message));
    this.child.on("close", (code, signal) => this.over(String(signal ?? code)));
    t.teardown(() => this.kill());
  }

  private over(why: string): void {
    const said = Buffer.concat(this.complaints).toString().slice(-2_000);
    const error = new Error(`the process on mount ${this.name} ended: ${why} ${said}`);
    for (const { fail } of this.waiting.splice(0)) fail(error);
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }

  /** Makes one call and says what became of it, errors included. */
  async outcome<T = unknown>(...call: Call): Promise<Outcome<T>> {
    const answer = new Promise<string>((done, fail) => {
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        fail(new Error(`the process on mount ${this.name} has ended`));
        return;
      }
      this.waiting.push({ done, fail });
    });
    this.child.stdin?.write(`${JSON.stringify(call)}\n`);
    try {
      const line = await withDeadline(CALL_MS, `${call[0]} on ${this.name}`, answer);
      this.trace.add(this.name, call, line);
      return outcomeOf(JSON.parse(line) as Raw) as Outcome<T>;
    } catch (error) {
      this.trace.add(this.name, call, String(error));
      throw new Incoherence(String(error), { cause: error });
    }
  }

  /** Makes one call, which must succeed. */
  async call<T = void>(...call: Call): Promise<T> {
    const { value, error } = await this.outcome<T>(...call);
    if (error === null) return value;
    throw new Incoherence(`${this.name}: ${short(JSON.stringify(call))} failed with ${error}`);
  }

  /** Calls one after the other, without a word between them. */
  async many(calls: readonly Call[]): Promise<Outcome[]> {
    return (await this.call<Raw[]>("many", calls)).map(outcomeOf);
  }

  /** As `many`; all of them must succeed. */
  async all(calls: readonly Call[]): Promise<Outcome[]> {
    const outcomes = await this.many(calls);
    const bad = outcomes.findIndex(({ error }) => error !== null);
    if (bad < 0) return outcomes;
    const call = short(JSON.stringify(calls[bad]));
    throw new Incoherence(`${this.name}: ${call} failed with ${outcomes[bad]!.error}`);
  }

  async pread(slot: string, at: number, length: number): Promise<Buffer> {
    return Buffer.from(await this.call<string>("pread", slot, at, length), "base64");
  }
  async pwrite(slot: string, at: number, data: Buffer): Promise<void> {
    await this.call("pwrite", slot, at, data.toString("base64"));
  }
  async read(name: string): Promise<Buffer> {
    return Buffer.from(await this.call<string>("read", name), "base64");
  }
  async write(name: string, data: Buffer | string, flags: number): Promise<void> {
    await this.call("write", name, Buffer.from(data).toString("base64"), flags);
  }
  async stat(name: string): Promise<Attributes> {
    return await this.call<Attributes>("stat", name);
  }
}

/** Two processes on two mounts of one file system that see the same folder. */
export interface Pair {
  readonly agents: readonly [Agent, Agent];
  readonly random: Prng;
  readonly trace: Trace;
  /** Not two mounts but one folder of one machine, to try the suite itself. */
  readonly isOneCache: boolean;
}

export function expectEqual(what: string, found: unknown, wanted: unknown): void {
  const [is, should] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (is === should) return;
  throw new Incoherence(`${what}: found ${short(is)}, expected ${short(should)}`);
}

/** Bytes, with the place of the first that differs. */
export function expectBytes(what: string, found: Buffer, wanted: Buffer): void {
  if (found.equals(wanted)) return;
  let at = 0;
  while (at < found.length && at < wanted.length && found[at] === wanted[at]) at++;
  const near = (bytes: Buffer): string => bytes.subarray(at, at + 24).toString("hex") || "the end";
  throw new Incoherence(
    `${what}: ${found.length} bytes, expected ${wanted.length}; at ${at} found ${near(found)}, ` +
      `expected ${near(wanted)}`,
  );
}

/** The error that a call must fail with. */
export async function expectError(agent: Agent, error: string, ...call: Call): Promise<void> {
  const outcome = await agent.outcome(...call);
  expectEqual(`${agent.name}: error of ${JSON.stringify(call)}`, outcome.error, error);
}

/**
 * Messages and their numbers. A `Call` is a request with its reply; the reply's number is the
 * request's plus one, so requests are even. A `Post` is a one-way message. Numbers and layouts
 * never change once published: add a new row instead.
 *
 * 2–98 messenger, 100–298 OSD, 300–498 MDS.
 */
import { Packr } from "msgpackr";
import { assert } from "../base/assert.js";
import { DssError, describeError } from "../base/errors.js";
import type { Codec } from "./struct.js";

export interface Call<Request, Reply> {
  readonly number: number;
  readonly name: string;
  readonly request: Codec<Request>;
  readonly reply: Codec<Reply>;
}
export interface Post<Message> {
  readonly number: number;
  readonly name: string;
  readonly message: Codec<Message>;
}

const names = new Map<number, string>();
const summed = new Set<number>();
function register(number: number, name: string): void {
  assert(!names.has(number), `message number ${number} is both ${names.get(number)} and ${name}`);
  names.set(number, name);
}
export function messageName(number: number): string {
  return names.get(number) ?? `type ${number}`;
}
/** Every registered number with its name, ascending: the table in docs/protocol.md. */
export function messageTable(): { number: number; name: string }[] {
  return [...names].map(([number, name]) => ({ number, name })).sort((a, b) => a.number - b.number);
}

/**
 * `sums`: whose receiver wants the checksum of every block of the data, not only to know that they
 * are right.
 */
export function defineCall<Request, Reply>(
  number: number,
  name: string,
  row: { request: Codec<Request>; reply: Codec<Reply>; sums?: "request" | "reply" },
): Call<Request, Reply> {
  assert(number % 2 === 0 && number > 0 && number < 65_535, `${name}: requests are even`);
  register(number, name);
  register(number + 1, `${name}Reply`);
  const { request, reply, sums } = row;
  if (sums !== undefined) summed.add(sums === "request" ? number : number + 1);
  return { number, name, request, reply };
}
export function wantsSums(number: number): boolean {
  return summed.has(number);
}
export function definePost<Message>(
  number: number,
  name: string,
  message: Codec<Message>,
): Post<Message> {
  assert(number % 2 === 0 && number > 0 && number < 65_535, `${name}: requests are even`);
  register(number, name);
  return { number, name, message };
}

// Numbers stay numbers (large ones travel as doubles), bigints stay bigints (as int64).
const packr = new Packr({ useRecords: false });

/** msgpack for control messages: flexible, and quick enough where no bulk data travels. */
export function msgpack<T>(): Codec<T> {
  return {
    encode: (value) => packr.pack(value),
    decode(buffer) {
      try {
        return packr.unpack(buffer) as T;
      } catch (error) {
        throw new DssError("Malformed", `not msgpack: ${describeError(error)}`);
      }
    },
  };
}

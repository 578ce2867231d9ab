/**
 * An operating error on the wire: the reply to a request that failed. Its hint, which says what a
 * person can do about it, travels with it: only the side that made the error knows. Texts are cut
 * to their limits by the sender and refused beyond them by the receiver; a cause does not travel,
 * because it is for the log of the program that has it. Pure.
 */
import { DssError, codeFromWire } from "../base/errors.js";
import { msgpack } from "./registry.js";
import type { Codec } from "./struct.js";

/** Characters. */
export const ERROR_MESSAGE_MAX = 4_096;
export const ERROR_HINT_MAX = 1_024;

export interface ErrorBody {
  /** Wire number of the code. */
  code: number;
  message: string;
  epoch: number;
  hint?: string;
}

export function errorBody(error: DssError): ErrorBody {
  const { wire, message, epoch, hint } = error;
  const body = { code: wire, message: message.slice(0, ERROR_MESSAGE_MAX), epoch };
  return hint === undefined ? body : { ...body, hint: hint.slice(0, ERROR_HINT_MAX) };
}

/** The error; Malformed for a body that no program of ours sends. */
export function errorFromBody(body: unknown): DssError {
  const odd = new DssError("Malformed", "an error reply with odd fields");
  if (typeof body !== "object" || body === null) return odd;
  const { code, message, epoch, hint } = body as ErrorBody;
  const isGood =
    Number.isSafeInteger(code) &&
    isText(message, ERROR_MESSAGE_MAX) &&
    Number.isSafeInteger(epoch) &&
    epoch >= 0 &&
    (hint === undefined || isText(hint, ERROR_HINT_MAX));
  if (!isGood) return odd;
  return new DssError(codeFromWire(code), message, {
    epoch,
    ...(hint !== undefined && { hint }),
  });
}

function isText(value: unknown, max: number): boolean {
  return typeof value === "string" && value.length <= max;
}

const packed = msgpack<ErrorBody>();
export const errorCodec: Codec<DssError> = {
  encode: (error) => packed.encode(errorBody(error)),
  decode: (buffer) => errorFromBody(packed.decode(buffer)),
};

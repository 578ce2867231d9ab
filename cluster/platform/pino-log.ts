/**
 * The logger of real programs: one JSON line an event, to a file or to stderr, by pino.
 *
 * Lines are written synchronously unless `buffered` is set: a daemon logs transitions and faults,
 * not requests, and the last line before a crash is the one that matters. A buffered log is
 * flushed by the program's end, also by an uncaught exception; `kill -9` loses what it held.
 * A level that is off costs a call of an empty function. Owner of the file's descriptor.
 */
import { mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { destination, pino, stdSerializers } from "pino";
import { DssError } from "../base/errors.js";
import type { Logger } from "../base/log.js";

export type LogLevel = "debug" | "info" | "warn" | "error";

export interface LogOptions {
  /** Least severity that is written; info by default. */
  level?: LogLevel;
  /** Appended to, and created with its folder when missing; stderr without it. */
  file?: string;
  /** Bytes gathered before a write; 0 (the default) writes every line at once. */
  buffered?: number;
  /** On every line: the program and its number, such as `{ name: "osd.3" }`. */
  fields?: object;
}

export interface ProcessLogger extends Logger {
  child(fields: object): ProcessLogger;
  /** Changes the level of this logger; children made before keep theirs. */
  setLevel(level: LogLevel): void;
  /** Writes what is buffered; never throws, since there is nowhere left to complain to. */
  flush(): void;
}

/** Throws `Configuration` when the file cannot be opened for appending. */
export function createLogger(options: LogOptions = {}): ProcessLogger {
  const sink = destination({
    dest: options.file === undefined ? 2 : openForAppending(options.file),
    sync: true,
    minLength: options.buffered ?? 0,
    maxWrite: 2 * Math.max(options.buffered ?? 0, 16_384),
  });
  // A full disk or a closed terminal must not stop a daemon that could otherwise go on.
  sink.on("error", () => undefined);
  const flush = (): void => {
    try {
      sink.flushSync();
    } catch {
      // Nowhere to say it.
    }
  };
  if (options.buffered) process.on("exit", flush);
  const root = pino(
    {
      level: options.level ?? "info",
      base: { pid: process.pid, ...options.fields },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      messageKey: "message",
      serializers: { error: serializeError, cause: serializeError },
    },
    sink,
  );
  return wrap(root, flush);
}

function openForAppending(file: string): number {
  try {
    mkdirSync(dirname(file), { recursive: true });
    return openSync(file, "a", 0o640);
  } catch (cause) {
    throw new DssError("Configuration", `cannot write the log file ${file}`, { cause });
  }
}

/** A DssError's code says what to do about it; its causes say why. */
function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  if (!(error instanceof DssError)) return stdSerializers.errWithCause(error);
  const { code, message, epoch, cause } = error;
  return {
    code,
    message,
    ...(epoch > 0 && { epoch }),
    ...(cause !== undefined && { cause: serializeError(cause) }),
  };
}

function wrap(log: pino.Logger, flush: () => void): ProcessLogger {
  return {
    debug: (fields, message) => log.debug(fields, message),
    info: (fields, message) => log.info(fields, message),
    warn: (fields, message) => log.warn(fields, message),
    error: (fields, message) => log.error(fields, message),
    child: (fields) => wrap(log.child(fields), flush),
    setLevel: (level) => {
      log.level = level;
    },
    flush,
  };
}

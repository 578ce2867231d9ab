/**
 * Temporary folders, free ports and deadlines for tests. Folders are below the run's own temporary
 * folder (TMPDIR, set by tools/test.ts), which is searched for leftovers after each part.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What these helpers need of a tap test. */
export interface Teardown {
  teardown(action: () => unknown): void;
}

/** A new folder that is removed when the test ends. Its path is short enough for unix sockets. */
export function tempFolder(t: Teardown, label = "t"): string {
  const path = mkdtempSync(join(tmpdir(), `${label}-`));
  t.teardown(() => rmSync(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 }));
  return path;
}

/**
 * A TCP port on the loopback address that was free a moment ago. Only for programs that cannot bind
 * port 0 and say what they got; the caller tries again when another program was quicker.
 */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done, fail) => {
    server.once("error", fail);
    server.listen({ host: "127.0.0.1", port: 0 }, done);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise<void>((done) => server.close(() => done()));
  return port;
}

/** Fails with a message that names `what` when the promise takes longer than `ms`. */
export async function withDeadline<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what} took longer than ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Asks `probe` until it answers something other than undefined and false; for conditions of other
 * processes that announce nothing. An error of the probe is a "not yet" and part of the message.
 */
export async function waitFor<T>(
  what: string,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  { withinMs = 10_000, everyMs = 20 }: { withinMs?: number; everyMs?: number } = {},
): Promise<T> {
  const start = performance.now();
  let last: unknown;
  while (performance.now() - start < withinMs) {
    try {
      const found = await probe();
      if (found !== undefined && found !== false) return found;
      last = undefined;
    } catch (error) {
      last = error;
    }
    await new Promise((done) => setTimeout(done, everyMs));
  }
  throw new Error(`not within ${withinMs} ms: ${what}`, { cause: last });
}

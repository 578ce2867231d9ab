/**
 * Assertions stay on in production: a violated one is a bug, and going on would put data at risk.
 */

/** Thrown only for bugs; nothing catches it but the process's last-resort handler. */
export class AssertionFailure extends Error {
  override readonly name = "AssertionFailure";
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionFailure(message);
}

/** Marks a branch that exhausts a union; the compiler proves that it cannot be reached. */
export function unreachable(value: never, what: string): never {
  throw new AssertionFailure(`${what}: unexpected ${JSON.stringify(value)}`);
}

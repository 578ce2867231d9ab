/** What every store demands of its caller; a violation is a bug and stops the process. */
import { assert } from "../../cluster/base/assert.js";
import { BLOCK_SIZE } from "../../cluster/base/checksum.js";
import { familyOf } from "../../cluster/base/object-name.js";
import { OpKind, type Transaction } from "./chunk-store.js";

/** The contract's demands on a transaction; a violation is a bug of the caller. */
export function checkTransaction(t: Transaction): void {
  assert(
    t.offset % BLOCK_SIZE === 0 && t.length % BLOCK_SIZE === 0,
    "a transaction is not in whole blocks",
  );
  let bytes = 0;
  for (const chunk of t.data) bytes += chunk.length;
  assert(bytes === t.sums.length * BLOCK_SIZE, "a transaction's data and checksums do not fit");
  assert(
    bytes === 0 || t.kind === OpKind.write || t.kind === OpKind.truncate,
    () => `an operation of kind ${t.kind} carries data`,
  );
  if (t.kind !== OpKind.copy) return;
  const { source = "", object } = t;
  assert(
    source !== object && familyOf(source) === familyOf(object),
    `object ${object} would be a copy of ${source}`,
  );
}

/**
 * `node node-index-probe.js DIRECTORY`: reads every entry of an LMDB database and ends with 0. A
 * damaged database can make the native library crash; then it is this process that dies, and
 * whoever asked (node-disk.ts) knows not to open it.
 */
import { openLmdb } from "./lmdb.js";

const [directory = ""] = process.argv.slice(2);
const store = openLmdb(directory);
let entries = 0;
const everything = { start: Buffer.from([0]), end: Buffer.from([255]) };
for (const { key, value } of store.range(everything)) {
  // What is found by walking must be found by asking, too.
  if (store.get(Buffer.from(key))?.length !== value.length) process.exit(4);
  entries++;
}
process.stdout.write(`${entries}\n`);
await store.close();

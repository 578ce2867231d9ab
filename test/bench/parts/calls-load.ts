/** System calls on a folder, one after the other: missing names are looked up, files made. */
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { repeat } from "../closed-loop.js";
import type { Loop } from "../closed-loop.js";
import { CREATE } from "./calls.js";
import type { CallsPlace } from "./calls.js";
import { measureRows, readOrder } from "./load.js";

const order = readOrder<CallsPlace>();
const { folder, settle } = order.where;
const content = Buffer.alloc(1024, "dss ");
let made = 0;

/** In a new directory; `settle` has no part in its rate. */
function create(seconds: number): Loop {
  const directory = join(folder, `created-${++made}`);
  mkdirSync(directory);
  let file = 0;
  const loop = repeat(seconds, () => {
    writeFileSync(join(directory, `f${++file}`), content, { flag: "wx" });
  });
  if (settle !== undefined) writeFileSync(settle, "1");
  return loop;
}

function lookUp(seconds: number): Loop {
  return repeat(seconds, () => {
    const found = statSync(join(folder, `missing-${++made}`), { throwIfNoEntry: false });
    if (found !== undefined) throw new Error("a name exists that should not");
  });
}

await measureRows(order, ({ name }, seconds) =>
  name.includes(CREATE) ? create(seconds) : lookUp(seconds),
);

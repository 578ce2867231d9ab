/** The log alone: the chunk store of one OSD (osd/store), on a folder of the real disk. */
import { tempFolder } from "../../support/temp.js";
import { KiB, MiB, runLoad } from "./part.js";
import type { Part } from "./part.js";

export interface StorePlace {
  readonly folder: string;
}

export const log: Part = {
  rows: [1, 16].flatMap((depth) => [
    { name: `log: apply 4 KiB, ${depth} in flight`, bytes: 4 * KiB, depth },
    { name: `log: apply 1 MiB, ${depth} in flight`, bytes: MiB, depth },
  ]),
  async measure(scope, rows, sizes) {
    const where = { folder: tempFolder(scope, "store") };
    return await runLoad(scope, "log-load", { where, rows, sizes, watched: [], role: "store" });
  },
};

/** `dss volume` (also `dss device`): block devices in the cluster. Its commands are in `volume/`. */
import type { Command } from "commander";
import { registerAttach, registerAttached, registerDetach } from "./volume/attach.js";
import { registerRead, registerWrite } from "./volume/bytes.js";
import { registerLimit, registerRename, registerResize } from "./volume/change.js";
import { registerBenchmark } from "./volume/bench.js";
import { registerClone, registerFlatten } from "./volume/clone.js";
import { registerUsage } from "./volume/du.js";
import { registerExportDiff } from "./volume/diff-export.js";
import { registerImportDiff } from "./volume/diff-import.js";
import { registerExport } from "./volume/export.js";
import { registerImport } from "./volume/import.js";
import { registerTop } from "./volume/top.js";
import { registerCreate, registerInfo, registerList, registerRemove } from "./volume/records.js";
import { registerServe } from "./volume/serve.js";
import { registerSnapshots } from "./volume/snapshots.js";

export function register(command: Command): void {
  registerCreate(command);
  registerList(command);
  registerInfo(command);
  registerRemove(command);
  registerResize(command);
  registerRename(command);
  registerLimit(command);
  registerUsage(command);
  registerExport(command);
  registerImport(command);
  registerExportDiff(command);
  registerImportDiff(command);
  registerTop(command);
  registerBenchmark(command);
  registerSnapshots(command);
  registerClone(command);
  registerFlatten(command);
  registerRead(command);
  registerWrite(command);
  registerServe(command);
  registerAttach(command);
  registerDetach(command);
  registerAttached(command);
}

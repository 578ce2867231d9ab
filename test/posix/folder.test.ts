/**
 * The POSIX suites on a plain folder: DSS_POSIX_FOLDER, which may be any mount point, or a
 * temporary folder of this machine's own file system. The latter proves the suites: what they ask
 * for is what POSIX and Linux do, not what dss does.
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { tempFolder } from "../support/temp.js";
import { posixSuite, randomSuite } from "./posix-suite.js";
import { programsSuite } from "./programs-suite.js";

const named = process.env["DSS_POSIX_FOLDER"];
const local = tempFolder(t, "posix");
const folder = named === undefined ? join(local, "own") : mkdtempSync(join(named, "posix-"));
if (named === undefined) mkdirSync(folder);
else t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const scale = Number(process.env["DSS_POSIX_SCALE"] ?? (named === undefined ? 0.05 : 1));
const place = { folder, local, scale };

await posixSuite(t, place);
await randomSuite(t, place, { seeds: [1], count: Math.ceil(2_000 * scale) });
await t.test("programs", async (t) => {
  mkdirSync(join(folder, "programs"));
  await programsSuite(t, { ...place, folder: join(folder, "programs") });
});

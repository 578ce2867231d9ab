/** The version of this build, from the package.json beside it. */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export function version(): string {
  for (const candidate of ["../../package.json", "../package.json"]) {
    const path = fileURLToPath(new URL(candidate, import.meta.url));
    if (existsSync(path))
      return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
  }
  return "unknown";
}

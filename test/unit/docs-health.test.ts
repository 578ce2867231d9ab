/** docs/operations.md explains every health code that the sources can raise, and no other. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { ROOT } from "../../tools/test-parts.js";

function sources(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) return sources(path);
    return name.endsWith(".ts") ? [path] : [];
  });
}

/** `check("CODE", "HEALTH_…` and `code: "CODE", severity: "HEALTH_…`, over line ends. */
const RAISED = /"([A-Z][A-Z_]+)",\s*(?:severity:\s*)?"HEALTH_(WARN|ERR)"/g;

t.test("every code has a row with its severity, its meaning and what to do", (t) => {
  const raised = new Map<string, string>();
  for (const folder of ["cluster", "osd", "mds", "client-fs", "nbd", "cli"]) {
    for (const path of sources(join(ROOT, folder))) {
      for (const [, code = "", severity = ""] of readFileSync(path, "utf8").matchAll(RAISED)) {
        raised.set(code, severity);
      }
    }
  }
  t.ok(raised.size >= 10, `${raised.size} codes`);
  const rows = readFileSync(join(ROOT, "docs/operations.md"), "utf8").matchAll(
    /^\| `([A-Z_]+)` \| (WARN|ERR) \| (.+) \| (.+) \|$/gm,
  );
  const documented = new Map([...rows].map(([, code = "", severity = ""]) => [code, severity]));
  t.same(documented, raised);
  t.end();
});

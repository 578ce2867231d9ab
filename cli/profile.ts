/**
 * A CPU profile of a daemon's whole life: with DSS_CPU_PROFILE=FOLDER in the environment it is
 * written there as `<name>.<pid>.cpuprofile` at a good end (SIGTERM). docs/performance.md says how
 * to read one.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** Starts profiling if asked to; the function returned ends it. */
export async function startProfile(name: string): Promise<() => Promise<void>> {
  const folder = process.env["DSS_CPU_PROFILE"];
  if (folder === undefined || folder === "") return () => Promise.resolve();
  const { Session } = await import("node:inspector/promises");
  const session = new Session();
  session.connect();
  await session.post("Profiler.enable");
  await session.post("Profiler.start");
  return async () => {
    const { profile } = await session.post("Profiler.stop");
    session.disconnect();
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, `${name}.${process.pid}.cpuprofile`), JSON.stringify(profile));
  };
}

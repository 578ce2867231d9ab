/**
 * A program: the supervisor of one mount in the background (mount-supervisor.ts). Its argument is
 * the mount point, for people who look at processes, and then everything as JSON.
 */
import { isDssError } from "../../cluster/base/errors.js";
import { superviseMount, type MountSupervision } from "./mount-supervisor.js";

try {
  await superviseMount(JSON.parse(process.argv[3] ?? "") as MountSupervision);
} catch (error) {
  const { message } = error as Error;
  const hint = isDssError(error) ? error.hint : undefined;
  process.stderr.write(`dss: ${message}\n${hint === undefined ? "" : `     ${hint}\n`}`);
  process.exitCode = 1;
}

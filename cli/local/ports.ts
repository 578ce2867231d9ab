/** TCP ports of the loopback address for the daemons of a cluster on this machine. */
import { createServer } from "node:net";
import { DssError } from "../../cluster/base/errors.js";

export const HOST = "127.0.0.1";
/** How far from the preferred port the search goes. */
const SEARCH = 200;

/** Whether a program could listen there now. */
export function isFree(port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE" || error.code === "EACCES") resolve(false);
      else reject(error);
    });
    server.listen({ host: HOST, port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}

/** The first port from `preferred` up that is free and not in `taken`, to which it is added. */
export async function pickPort(
  preferred: number,
  taken: Set<number>,
  free: (port: number) => Promise<boolean> = isFree,
): Promise<number> {
  for (let port = preferred; port < preferred + SEARCH && port <= 65_535; port++) {
    if (taken.has(port) || !(await free(port))) continue;
    taken.add(port);
    return port;
  }
  throw new DssError("Busy", `no free port from ${preferred} to ${preferred + SEARCH - 1}`, {
    hint: "stop programs that listen there",
  });
}

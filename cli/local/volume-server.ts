/** A program: the server of one volume under a supervisor (supervise.ts), which starts it. */
import type { Config } from "../../cluster/config/options.js";
import { runNbd } from "../../nbd/main.js";
import type { VolumeLocking } from "../../nbd/volume-directory.js";
import { daemonLogger, runToEnd } from "../daemon.js";
import { version } from "../version.js";
import { serveParent } from "./server-process.js";

export interface VolumeServerStart {
  volume: string;
  socket: string;
  zookeeper: string;
  config: Config;
  host: string;
  readOnly: boolean;
  lock: VolumeLocking;
}

await serveParent<VolumeServerStart>(async (start, ready) => {
  const { volume, socket, config } = start;
  const logger = daemonLogger("nbd-server", config);
  await runToEnd({ config, logger }, () =>
    runNbd({
      ...start,
      ...{ names: [volume], listen: [{ path: socket }], logger, version: version() },
      onReady: ([address]) => ready(address!),
    }),
  );
});

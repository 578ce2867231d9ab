/**
 * A process on one end of a FUSE connection that is not its own: descriptor 3 was opened by the
 * test, which outlives it. `resumed-fs.js` negotiates and never answers a MKDIR; with the outcome
 * of that negotiation as its argument it carries on in the place of one that has died.
 */
import { FuseDevice } from "../../client-fs/fuse/device.js";
import type { Negotiated } from "../../client-fs/fuse/connection.js";
import { silentLogger } from "../../cluster/base/log.js";
import { MemoryFileSystem } from "./memory-fs.js";

const FD = 3;
const say = (text: string): void => void process.stdout.write(`${text}\n`);
const argument = process.argv[2];
const resume = argument === undefined ? undefined : (JSON.parse(argument) as Negotiated);
const files = new MemoryFileSystem();
if (resume === undefined) {
  files.mkdir = () => {
    say("held");
    return new Promise(() => undefined);
  };
}
const device = new FuseDevice(FD, files, {
  logger: silentLogger,
  mountpoint: "/nowhere",
  observer: (operation, _elapsedMs, _bytes, errno) => say(`${operation} ${errno}`),
  ...(resume === undefined ? {} : { resume }),
});
device.start();
say(`negotiated ${JSON.stringify(await device.ready)}`);
if (resume !== undefined) say(`resent ${await device.resend()}`);
await device.done;

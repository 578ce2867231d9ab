/** Requests with data, as many in flight as a row says. */
import { blockChecksums } from "../../../cluster/base/checksum.js";
import { CLIENT_ID_FIRST } from "../../../cluster/base/ids.js";
import { keepInFlight } from "../closed-loop.js";
import { measureRows, readOrder } from "./load.js";
import { newMessenger, Take } from "./messenger.js";
import type { MessengerPlace } from "./messenger.js";

const DEADLINE_MS = 30_000;

const order = readOrder<MessengerPlace>();
const client = newMessenger(CLIENT_ID_FIRST);
const peer = client.peer({ host: "127.0.0.1", port: order.where.port });
let number = 0;

function call(data: Buffer, done: () => void): void {
  const options = { deadlineMs: DEADLINE_MS, data: [data], sums: blockChecksums(data) };
  peer.call(Take, { number: ++number % 2 ** 32 }, options).then(done, (error: unknown) => {
    throw error;
  });
}

await measureRows(order, ({ depth = 1, bytes = 0 }, seconds) => {
  const data = Buffer.alloc(bytes, "dss ");
  return keepInFlight(depth, seconds, (done) => call(data, done));
});
await client.close();

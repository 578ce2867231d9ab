/** Writes to a chunk store of its own, overwriting objects that exist. */
import { keepInFlight } from "../closed-loop.js";
import { StoreLoad } from "../store-load.js";
import { measureRows, readOrder } from "./load.js";
import type { StorePlace } from "./log.js";
import { MiB } from "./part.js";

const order = readOrder<StorePlace>();
const load = await StoreLoad.open(order.where.folder, order.sizes.area / (4 * MiB));
await measureRows(order, ({ depth = 1, bytes }, seconds) =>
  keepInFlight(depth, seconds, (done) =>
    bytes === MiB ? load.writeLarge(done) : load.writeSmall(done),
  ),
);
await load.store.close();

/** Writes to ZooKeeper as the leader of the metadata does, a `multi` each. */
import { silentLogger } from "../../../cluster/base/log.js";
import { nodeClock } from "../../../cluster/platform/node.js";
import { ANY_VERSION } from "../../../cluster/zk/coordination.js";
import type { CoordinationOp } from "../../../cluster/zk/coordination.js";
import { connectZooKeeper } from "../../../cluster/zk/session.js";
import { keepInFlight } from "../closed-loop.js";
import { measureRows, readOrder } from "./load.js";
import { BATCH } from "./zookeeper.js";
import type { ZooKeeperPlace } from "./zookeeper.js";

const FOLDER = "/parts";
const data = Buffer.alloc(1024, "dss ");

const order = readOrder<ZooKeeperPlace>();
const { servers } = order.where;
const zk = await connectZooKeeper({ servers, clock: nodeClock, log: silentLogger });
await zk.ensurePath(FOLDER);
let made = 0;

const set: CoordinationOp = { op: "set", path: FOLDER, data, version: ANY_VERSION };
const batch = (): CoordinationOp[] => [
  { op: "check", path: FOLDER, version: ANY_VERSION },
  { op: "create", path: `${FOLDER}/${++made}`, data },
];

function write(isBatch: boolean, done: () => void): void {
  zk.multi(isBatch ? batch() : [set]).then(done, (error: unknown) => {
    throw error;
  });
}

await measureRows(order, ({ name, depth = 1 }, seconds) =>
  keepInFlight(depth, seconds, (done) => write(name.includes(BATCH), done)),
);
await zk.close();

/** The cluster that the suites of a test file share: starting one costs ten seconds. */
import t from "tap";
import { startCluster, type Cluster } from "../../support/cluster.js";
import { tempFolder } from "../../support/temp.js";

export let cluster: Cluster;
export let folder: string;

t.setTimeout(600_000);
t.before(async () => {
  folder = tempFolder(t, "volumes");
  cluster = await startCluster(t);
});

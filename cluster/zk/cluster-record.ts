/** The identity of the cluster, written once by the first MDS that finds none. */
import { DssError, isDssError } from "../base/errors.js";
import type { Coordination } from "./coordination.js";
import { CLUSTER_PATH, FOLDERS, SCHEMA_VERSION } from "./schema.js";

export interface ClusterRecord {
  clusterId: string;
  createdMs: number;
  schema: number;
}

/** Makes the folders and, if there is none, the record; returns the one that counts. */
export async function ensureCluster(
  coordination: Coordination,
  proposed: { clusterId: string; createdMs: number },
): Promise<ClusterRecord> {
  for (const folder of FOLDERS) await coordination.ensurePath(folder);
  const data = Buffer.from(JSON.stringify({ ...proposed, schema: SCHEMA_VERSION }), "utf8");
  await coordination.create(CLUSTER_PATH, data).catch((error: unknown) => {
    // After a lost connection the record that is read below counts, ours or another's.
    if (!isDssError(error, "Exists") && !isDssError(error, "ConnectionLost")) throw error;
  });
  const record = await readCluster(coordination);
  if (!record) throw new DssError("ConnectionLost", `${CLUSTER_PATH} could not be created`);
  return record;
}

/** undefined before the first MDS ran. Errors: Corrupt, IncompatibleVersion. */
export async function readCluster(coordination: Coordination): Promise<ClusterRecord | undefined> {
  const node = await coordination.get(CLUSTER_PATH);
  if (!node) return undefined;
  let record: Partial<ClusterRecord>;
  try {
    record = JSON.parse(node.data.toString("utf8")) as Partial<ClusterRecord>;
  } catch (cause) {
    throw new DssError("Corrupt", `${CLUSTER_PATH} is not JSON`, { cause });
  }
  const { clusterId, createdMs, schema } = record;
  const isComplete = typeof createdMs === "number" && typeof schema === "number";
  if (typeof clusterId !== "string" || !isComplete) {
    throw new DssError("Corrupt", `${CLUSTER_PATH} is incomplete`);
  }
  if (schema > SCHEMA_VERSION) {
    throw new DssError("IncompatibleVersion", `the cluster was made by a newer dss (${schema})`, {
      hint: "upgrade this program",
    });
  }
  return { clusterId, createdMs, schema };
}

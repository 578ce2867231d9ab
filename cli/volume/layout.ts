/** Flags that say where a new volume's bytes go, and its creation. */
import type { Command } from "commander";
import { DssError } from "../../cluster/base/errors.js";
import type { MdsClient } from "../../mds/client/mds-client.js";
import type { Volume } from "../../mds/proto.js";
import type { StripeLayout } from "../../osd/client/striper.js";
import type { ClusterClient } from "../context.js";
import { KIB, MIB, parseCount, parseSize } from "../sizes.js";
import { actorOf, infoOf } from "./session.js";

const DEFAULT_POOL = "data";

export interface LayoutFlags {
  pool: string;
  objectSize?: string;
  stripeUnit?: string;
  stripeCount?: string;
}

export function withLayout(command: Command): Command {
  return command
    .option("--pool <pool>", "pool that keeps its objects", DEFAULT_POOL)
    .option("--object-size <size>", "64K to 64M, a power of two (the pool's)")
    .option("--stripe-unit <size>", "consecutive bytes in one object (the object size)")
    .option("--stripe-count <count>", "objects that consecutive stripe units alternate over (1)");
}

export type Wanted = Partial<StripeLayout> & { pool: string };

/** What was asked for; the leader checks whether the parts fit together. Throws UsageError. */
export function layoutOf({ pool, objectSize, stripeUnit, stripeCount }: LayoutFlags): Wanted {
  const object = { what: "object size", bare: "bytes", min: 64 * KIB, max: 64 * MIB } as const;
  const unit = { what: "stripe unit", bare: "bytes", min: 4 * KIB, max: 64 * MIB } as const;
  const count = { what: "stripe count", min: 1, max: 256 };
  return {
    pool,
    ...(objectSize !== undefined && { objectSize: parseSize(objectSize, object) }),
    ...(stripeUnit !== undefined && { stripeUnit: parseSize(stripeUnit, unit) }),
    ...(stripeCount !== undefined && { stripeCount: parseCount(stripeCount, count) }),
  };
}

/** Errors: NotFound (no such pool), Exists, InvalidArgument. */
export async function createVolume(
  mds: MdsClient,
  client: ClusterClient,
  wanted: Wanted & { name: string; size: number },
): Promise<Volume> {
  const pools = client.needMap().pools.map((pool) => pool.name);
  // The default name is a convention: in a cluster with one pool there is no choice to make.
  const pool = pools.length === 1 && wanted.pool === DEFAULT_POOL ? pools[0]! : wanted.pool;
  if (!pools.includes(pool)) {
    throw new DssError("NotFound", `there is no pool "${pool}"`, {
      hint: `the cluster has: ${pools.join(", ")}`,
    });
  }
  const request = { op: "volumeCreate", ...wanted, pool, actor: actorOf() } as const;
  const { answer } = await mds.call(request, { wait: "safe" });
  return answer.volume ?? (await infoOf(mds, wanted.name));
}

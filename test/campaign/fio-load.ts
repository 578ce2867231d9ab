/** fio as the campaigns use it: mixed sizes, synced now and then, all that was written verified. */
import { succeed } from "../support/process.js";
import type { Teardown } from "../support/temp.js";

export interface FioLoad {
  readonly seed: number;
  readonly seconds: number;
  readonly mib: number;
  /** Writes between two syncs. */
  readonly fsyncEvery: number;
  readonly withinMs: number;
}

/** Rejects when fio saw an error or read something else than it had written. */
export async function verifyWithFio(
  t: Teardown,
  { seed, seconds, mib, fsyncEvery, withinMs }: FioLoad,
  where: readonly string[],
): Promise<void> {
  const load = ["--name=soak", "--rw=randrw", "--bsrange=4k-256k", `--size=${mib}M`, "--minimal"];
  const check = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
  const verify = [...check, "--verify_backlog=256", `--fsync=${fsyncEvery}`];
  const timed = ["--time_based", `--runtime=${seconds}`, `--randseed=${seed}`];
  await succeed(t, "fio", [...load, ...verify, ...timed, ...where], { withinMs });
}

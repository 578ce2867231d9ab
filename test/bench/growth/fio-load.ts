/** fio on a file of the mount or on served volumes: 16 requests in flight in all. */
import type { Scope } from "../../support/scope.js";
import { runFio, type FioResult } from "../fio.js";

/** Arguments that choose an engine and what it works on. */
export type Place = readonly string[];

export const onVolume = (volume: string, socket: string): Place => [
  "--ioengine=nbd",
  `--uri=nbd+unix:///${volume}?socket=${socket}`,
];
export const onFile = (path: string): Place => [
  "--ioengine=libaio",
  "--direct=1",
  `--filename=${path}`,
];

const IN_FLIGHT = 16;
const PROGRAM_MS = 180_000;

/** One job on each place, all at once; they share the requests in flight and the bytes. */
async function runOn(
  scope: Scope,
  places: readonly Place[],
  { bytes, args }: { bytes: number; args: readonly string[] },
): Promise<FioResult> {
  const job = (place: Place): string[] => [
    ...place,
    `--iodepth=${Math.max(1, Math.floor(IN_FLIGHT / places.length))}`,
    `--size=${Math.floor(bytes / places.length)}`,
    ...args,
  ];
  const all = places.flatMap((place, index) => [
    // What runFio itself gives is only the first job's.
    ...(index === 0 ? [] : [`--name=bench${index}`, "--group_reporting", "--norandommap"]),
    ...job(place),
  ]);
  return await scope.within((t) => runFio(t, all, { withinMs: PROGRAM_MS }));
}

/** Writes all of the bytes; MB/s. */
export async function writeAll(
  scope: Scope,
  places: readonly Place[],
  bytes: number,
): Promise<number> {
  const args = ["--rw=write", "--bs=1M", "--end_fsync=1"];
  return (await runOn(scope, places, { bytes, args })).write.bytesPerSecond / 1e6;
}

export interface RandomLoad {
  readonly direction: "read" | "write";
  /** Of this many bytes, which were written before. */
  readonly bytes: number;
  readonly seconds: number;
}

/** 4 KiB at random places; operations a second. */
export async function randomBlocks(
  scope: Scope,
  places: readonly Place[],
  { direction, bytes, seconds }: RandomLoad,
): Promise<number> {
  const args = [`--rw=rand${direction}`, "--bs=4k", "--randrepeat=0"];
  const timed = ["--time_based", `--runtime=${seconds}`];
  const result = await runOn(scope, places, { bytes, args: [...args, ...timed] });
  return result[direction].operationsPerSecond;
}

const WARM_UP_RUNS = 2;

/** The same, and nobody counts: processes that are new compile what they use often. */
export async function warmUp(
  scope: Scope,
  places: readonly Place[],
  load: Omit<RandomLoad, "direction">,
): Promise<void> {
  const seconds = load.seconds * WARM_UP_RUNS;
  for (const direction of ["write", "read"] as const) {
    await randomBlocks(scope, places, { ...load, direction, seconds });
  }
}

/** Writes some of the bytes anew, 4 KiB at random places. */
export async function changeBlocks(
  scope: Scope,
  place: Place,
  { bytes, changed }: { bytes: number; changed: number },
): Promise<void> {
  const args = ["--rw=randwrite", "--bs=4k", "--randrepeat=0", `--io_size=${changed}`];
  await runOn(scope, [place], { bytes, args });
}

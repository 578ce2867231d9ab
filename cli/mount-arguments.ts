/**
 * `mount.dss`: what mount(8) calls for `mount -t dss` and for fstab, in terms of `dss mount`. Pure.
 *
 *     SERVERS  DIR  dss  OPTIONS  0 0        in fstab; SERVERS as for --zookeeper, or "dss"
 */

/** Where the cluster is is then told by DSS_ZOOKEEPER or by this machine's own cluster. */
const ANY_SOURCE: ReadonlySet<string> = new Set(["dss", "none", ""]);
const FLAGS_WITH_VALUE: ReadonlySet<string> = new Set(["-o", "-t", "-N"]);

/**
 * Arguments of `dss`; undefined: nothing is to be mounted (`mount -f`). A string says what is
 * wrong.
 */
export function mountArguments(args: readonly string[]): string[] | undefined | string {
  const places: string[] = [];
  const options: string[] = [];
  let isFake = false;
  for (let at = 0; at < args.length; at++) {
    const arg = args[at]!;
    if (FLAGS_WITH_VALUE.has(arg)) {
      const value = args[++at];
      if (value === undefined) return `${arg} needs a value`;
      if (arg === "-o") options.push(...value.split(",").filter((each) => each !== ""));
    } else if (/^-[sfnvrw]+$/.test(arg)) {
      isFake ||= arg.includes("f");
      if (arg.includes("r")) options.push("ro");
    } else if (arg.startsWith("-")) return `unknown option ${arg}`;
    else places.push(arg);
  }
  const [source, folder] = places;
  if (source === undefined || folder === undefined || places.length > 2) {
    return "usage: mount.dss SERVERS DIR [-o OPTIONS]";
  }
  if (isFake) return undefined;
  return [
    ...(ANY_SOURCE.has(source) ? [] : ["--zookeeper", source]),
    ...["mount", folder],
    ...(options.length === 0 ? [] : ["-o", options.join(",")]),
  ];
}

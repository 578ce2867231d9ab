/**
 * What the recursive totals of directories, the homes of files and the places of their names must
 * be, by a walk over all names from the root; what is not so is told.
 */
import { isDirectory } from "../../mds/core/inode.js";
import type { Dentry } from "../../mds/core/dentry.js";
import type { Metadata } from "../../mds/core/metadata.js";
import { directoryPageKey } from "../../mds/core/page.js";
import { NO_TOTALS, addTotals, type Totals } from "../../mds/core/totals.js";
import { ROOT_INO } from "../../mds/proto.js";

type Run = <T>(read: () => T) => Promise<T>;

export async function wrongTotals(metadata: Metadata, run: Run): Promise<string[]> {
  const wrong: string[] = [];
  const places = new Map<number, Map<number, number>>();
  const parents = new Map<number, number>();
  const own = new Map<number, Totals>();
  const entriesOf = async (directory: number, prefix = ""): Promise<Dentry[]> => {
    const found = await run(() => {
      const { body } = metadata.cache.get(directoryPageKey(directory, prefix));
      if (body.kind !== "d") throw new Error("no page of a directory");
      return body.split ? undefined : [...body.entries.values()];
    });
    if (found !== undefined) return found;
    const parts: Dentry[] = [];
    for (const digit of "0123456789abcdef") {
      parts.push(...(await entriesOf(directory, prefix + digit)));
    }
    return parts;
  };
  const order: number[] = [ROOT_INO];
  for (const directory of order) {
    own.set(directory, { ...NO_TOTALS });
    for (const { ino } of await entriesOf(directory)) {
      const inode = await run(() => metadata.inode(ino));
      if (inode === undefined) {
        wrong.push(`a name in ${directory} leads to ${ino}, which is not there`);
      } else if (isDirectory(inode)) {
        if (inode.parent !== directory) wrong.push(`directory ${ino} says ${inode.parent}`);
        parents.set(ino, directory);
        order.push(ino);
      } else {
        const known = places.get(ino) ?? new Map<number, number>();
        known.set(directory, (known.get(directory) ?? 0) + 1);
        places.set(ino, known);
      }
    }
  }
  for (const [ino, expected] of places) {
    const inode = (await run(() => metadata.inode(ino)))!;
    const names = [...expected.values()].reduce((sum, count) => sum + count, 0);
    if (inode.nlink !== names) wrong.push(`file ${ino} has ${names} names, not ${inode.nlink}`);
    if (!expected.has(inode.parent)) wrong.push(`file ${ino} is not at home in ${inode.parent}`);
    const links = await run(() => new Map(metadata.links(ino)));
    const shown = (map: Map<number, number>): string => JSON.stringify([...map].sort());
    const wanted = names > 1 ? expected : new Map<number, number>();
    if (shown(links) !== shown(wanted)) {
      wrong.push(`file ${ino} has names in ${shown(wanted)}, not ${shown(links)}`);
    }
    const { size, allocated, reservedTo } = inode;
    const reserved = BigInt(Math.max(0, reservedTo - size));
    const sizes = { bytes: BigInt(size), allocated: BigInt(allocated), reserved };
    const counted = { ...NO_TOTALS, files: 1, ...sizes };
    const home = own.get(inode.parent);
    if (home !== undefined) addTotals(home, counted);
  }
  // Deeper directories come later in the order.
  for (const directory of order.toReversed()) {
    const sum = own.get(directory)!;
    const found = await run(() => ({ ...metadata.totals(directory) }));
    for (const key of ["files", "directories", "bytes", "allocated", "reserved"] as const) {
      if (found[key] === sum[key]) continue;
      wrong.push(`directory ${directory}: ${key} ${found[key]} instead of ${sum[key]}`);
    }
    const above = own.get(parents.get(directory) ?? 0);
    if (above === undefined) continue;
    addTotals(above, sum);
    above.directories++;
  }
  return wrong;
}

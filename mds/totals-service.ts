/**
 * `dss du` and `dss quota` in the leader. What is told is in the journal when it is told; it is
 * read from the totals that the leader keeps, so nothing is walked.
 */
import { DssError } from "../cluster/base/errors.js";
import type { Ino } from "../cluster/base/ids.js";
import { describeTotals, setQuota } from "./core/directory-totals.js";
import type { Dentry } from "./core/dentry.js";
import { S_IFDIR } from "./core/inode.js";
import { directoryPageKey } from "./core/page.js";
import type { LeaderInside } from "./leader.js";
import { ROOT_INO } from "./proto.js";
import type {
  DirectoryName,
  DirectoryTotals,
  DirectoryUsage,
  QuotaLimits,
  QuotaReport,
} from "./proto-totals.js";

const CHILDREN_MAX = 10_000;
/** Names that are looked at to find out what a directory is called. */
const NAMES_MAX = 1_000_000;
const HEX = "0123456789abcdef";

export class TotalsService {
  constructor(private readonly inside: LeaderInside) {}

  async usage(name: DirectoryName, wantsChildren: boolean): Promise<DirectoryUsage> {
    const { loader, metadata } = this.inside;
    await this.inside.active();
    const ino = await this.find(name);
    const totals = await loader.run(() => describeTotals(metadata, ino));
    const children: DirectoryUsage["children"] = [];
    let isCut = false;
    if (wantsChildren) {
      isCut = !(await this.eachName(ino, async (entries) => {
        for (const { name: child, ino: below, type } of entries) {
          if (type !== S_IFDIR) continue;
          if (children.length >= CHILDREN_MAX) return false;
          const found = await loader.run(() =>
            metadata.inode(below) === undefined ? undefined : describeTotals(metadata, below),
          );
          if (found !== undefined) children.push({ name: child, totals: found });
        }
        return true;
      }));
    }
    await this.safe();
    children.sort((a, b) => Buffer.compare(a.name, b.name));
    return { totals, children, isCut };
  }

  async setQuota(name: DirectoryName, limits: Partial<QuotaLimits>): Promise<DirectoryTotals> {
    const { metadata, operations } = this.inside;
    await this.inside.active();
    const ino = await this.find(name);
    const totals = await new Promise<DirectoryTotals>((resolve, reject) => {
      operations.submit({
        session: 0,
        plan: (access) => setQuota(metadata, access, { ino, ...limits }),
        done: ({ answer }) => resolve(answer.totals!),
        fail: reject,
      });
    });
    await this.safe();
    return totals;
  }

  async quotas(): Promise<QuotaReport[]> {
    const { loader, metadata } = this.inside;
    await this.inside.active();
    const found: QuotaReport[] = [];
    for (const ino of metadata.quotas.keys()) {
      const totals = await loader.run(() =>
        metadata.inode(ino) === undefined ? undefined : describeTotals(metadata, ino),
      );
      if (totals !== undefined) found.push({ path: await this.pathOf(ino), totals });
    }
    await this.safe();
    return found;
  }

  private safe(): Promise<void> {
    const { journal } = this.inside;
    return new Promise((resolve) => journal.whenSafe(journal.last, resolve));
  }

  private async find({ ino, path }: DirectoryName): Promise<Ino> {
    if (ino !== undefined) return ino;
    const { loader, metadata } = this.inside;
    let at = ROOT_INO;
    for (const name of path ?? []) {
      const entry = await loader.run(() => metadata.dentry(at, name));
      const shown = JSON.stringify(name.toString());
      if (entry === undefined) throw new DssError("NotFound", `there is no ${shown} in the path`);
      if (entry.type !== S_IFDIR) throw new DssError("NotDirectory", `${shown} is no directory`);
      at = entry.ino;
    }
    return at;
  }

  /** False when `visit` had enough. */
  private async eachName(
    directory: Ino,
    visit: (entries: readonly Dentry[]) => boolean | Promise<boolean>,
    prefix = "",
  ): Promise<boolean> {
    const { loader, metadata } = this.inside;
    const entries = await loader.run(() => {
      const { body } = metadata.cache.get(directoryPageKey(directory, prefix));
      if (body.kind !== "d") return [];
      return body.split ? undefined : [...body.entries.values()];
    });
    if (entries !== undefined) return await visit(entries);
    for (const digit of HEX) {
      if (!(await this.eachName(directory, visit, prefix + digit))) return false;
    }
    return true;
  }

  /** Directories know what is above them, not what they are called there. */
  private async pathOf(directory: Ino): Promise<Buffer[] | undefined> {
    const { loader, metadata } = this.inside;
    const chain = await loader.run(() => metadata.chain(directory).inos);
    const path: Buffer[] = [];
    let looked = 0;
    for (const [at, ino] of chain.entries()) {
      const above = chain[at + 1];
      if (above === undefined) break;
      let name: Buffer | undefined;
      await this.eachName(above, (entries) => {
        name = entries.find((entry) => entry.ino === ino)?.name;
        looked += entries.length;
        return name === undefined && looked < NAMES_MAX;
      });
      if (name === undefined) return undefined;
      path.unshift(name);
    }
    return path;
  }
}

/** From a message: the shape is checked here. */
export function checkDirectoryName({ ino, path }: DirectoryName): DirectoryName {
  const isNumber = Number.isSafeInteger(ino) && ino! > 0;
  const isPath = Array.isArray(path) && path.every((name) => Buffer.isBuffer(name));
  if (isNumber) return { ino: ino! };
  if (isPath) return { path };
  throw new DssError("Malformed", "a directory is named by a number or a path");
}
export function checkLimits({ maxBytes, maxInodes }: Partial<QuotaLimits>): Partial<QuotaLimits> {
  const limits: Partial<QuotaLimits> = {};
  for (const [key, value] of Object.entries({ maxBytes, maxInodes })) {
    if (value === undefined || value === null) continue;
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new DssError("Malformed", `${key} of a quota is ${String(value)}`);
    }
    limits[key as keyof QuotaLimits] = value;
  }
  return limits;
}

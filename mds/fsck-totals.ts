/**
 * What `dss fsck` says of the homes of files and the recursive totals of directories.
 *
 * Homes are looked at while all names are walked. Totals are judged from the bottom up, each
 * directory by itself: what it has must be what its files and its subdirectories' totals come to.
 * One that changes while it is added up is added up again, a few times; on a busy system those near
 * the root may stay unjudged. Nobody can judge them while names and homes are not as they should
 * be: that is put right first.
 */
import type { Ino } from "../cluster/base/ids.js";
import type { Access } from "./core/capability.js";
import type { Delta } from "./core/delta.js";
import type { Dentry } from "./core/dentry.js";
import { readInodes, setInode, setPlaces } from "./core/fsck.js";
import { S_IFDIR, isDirectory, type InodeRecord } from "./core/inode.js";
import type { Metadata } from "./core/metadata.js";
import { NO_TOTALS, addTotals, difference, isZero, type Totals } from "./core/totals.js";
import { makeChain, totalsOfFile } from "./core/totals-changes.js";
import { ROOT_INO } from "./proto.js";
import type { FsckKind } from "./proto-fsck.js";

const NAMES_AT_ONCE = 256;
/** Files with several names whose places are compared; of others they are not. */
const PLACES_MAX = 1_000_000;
const TRIES = 5;

export interface FsckTools {
  metadata: Metadata;
  /** One moment of the metadata. */
  look<T>(read: () => T): Promise<T>;
  /** The same, of what may be damaged. */
  readOr<T>(fallback: T, read: () => T): Promise<T>;
  /** False: a page of the directory cannot be read. */
  eachName(directory: Ino, visit: (entries: Dentry[]) => Promise<void>): Promise<boolean>;
  /** True: it was repaired. */
  report(kind: FsckKind, what: string, repair: () => Promise<boolean>): Promise<boolean>;
  change(repair: (access: Access) => Delta[]): Promise<boolean>;
  /** It was given or lost a name since the walk began. */
  isTouched(ino: Ino): boolean;
}

export class TotalsCheck {
  /** Names of files with several, as they were met. */
  private readonly places = new Map<Ino, Map<Ino, number>>();
  /** What was found wrong and stays so. */
  private readonly wrong = new Map<Ino, Totals>();
  private judged: Ino = 0;
  private disturbed = false;

  constructor(private readonly tools: FsckTools) {}

  observe(record: readonly Delta[]): void {
    const { judged } = this;
    if (judged === 0) return;
    for (const delta of record) {
      if (delta.d === "totalsAdd") this.disturbed ||= delta.chain.inos.includes(judged);
      else if (delta.d === "dentryPut" || delta.d === "dentryRemove") {
        this.disturbed ||= delta.directory === judged;
      }
    }
  }

  // ---- Homes -----------------------------------------------------------------------------------

  /** Some of the names in a directory, at most a few hundred. */
  async noteNames(directory: Ino, entries: readonly Dentry[]): Promise<void> {
    const { metadata } = this.tools;
    const files = entries.filter(({ type }) => type !== S_IFDIR).map(({ ino }) => ino);
    if (files.length === 0) return;
    const nothing = new Map<Ino, InodeRecord | undefined>();
    const inodes = await this.tools.readOr(nothing, () => readInodes(metadata, files));
    for (const ino of files) {
      const inode = inodes.get(ino);
      if (inode === undefined || isDirectory(inode)) continue;
      if (inode.nlink > 1) {
        let known = this.places.get(ino);
        if (known === undefined && this.places.size >= PLACES_MAX) continue;
        if (known === undefined) this.places.set(ino, (known = new Map<Ino, number>()));
        known.set(directory, (known.get(directory) ?? 0) + 1);
      } else if (inode.parent !== directory) await this.checkHome(ino, directory);
    }
  }
  /** When all names have been met. */
  async checkPlaces(): Promise<void> {
    const { metadata } = this.tools;
    for (const [ino, found] of this.places) {
      this.places.delete(ino);
      const isWrong = (): boolean => {
        const inode = metadata.inode(ino);
        if (inode === undefined || this.tools.isTouched(ino)) return false;
        const names = [...found.values()].reduce((sum, count) => sum + count, 0);
        if (inode.nlink !== names || names < 2) return false; // That is another finding.
        const known = metadata.links(ino);
        const same = [...found].every(([directory, count]) => known.get(directory) === count);
        return !same || known.size !== found.size || !found.has(inode.parent);
      };
      if (!(await this.tools.look(isWrong))) continue;
      const what = `file ${hex(ino)} has names in ${[...found.keys()].map(hex).join(", ")}`;
      const repair = (): Promise<boolean> =>
        this.tools.change((access) => (isWrong() ? setPlaces(metadata, access, ino, found) : []));
      await this.tools.report("file-home", what, repair);
    }
  }
  private async checkHome(ino: Ino, directory: Ino): Promise<void> {
    const { metadata } = this.tools;
    const isWrong = (): boolean => {
      const inode = metadata.inode(ino);
      return inode?.nlink === 1 && inode.parent !== directory && !this.tools.isTouched(ino);
    };
    if (!(await this.tools.look(isWrong))) return;
    const what = `file ${hex(ino)} has its name in directory ${hex(directory)}`;
    const repair = (): Promise<boolean> =>
      this.tools.change((access) =>
        isWrong() ? setInode(metadata, access, ino, { parent: directory }) : [],
      );
    await this.tools.report("file-home", what, repair);
  }

  // ---- Quotas ----------------------------------------------------------------------------------

  async checkQuotas(): Promise<void> {
    const { metadata } = this.tools;
    for (const ino of [...metadata.quotas.keys()]) {
      const isWrong = (): boolean => {
        const inode = metadata.inode(ino);
        return metadata.quotas.has(ino) && (inode === undefined || !isDirectory(inode));
      };
      if (!(await this.tools.look(isWrong))) continue;
      await this.tools.report("quota-without-directory", `quota of inode ${hex(ino)}`, () =>
        this.tools.change(() => (isWrong() ? [{ d: "quotaRemove", ino }] : [])),
      );
    }
  }

  // ---- Totals ----------------------------------------------------------------------------------

  async checkTotals(directory: Ino = ROOT_INO): Promise<void> {
    const below: Ino[] = [];
    await this.tools.eachName(directory, (entries) => {
      for (const { ino, type } of entries) if (type === S_IFDIR) below.push(ino);
      return Promise.resolve();
    });
    for (const ino of below) {
      const { metadata } = this.tools;
      // A second name, or one that leads to itself: other findings.
      const isOwn = await this.tools.look(() => metadata.inode(ino)?.parent === directory);
      if (isOwn) await this.checkTotals(ino);
    }
    await this.judge(directory);
    for (const ino of below) this.wrong.delete(ino);
  }

  private async judge(directory: Ino): Promise<void> {
    const { metadata } = this.tools;
    this.judged = directory;
    try {
      for (let tries = 0; tries < TRIES; tries++) {
        this.disturbed = false;
        const sum = await this.sumOf(directory);
        if (sum === undefined) return;
        const by = await this.tools.look(() =>
          this.disturbed || metadata.inode(directory) === undefined
            ? undefined
            : difference(sum, metadata.totals(directory)),
        );
        if (by !== undefined && isZero(by)) return;
        if (by !== undefined) return await this.tell(directory, sum, by);
      }
    } finally {
      this.judged = 0;
    }
  }
  private async tell(directory: Ino, sum: Totals, by: Totals): Promise<void> {
    const { metadata } = this.tools;
    const found = await this.tools.look(() => ({ ...metadata.totals(directory) }));
    const text = ({ files, directories, bytes, allocated, reserved }: Totals): string =>
      `${files} files, ${directories} directories, ${bytes} bytes, ${allocated} allocated, ` +
      `${reserved} reserved`;
    const what = `directory ${hex(directory)} counts ${text(found)}, it has ${text(sum)}`;
    const isRepaired = await this.tools.report("directory-totals", what, () =>
      this.tools.change(() => {
        if (this.disturbed || metadata.inode(directory) === undefined) return [];
        const record: Delta[] = [{ d: "totalsAdd", chain: makeChain([directory]), by }];
        for (const delta of record) metadata.require(delta);
        return record;
      }),
    );
    if (!isRepaired) this.wrong.set(directory, by);
  }

  /** By what is in it; undefined: that cannot be read. */
  private async sumOf(directory: Ino): Promise<Totals | undefined> {
    const { metadata } = this.tools;
    const sum: Totals = { ...NO_TOTALS };
    const seen = new Set<Ino>();
    const isWhole = await this.tools.eachName(directory, async (entries) => {
      for (let at = 0; at < entries.length && !this.disturbed; at += NAMES_AT_ONCE) {
        const inos = entries.slice(at, at + NAMES_AT_ONCE).map(({ ino }) => ino);
        // Once, however often the moment has to be looked at.
        const parts = await this.tools.look(() => {
          const inodes = readInodes(metadata, inos);
          return inos.map((ino) => {
            const inode = inodes.get(ino);
            if (inode?.parent !== directory) return undefined;
            if (!isDirectory(inode)) return { ino, by: totalsOfFile(inode) };
            const { directories, ...rest } = metadata.totals(ino);
            return { ino, by: { ...rest, directories: directories + 1 } };
          });
        });
        for (const part of parts) {
          if (part === undefined || seen.has(part.ino)) continue;
          seen.add(part.ino);
          addTotals(sum, part.by);
          const wrong = this.wrong.get(part.ino);
          if (wrong !== undefined) addTotals(sum, wrong);
        }
      }
    });
    return isWhole ? sum : undefined;
  }
}

const hex = (ino: Ino): string => ino.toString(16);

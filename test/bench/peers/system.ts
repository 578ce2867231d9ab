/**
 * A storage system that can be measured: how it is started, where it is mounted, its processes, its
 * block device. dss is one (dss-system.ts), and so is every script of the peers (peer-system.ts).
 */
import type { Watched } from "../measure.js";
import type { Scope } from "../../support/scope.js";

export interface SystemProcess extends Watched {
  readonly role: "servers" | "client";
  /** Keeps data: what the row on memory is about. */
  readonly storage: boolean;
}

export interface BlockDevice {
  /** fio's engine and where it finds the device. */
  readonly engine: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** A system that is up; it ends with the scope it was started in. */
export interface Running {
  readonly mount: string;
  processes(): Promise<readonly SystemProcess[]>;
  /** Empties the caches of client and daemons; a block device stays, under the same address. */
  cold(): Promise<void>;
  /** A block device of at least 1 GiB. */
  block(): Promise<BlockDevice>;
}

export interface System {
  readonly name: string;
  /** What an acknowledged write and an fsync promise. */
  readonly durability: string;
  /** Why it cannot be measured here, and what to do about it. */
  obstacle(): string | undefined;
  up(scope: Scope): Promise<Running>;
}

export class SetupError extends Error {}

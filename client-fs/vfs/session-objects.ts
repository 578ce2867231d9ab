/**
 * Objects under the present session's client id. Each session has an access of its own, made by
 * `create`: a write that was begun under a session that was evicted must never be repeated under
 * the id of the next, which is not fenced.
 */
import { DssError } from "../../cluster/base/errors.js";
import type { ClientId } from "../../cluster/base/ids.js";
import type {
  AccessOptions,
  ObjectAccess,
  ObjectAddress,
  ObjectContent,
  ObjectStat,
} from "../../osd/client/object-access.js";

export interface ClosableObjects extends ObjectAccess {
  close(): void;
}

export class SessionObjects implements ObjectAccess {
  private access: ClosableObjects | undefined;

  constructor(private readonly create: (client: ClientId) => ClosableObjects) {}

  /** Operations of the earlier session fail; those begun from now on are the new one's. */
  onSession(client: ClientId): void {
    this.access?.close();
    this.access = this.create(client);
  }
  close(): void {
    this.access?.close();
  }

  private get current(): ObjectAccess {
    if (this.access === undefined) throw new DssError("NoSession", "no metadata session yet");
    return this.access;
  }

  read(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<ObjectContent> {
    return this.current.read(address, offset, length, options);
  }
  stat(address: ObjectAddress, options: AccessOptions): Promise<ObjectStat> {
    return this.current.stat(address, options);
  }
  extents(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): ReturnType<ObjectAccess["extents"]> {
    return this.current.extents(address, offset, length, options);
  }
  write(
    address: ObjectAddress,
    offset: number,
    data: readonly Buffer[],
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<number> {
    return this.current.write(address, offset, data, options);
  }
  zero(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void> {
    return this.current.zero(address, offset, length, options);
  }
  trim(address: ObjectAddress, options: AccessOptions): Promise<void> {
    return this.current.trim(address, options);
  }
  truncate(
    address: ObjectAddress,
    size: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void> {
    return this.current.truncate(address, size, options);
  }
  remove(
    address: ObjectAddress,
    options: AccessOptions & { unconditional: boolean },
  ): Promise<void> {
    return this.current.remove(address, options);
  }
}

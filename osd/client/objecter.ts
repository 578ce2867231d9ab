/**
 * The objecter: sends object operations to the primary of their PG and sees them through failovers
 * (design §4 Clients, Retries). One operation keeps one (client, sequence) however often it is
 * sent, so a repetition is harmless.
 *
 * Owns: sequence numbers, the set of unanswered ones (whose lowest is the `floor`), bytes in
 * flight.
 */
import { DssError, describeError } from "../../cluster/base/errors.js";
import type { Logger } from "../../cluster/base/log.js";
import { poolOfPg, type ClientId, type Epoch, type PgId } from "../../cluster/base/ids.js";
import {
  hasFlag,
  isFenced,
  osdOf,
  pgOf,
  type ClusterMap,
  type MapSource,
} from "../../cluster/map/cluster-map.js";
import { objectToPg } from "../../cluster/map/placement.js";
import { Backoff } from "../../cluster/messenger/backoff.js";
import type { Answered, Messenger } from "../../cluster/messenger/messenger.js";
import type { Clock, RandomSource } from "../../cluster/platform/ports.js";
import type { Call } from "../../cluster/wire/registry.js";
import {
  ListActive,
  ObjectExtents,
  ReadObject,
  StatObject,
  WRITE_IF_ABSENT,
  WRITE_UNCONDITIONAL,
  WRITE_WHITEOUT,
  WriteKind,
  WriteObject,
  type OsdRead,
} from "../proto.js";
import type {
  AccessOptions,
  ObjectAddress,
  ObjectContent,
  ObjectListing,
  ObjectParent,
  ObjectStat,
  VolumeObjects,
} from "./object-access.js";

export interface ObjecterOptions {
  messenger: Messenger;
  maps: MapSource;
  clock: Clock;
  random: RandomSource;
  logger: Logger;
  /** This incarnation's id. */
  client: () => ClientId;
  /** One attempt; then it is sent again. */
  attemptDeadlineMs?: number;
  /** The whole operation; 0: no bound (a mount waits for its cluster). */
  operationDeadlineMs?: number;
  /** Bytes of writes and expected reads under way; more wait. */
  inFlightBytesMax?: number;
}

const ATTEMPT_DEADLINE_MS = 10_000;
const IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024;
/** An operation that waits longer is logged once. */
const SLOW_MS = 5_000;
const MAP_WAIT_MS = 2_000;
/** A paused cluster is looked at again at least this often; the map says when it goes on. */
const PAUSE_LOOK_MS = 1_000;

type Change = {
  kind: WriteKind;
  flags: number;
  offset: number;
  length: number;
  data: readonly Buffer[];
  mtimeNs: bigint;
  snap?: number;
};

/** Where a request goes: to the PG of the object, unless it is about another one. */
type Place = ObjectAddress & { readonly pg?: PgId };

export class Objecter implements VolumeObjects, ObjectListing {
  private nextSequence = 1;
  /** Unanswered sequences in ascending order (a Set keeps insertion order). */
  private readonly unanswered = new Set<number>();
  private inFlightBytes = 0;
  private readonly waiting: { bytes: number; start: () => void }[] = [];
  private closed = false;

  private readonly stopMaps: () => void;
  /** The map that operations were last sent by. */
  private seen: ClusterMap | undefined;

  constructor(private readonly options: ObjecterOptions) {
    this.stopMaps = options.maps.onChange((map) => {
      if (this.seen !== undefined) this.dropDead(this.seen, map);
      this.seen = map;
    });
  }

  /** Nobody there will answer any more: what waits for it is sent to whoever has taken over. */
  private dropDead(before: ClusterMap, map: ClusterMap): void {
    for (const { id, up, incarnation, address } of before.osds) {
      if (!up) continue;
      const now = osdOf(map, id);
      if (now?.up === true && now.incarnation === incarnation) continue;
      this.options.messenger.peer(address).close();
    }
  }

  async read(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<ObjectContent> {
    await this.admit(length);
    try {
      const answered = await this.readCall(ReadObject, address, offset, length, options);
      const { message, data } = answered;
      const end = Math.min(offset + length, message.size);
      const from = offset - message.dataOffset;
      const wanted =
        message.exists && end > offset ? data.subarray(from, from + end - offset) : EMPTY;
      if (message.exists && wanted.length < end - offset) {
        throw new DssError("Malformed", `${address.object}: the OSD sent fewer bytes than it has`);
      }
      return {
        exists: message.exists,
        size: message.size,
        data: wanted,
        mtimeNs: message.mtimeNs,
        recycle: () => answered.recycle(),
      };
    } finally {
      this.release(length);
    }
  }

  async stat(address: ObjectAddress, options: AccessOptions): Promise<ObjectStat> {
    return (await this.readCall(StatObject, address, 0, 0, options)).message;
  }

  async extents(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<{
    exists: boolean;
    size: number;
    extents: readonly { offset: number; length: number }[];
  }> {
    return (await this.readCall(ObjectExtents, address, offset, length, options)).message;
  }

  write(
    address: ObjectAddress,
    offset: number,
    data: readonly Buffer[],
    options: AccessOptions & { mtimeNs: bigint; ifAbsent?: boolean },
  ): Promise<number> {
    let length = 0;
    for (const piece of data) length += piece.length;
    const { mtimeNs } = options;
    return this.change(address, options, {
      kind: WriteKind.write,
      flags: options.ifAbsent === true ? WRITE_IF_ABSENT : 0,
      offset,
      length,
      data,
      mtimeNs,
    });
  }
  async zero(
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void> {
    const { mtimeNs } = options;
    const change = { kind: WriteKind.zero, flags: 0, offset, length, data: [], mtimeNs };
    await this.change(address, options, change);
  }
  async trim(address: ObjectAddress, options: AccessOptions): Promise<void> {
    const kind = WriteKind.truncate;
    const change = { kind, flags: 0, offset: 0, length: 0, data: [], mtimeNs: 0n };
    await this.change(address, options, change);
  }
  async truncate(
    address: ObjectAddress,
    size: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void> {
    const { mtimeNs } = options;
    const kind = WriteKind.truncate;
    const flags = WRITE_UNCONDITIONAL;
    const change = { kind, flags, offset: size, length: 0, data: [], mtimeNs };
    await this.change(address, options, change);
  }
  async remove(
    address: ObjectAddress,
    options: AccessOptions & { unconditional: boolean; whiteout?: boolean },
  ): Promise<void> {
    const flags =
      (options.unconditional ? WRITE_UNCONDITIONAL : 0) |
      (options.whiteout === true ? WRITE_WHITEOUT : 0);
    const change = { kind: WriteKind.remove, flags, offset: 0, length: 0, data: [], mtimeNs: 0n };
    await this.change(address, options, change);
  }
  async rollback(
    address: ObjectAddress,
    snap: number,
    options: AccessOptions & { mtimeNs: bigint },
  ): Promise<void> {
    const { mtimeNs } = options;
    const kind = WriteKind.rollback;
    const change = { kind, flags: 0, offset: 0, length: 0, data: [], mtimeNs, snap };
    await this.change(address, options, change);
  }

  async list(
    pg: PgId,
    after: string,
    { limit, minEpoch }: { limit: number; minEpoch: Epoch },
  ): Promise<readonly { object: string }[]> {
    const place = { pool: poolOfPg(pg), object: `after ${after}`, pg };
    const request = (id: number, interval: number) => ({
      pg: id,
      interval,
      minEpoch,
      after,
      limit,
    });
    return (await this.attempt(ListActive, place, request)).message.objects;
  }
  async copyUp(address: ObjectAddress, options: AccessOptions): Promise<void> {
    const kind = WriteKind.copyUp;
    const change = { kind, flags: 0, offset: 0, length: 0, data: [], mtimeNs: 0n };
    await this.change(address, options, change);
  }

  /** Operations under way fail with ShuttingDown at their next attempt. */
  close(): void {
    this.closed = true;
    this.stopMaps();
  }

  private async change(
    address: ObjectAddress,
    options: AccessOptions,
    change: Change,
  ): Promise<number> {
    const bytes = change.kind === WriteKind.write ? change.length : 0;
    await this.admit(bytes);
    const sequence = this.nextSequence++;
    this.unanswered.add(sequence);
    try {
      const reply = await this.attempt(
        WriteObject,
        address,
        (pg, interval) => ({
          pg,
          interval,
          minEpoch: options.minEpoch,
          client: this.options.client(),
          sequence,
          floor: this.floor(),
          kind: change.kind,
          flags: change.flags,
          offset: change.offset,
          length: change.length,
          truncateSeq: options.truncation.seq,
          truncateSize: options.truncation.size,
          snapSeq: options.snapshots?.seq ?? 0,
          snapNewest: options.snapshots?.newest ?? 0,
          snap: change.snap ?? 0,
          mtimeNs: change.mtimeNs,
          object: address.object,
          parents: options.parents ?? NO_PARENTS,
        }),
        change.data,
      );
      return reply.message.size;
    } finally {
      this.unanswered.delete(sequence);
      this.release(bytes);
    }
  }

  private readCall<Reply>(
    call: Call<OsdRead, Reply>,
    address: ObjectAddress,
    offset: number,
    length: number,
    options: AccessOptions,
  ): Promise<Answered<Reply>> {
    return this.attempt(call, address, (pg, interval) => ({
      pg,
      interval,
      minEpoch: options.minEpoch,
      client: this.options.client(),
      offset,
      length,
      truncateSeq: options.truncation.seq,
      truncateSize: options.truncation.size,
      snap: options.snap ?? 0,
      object: address.object,
      parents: options.parents ?? NO_PARENTS,
    }));
  }

  /** Sends until there is a final answer. */
  private async attempt<Request, Reply>(
    call: Call<Request, Reply>,
    address: Place,
    request: (pg: number, interval: number) => Request,
    data?: readonly Buffer[],
  ): Promise<Answered<Reply>> {
    const { maps, clock, logger } = this.options;
    let started = clock.now();
    const overall = this.options.operationDeadlineMs ?? 0;
    const attemptMs = this.options.attemptDeadlineMs ?? ATTEMPT_DEADLINE_MS;
    let backoff: Backoff | undefined;
    let logged = false;
    for (;;) {
      if (this.closed)
        throw new DssError("ShuttingDown", `${call.name} ${address.object}: closing`);
      const map = maps.current();
      this.seen ??= map;
      if (isFenced(map, this.options.client())) {
        throw new DssError("Fenced", `client.${this.options.client()} is fenced`);
      }
      if (hasFlag(map, "pause")) {
        const paused = clock.now();
        await this.pauseOrNewMap(PAUSE_LOOK_MS, map);
        started += clock.now() - paused; // Nobody is late.
        continue;
      }
      const failure = await this.tryOnce(call, map, address, request, data, attemptMs).catch(
        (error: unknown) => {
          if (error instanceof DssError && error.retry !== "never") return error;
          throw error;
        },
      );
      if (!(failure instanceof DssError)) return failure;
      if (failure.retry === "other-replica") throw failure;
      const waited = clock.now() - started;
      if (overall > 0 && waited > overall) {
        throw new DssError("TimedOut", `${call.name} ${address.object} had no answer`, {
          cause: failure,
        });
      }
      if (waited > SLOW_MS && !logged) {
        logged = true;
        const error = describeError(failure);
        logger.warn({ object: address.object, operation: call.name, error }, "waiting for an OSD");
      }
      if (failure.epoch > map.epoch) {
        await maps.atLeast(failure.epoch, MAP_WAIT_MS).catch((error: unknown) => {
          if (!(error instanceof DssError)) throw error; // No map yet: the next attempt tells.
        });
      } else {
        backoff ??= new Backoff(this.options.random, { firstMs: 10, maxMs: 500 });
        await this.pauseOrNewMap(backoff.next(), map);
      }
    }
  }

  private tryOnce<Request, Reply>(
    call: Call<Request, Reply>,
    map: ClusterMap,
    address: Place,
    request: (pg: number, interval: number) => Request,
    data: readonly Buffer[] | undefined,
    deadlineMs: number,
  ): Promise<Answered<Reply>> {
    const pg = address.pg ?? objectToPg(map, address.pool, address.object);
    const entry = pgOf(map, pg);
    const osd = entry === undefined ? undefined : osdOf(map, entry.primary);
    if (entry === undefined || osd === undefined || !osd.up) {
      return Promise.reject(new DssError("NotActive", `PG of ${address.object} has no primary`));
    }
    const peer = this.options.messenger.peer(osd.address);
    return peer.call(call, request(pg, entry.interval), {
      deadlineMs,
      ...(data === undefined ? {} : { data }),
    });
  }

  private floor(): number {
    return this.unanswered.values().next().value ?? this.nextSequence;
  }

  private pauseOrNewMap(ms: number, seen: ClusterMap): Promise<void> {
    return new Promise((resolve) => {
      const { clock, maps } = this.options;
      const finish = (): void => {
        timer.cancel();
        stop();
        resolve();
      };
      const timer = clock.setTimer(ms, finish);
      const stop = maps.onChange((map) => {
        if (map.epoch > seen.epoch) finish();
      });
    });
  }

  private admit(bytes: number): Promise<void> | undefined {
    const max = this.options.inFlightBytesMax ?? IN_FLIGHT_BYTES_MAX;
    if (
      this.waiting.length === 0 &&
      (this.inFlightBytes === 0 || this.inFlightBytes + bytes <= max)
    ) {
      this.inFlightBytes += bytes;
      return undefined;
    }
    return new Promise((resolve) => this.waiting.push({ bytes, start: resolve }));
  }
  private release(bytes: number): void {
    const max = this.options.inFlightBytesMax ?? IN_FLIGHT_BYTES_MAX;
    this.inFlightBytes -= bytes;
    for (;;) {
      const next = this.waiting[0];
      if (next === undefined) return;
      if (this.inFlightBytes > 0 && this.inFlightBytes + next.bytes > max) return;
      this.waiting.shift();
      this.inFlightBytes += next.bytes;
      next.start();
    }
  }
}

const EMPTY = Buffer.alloc(0);
const NO_PARENTS: readonly ObjectParent[] = [];

/**
 * Remembered answers of one PG (design §4 Retries): per client the lowest unanswered sequence and
 * the answers at or above it. Pure; the file store persists one value per client, both stores use
 * it.
 */
import { compareVersions, type LogEntry, type RetryRecord, type Version } from "./chunk-store.js";

interface Client {
  floor: number;
  answers: Map<number, { version: Version; size: number }>;
}

export class RetryMemory {
  private readonly clients = new Map<number, Client>();
  /** Clients whose stored value is out of date. */
  readonly dirty = new Set<number>();

  private client(id: number): Client {
    let client = this.clients.get(id);
    if (!client) this.clients.set(id, (client = { floor: 0, answers: new Map() }));
    return client;
  }

  private raiseFloor(client: Client, floor: number): void {
    if (floor <= client.floor) return;
    client.floor = floor;
    // Answers come nearly in order: stop at the first that stays, so that a write costs O(1).
    for (const sequence of client.answers.keys()) {
      if (sequence >= floor) break;
      client.answers.delete(sequence);
    }
  }

  record(entry: LogEntry, floor: number): void {
    if (entry.client === 0) return;
    const client = this.client(entry.client);
    if (entry.sequence >= client.floor) {
      client.answers.set(entry.sequence, { version: entry.version, size: entry.size });
    }
    this.raiseFloor(client, floor);
    this.dirty.add(entry.client);
  }

  answered(
    id: number,
    sequence: number,
  ): { version: Version; size: number } | "below-floor" | undefined {
    const client = this.clients.get(id);
    if (!client) return undefined;
    if (sequence < client.floor) return "below-floor";
    return client.answers.get(sequence);
  }

  merge(records: readonly RetryRecord[]): void {
    for (const record of records) {
      if (record.client === 0) continue;
      const client = this.client(record.client);
      for (const { sequence, version, size } of record.answers) {
        if (sequence >= client.floor && !client.answers.has(sequence)) {
          client.answers.set(sequence, { version, size });
        }
      }
      this.raiseFloor(client, record.floor);
      this.dirty.add(record.client);
    }
  }

  /**
   * The requests behind log entries after `common` were rolled back: they have no answer any more.
   */
  forgetAfter(common: Version): void {
    for (const [id, client] of this.clients) {
      for (const [sequence, answer] of client.answers) {
        if (compareVersions(answer.version, common) > 0) {
          client.answers.delete(sequence);
          this.dirty.add(id);
        }
      }
    }
  }

  /** Every stored value is written anew. */
  writeAll(): void {
    for (const id of this.clients.keys()) this.dirty.add(id);
  }

  forget(id: number): boolean {
    if (!this.clients.delete(id)) return false;
    this.dirty.add(id);
    return true;
  }

  export(): RetryRecord[] {
    return [...this.clients.keys()].sort((a, b) => a - b).map((id) => this.get(id)!);
  }

  get(id: number): RetryRecord | undefined {
    const client = this.clients.get(id);
    if (!client) return undefined;
    return {
      client: id,
      floor: client.floor,
      answers: [...client.answers]
        .filter(([sequence]) => sequence >= client.floor)
        .sort(([a], [b]) => a - b)
        .map(([sequence, answer]) => ({ sequence, ...answer })),
    };
  }
}

/**
 * Client ids, never reused in the life of a cluster: ranges are reserved by compare-and-set on a
 * counter. What is left of a range when its owner ends, or of one whose reservation got lost, is
 * never given out.
 */
import { DssError, isDssError } from "../base/errors.js";
import { CLIENT_ID_FIRST, type ClientId } from "../base/ids.js";
import type { Coordination } from "./coordination.js";
import { CLIENT_IDS_PATH } from "./schema.js";

const RANGE = 64;
const CLIENT_ID_LIMIT = 2 ** 32;
const ATTEMPTS_MAX = 50;

export class ClientIds {
  private next = 0;
  private end = 0;
  private reserving: Promise<void> | undefined;

  constructor(private readonly coordination: Coordination) {}

  /** Errors: those of a request; Overloaded when 2³² ids are used up. */
  async take(): Promise<ClientId> {
    while (this.next >= this.end) {
      this.reserving ??= this.reserve().finally(() => (this.reserving = undefined));
      await this.reserving;
    }
    return this.next++;
  }

  private async reserve(): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        const node = await this.coordination.get(CLIENT_IDS_PATH);
        const first = node ? Number(node.data.toString("utf8")) : CLIENT_ID_FIRST;
        if (!Number.isSafeInteger(first) || first < CLIENT_ID_FIRST) {
          throw new DssError("Corrupt", `${CLIENT_IDS_PATH} holds "${String(node?.data)}"`);
        }
        const end = first + RANGE;
        if (end > CLIENT_ID_LIMIT) throw new DssError("Overloaded", "no client ids are left");
        const data = Buffer.from(String(end), "utf8");
        if (node) await this.coordination.set(CLIENT_IDS_PATH, data, node.version);
        else await this.coordination.create(CLIENT_IDS_PATH, data);
        this.next = first;
        this.end = end;
        return;
      } catch (error) {
        const isRace = isDssError(error, "Conflict") || isDssError(error, "Exists");
        // Unknown outcome: the range may be reserved already, so a fresh one is taken.
        if ((isRace || isDssError(error, "ConnectionLost")) && attempt < ATTEMPTS_MAX) continue;
        throw error;
      }
    }
  }
}

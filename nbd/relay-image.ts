/**
 * An image whose bytes another process serves, by NBD, and which outlives that process: requests
 * without an answer are kept and sent again to its successor (design §8). What a client sees of a
 * server's death is a delay.
 *
 * Invariants: a request is answered once, by the answer of one server; a change is sent only when
 * all earlier ones that overlap it are answered, so that sending one again can undo nothing that
 * was answered meanwhile; a server that refuses because it is ending has not answered; after `end`
 * everything fails. That the predecessor can change nothing any more when a successor is connected
 * is the successor's duty: it has it fenced before it serves. Owner of the unanswered requests.
 */
import { DssError } from "../cluster/base/errors.js";
import { COMMAND, COMMAND_FLAG, NBD_ERROR, type ExportFacts } from "./abi.js";
import { wholeOf, type BlockImage, type ImageExtent, type ImagePart } from "./block-image.js";
import { encodeRequest, type ClientRequest, type ReplyChunk } from "./client-replies.js";
import { RangeOrder } from "./range-order.js";

const ZEROS = Buffer.alloc(1024 * 1024);

/** The way to the present server. */
export interface RelayLink {
  send(chunks: readonly Buffer[]): void;
}

type ReadChunk = Extract<ReplyChunk["body"], { is: "data" | "hole" }> | FailedFrom;
interface FailedFrom {
  readonly is: "failed";
  readonly offset: number;
  readonly failure: DssError;
}

interface Pending {
  readonly request: ClientRequest;
  /** What has arrived of the answer; begun anew with every server. */
  parts: ReadChunk[];
  extents: ImageExtent[];
  failure: DssError | undefined;
  resolve(pending: Pending): void;
  reject(error: DssError): void;
}

export interface RelayOptions {
  readonly name: string;
  /** The server refuses requests because it is ending; once for each server. */
  readonly onRefusing?: () => void;
}

export class RelayImage implements BlockImage {
  readonly name: string;
  private readonly onRefusing: () => void;
  private facts: ExportFacts | undefined;
  private link: RelayLink | undefined;
  /** In the order of issue, which is the order of sending again. */
  private readonly pending = new Map<number, Pending>();
  private readonly order = new RangeOrder();
  private lastCookie = 0;
  private refused = false;
  private ended: DssError | undefined;

  constructor(options: RelayOptions) {
    this.name = options.name;
    this.onRefusing = options.onRefusing ?? ((): void => undefined);
  }

  /** Requests without an answer. */
  get waiting(): number {
    return this.pending.size;
  }
  get connected(): boolean {
    return this.link !== undefined;
  }
  get description(): string {
    return this.known().description;
  }
  get size(): number {
    return this.known().size;
  }
  get readOnly(): boolean {
    return this.known().readOnly;
  }
  get blockSize(): BlockImage["blockSize"] {
    return this.known().blockSize;
  }

  // ---- Servers ----

  /** A server is ready, and its predecessor is fenced. */
  connect(link: RelayLink, facts: ExportFacts): void {
    if (this.ended !== undefined) return;
    this.link = link;
    this.facts = facts;
    this.refused = false;
    const out: Buffer[] = [];
    for (const pending of this.pending.values()) {
      pending.parts = [];
      pending.extents = [];
      pending.failure = undefined;
      encodeRequest(pending.request, out);
    }
    if (out.length > 0) link.send(out);
  }

  /** The server is gone: requests wait for the next one. */
  disconnect(): void {
    this.link = undefined;
  }

  /** The export may have grown. */
  describe(facts: ExportFacts): void {
    this.facts = facts;
  }

  /** There will be no other server. */
  end(error: DssError): void {
    this.ended ??= error;
    this.link = undefined;
    const waiting = [...this.pending.values()];
    this.pending.clear();
    for (const pending of waiting) pending.reject(this.ended);
  }

  /** Errors: Malformed when it is no reply to what was asked; the link is of no use then. */
  onReply(chunk: ReplyChunk): void {
    const pending = this.pending.get(chunk.cookie);
    if (pending === undefined) throw unexpected(`a reply to no request (${chunk.cookie})`);
    const { body } = chunk;
    switch (body.is) {
      case "data":
      case "hole":
        pending.parts.push(body);
        break;
      case "status":
        pending.extents.push(...body.extents);
        break;
      case "error":
        if (body.error === NBD_ERROR.ESHUTDOWN) return this.onRefused();
        this.onError(pending, body);
        break;
      case "done":
        break;
    }
    if (!chunk.last) return;
    this.pending.delete(chunk.cookie);
    if (pending.failure !== undefined) pending.reject(pending.failure);
    else pending.resolve(pending);
  }

  private onError(
    pending: Pending,
    body: { error: number; message: string; offset?: number },
  ): void {
    const failure = failureOf(body.error, body.message);
    if (body.offset === undefined) pending.failure = failure;
    else pending.parts.push({ is: "failed", offset: body.offset, failure });
  }

  private onRefused(): void {
    if (this.refused) return;
    this.refused = true;
    this.onRefusing();
  }

  // ---- The image ----

  async read(offset: number, length: number): Promise<Buffer[]> {
    return wholeOf(await this.readParts(offset, length));
  }

  async readParts(offset: number, length: number): Promise<ImagePart[]> {
    const { parts } = await this.ask({ command: COMMAND.READ, flags: 0, offset, length });
    return partsOf(parts, offset, length);
  }

  async write(offset: number, data: Buffer, { fua }: { fua: boolean }): Promise<void> {
    const flags = fua ? COMMAND_FLAG.FUA : 0;
    const { length } = data;
    await this.change({ command: COMMAND.WRITE, flags, offset, length, data });
  }

  async zero(
    offset: number,
    length: number,
    options: { fua: boolean; mayTrim: boolean; fast: boolean },
  ): Promise<void> {
    const flags =
      (options.fua ? COMMAND_FLAG.FUA : 0) |
      (options.mayTrim ? 0 : COMMAND_FLAG.NO_HOLE) |
      (options.fast ? COMMAND_FLAG.FAST_ZERO : 0);
    await this.change({ command: COMMAND.WRITE_ZEROES, flags, offset, length });
  }

  async trim(offset: number, length: number, { fua }: { fua: boolean }): Promise<void> {
    const flags = fua ? COMMAND_FLAG.FUA : 0;
    await this.change({ command: COMMAND.TRIM, flags, offset, length });
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.ask({ command: COMMAND.CACHE, flags: 0, offset, length });
  }

  async status(offset: number, length: number, extentsMax: number): Promise<ImageExtent[]> {
    const flags = extentsMax === 1 ? COMMAND_FLAG.REQ_ONE : 0;
    const { extents } = await this.ask({ command: COMMAND.BLOCK_STATUS, flags, offset, length });
    if (extents.length === 0) throw unexpected("a status without extents");
    return extents.slice(0, extentsMax);
  }

  async flush(): Promise<void> {
    await this.ask({ command: COMMAND.FLUSH, flags: 0, offset: 0, length: 0 });
  }

  private async change(request: Omit<ClientRequest, "cookie">): Promise<void> {
    await this.order.run(request.offset, request.length, () => this.ask(request));
  }

  private ask(request: Omit<ClientRequest, "cookie">): Promise<Pending> {
    if (this.ended !== undefined) return Promise.reject(this.ended);
    const cookie = ++this.lastCookie;
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        request: { ...request, cookie },
        ...{ parts: [], extents: [], failure: undefined, resolve, reject },
      };
      this.pending.set(cookie, pending);
      if (this.link === undefined) return;
      const out: Buffer[] = [];
      encodeRequest(pending.request, out);
      this.link.send(out);
    });
  }

  private known(): ExportFacts {
    if (this.facts !== undefined) return this.facts;
    throw new DssError("Unreachable", `no server of ${this.name} has answered yet`);
  }
}

/** The range in order; a failed part reaches to the next one that arrived. */
function partsOf(chunks: readonly ReadChunk[], offset: number, length: number): ImagePart[] {
  const end = offset + length;
  const sorted = [...chunks].sort((a, b) => a.offset - b.offset);
  const parts: ImagePart[] = [];
  let at = offset;
  for (const [i, chunk] of sorted.entries()) {
    if (chunk.offset !== at) break;
    if (chunk.is === "failed") {
      const next = sorted[i + 1]?.offset ?? end;
      parts.push({ length: next - at, failure: chunk.failure });
      at = next;
      continue;
    }
    const pieces = chunk.is === "data" ? chunk.pieces : zeros(chunk.length);
    parts.push({ length: chunk.length, pieces });
    at += chunk.length;
  }
  if (at === end) return parts;
  throw unexpected(`an answer that covers ${at - offset} of ${length} bytes`);
}

function zeros(length: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let left = length; left > 0; left -= ZEROS.length) {
    pieces.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
  }
  return pieces;
}

function failureOf(error: number, message: string): DssError {
  switch (error) {
    case NBD_ERROR.ENOSPC:
      return new DssError("NoSpace", message);
    case NBD_ERROR.EPERM:
      return new DssError("NotPermitted", message);
    case NBD_ERROR.EINVAL:
      return new DssError("InvalidArgument", message);
    case NBD_ERROR.ENOTSUP:
      return new DssError("NotSupported", message);
    case NBD_ERROR.EOVERFLOW:
      return new DssError("RangeTooLarge", message);
    default:
      return new DssError("Disk", message === "" ? `the server answers error ${error}` : message);
  }
}

const unexpected = (what: string): DssError => new DssError("Malformed", `NBD server: ${what}`);

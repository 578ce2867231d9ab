/**
 * Several requests in one frame (proto.MdsBatch): each is served as if it had come alone, and the
 * answer leaves when all have theirs. Owns the answers until then.
 */
import { DssError } from "../cluster/base/errors.js";
import { errorBody } from "../cluster/wire/error-body.js";
import type { Incoming } from "../cluster/messenger/messenger.js";
import type { MdsBatch, MdsBatchReply, MdsCall, MdsReply } from "./proto.js";

/** More would block the leader for others for too long. */
export const BATCH_MAX = 1_024;

export function serveBatch(
  incoming: Incoming<MdsBatch, MdsBatchReply>,
  serve: (one: Incoming<MdsCall, MdsReply>) => void,
): void {
  const { floor, calls } = incoming.message;
  if (!Array.isArray(calls) || calls.length === 0 || calls.length > BATCH_MAX) {
    throw new DssError("Malformed", `a batch has 1 to ${BATCH_MAX} requests`);
  }
  const replies = new Array<MdsBatchReply["replies"][number]>(calls.length);
  let missing = calls.length;
  const answered = (at: number, reply: MdsBatchReply["replies"][number]): void => {
    replies[at] = reply;
    if (--missing === 0) incoming.reply({ replies });
  };
  calls.forEach((call, at) => {
    const replay = call?.replay === true;
    const { data, sums, sender, epoch, link } = incoming;
    const one: Incoming<MdsCall, MdsReply> = {
      ...{ data, sums, sender, epoch, link },
      message: { id: call?.id, floor, wait: "unsafe", replay, request: call?.request },
      reply: (reply) => answered(at, replay ? { ...reply, answer: {} } : reply),
      fail: (error) => {
        // As for one request: a bug must not look like an operating error.
        if (!(error instanceof DssError)) throw error;
        answered(at, { id: call?.id, error: errorBody(error) });
      },
      recycle: () => undefined, // The data are the whole batch's.
    };
    try {
      serve(one);
    } catch (error) {
      one.fail(error);
    }
  });
}

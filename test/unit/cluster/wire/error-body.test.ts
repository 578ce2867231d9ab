/** Errors on the wire: what travels, what is cut off, and what is not believed. */
import t from "tap";
import { DssError } from "../../../../cluster/base/errors.js";
import {
  ERROR_HINT_MAX,
  ERROR_MESSAGE_MAX,
  errorBody,
  errorCodec,
  errorFromBody,
} from "../../../../cluster/wire/error-body.js";
import { msgpack } from "../../../../cluster/wire/registry.js";

t.test("code, message, epoch and hint travel; a cause does not", (t) => {
  const error = new DssError("Busy", "disk has 3 snapshots", {
    ...{ epoch: 7, hint: "remove them first", cause: new Error("a secret of the log") },
  });
  const decoded = errorCodec.decode(errorCodec.encode(error));
  t.match(decoded, { code: "Busy", message: "disk has 3 snapshots", epoch: 7 });
  t.equal(decoded.hint, "remove them first");
  t.equal(decoded.cause, undefined);
  const bare = errorCodec.decode(errorCodec.encode(new DssError("NotFound", "no such name")));
  t.equal(bare.hint, undefined);
  t.end();
});

t.test("long texts are cut by the sender and refused by the receiver", (t) => {
  const message = "m".repeat(ERROR_MESSAGE_MAX + 1);
  const hint = "h".repeat(ERROR_HINT_MAX + 1);
  const decoded = errorFromBody(errorBody(new DssError("Busy", message, { hint })));
  t.equal(decoded.message.length, ERROR_MESSAGE_MAX);
  t.equal(decoded.hint?.length, ERROR_HINT_MAX);
  const good = { code: 19, message: "busy", epoch: 0 };
  t.equal(errorFromBody(good).code, "Busy");
  for (const odd of [
    { ...good, message },
    { ...good, hint },
    { ...good, hint: 5 },
    { ...good, message: undefined },
    { ...good, code: "Busy" },
    { ...good, epoch: -1 },
    { ...good, epoch: 0.5 },
    null,
    "busy",
  ]) {
    const bytes = msgpack<unknown>().encode(odd);
    t.match(errorCodec.decode(bytes), { code: "Malformed" }, JSON.stringify(odd)?.slice(0, 60));
  }
  t.throws(() => errorCodec.decode(Buffer.from([0xdb, 0, 0, 0, 9])), { code: "Malformed" });
  t.end();
});

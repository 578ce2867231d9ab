/** docs/protocol.md lists every message: made from the registry; `UPDATE=1` writes it anew. */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import t from "tap";
import { FRAME_LIMITS, FRAME_MAGIC, FRAME_VERSION, HEADER_SIZE } from "../../cluster/wire/frame.js";
import { messageTable } from "../../cluster/wire/registry.js";
import "../../cluster/messenger/session.js";
import "../../osd/proto.js";
import "../../mds/proto.js";

const OWNERS: readonly [from: number, owner: string][] = [
  [300, "`mds/proto.ts`"],
  [100, "`osd/proto.ts`"],
  [0, "`cluster/messenger/session.ts`"],
];

function page(): string {
  const rows = messageTable()
    .filter(({ number }) => number < 60_000) // Above are those of tests.
    .map(({ number, name }) => {
      const owner = OWNERS.find(([from]) => number >= from)![1];
      return `| ${number} | ${name} | ${owner} |`;
    });
  const mib = (bytes: number): string => `${bytes / 2 ** 20} MiB`;
  const limits = `${mib(FRAME_LIMITS.bodyBytesMax)} and data of at most ${mib(FRAME_LIMITS.dataBytesMax)}`;
  const head = `${HEADER_SIZE} bytes (magic 0x${FRAME_MAGIC.toString(16)}, version ${FRAME_VERSION}, little-endian)`;
  return `# Messages

Made from the message registry (\`UPDATE=1 node dist/test/unit/docs-protocol.test.js\`); a unit test
keeps it true.

A frame is a header of ${head}, a body of at most
${limits}; the fields are listed in \`cluster/wire/frame.ts\`.
Requests are even, the reply to a request is its number plus one, and 1 is the reply to a request
that failed (code, message, map epoch, and what a person can do about it).

| Number | Message | Declared in |
| --- | --- | --- |
${rows.join("\n")}
`;
}

t.test("docs/protocol.md is up to date", (t) => {
  // From dist/test/unit to the root of the tree.
  const file = fileURLToPath(new URL("../../../docs/protocol.md", import.meta.url));
  if (process.env["UPDATE"] !== undefined) writeFileSync(file, page());
  t.equal(readFileSync(file, "utf8"), page());
  t.end();
});

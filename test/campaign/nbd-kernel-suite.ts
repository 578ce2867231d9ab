/**
 * Linux's own NBD client against the server, with an image in memory: what is proved here is the
 * protocol as the kernel speaks it. The same story over a cluster is in npm test
 * (integration/nbd/clients.test.ts).
 */
import { createHash } from "node:crypto";
import t from "tap";
import { silentLogger } from "../../cluster/base/log.js";
import { nodeClock, nodePlatform } from "../../cluster/platform/node.js";
import { NbdServer } from "../../nbd/server.js";
import { ext4InGuest, GUEST_FILE_BYTES, GUEST_WASTE_BYTES } from "../support/guest-ext4.js";
import { MemoryDirectory, MemoryImage } from "../unit/nbd/memory-image.js";

const SIZE = 128 * 1024 * 1024;

t.setTimeout(200_000);
t.test("a Linux kernel keeps ext4 on an export", { timeout: 200_000 }, async (t) => {
  const image = new MemoryImage({ name: "disk", size: SIZE });
  image.recording = true;
  const server = new NbdServer({
    network: nodePlatform.network,
    clock: nodeClock,
    log: silentLogger,
    directory: new MemoryDirectory([image]),
  });
  t.teardown(() => server.stop());
  const address = await server.listen({ host: "127.0.0.1", port: 0 });
  const port = "port" in address ? address.port : 0;

  const { code, results, console } = await ext4InGuest(t, port, "disk");
  t.equal(code, 0, console);
  t.equal(Number(results.get("size")), SIZE / 512, "the kernel sees the export's size");
  t.ok(Number(results.get("discard")) > 0, "the kernel may discard");
  t.equal(results.get("large"), "same");
  t.equal(results.get("busybox"), "same");
  const files = Array.from({ length: 200 }, (_, i) => String(i + 1)).sort();
  const expected = createHash("sha256").update(files.map((i) => `file ${i}\n`).join(""));
  t.equal(results.get("files"), expected.digest("hex"));
  t.equal(results.get("fstrim"), "done");
  t.equal(results.get("fsck"), "clean");
  t.equal(results.get("done"), "yes");
  t.ok(image.calls.includes("flush"), "the kernel's barriers arrive");
  t.ok(
    image.calls.some((call) => call.startsWith("trim")),
    "its discards arrive",
  );
  // Without the trim there would be at least all of both files.
  const block = 4096;
  const zeros = Buffer.alloc(block);
  let data = 0;
  for (let at = 0; at < SIZE; at += block) {
    if (!image.bytes.subarray(at, at + block).equals(zeros)) data += block;
  }
  t.ok(data >= GUEST_FILE_BYTES, "what it has kept");
  t.ok(data < GUEST_FILE_BYTES + GUEST_WASTE_BYTES, `${data} bytes: what it deleted is gone`);
});

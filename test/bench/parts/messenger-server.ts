/** Answers every request with its number; prints the port at which it listens. */
import { newMessenger, Take } from "./messenger.js";

const server = newMessenger(1);
server.handle(Take, (incoming) => {
  if (incoming.sums.length === 0) throw new Error("there is no data");
  incoming.reply({ number: incoming.message.number });
  incoming.recycle();
});
const address = await server.listen({ host: "127.0.0.1", port: 0 });
if ("port" in address) process.stdout.write(`port ${address.port}\n`);

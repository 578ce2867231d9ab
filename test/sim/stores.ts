/** The disks under simulated OSDs. */
import { MemoryStore } from "../../osd/store/memory-store.js";
import type { DiskFactory } from "./osd-world.js";

/** A store that forgets nothing in a crash: for faults of the protocol alone. */
export const memoryDisk: DiskFactory = (osd, _random, clock) => {
  const uuid = `00000000-0000-4000-8000-00000000000${osd}`;
  const store = new MemoryStore(
    clock.forNode(() => true),
    uuid,
  );
  return {
    open: () => Promise.resolve(store),
    crash: () => undefined, // What was applied is there after the restart.
  };
};

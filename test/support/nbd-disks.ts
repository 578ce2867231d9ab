/** Volumes for the model of volumes as clients of an NBD server have them. */
import type { VolumeSession } from "../../nbd/volume-directory.js";
import { NbdDisk } from "./nbd-disk.js";
import type { Disk, Disks } from "./volume-model.js";

const LOOK_MS = 10;

export class NbdDisks implements Disks {
  readonly followsSize = false;
  /** Of volumes, whatever they are called by now. */
  private readonly ids = new Map<Disk, number>();

  constructor(
    /** Of a server that offers all volumes. */
    private readonly socket: string,
    private readonly mds: VolumeSession,
  ) {}

  async open(name: string): Promise<NbdDisk> {
    const disk = await NbdDisk.open(this.socket, name);
    if (name.includes("@")) return disk;
    const { answer } = await this.mds.call({ op: "volumeInfo", name });
    this.ids.set(disk, answer.volume!.id);
    return disk;
  }
  /** The server gives the lock back after the connection has ended. */
  async close(disk: Disk): Promise<void> {
    const id = this.ids.get(disk);
    await (disk as NbdDisk).close();
    if (id === undefined) return;
    this.ids.delete(disk);
    for (;;) {
      const { answer } = await this.mds.call({ op: "volumeList" });
      if (answer.volumes?.find((volume) => volume.id === id)?.owner === "") return;
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }
}

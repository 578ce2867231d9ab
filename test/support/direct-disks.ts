/** Volumes for the model of volumes without NBD: as a server has them in its own process. */
import type { BlockImage } from "../../nbd/block-image.js";
import type { VolumeDirectory } from "../../nbd/volume-directory.js";
import type { Disk, Disks } from "./volume-model.js";

export class DirectDisks implements Disks {
  readonly followsSize = true;

  constructor(private readonly directory: VolumeDirectory) {}

  open(name: string): Promise<BlockImage> {
    return this.directory.open(name);
  }
  close(disk: Disk): Promise<void> {
    return this.directory.close(disk as BlockImage);
  }
}

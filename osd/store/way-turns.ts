/**
 * The two ways to write one file, through the page cache and past it, take turns: any number of one
 * way at a time, never both. Who waits is not overtaken by the other way for ever: it is first
 * come, first served.
 */
export type Way = "direct" | "cached";

export class WayTurns {
  private way: Way = "cached";
  private active = 0;
  private waiting: { way: Way; run: () => void }[] = [];

  /** Direct writes are under way. */
  get isDirect(): boolean {
    return this.active > 0 && this.way === "direct";
  }

  enter(way: Way): Promise<void> | undefined {
    const isFree = this.waiting.length === 0 && (this.active === 0 || this.way === way);
    if (!isFree) return new Promise((run) => this.waiting.push({ way, run }));
    this.way = way;
    this.active++;
    return undefined;
  }

  leave(): void {
    this.active--;
    if (this.active > 0) return;
    const [first] = this.waiting;
    if (first === undefined) return;
    this.way = first.way;
    const end = this.waiting.findIndex((each) => each.way !== first.way);
    const next = this.waiting.splice(0, end < 0 ? this.waiting.length : end);
    this.active = next.length;
    for (const { run } of next) run();
  }
}

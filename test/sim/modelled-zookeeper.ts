/** The modelled ZooKeeper as something that the coordination suite can drive. */
import { Prng } from "../../cluster/base/prng.js";
import type { Coordination } from "../../cluster/zk/coordination.js";
import type { CoordinationDriver } from "../support/coordination-suite.js";
import type { Teardown } from "../support/temp.js";
import { SimClock } from "./sim-clock.js";
import { SimHost, SimNetwork } from "./sim-network.js";
import { SimZkClient } from "./sim-zk-client.js";
import { SimZooKeeper, ZK } from "./sim-zookeeper.js";

/** A model whose clock runs by itself while a test waits for something. */
export class ModelledZooKeeper implements CoordinationDriver {
  readonly clock = new SimClock();
  readonly network: SimNetwork;
  readonly zk: SimZooKeeper;
  private readonly hosts = new Map<Coordination, SimHost>();
  private isOver = false;

  constructor(t: Teardown, seed: number) {
    const random = new Prng(seed);
    this.network = new SimNetwork(this.clock, random.fork());
    this.zk = new SimZooKeeper(this.clock, this.network, random.fork());
    t.teardown(() => (this.isOver = true));
    void this.run();
  }
  private async run(): Promise<void> {
    while (!this.isOver) {
      await this.clock.runUntil(() => this.isOver, 1_000);
    }
  }
  async join(t: Teardown, sessionTimeoutMs = 6_000): Promise<Coordination> {
    const host = new SimHost(`host${this.hosts.size}`, this.network);
    const clock = this.clock.forNode(
      () => host.alive,
      (work) => host.run(work),
    );
    const session = await new SimZkClient(this.zk, host, clock, sessionTimeoutMs).opened(4_000);
    this.hosts.set(session, host);
    t.teardown(() => host.crash());
    return session;
  }
  now(): number {
    return this.clock.now;
  }
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => void this.clock.schedule(ms, resolve));
  }
  host(session: Coordination): SimHost {
    return this.hosts.get(session)!;
  }
  breakConnection(session: Coordination): void {
    this.zk.breakConnections(this.host(session).name);
  }
  async expire(session: Coordination): Promise<void> {
    const { name } = this.host(session);
    const undo = [this.network.partition(name, ZK), this.network.partition(ZK, name)];
    await this.pause(3_500);
    for (const heal of undo) heal();
  }
  vanish(session: Coordination): void {
    this.host(session).crash();
  }
}

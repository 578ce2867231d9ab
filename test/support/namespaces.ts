/**
 * A network of its own for one test: each machine is a network namespace, all of them on one
 * bridge in a namespace of the test. Links are cut silently (packets vanish, nobody is told), in
 * both directions or in one. Nothing outside of the namespaces is touched, no address is given to
 * this machine, and all of it goes with the test.
 */
import { execFileSync } from "node:child_process";
import type { Teardown } from "./temp.js";

const COMMAND_MS = 10_000;
/** Nobody on the bridge has it: what is sent there is lost. */
const NOWHERE = "02:00:00:00:00:01";

const ip = (...args: string[]): void => {
  execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"], timeout: COMMAND_MS });
};

export class TestNetwork {
  private readonly machines: readonly string[];

  private constructor(
    private readonly prefix: string,
    machines: readonly string[],
  ) {
    this.machines = machines;
  }

  /** Needs root. At most 250 machines with short names. */
  static create(t: Teardown, machines: readonly string[]): TestNetwork {
    const network = new TestNetwork(`dss${process.pid % 100_000}`, machines);
    t.teardown(() => network.remove());
    const hub = network.namespace("hub");
    ip("netns", "add", hub);
    ip("-n", hub, "link", "add", "br0", "type", "bridge");
    ip("-n", hub, "link", "set", "br0", "up");
    machines.forEach((machine, index) => {
      const own = network.namespace(machine);
      const port = `p${index}`;
      ip("netns", "add", own);
      ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", own);
      ip("-n", hub, "link", "set", port, "master", "br0", "up");
      ip("-n", own, "address", "add", `${network.address(machine)}/24`, "dev", "eth0");
      ip("-n", own, "link", "set", "lo", "up");
      ip("-n", own, "link", "set", "eth0", "up");
    });
    return network;
  }

  address(machine: string): string {
    const index = this.machines.indexOf(machine);
    if (index < 0) throw new Error(`there is no machine ${machine}`);
    return `10.77.0.${index + 1}`;
  }
  /** Runs a program on a machine: the program and arguments to start instead. */
  on(machine: string, program: string, args: readonly string[]): [string, string[]] {
    return ["nsenter", [`--net=/run/netns/${this.namespace(machine)}`, program, ...args]];
  }

  /** What `from` sends to `to` is lost from now on. */
  cutOneWay(from: string, to: string): void {
    const own = this.namespace(from);
    const where = [this.address(to), "dev", "eth0"];
    ip("-n", own, "neigh", "replace", ...where, "lladdr", NOWHERE, "nud", "permanent");
  }
  /** Between each of these and each of those. */
  cut(these: readonly string[], those: readonly string[]): void {
    for (const a of these) {
      for (const b of those) {
        this.cutOneWay(a, b);
        this.cutOneWay(b, a);
      }
    }
  }
  /** All that was cut between them. */
  heal(these: readonly string[], those: readonly string[]): void {
    for (const a of these) {
      for (const b of those) {
        for (const [from, to] of [
          [a, b],
          [b, a],
        ] as const) {
          ip("-n", this.namespace(from), "neigh", "del", this.address(to), "dev", "eth0");
        }
      }
    }
  }

  private namespace(machine: string): string {
    return `${this.prefix}-${machine}`;
  }
  private remove(): void {
    for (const machine of [...this.machines, "hub"]) {
      try {
        ip("netns", "del", this.namespace(machine));
      } catch {
        // It was not made, or is gone.
      }
    }
  }
}

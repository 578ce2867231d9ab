/**
 * Leases between programs that each go by their own monotonic clock. The holder counts from when it
 * asked and the giver from when it was asked, so the giver's promise outlasts the holder's belief,
 * if a second is as long for both: the margin is for clocks of which one is slower.
 */

/** By which part two clocks' rates may differ. Quartz and NTP together stay below 0.001. */
const CLOCK_RATE_MARGIN = 0.01;

/** How long a holder may believe in what its giver keeps for `ms`. */
export function heldFor(ms: number): number {
  return ms * (1 - CLOCK_RATE_MARGIN);
}

/** Whatever text a person or a file gives, loading ends with settings or one clear refusal. */
import t from "tap";
import { isDssError } from "../../cluster/base/errors.js";
import { Prng } from "../../cluster/base/prng.js";
import { checkRelations, loadConfig } from "../../cluster/config/load.js";
import type { ConfigSources } from "../../cluster/config/load.js";
import { ALL_OPTIONS } from "../../cluster/config/options.js";

const ROUNDS = 20_000;
const PIECES = [..."-019.eKMs:,[] \0é", "ms"];

t.test("random values, names and files", (t) => {
  const seed = Number(process.env["DSS_TEST_SEED"] ?? 1);
  const prng = new Prng(seed);
  const text = (): string =>
    Array.from({ length: prng.int(0, 6) }, () => prng.pick(PIECES)).join("");
  const value = (): unknown =>
    prng.pick([text, () => prng.int(0, 2 ** 31), () => -1, () => null, () => [text()]])();
  let accepted = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const row = prng.pick(ALL_OPTIONS);
    const sources: ConfigSources = prng.pick([
      () => ({ flags: { [row.flag]: value() } }),
      () => ({ environment: { [row.environment]: text() } }),
      () => ({ file: { name: "f", text: JSON.stringify({ [row.name]: value() }) } }),
      () => ({ file: { name: "f", text: text() } }),
      () => ({ flags: { [`${row.flag}${text()}`]: value() } }),
    ])();
    try {
      checkRelations(loadConfig(sources));
      accepted++;
    } catch (error) {
      if (isDssError(error, "Configuration") && error.message.length < 500) continue;
      t.fail(`round ${round} of seed ${seed}: ${String(error)}`, { sources });
      break;
    }
  }
  t.ok(accepted > ROUNDS / 50, `${accepted} of ${ROUNDS} were acceptable`);
  t.end();
});

/** The contract over every store there is. */
import { fileHarness, memoryHarness, simHarness } from "./harness.js";
import { runSuite } from "./suite.js";

runSuite("memory", memoryHarness);
runSuite("file store on a directory", fileHarness);
runSuite("file store on a simulated disk", simHarness);

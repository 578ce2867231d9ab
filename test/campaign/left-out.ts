/** `left-out.js NAME`: a step that was not run, because what it needs was not named. */
console.log(`${process.argv[2]}: left out; name the folder that has it with --suite-dir`);

/** Does nothing: an entry for the bootstrap when only its set-up is wanted. */
console.log(`set up: Node ${process.version}`);

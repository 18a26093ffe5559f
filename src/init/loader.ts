/**
 * The only JavaScript inside the executable: it starts the role that argv[0] names, and nothing else.
 *
 * The executable is a Node single-executable application built with `execArgvExtension: "none"`: Node itself reads no
 * option from the command line or NODE_OPTIONS. So what runs is decided here, by a name out of a fixed list, and comes
 * from a fixed path on a root filesystem that is signed (the initramfs) or verified (the system partition).
 * No environment variable, argument or working directory has a say.
 */
import { readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { basename } from 'node:path';
import { Script } from 'node:vm';

const ROLES = ['init', 'agent', 'curator'];
const DIRECTORY = '/usr/lib/ashlar';
/** sysexits.h: the command was used wrongly. */
const EX_USAGE = 64;

type BundleFunction = (
  exports: object,
  require: (name: string) => unknown,
  module: { exports: object },
  fileName: string,
  directoryName: string,
) => void;

function main(): void {
  const role = basename(process.argv0);
  if (!ROLES.includes(role)) {
    process.stderr.write(
      `cannot start as ${JSON.stringify(role)}: this program is ${ROLES.join(', ')} by the name it is called by, and runs nothing else\n`,
    );
    process.exit(EX_USAGE);
  }
  const fileName = `${DIRECTORY}/${role}.js`;
  const source = readFileSync(fileName, 'utf8');
  const cachedData = readOptional(`${DIRECTORY}/${role}.cache`);
  const script = new Script(
    `(function (exports, require, module, __filename, __dirname) {${source}\n})`,
    cachedData === undefined ? { filename: fileName } : { filename: fileName, cachedData },
  );
  const run = script.runInThisContext() as BundleFunction;
  // As Node does it for a script: argv[1] is the script.
  process.argv = [process.execPath, fileName, ...process.argv.slice(2)];
  const module = { exports: {} };
  run(module.exports, requireBuiltin, module, fileName, DIRECTORY);
}

/** A bundle is complete: all that it may still ask for is Node's own. */
function requireBuiltin(name: string): unknown {
  if (!isBuiltin(name)) throw new Error(`cannot require ${JSON.stringify(name)}: only Node's own modules can be`);
  return process.getBuiltinModule(name);
}

function readOptional(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

main();

/**
 * Generates src/rpc/gen/ from proto/ (buf.gen.yaml), after linting it. `--check` writes nothing and fails when what is
 * committed is not what would be generated.
 */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { command, runCommandLine } from './host/command-line.ts';
import { runProcess } from './host/run-process.ts';

const REPOSITORY = join(import.meta.dirname, '..');
const GENERATED = 'src/rpc/gen';

const generate = command({
  name: 'generate-protos',
  summary: 'generate src/rpc/gen from proto',
  options: { check: { type: 'boolean', summary: 'only say whether it is current' } },
  async run({ check }, { print, signal }) {
    await buf(['lint'], signal);
    if (!check) {
      await buf(['generate'], signal);
      return print(`${GENERATED} is generated.`);
    }
    const stale = await staleFiles(signal);
    if (stale.length > 0) {
      throw new Error(`cannot use ${GENERATED}: ${stale.join(', ')} is not what proto/ gives; run: npm run generate`);
    }
    print(`${GENERATED} is current.`);
  },
});

/** Files that differ from what would be generated, are missing or too many; paths below `src/rpc/gen`. */
export async function staleFiles(signal?: AbortSignal): Promise<string[]> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-protos-'));
  try {
    await buf(['generate', '--output', directory], signal);
    const [fresh, committed] = [
      await readTree(join(directory, GENERATED)),
      await readTree(join(REPOSITORY, GENERATED)),
    ];
    return [...new Set([...fresh.keys(), ...committed.keys()])]
      .filter((path) => fresh.get(path) !== committed.get(path))
      .sort();
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** buf finds its plugin on the PATH; the one beside it is the pinned one, and runs under this Node. */
async function buf(args: readonly string[], signal?: AbortSignal): Promise<void> {
  const binaries = join(REPOSITORY, 'node_modules/.bin');
  await runProcess(join(binaries, 'buf'), args, {
    cwd: REPOSITORY,
    env: {
      HOME: process.env.HOME ?? tmpdir(),
      PATH: [binaries, dirname(process.execPath), process.env.PATH ?? ''].join(delimiter),
    },
    ...(signal && { signal }),
  });
}

async function readTree(root: string): Promise<Map<string, string>> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(
    await Promise.all(files.map(async (path) => [path.slice(root.length + 1), await readFile(path, 'utf8')] as const)),
  );
}

if (import.meta.main) process.exitCode = await runCommandLine(generate, process.argv.slice(2));

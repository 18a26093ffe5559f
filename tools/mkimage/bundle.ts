/**
 * Our own code as the image runs it: one file for each role, complete but for Node's own modules.
 */
import { join, relative } from 'node:path';
import { type BuildOptions, build, type Metafile } from 'esbuild';

export interface Bundle {
  /** File name in /usr/lib/ashlar. */
  name: string;
  code: string;
  /** Licence comments of what the bundle holds, which minifying takes out of the code. */
  licences: string;
  /** npm packages in it, by name. */
  packages: string[];
}

const REPOSITORY = join(import.meta.dirname, '../..');

/** What the image runs, by its entry. unlock.js, attest.js and recover.js are the sources of Workers of init's. */
export const BUNDLES = {
  'init.js': 'src/init/main.ts',
  'unlock.js': 'src/init/unlock.ts',
  'attest.js': 'src/init/attest.ts',
  'recover.js': 'src/init/recover.ts',
  'agent.js': 'src/agent/main.ts',
  'curator.js': 'src/curator/main.ts',
} as const;

const OPTIONS = {
  absWorkingDir: REPOSITORY,
  bundle: true,
  platform: 'node',
  target: 'node26',
  format: 'cjs',
  minify: true,
  // Names of functions and classes are in errors, and errors are for readers.
  keepNames: true,
  legalComments: 'external',
  sourcemap: false,
  charset: 'utf8',
  write: false,
  metafile: true,
  logLevel: 'silent',
  alias: {
    koffi: './node_modules/koffi/src/koffi/index.cjs',
    '@koromix/koffi-linux-x64': './tools/mkimage/koffi-native.cjs',
    '@grpc/proto-loader': './tools/mkimage/no-proto-loader.cjs',
  },
} as const satisfies BuildOptions;

/** @param entry below the repository, as in `src/init/main.ts` */
export async function bundle(name: string, entry: string): Promise<Bundle> {
  const result = await build({ ...OPTIONS, entryPoints: [entry], outfile: `out/${name}` }).catch((error: Error) => {
    throw new Error(`cannot bundle ${entry}: ${error.message}`, { cause: error });
  });
  const file = (ending: string) => result.outputFiles.find(({ path }) => path.endsWith(ending))?.text ?? '';
  const code = file('.js');
  refuseDynamicCode(name, code);
  refuseHostPaths(name, code);
  return { name, code, licences: file('.LEGAL.txt'), packages: packagesIn(result.metafile) };
}

/** The loader's code. It goes into the executable, so all that it says must be the same in every checkout. */
export async function bundleLoader(): Promise<string> {
  return (await bundle('loader.js', 'src/init/loader.ts')).code;
}

/**
 * The executable runs with --disallow-code-generation-from-strings, and its loader gives bundles no import(): such code
 * would fail on the node, late.
 */
export function refuseDynamicCode(name: string, code: string): void {
  // Not as a method: `x.eval(` is another function.
  const found = /(?<![\w$.])(?:eval|import)\s*\(|\bnew\s+Function\s*\(|(?<![\w$.])Function\s*\(\s*["'`]/.exec(code);
  if (found === null) return;
  const around = code.slice(Math.max(0, found.index - 60), found.index + 60).replaceAll('\n', ' ');
  throw new Error(
    `cannot use ${name}: it makes code from strings or imports at run time, which the node refuses, at …${around}…`,
  );
}

function refuseHostPaths(name: string, code: string): void {
  if (code.includes(REPOSITORY)) throw new Error(`cannot use ${name}: it contains the path of this checkout`);
}

function packagesIn(metafile: Metafile | undefined): string[] {
  const inputs = Object.keys(metafile?.inputs ?? {}).map((path) => relative('.', path));
  const names = inputs.flatMap((path) => /(?:^|\/)node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? []);
  return [...new Set(names)].sort();
}

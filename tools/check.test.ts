import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { runProcess } from './host/run-process.ts';

const root = new URL('..', import.meta.url).pathname;

/** For each rule that we rely on, the least code that breaks it. A rule that does not fire protects nobody. */
const offences: Record<string, string> = {
  'typescript/no-floating-promises': 'export function f(): void { Promise.resolve(1); }',
  'typescript/no-misused-promises': 'export function f(list: number[]): void { list.forEach(async () => {}); }',
  'typescript/await-thenable': 'export async function f(value: number): Promise<void> { await value; }',
  'typescript/no-explicit-any': 'export function f(value: any): void { void value; }',
  'typescript/no-unsafe-argument': "export const n = Number.parseInt(JSON.parse('1'), 10);",
  'typescript/only-throw-error': "export function f(): void { throw 'text'; }",
  'typescript/prefer-promise-reject-errors': "export const p = () => Promise.reject('text');",
  'typescript/switch-exhaustiveness-check':
    "export function f(kind: 'a' | 'b'): void { switch (kind) { case 'a': return; } }",
  'typescript/require-array-sort-compare': 'export const sorted = [10, 9].sort();',
  'typescript/restrict-template-expressions': 'export const text = (value: { x: 1 }) => `${value}`;',
  'import/no-default-export': 'export default 1;',
  'import/no-mutable-exports': 'export let count = 0; count++;',
  'import/no-cycle': "import { b } from './import-no-cycle-2.ts'; export const a = () => b;",
  'eslint/eqeqeq': 'export const f = (a: number, b: number) => a == b;',
  'eslint/no-eval': "export const f = () => eval('1');",
  'eslint/no-new-func': "export const f = new Function('return 1');",
  'eslint/no-unused-vars': 'export function f(): void { const unused = 1; }',
};
const fileOf = (rule: string) => `${rule.replace('/', '-')}.ts`;

let directory: string;
let findings: { filename: string; code: string }[];
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-check-test-'));
  for (const name of ['.oxlintrc.json', 'tsconfig.json']) await copyFile(join(root, name), join(directory, name));
  await symlink(join(root, 'node_modules'), join(directory, 'node_modules'));
  await mkdir(join(directory, 'src'));
  for (const [rule, code] of Object.entries(offences))
    await writeFile(join(directory, 'src', fileOf(rule)), `${code}\n`);
  const cycle = "import { a } from './import-no-cycle.ts'; export const b = () => a;\n";
  await writeFile(join(directory, 'src/import-no-cycle-2.ts'), cycle);
  const nodeTest = "import { test } from 'node:test';\ntest('name', async () => {});\n";
  await writeFile(join(directory, 'src/clean.ts'), nodeTest);
  const oxlint = join(root, 'node_modules/.bin/oxlint');
  const { code, stdout } = await runProcess(process.execPath, [oxlint, '--format=json', 'src'], {
    cwd: directory,
    allowFailure: true,
  });
  assert.equal(code, 1);
  findings = (JSON.parse(stdout) as { diagnostics: { filename: string; code: string }[] }).diagnostics;
});
after(async () => rm(directory, { recursive: true, force: true }));

for (const rule of Object.keys(offences)) {
  test(`${rule} fires`, () => {
    const codes = findings.filter(({ filename }) => filename.endsWith(`/${fileOf(rule)}`)).map(({ code }) => code);
    assert.ok(codes.includes(rule.replace('/', '(') + ')'), `found only: ${codes.join(', ')}`);
  });
}

test('a call of node:test is not a floating promise', () => {
  assert.deepEqual(
    findings.filter(({ filename }) => filename.endsWith('/clean.ts')),
    [],
  );
});

test('the compiler refuses what Node cannot strip, unchecked indexing and implicit any', async () => {
  await writeFile(join(directory, 'src/strip.ts'), 'export enum E { A }\n');
  await writeFile(join(directory, 'src/index.ts'), 'export const first = (list: string[]): string => list[0];\n');
  await writeFile(join(directory, 'src/implicit.ts'), 'export const f = (x) => x;\n');
  const tsc = join(root, 'node_modules/.bin/tsc');
  const { stdout } = await runProcess(process.execPath, [tsc, '--noEmit', '--pretty', 'false', '-p', '.'], {
    cwd: directory,
    allowFailure: true,
  });
  assert.match(stdout, /src\/strip\.ts.*TS1294/);
  assert.match(stdout, /src\/index\.ts.*TS2322/);
  assert.match(stdout, /src\/implicit\.ts.*TS7006/);
});

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import commandLine from '../../image/kernel-command-line.json' with { type: 'json' };
import { mergeFragments, unmetSymbols } from './kernel.ts';
import { kernelCommandLine, kernelCommandLineFragment } from './kernel-command-line.ts';

test('a symbol that kconfig did not take as asked is named with its fragment', () => {
  const requested = mergeFragments([
    { name: 'a.config', text: '# why\nCONFIG_KEPT=y\nCONFIG_LOST=y\nCONFIG_TEXT="x"\n# CONFIG_OFF is not set\n' },
  ]);
  const config = 'CONFIG_KEPT=y\n# CONFIG_LOST is not set\nCONFIG_TEXT="y"\nCONFIG_OFF=y\n';
  assert.deepEqual(unmetSymbols(requested, config), [
    'CONFIG_LOST (a.config): asked for y, got not set',
    'CONFIG_TEXT (a.config): asked for "x", got "y"',
    'CONFIG_OFF (a.config): asked for not set, got y',
  ]);
});

test('two fragments that set the same symbol are refused', () => {
  const twice = [
    { name: 'a.config', text: 'CONFIG_X=y\n' },
    { name: 'b.config', text: '# CONFIG_X is not set\n' },
  ];
  assert.throws(() => mergeFragments(twice), /cannot merge b.config: CONFIG_X is set in a.config already/);
});

test('a line that is no setting is refused by file and number', () => {
  const fragments = [{ name: 'a.config', text: 'CONFIG_X=y\nCONFIG_Y = y\n' }];
  assert.throws(() => mergeFragments(fragments), /cannot read a.config line 2/);
});

test('every group of settings in image/kernel-config begins with a reason', async () => {
  const directory = join(import.meta.dirname, '../../image/kernel-config');
  for (const name of await readdir(directory)) {
    const text = await readFile(join(directory, name), 'utf8');
    mergeFragments([{ name, text }]);
    assert.match(text, /^# /, name);
  }
});

test('every word of the kernel command line has a reason, and none comes twice', () => {
  for (const { word, reason } of commandLine) {
    assert.match(word, /^[!-~]+$/);
    assert.ok(reason.length > 10, word);
  }
  const repeatable = commandLine.map(({ word }) => word).filter((word) => !word.startsWith('console='));
  const keys = repeatable.map((word) => word.split('=')[0]);
  assert.equal(new Set(keys).size, keys.length);
});

test('the command line is compiled in as the only one, and one that would break the configuration is refused', () => {
  const fragment = mergeFragments([{ name: 'line', text: kernelCommandLineFragment('rdinit=/init panic=10') }]);
  assert.equal(fragment.symbols.get('CMDLINE')?.value, '"rdinit=/init panic=10"');
  assert.equal(fragment.symbols.get('CMDLINE_OVERRIDE')?.value, 'y');
  assert.throws(() => kernelCommandLineFragment('a="b c"'), /cannot compile in the kernel command line/);
  assert.throws(() => kernelCommandLineFragment('a\nCONFIG_MODULES=y'), /cannot compile in the kernel command line/);
});

test('a mistyped, an unknown and an empty key of the kernel command line are refused by file and key', () => {
  const file = /: image\/kernel-command-line\.json\[0\]/;
  const refused = (entry: object, problem: RegExp) => {
    assert.throws(() => kernelCommandLine([entry]), file);
    assert.throws(() => kernelCommandLine([entry]), problem);
  };
  refused({ word: 'panic=10', raeson: 'why' }, /\.raeson is not a key/);
  refused({ word: 'panic=10', reason: 'why', extra: 1 }, /\.extra is not a key/);
  refused({ word: 'panic=10' }, /\.reason is missing/);
  // Two words in one entry would have one reason.
  refused({ word: 'panic=10 quiet', reason: 'why' }, /\.word must match/);
  assert.match(kernelCommandLine(), /^rdinit=\/init /);
});

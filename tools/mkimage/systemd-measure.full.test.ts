/**
 * PCR 11, the policy over it and its signature are systemd-measure's. The program is the one of the stub's own version; it
 * runs in the tool root, since the host's Debian has an older one with other rules.
 */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { minimalPe } from '../../src/formats/fixtures.ts';
import { encodePcrSignatures, signPcr11 } from '../../src/measure/pcr-signature.ts';
import { measuredSections, predictPcr11 } from '../../src/measure/pcr11.ts';
import { createProgress } from '../host/progress.ts';
import { generateKeys, type Keys, loadKeys } from './keys.ts';
import { fetchPackages, readPackageLock } from './packages.ts';
import measurePackage from './systemd-measure-package.json' with { type: 'json' };
import { openToolRoot, runInToolRoot, type ToolRoot, unpackPackage } from './tool-root.ts';

/** What systemd-measure needs and the tool root has not. */
const libraries = [
  'libsystemd-shared',
  'libaudit1',
  'libcap-ng0',
  'libmount1',
  'libpam0g',
  'libseccomp2',
  'libssl3t64',
  'libtss2-esys-3.0.2-0t64',
  'libtss2-mu-4.0.1-0t64',
  'libtss2-rc0t64',
  'libtss2-sys1t64',
  'libtss2-tctildr0t64',
];
const libraryPath = ['/measure/usr/lib/x86_64-linux-gnu', '/measure/usr/lib/x86_64-linux-gnu/systemd'].join(':');

let directory: string;
let toolRoot: ToolRoot;
let keys: Keys;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-measure-'));
  const progress = createProgress();
  // An oracle may be a little newer: what it says is what counts.
  const packages = await fetchPackages(await readPackageLock(), ['tools', 'image'], { progress, allowDrift: true });
  const measure = await fetchPackages(measurePackage.lock, ['test'], {
    ...{ progress, suites: measurePackage.suites, allowDrift: true },
  });
  toolRoot = await openToolRoot(packages, progress);
  await mkdir(join(directory, 'measure'));
  await mkdir(join(directory, 'in'));
  for (const entry of packages.packages.filter(({ name }) => libraries.includes(name)))
    await unpackPackage(packages, entry, join(directory, 'measure'));
  for (const entry of measure.packages) await unpackPackage(measure, entry, join(directory, 'measure'));
  await generateKeys(join(directory, 'in', 'keys'), { isDevelopment: true });
  keys = await loadKeys(join(directory, 'in', 'keys'));
});
after(() => rm(directory, { recursive: true }));

async function systemdMeasure(...args: string[]): Promise<{ sha256: Record<string, unknown>[] }> {
  const { stdout } = await runInToolRoot(toolRoot, '/measure/usr/lib/systemd/systemd-measure', args, {
    binds: [
      { source: join(directory, 'measure'), target: '/measure' },
      { source: join(directory, 'in'), target: '/in' },
    ],
    env: { LD_LIBRARY_PATH: libraryPath },
  });
  return JSON.parse(stdout) as { sha256: Record<string, unknown>[] };
}

/** The sections as files, for the command line. */
async function sectionOptions(sections: readonly { name: string; data: Uint8Array }[]): Promise<string[]> {
  return Promise.all(
    sections.map(async ({ name, data }) => {
      const option = name.slice(1);
      await writeFile(join(directory, 'in', option), data);
      return `--${option}=/in/${option}`;
    }),
  );
}

const common = ['--bank=sha256', '--json=short'];
const phases = ['enter-initrd', 'enter-initrd:leave-initrd'] as const;

describe('systemd-measure', () => {
  const ours = ['.linux', '.osrel', '.cmdline', '.initrd', '.uname', '.sbat', '.pcrpkey'];
  const sets = {
    'the sections of our images': ours,
    'a kernel alone': ['.linux'],
    // Its version 257 takes --dtbauto for .hwids and the other way round, and does not know .efifw.
    'every section that it knows': measuredSections.filter((name) => !['.dtbauto', '.hwids', '.efifw'].includes(name)),
  };
  for (const [what, names] of Object.entries(sets)) {
    it(`calculates the same PCR 11 from ${what}`, async () => {
      const sections = names.map((name) => ({
        name,
        data: name === '.linux' ? minimalPe() : Buffer.from(`content of ${name}\n`),
      }));
      const options = await sectionOptions(sections);
      const { sha256 } = await systemdMeasure('calculate', ...common, ...options, ...phases.map((p) => `--phase=${p}`));
      const predicted = predictPcr11(sections);
      assert.deepEqual(sha256, [
        { phase: phases[0], pcr: 11, hash: Buffer.from(predicted['enter-initrd'].value).toString('hex') },
        { phase: phases[1], pcr: 11, hash: Buffer.from(predicted['leave-initrd'].value).toString('hex') },
      ]);
    });
  }

  it('makes the same policy and the same signature', async () => {
    const sections = [{ name: '.linux', data: minimalPe() }];
    const signed = await systemdMeasure(
      ...['sign', ...common, ...(await sectionOptions(sections)), `--phase=${phases[0]}`],
      ...['--private-key=/in/keys/policy.key', '--public-key=/in/keys/policy.pub'],
    );
    const pcr11 = predictPcr11(sections)['enter-initrd'].value;
    const own = encodePcrSignatures([signPcr11({ pcr11, policyRef: '', key: keys.policyKey })]);
    assert.deepEqual(signed, JSON.parse(own));
  });
});

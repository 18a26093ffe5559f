/** The command `mkimage`. */
import { relative } from 'node:path';
import { command, commandGroup, runCommandLine, UsageError } from '../host/command-line.ts';
import { buildImage, buildUnsignedImage } from './build.ts';
import { exportAuthCommand } from './enrolment-files.ts';
import { isMirrorUri } from './host-apt-sources.ts';
import { inspectCommand } from './inspect.ts';
import { generateKeysCommand, rotatePolicyKeyCommand } from './keys.ts';
import { LOCK_FILE, lockPackages, writePackageLock } from './packages.ts';
import { signCommand, signerOptions, signersFrom } from './sign.ts';

const mirror = {
  type: 'string',
  value: 'URI',
  summary: "base of Debian's archive, as in http://HOST/debian; otherwise the one that this host's apt uses",
} as const;

/** At once, and not only when the cache lacks a package. */
function checkMirror(uri: string | undefined): void {
  if (uri !== undefined && !isMirrorUri(uri))
    throw new UsageError(`--mirror must be a URI such as http://HOST/debian, got ${JSON.stringify(uri)}`);
}

const build = command({
  name: 'build',
  summary: 'Build, sign and measure an image',
  options: {
    out: { type: 'string', value: 'DIR', default: 'out', summary: 'where the image goes' },
    keys: {
      type: 'string',
      value: 'DIR',
      summary: 'keys to sign with; otherwise development keys, never to be shipped',
    },
    ...signerOptions,
    enrolment: {
      type: 'string',
      value: 'DIR',
      summary: 'puts the .auth files of DIR on the ESP, for nodes that may enrol them (docs/signing.md)',
    },
    unsigned: {
      type: 'boolean',
      summary: 'stop before signing and say what must be signed; needs no private key (docs/signing.md)',
    },
    'test-variant': {
      type: 'string',
      value: 'DIR',
      summary: 'with services that attack the node (docs/attacks.md); needs keys made with --test-only',
    },
    epoch: {
      type: 'integer',
      value: 'N',
      minimum: 1,
      summary: "the image's epoch, otherwise that of image/epoch.json (docs/data-partition.md)",
    },
    mirror,
    'allow-drift': {
      type: 'boolean',
      summary: 'where the mirror no longer has a locked version, take the newest; the manifest records it',
    },
    jobs: { type: 'integer', value: 'N', minimum: 1, short: 'j', summary: "parallel jobs of the kernel's build" },
    json: { type: 'boolean', summary: 'print the paths and the time of each stage as JSON' },
  },
  run: async (values, { progress, print, signal }) => {
    const { out, keys, epoch, mirror, jobs, json, unsigned } = values;
    // Empty, as an unset variable of a script is, would be the current directory.
    if (out === '') throw new UsageError('--out must name a directory, got ""');
    checkMirror(mirror);
    const { policy, 'secure-boot': secureBoot, former } = await signersFrom(values, signal);
    const options = {
      outDir: out,
      keysDir: keys,
      signers: { policy, secureBoot, former },
      testVariantDir: values['test-variant'],
      enrolmentDir: values.enrolment,
      epoch,
      allowDrift: values['allow-drift'],
      mirror,
      jobs,
      progress,
      signal,
    };
    if (unsigned) {
      if (policy !== undefined || secureBoot !== undefined || former !== undefined)
        throw new UsageError('--unsigned asks nobody to sign: give the signers to mkimage sign');
      const waiting = await buildUnsignedImage(options);
      print(json ? JSON.stringify(waiting, undefined, 2) : relative('.', waiting.request));
      return;
    }
    const image = await buildImage(options);
    if (json) {
      print(JSON.stringify(image, undefined, 2));
      return;
    }
    for (const path of [image.uki, image.systemImage, image.diskImage, image.measurements, image.manifest]) {
      print(relative('.', path));
    }
    const total = Object.values(image.timings).reduce((sum, value) => sum + value, 0);
    const slowest = Object.entries(image.timings).sort(([, a], [, b]) => b - a);
    progress.note(
      `${(total / 1000).toFixed(1)} s: ${slowest.map(([stage, ms]) => `${stage} ${(ms / 1000).toFixed(1)}`).join(', ')}`,
    );
  },
});

const lock = command({
  name: 'lock',
  summary: 'Resolve image/packages.json to exact files and write image/lock.json',
  options: { mirror, json: { type: 'boolean', summary: 'print what was locked as JSON' } },
  run: async ({ mirror, json }, { progress, print, signal }) => {
    checkMirror(mirror);
    const resolved = await lockPackages({ progress, mirror, signal });
    const { changed } = await writePackageLock(resolved);
    const bytes = resolved.packages.reduce((sum, { size }) => sum + size, 0);
    if (json) {
      print(JSON.stringify({ changed, packages: resolved.packages.length, bytes, path: LOCK_FILE }, undefined, 2));
      return;
    }
    const what = `${resolved.packages.length} packages, ${(bytes / 1e6).toFixed(0)} MB`;
    print(changed ? `wrote ${relative('.', LOCK_FILE)}: ${what}` : `nothing changed: ${what}`);
  },
});

const keys = commandGroup({
  name: 'keys',
  summary: 'Make the keys that sign images, policies and updates, and the files that enrol them',
  commands: [generateKeysCommand, rotatePolicyKeyCommand, exportAuthCommand],
});

process.exitCode = await runCommandLine(
  commandGroup({
    name: 'mkimage',
    summary: 'Builds, signs, measures and inspects Ashlar images',
    commands: [build, signCommand, lock, keys, inspectCommand],
  }),
  process.argv.slice(2),
);

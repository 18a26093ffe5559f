/** A token for tests: SoftHSM in a directory of its own, with the keys of a key directory in it. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '../host/run-process.ts';

const MODULES = ['/usr/lib/softhsm/libsofthsm2.so', '/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so'] as const;

export const softHsmModule = MODULES.find((path) => existsSync(path));

/** A reason to skip a test that needs SoftHSM, or false. */
export function skipWithoutSoftHsm(): string | false {
  const hasTool = spawnSync('softhsm2-util', ['--version']).status === 0;
  return hasTool && softHsmModule !== undefined ? false : 'softhsm2 is not installed';
}

export interface SoftHsm {
  /** Environment that makes the module use this token's directory. */
  readonly env: { readonly SOFTHSM2_CONF: string };
  readonly pinFile: string;
  /** The URI of a key. */
  uri(object: string, attributes?: string): string;
}

/** @param keys CKA_LABEL → PEM file of a private key */
export async function makeSoftHsm(
  directory: string,
  keys: Readonly<Record<string, string>>,
  options: { token: string; pin: string },
): Promise<SoftHsm> {
  const { token, pin } = options;
  const tokens = join(directory, 'tokens');
  await mkdir(tokens, { recursive: true });
  const configuration = join(directory, 'softhsm2.conf');
  await writeFile(configuration, `directories.tokendir = ${tokens}\nobjectstore.backend = file\nlog.level = ERROR\n`);
  const pinFile = join(directory, 'pin');
  await writeFile(pinFile, `${pin}\n`, { mode: 0o600 });
  const env = { SOFTHSM2_CONF: configuration };
  // The PIN of a test's token in an argument list harms nobody; ours never goes there.
  const softhsm = (...args: string[]) =>
    runProcess('softhsm2-util', args, { env: { PATH: process.env['PATH'] ?? '', ...env } });
  await softhsm('--init-token', '--free', '--label', token, '--so-pin', `so-${pin}`, '--pin', pin);
  for (const [index, [label, path]] of Object.entries(keys).entries()) {
    const id = String(index + 1).padStart(2, '0');
    await softhsm('--import', path, '--token', token, '--label', label, '--id', id, '--pin', pin);
  }
  const query = (attributes: string) => [`module-path=${softHsmModule ?? ''}`, attributes].filter(Boolean).join('&');
  return {
    env,
    pinFile,
    uri: (object, attributes = `pin-source=${pinFile}`) =>
      `pkcs11:token=${encodeURIComponent(token)};object=${object}?${query(attributes)}`,
  };
}

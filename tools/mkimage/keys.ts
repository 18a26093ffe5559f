/**
 * The operator's keys, one directory:
 *
 * | files | what for |
 * |---|---|
 * | `PK.{crt,key}`, `KEK.{crt,key}` | own the machine's Secure Boot variables. Not needed to build: keep the private halves away from the build machine |
 * | `db.{crt,key}` | signs UKIs |
 * | `policy.{key,pub}` | signs PCR 11 policies: what may unseal a node's data |
 * | `update.{key,pub}` | signs update manifests (Ed25519) |
 * | `owner-guid` | marks our entries in the Secure Boot variables |
 */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPair as generateKeyPairCallback,
  type KeyObject,
  randomBytes,
  randomUUID,
  X509Certificate,
} from 'node:crypto';
import { mkdir, mkdtemp, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { type SecureBootVariables, secureBootVariables } from '../../src/formats/efi-signature-list.ts';
import { createCertificate } from '../../src/formats/x509.ts';
import { command } from '../host/command-line.ts';
import { xdgDataDirectory } from '../host/xdg.ts';

const generateKeyPair = promisify(generateKeyPairCallback);

const rsaBits = 2048;
const validYears = 10;
const developmentMark = 'DEVELOPMENT — do not ship';
const testOnlyMark = 'TEST ONLY — refused by release builds';

/** What a build needs to know of keys: all that it needs when they sign elsewhere. */
export interface PublicKeys {
  readonly directory: string;
  /** True when the certificates say that they must not be shipped. */
  readonly isDevelopment: boolean;
  /** True when they sign nothing but test variants, whose images run attackers. */
  readonly isTestOnly: boolean;
  readonly ownerGuid: string;
  readonly pkCertificatePem: string;
  readonly kekCertificatePem: string;
  readonly dbCertificatePem: string;
  readonly policyPublicKeyPem: string;
  readonly updatePublicKeyPem: string;
}

/** With the two private keys that sign images. Those of PK, KEK and update are not among it. */
export interface Keys extends PublicKeys {
  readonly dbKey: KeyObject;
  readonly policyKey: KeyObject;
}

/** The Secure Boot variables of a machine that trusts exactly these keys. */
export function secureBootVariablesOf(
  keys: Pick<Keys, 'ownerGuid' | 'pkCertificatePem' | 'kekCertificatePem' | 'dbCertificatePem'>,
  dbx: 'empty' | 'dummy' | Uint8Array = 'empty',
): SecureBootVariables {
  return secureBootVariables({ ...keys, dbx });
}

/**
 * Makes a new set of keys. The directory appears whole or not at all; private files have mode 0600.
 *
 * @throws Error when the directory exists: keys are never overwritten.
 */
export async function generateKeys(
  directory: string,
  options: { isDevelopment: boolean; isTestOnly?: boolean },
): Promise<void> {
  const target = resolve(directory);
  if (await exists(target)) {
    throw new Error(`cannot generate keys: ${target} exists; keys are never overwritten, choose another directory`);
  }
  await mkdir(dirname(target), { recursive: true });
  const temporary = await mkdtemp(join(dirname(target), `.${basename(target)}.new-`));
  try {
    for (const [name, { text, isPrivate }] of Object.entries(await newKeyFiles(markOf(options)))) {
      await using file = await open(join(temporary, name), 'wx', isPrivate ? 0o600 : 0o644);
      await file.writeFile(text);
      await file.sync();
    }
    // Fails when somebody else was first: a directory that is not empty is not replaced.
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw new Error(`cannot generate keys in ${target}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

interface KeyFile {
  readonly text: string;
  readonly isPrivate: boolean;
}

function markOf(options: { isDevelopment: boolean; isTestOnly?: boolean }): string | undefined {
  if (options.isTestOnly === true) return testOnlyMark;
  return options.isDevelopment ? developmentMark : undefined;
}

async function newKeyFiles(markText: string | undefined): Promise<Record<string, KeyFile>> {
  const [pk, kek, db, policy, update] = await Promise.all([
    generateKeyPair('rsa', { modulusLength: rsaBits }),
    generateKeyPair('rsa', { modulusLength: rsaBits }),
    generateKeyPair('rsa', { modulusLength: rsaBits }),
    generateKeyPair('rsa', { modulusLength: rsaBits }),
    generateKeyPair('ed25519'),
  ]);
  const mark = markText === undefined ? '' : ` (${markText})`;
  // A key has no room for a name; PEM lets text stand before it, and so the mark goes where the file goes.
  const preamble = markText === testOnlyMark ? `${testOnlyMark}\n` : '';
  const privateFile = (key: KeyObject): KeyFile => ({
    text: `${preamble}${key.export({ type: 'pkcs8', format: 'pem' }).toString()}`,
    isPrivate: true,
  });
  const publicFile = (text: string): KeyFile => ({ text, isPrivate: false });
  const publicKeyFile = (key: KeyObject): KeyFile =>
    publicFile(`${preamble}${key.export({ type: 'spki', format: 'pem' }).toString()}`);
  const certificate = (role: string, pair: KeyPair): KeyFile =>
    publicFile(selfSigned(`Ashlar ${role}${mark}`, pair, role === 'db'));
  const readme = `These keys are marked: ${markText}.\nWhoever has this directory can sign an image that machines which trust these keys start.\n`;
  return {
    'PK.key': privateFile(pk.privateKey),
    'PK.crt': certificate('PK', pk),
    'KEK.key': privateFile(kek.privateKey),
    'KEK.crt': certificate('KEK', kek),
    'db.key': privateFile(db.privateKey),
    'db.crt': certificate('db', db),
    'policy.key': privateFile(policy.privateKey),
    'policy.pub': publicKeyFile(policy.publicKey),
    'update.key': privateFile(update.privateKey),
    'update.pub': publicKeyFile(update.publicKey),
    'owner-guid': publicFile(`${randomUUID()}\n`),
    ...(markText === undefined ? {} : { README: publicFile(readme) }),
  };
}

interface KeyPair {
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
}

function selfSigned(commonName: string, { publicKey, privateKey }: KeyPair, isSigner: boolean): string {
  const notBefore = new Date(Math.floor(Date.now() / 86_400_000) * 86_400_000);
  const notAfter = new Date(notBefore);
  notAfter.setUTCFullYear(notAfter.getUTCFullYear() + validYears);
  const serialNumber = randomBytes(16);
  serialNumber[0] = ((serialNumber[0] ?? 0) & 0x7f) | 0x40;
  return createCertificate({
    subject: { commonName },
    publicKey,
    issuer: { name: { commonName }, key: privateKey },
    serialNumber,
    notBefore,
    notAfter,
    isCa: !isSigner,
    usages: isSigner ? ['codeSigning'] : [],
  });
}

/** Reads a directory made by {@link generateKeys}. @throws Error naming the file that is missing, unreadable or does not fit. */
export async function loadKeys(directory: string): Promise<Keys> {
  const keys = await loadPublicKeys(directory);
  const privateKey = async (name: string) => {
    const pem = await privateText(keys.directory, name);
    return { pem, key: parsePrivateKey(join(keys.directory, name), pem) };
  };
  const db = await privateKey('db.key');
  const policy = await privateKey('policy.key');
  if (!new X509Certificate(keys.dbCertificatePem).checkPrivateKey(db.key))
    throw new Error(`cannot load keys: ${keys.directory}/db.key is not the key of db.crt`);
  if (!createPublicKey(policy.key).equals(createPublicKey(keys.policyPublicKeyPem))) {
    throw new Error(`cannot load keys: ${keys.directory}/policy.key is not the key of policy.pub`);
  }
  const isTestOnly = keys.isTestOnly || policy.pem.includes(testOnlyMark);
  return { ...keys, isTestOnly, dbKey: db.key, policyKey: policy.key };
}

/** Reads the certificates and public keys of such a directory, which need hold nothing else. */
export async function loadPublicKeys(directory: string): Promise<PublicKeys> {
  const absolute = resolve(directory);
  const text = (name: string) => keyText(absolute, name);
  const dbCertificatePem = await text('db.crt');
  const policyPublicText = await text('policy.pub');
  const policyPublicKeyPem = policyPublicText.slice(Math.max(0, policyPublicText.indexOf('-----BEGIN')));
  const { subject } = parseRsaCertificate(join(absolute, 'db.crt'), dbCertificatePem);
  const keys = {
    directory: absolute,
    isDevelopment: subject.includes('DEVELOPMENT'),
    isTestOnly: [subject, policyPublicText].some((marked) => marked.includes(testOnlyMark)),
    ownerGuid: (await text('owner-guid')).trim().toLowerCase(),
    pkCertificatePem: await text('PK.crt'),
    kekCertificatePem: await text('KEK.crt'),
    dbCertificatePem,
    policyPublicKeyPem,
    updatePublicKeyPem: await text('update.pub'),
  };
  parseRsaCertificate(join(absolute, 'PK.crt'), keys.pkCertificatePem);
  parseRsaCertificate(join(absolute, 'KEK.crt'), keys.kekCertificatePem);
  checkPolicyPublicKey(join(absolute, 'policy.pub'), policyPublicKeyPem);
  secureBootVariablesOf(keys); // refuses a malformed owner-guid now rather than at the end of a build
  return keys;
}

/** The development keys, made at first use. Safe when several processes are first at once: one makes them, all use those. */
export async function developmentKeys(): Promise<Keys> {
  const directory = join(xdgDataDirectory(), 'keys', 'development');
  if (!(await exists(directory))) {
    try {
      await generateKeys(directory, { isDevelopment: true });
    } catch (error) {
      if (!(await exists(directory))) throw error;
    }
  }
  return await loadKeys(directory);
}

async function keyText(directory: string, name: string): Promise<string> {
  try {
    return await readFile(join(directory, name), 'utf8');
  } catch (error) {
    throw new Error(
      `cannot load keys: ${join(directory, name)}: ${error instanceof Error ? error.message : String(error)}; make keys with: mkimage keys generate --out DIR`,
      { cause: error },
    );
  }
}

async function privateText(directory: string, name: string): Promise<string> {
  const content = await keyText(directory, name);
  const path = join(directory, name);
  const { mode } = await stat(path);
  if ((mode & 0o077) !== 0) {
    throw new Error(
      `cannot load keys: ${path} has mode 0${(mode & 0o777).toString(8)}, others can read it; run: chmod 600 ${path}`,
    );
  }
  return content;
}

function parsePrivateKey(path: string, pem: string): KeyObject {
  try {
    return createPrivateKey(pem);
  } catch (error) {
    // The cause is left out: it may quote the key.
    throw new Error(
      `cannot load keys: ${path} is not a PEM private key (${error instanceof Error ? error.name : 'error'})`,
    );
  }
}

/** Firmware takes RSA; a TPM takes the policy key's exponent as it is written. */
function parseRsaCertificate(path: string, pem: string): X509Certificate {
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(pem);
  } catch (error) {
    throw new Error(`cannot load keys: ${path} is not a PEM certificate`, { cause: error });
  }
  const { asymmetricKeyType } = certificate.publicKey;
  if (asymmetricKeyType !== 'rsa')
    throw new Error(`cannot load keys: ${path} has a key of type ${asymmetricKeyType}; firmware takes RSA`);
  return certificate;
}

function checkPolicyPublicKey(path: string, pem: string): void {
  let key: KeyObject;
  try {
    key = createPublicKey(pem);
  } catch (error) {
    throw new Error(`cannot load keys: ${path} is not a PEM public key`, { cause: error });
  }
  if (key.asymmetricKeyType !== 'rsa' || key.asymmetricKeyDetails?.publicExponent !== 65537n)
    throw new Error(`cannot load keys: ${path} is not RSA with exponent 65537, which the sealing policy wants`);
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}

export const generateKeysCommand = command({
  name: 'generate',
  summary: 'Make Secure Boot PK, KEK and db, the policy key and the update key',
  options: {
    out: { type: 'string', value: 'DIR', required: true, summary: 'a directory that does not exist yet' },
    development: { type: 'boolean', summary: 'mark the certificates as not to be shipped' },
    'test-only': {
      type: 'boolean',
      summary: 'mark them as keys of test variants (build --test-variant), which every other build refuses',
    },
  },
  run: async ({ out, development, 'test-only': isTestOnly }, { print }) => {
    await generateKeys(out, { isDevelopment: development, isTestOnly });
    print(`wrote ${resolve(out)}`);
  },
});

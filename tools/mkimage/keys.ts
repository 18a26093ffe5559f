/**
 * The operator's keys, one directory:
 *
 * | files | what for |
 * |---|---|
 * | `PK.{crt,key}`, `KEK.{crt,key}` | own the machine's Secure Boot variables. Not needed to build: keep the private halves away from the build machine |
 * | `db.{crt,key}` | signs UKIs |
 * | `policy.{key,pub}` | signs PCR 11 policies: what may unseal a node's data |
 * | `former-policy/NAME.{key,pub}` | policy keys before it, which approve images too until every node is sealed to the new one |
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
import { cp, mkdir, mkdtemp, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { type SecureBootVariables, secureBootVariables } from '../../src/formats/efi-signature-list.ts';
import { createCertificate } from '../../src/formats/x509.ts';
import { policyKeyFingerprint } from '../../src/measure/pcr-signature.ts';
import { maxFormerPolicyKeys } from '../../src/measure/policy.ts';
import { command } from '../host/command-line.ts';
import { refuseSharedFile } from '../host/private-file.ts';
import { xdgDataDirectory } from '../host/xdg.ts';

const generateKeyPair = promisify(generateKeyPairCallback);

const rsaBits = 2048;
const validYears = 10;
const developmentMark = 'DEVELOPMENT — do not ship';
const formerDirectory = 'former-policy';
const formerNamePattern = /^[a-z0-9-]{1,32}$/;
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
  /** Keys that approve images beside it, for nodes that are sealed to them; sorted by name. */
  readonly formerPolicyKeys: readonly FormerPolicyKey[];
  readonly updatePublicKeyPem: string;
}

export interface FormerPolicyKey {
  /** What signatures and options call it. */
  readonly name: string;
  readonly publicKeyPem: string;
}

/** The policy keys that approve an image. */
export type PolicyKeys = Pick<PublicKeys, 'policyPublicKeyPem' | 'formerPolicyKeys'>;

/** With the two private keys that sign images. Those of PK, KEK and update are not among it. */
export interface Keys extends PublicKeys {
  readonly dbKey: KeyObject;
  readonly policyKey: KeyObject;
  /** By name; those whose private half is not in the directory are missing. */
  readonly formerPolicyPrivateKeys: ReadonlyMap<string, KeyObject>;
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
    await writeKeyFiles(temporary, await newKeyFiles(markOf(options)));
    // Fails when somebody else was first: a directory that is not empty is not replaced.
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw new Error(`cannot generate keys in ${target}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

async function writeKeyFiles(directory: string, files: Readonly<Record<string, KeyFile>>): Promise<void> {
  for (const [name, { text, isPrivate }] of Object.entries(files)) {
    await using file = await open(join(directory, name), 'wx', isPrivate ? 0o600 : 0o644);
    await file.writeFile(text);
    await file.sync();
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
  const publicFile = (text: string): KeyFile => ({ text, isPrivate: false });
  const certificate = (role: string, pair: KeyPair): KeyFile =>
    publicFile(selfSigned(`Ashlar ${role}${mark}`, pair, role === 'db'));
  const readme = `These keys are marked: ${markText}.\nWhoever has this directory can sign an image that machines which trust these keys start.\n`;
  return {
    'PK.key': privateFile(pk.privateKey, preamble),
    'PK.crt': certificate('PK', pk),
    'KEK.key': privateFile(kek.privateKey, preamble),
    'KEK.crt': certificate('KEK', kek),
    'db.key': privateFile(db.privateKey, preamble),
    'db.crt': certificate('db', db),
    ...policyKeyFiles(policy, preamble),
    'update.key': privateFile(update.privateKey, preamble),
    'update.pub': publicKeyFile(update.publicKey, preamble),
    'owner-guid': publicFile(`${randomUUID()}\n`),
    ...(markText === undefined ? {} : { README: publicFile(readme) }),
  };
}

function policyKeyFiles({ privateKey, publicKey }: KeyPair, preamble: string): Record<string, KeyFile> {
  return { 'policy.key': privateFile(privateKey, preamble), 'policy.pub': publicKeyFile(publicKey, preamble) };
}

function privateFile(key: KeyObject, preamble: string): KeyFile {
  return { text: `${preamble}${key.export({ type: 'pkcs8', format: 'pem' }).toString()}`, isPrivate: true };
}

function publicKeyFile(key: KeyObject, preamble: string): KeyFile {
  return { text: `${preamble}${key.export({ type: 'spki', format: 'pem' }).toString()}`, isPrivate: false };
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
  const formerPolicyPrivateKeys = new Map<string, KeyObject>();
  for (const { name, publicKeyPem } of keys.formerPolicyKeys) {
    const file = `${formerDirectory}/${name}.key`;
    if (!(await exists(join(keys.directory, file)))) continue;
    const { key } = await privateKey(file);
    if (!createPublicKey(key).equals(createPublicKey(publicKeyPem)))
      throw new Error(`cannot load keys: ${keys.directory}/${file} is not the key of ${name}.pub beside it`);
    formerPolicyPrivateKeys.set(name, key);
  }
  return { ...keys, isTestOnly, dbKey: db.key, policyKey: policy.key, formerPolicyPrivateKeys };
}

/** Reads the certificates and public keys of such a directory, which need hold nothing else. */
export async function loadPublicKeys(directory: string): Promise<PublicKeys> {
  const absolute = resolve(directory);
  const text = (name: string) => keyText(absolute, name);
  const dbCertificatePem = await text('db.crt');
  const policyPublicText = await text('policy.pub');
  const policyPublicKeyPem = pemOf(policyPublicText);
  const former = await formerPolicyKeyTexts(absolute);
  const { subject } = parseRsaCertificate(join(absolute, 'db.crt'), dbCertificatePem);
  const keys = {
    directory: absolute,
    isDevelopment: subject.includes('DEVELOPMENT'),
    isTestOnly: [subject, policyPublicText, ...former.map(({ text }) => text)].some((marked) =>
      marked.includes(testOnlyMark),
    ),
    ownerGuid: (await text('owner-guid')).trim().toLowerCase(),
    pkCertificatePem: await text('PK.crt'),
    kekCertificatePem: await text('KEK.crt'),
    dbCertificatePem,
    policyPublicKeyPem,
    formerPolicyKeys: former.map(({ name, text: content }) => ({ name, publicKeyPem: pemOf(content) })),
    updatePublicKeyPem: await text('update.pub'),
  };
  parseRsaCertificate(join(absolute, 'PK.crt'), keys.pkCertificatePem);
  parseRsaCertificate(join(absolute, 'KEK.crt'), keys.kekCertificatePem);
  checkPolicyPublicKey(join(absolute, 'policy.pub'), policyPublicKeyPem);
  checkFormerPolicyKeys(absolute, keys);
  secureBootVariablesOf(keys); // refuses a malformed owner-guid now rather than at the end of a build
  return keys;
}

/** A key's file may have a mark before the PEM. */
function pemOf(text: string): string {
  return text.slice(Math.max(0, text.indexOf('-----BEGIN')));
}

async function formerPolicyKeyTexts(directory: string): Promise<{ name: string; text: string }[]> {
  const path = join(directory, formerDirectory);
  const files = (await exists(path)) ? (await readdir(path)).filter((file) => file.endsWith('.pub')).sort() : [];
  if (files.length > maxFormerPolicyKeys) {
    throw new Error(
      `cannot load keys: ${path} holds ${files.length} keys, and an image is approved by at most ${maxFormerPolicyKeys} former ` +
        'ones; take away those that no node is sealed to any more',
    );
  }
  return Promise.all(
    files.map(async (file) => {
      const name = file.slice(0, -'.pub'.length);
      if (!formerNamePattern.test(name))
        throw new Error(`cannot load keys: ${join(path, file)} must be named with a-z, 0-9 and -, at most 32 of them`);
      return { name, text: await keyText(directory, `${formerDirectory}/${file}`) };
    }),
  );
}

function checkFormerPolicyKeys(directory: string, { policyPublicKeyPem, formerPolicyKeys }: PolicyKeys): void {
  const seen = new Map([[fingerprintOf(policyPublicKeyPem), 'policy.pub']]);
  for (const { name, publicKeyPem } of formerPolicyKeys) {
    const file = `${formerDirectory}/${name}.pub`;
    checkPolicyPublicKey(join(directory, file), publicKeyPem);
    const fingerprint = fingerprintOf(publicKeyPem);
    const twin = seen.get(fingerprint);
    if (twin !== undefined) throw new Error(`cannot load keys: in ${directory}, ${file} is the key of ${twin}`);
    seen.set(fingerprint, file);
  }
}

function fingerprintOf(pem: string): string {
  return Buffer.from(policyKeyFingerprint(createPublicKey(pem))).toString('hex');
}

/**
 * Copies a directory of keys to a new one with a new policy key. The one before goes to `former-policy/`, named by its
 * fingerprint, so that images are approved by both until every node is sealed to the new one. Whatever private files there
 * are go along; the policy key's own need not be there. The directory appears whole or not at all, and the old one stays.
 *
 * @throws Error when the new directory exists, or the old one cannot be read
 */
export async function rotatePolicyKey(directory: string, newDirectory: string): Promise<{ former: string }> {
  const keys = await loadPublicKeys(directory);
  const target = resolve(newDirectory);
  if (await exists(target))
    throw new Error(`cannot write keys: ${target} exists; keys are never overwritten, choose another directory`);
  if (keys.formerPolicyKeys.length >= maxFormerPolicyKeys) {
    throw new Error(
      `cannot make a new policy key: ${keys.directory}/${formerDirectory} holds ${maxFormerPolicyKeys} former ones already; ` +
        'take away those that no node is sealed to any more',
    );
  }
  const former = fingerprintOf(keys.policyPublicKeyPem).slice(0, 16);
  await mkdir(dirname(target), { recursive: true });
  const temporary = await mkdtemp(join(dirname(target), `.${basename(target)}.new-`));
  try {
    await cp(keys.directory, temporary, { recursive: true });
    await mkdir(join(temporary, formerDirectory), { recursive: true });
    for (const end of ['key', 'pub']) {
      if (!(await exists(join(temporary, `policy.${end}`)))) continue;
      await rename(join(temporary, `policy.${end}`), join(temporary, formerDirectory, `${former}.${end}`));
    }
    const pair = await generateKeyPair('rsa', { modulusLength: rsaBits });
    await writeKeyFiles(temporary, policyKeyFiles(pair, keys.isTestOnly ? `${testOnlyMark}\n` : ''));
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw new Error(`cannot write keys to ${target}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
  return { former };
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
  await refuseSharedFile(join(directory, name), 'cannot load keys');
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
    json: { type: 'boolean', summary: 'print where they are as JSON' },
  },
  run: async ({ out, development, 'test-only': isTestOnly, json }, { print }) => {
    await generateKeys(out, { isDevelopment: development, isTestOnly });
    const directory = resolve(out);
    // The mark on the certificates says one of them only, and test-only is the narrower.
    const made = { directory, isDevelopment: development && !isTestOnly, isTestOnly };
    print(json ? JSON.stringify(made, undefined, 2) : `wrote ${directory}`);
  },
});

export const rotatePolicyKeyCommand = command({
  name: 'rotate-policy',
  summary: 'Make a new policy key, and keep the one before for nodes that are sealed to it (docs/signing.md)',
  options: {
    keys: { type: 'string', value: 'DIR', required: true, summary: 'the keys as they are; they stay as they are' },
    out: { type: 'string', value: 'DIR', required: true, summary: 'a directory that does not exist yet' },
    json: { type: 'boolean', summary: 'print where they are, and the name of the former policy key, as JSON' },
  },
  run: async ({ keys, out, json }, { print }) => {
    const { former } = await rotatePolicyKey(keys, out);
    const directory = resolve(out);
    print(
      json
        ? JSON.stringify({ directory, former }, undefined, 2)
        : `wrote ${directory}; the policy key before is ${former} there`,
    );
  },
});

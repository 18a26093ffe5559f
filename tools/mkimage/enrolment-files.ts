/**
 * `mkimage keys export-auth`: the files with which a machine learns its owner's Secure Boot keys.
 *
 * | file | for |
 * |---|---|
 * | `{PK,KEK,db}.auth` | firmware menus, `mkimage build --enrolment`, anything that writes authenticated variables |
 * | `{PK,KEK,db}.esl` | what the variables will hold: firmware menus that want lists, `ashlarctl measure predict` |
 */
import { X509Certificate } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import {
  authenticatedWriteInput,
  type EnrolledVariable,
  encodeAuthenticatedWrite,
  encodeEfiTime,
  enrolledVariables,
} from '../../src/formats/authenticated-variable.ts';
import { encodeCertificateList } from '../../src/formats/efi-signature-list.ts';
import { checkEnrolment, type EnrolmentFiles, nameOf } from '../../src/formats/secure-boot-enrolment.ts';
import { encodePem } from '../../src/formats/x509.ts';
import { command } from '../host/command-line.ts';
import { loadPublicKeys, type PublicKeys } from './keys.ts';
import { parseSigner, pinFromStdin, type Signer, signatureFrom } from './signer.ts';

/** Marks Microsoft's certificates in db, as Microsoft's own documents do. */
const microsoftOwner = '77fa9abd-0359-4d32-bd60-28f4e78f784b';

export interface EnrolmentOptions {
  readonly keys: PublicKeys;
  /** Keys of PK.crt and KEK.crt. */
  readonly signers: { readonly pk: Signer; readonly kek: Signer };
  /** Firmware refuses a write that is not later than the last one. */
  readonly timestamp: Date;
  /** PEM certificates that db is to trust beside the operator's. @default none */
  readonly microsoftPems?: readonly string[];
}

export interface Enrolment {
  readonly auth: EnrolmentFiles;
  /** What each variable will hold. */
  readonly lists: EnrolmentFiles;
}

/** Makes and checks the writes. @throws Error naming the signature that is wrong */
export async function makeEnrolment(options: EnrolmentOptions): Promise<Enrolment> {
  const { keys, signers } = options;
  const { ownerGuid, pkCertificatePem, kekCertificatePem, dbCertificatePem } = keys;
  const lists = {
    PK: encodeCertificateList(ownerGuid, pkCertificatePem),
    KEK: encodeCertificateList(ownerGuid, kekCertificatePem),
    db: Buffer.concat([
      encodeCertificateList(ownerGuid, dbCertificatePem),
      ...(options.microsoftPems ?? []).map((pem) => encodeCertificateList(microsoftOwner, pem)),
    ]),
  };
  const timestamp = encodeEfiTime(options.timestamp);
  const signed = async (name: EnrolledVariable, signer: Signer, certificatePem: string) => {
    const variable = enrolledVariables.find((one) => one.name === name) ?? { name, vendorGuid: '' };
    const write = { ...variable, timestamp, content: lists[name] };
    const toBeSigned = authenticatedWriteInput(write);
    const request = { purpose: 'enrolment', name: `enrolment/${name}`, certificatePem, toBeSigned } as const;
    return encodeAuthenticatedWrite(write, { certificatePem, signature: await signatureFrom(signer, request) });
  };
  const auth = {
    PK: await signed('PK', signers.pk, pkCertificatePem),
    KEK: await signed('KEK', signers.pk, pkCertificatePem),
    db: await signed('db', signers.kek, kekCertificatePem),
  };
  checkEnrolment(auth, new X509Certificate(dbCertificatePem));
  return { auth, lists };
}

/** Writes the files into a new directory, all of them or none. Returns their names. */
export async function writeEnrolmentFiles(enrolment: Enrolment, directory: string): Promise<string[]> {
  const target = resolve(directory);
  if (await stat(target).catch(() => undefined)) throw new Error(`cannot export to ${target}: it is there already`);
  await mkdir(dirname(target), { recursive: true });
  const temporary = await mkdtemp(join(dirname(target), `.${basename(target)}.new-`));
  try {
    const files = enrolledVariables.flatMap(({ name }) => [
      { file: `${name}.auth`, content: enrolment.auth[name] },
      { file: `${name}.esl`, content: enrolment.lists[name] },
    ]);
    for (const { file, content } of files) await writeFile(join(temporary, file), content);
    await rename(temporary, target);
    return files.map(({ file }) => file);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
}

/**
 * Reads the `.auth` files of a directory for an image's ESP, where init looks for them.
 *
 * @throws Error when they would lock out the image that is signed for `dbCertificatePem`
 */
export async function readEnrolmentFiles(directory: string, dbCertificatePem: string): Promise<EnrolmentFiles> {
  const read = (name: EnrolledVariable) => readFile(join(directory, `${name}.auth`));
  const files = { db: await read('db'), KEK: await read('KEK'), PK: await read('PK') };
  checkEnrolment(files, new X509Certificate(dbCertificatePem));
  return files;
}

/** A PEM or DER certificate. */
async function readCertificate(path: string): Promise<{ pem: string; name: string }> {
  try {
    const certificate = new X509Certificate(await readFile(path));
    return { pem: encodePem('CERTIFICATE', certificate.raw), name: nameOf(certificate) };
  } catch (error) {
    throw new Error(
      `cannot use certificate ${path}: ${error instanceof Error ? error.message : String(error)}; give a PEM or DER X.509 certificate`,
      { cause: error },
    );
  }
}

export const exportAuthCommand = command({
  name: 'export-auth',
  summary: 'Make the files with which a machine in Setup Mode enrols PK, KEK and db (docs/signing.md)',
  options: {
    keys: { type: 'string', value: 'DIR', required: true, summary: 'certificates, and keys where no signer is given' },
    out: { type: 'string', value: 'DIR', required: true, summary: 'a directory that does not exist yet' },
    'pk-key': { type: 'string', value: 'SIGNER', summary: 'signs PK and KEK; otherwise PK.key of --keys' },
    'kek-key': { type: 'string', value: 'SIGNER', summary: 'signs db; otherwise KEK.key of --keys' },
    'pin-stdin': { type: 'boolean', summary: "read a token's PIN from a pipe, when its URI names no pin-source" },
    'with-microsoft': {
      type: 'string',
      value: 'FILE',
      multiple: true,
      summary: "a certificate of Microsoft's for db: the machine then starts whatever Microsoft signs, too",
    },
    json: { type: 'boolean', summary: 'print the directory and the names of the files in it as JSON' },
  },
  run: async (values, { print, progress, signal }) => {
    const keys = await loadPublicKeys(values.keys);
    const options = { pin: values['pin-stdin'] ? await pinFromStdin() : undefined, signal };
    const certificates = await Promise.all(values['with-microsoft'].map(readCertificate));
    for (const { name } of certificates)
      progress.note(
        `db will trust ${name}: every program that it vouches for starts on these machines, not only Ashlar`,
      );
    const enrolment = await makeEnrolment({
      keys,
      signers: {
        pk: parseSigner(values['pk-key'] ?? join(keys.directory, 'PK.key'), options),
        kek: parseSigner(values['kek-key'] ?? join(keys.directory, 'KEK.key'), options),
      },
      timestamp: new Date(),
      microsoftPems: certificates.map(({ pem }) => pem),
    });
    const files = await writeEnrolmentFiles(enrolment, values.out);
    const directory = resolve(values.out);
    print(values.json ? JSON.stringify({ directory, files }, undefined, 2) : `wrote ${directory}`);
  },
});

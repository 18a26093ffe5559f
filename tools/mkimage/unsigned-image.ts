/**
 * An image that waits for its signatures, as files in `OUT/unsigned/`:
 *
 * | file | what it is |
 * |---|---|
 * | `signing-request.json` | what must be signed now, and what later (docs/signing.md) |
 * | `signatures.json` | the signatures that are in already; not there at first |
 * | `uki` | the UKI with zeros in place of signatures |
 * | `system.img` | the system partition's content |
 * | `image.json` | everything else that the finished files are made of; no secret |
 */
import { randomBytes } from 'node:crypto';
import { copyFile, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type Check, exactly, flag, integer, list, object, ShapeError, text } from '../../src/formats/json-shape.ts';
import type { EnrolmentFiles } from '../../src/formats/secure-boot-enrolment.ts';
import { maxEpoch, maxFormerPolicyKeys } from '../../src/measure/policy.ts';
import { fileSha256 } from '../host/cache.ts';
import { imageName, type PreparedImage } from './finish-image.ts';
import {
  decodeSignatures,
  encodeSignatures,
  encodeSigningRequest,
  type Signatures,
  type SigningRequest,
  secureBootSignature,
} from './signing-request.ts';
import { policyRequestsOf } from './uki.ts';

const pem = text({ max: 16 * 1024 });
const sha256 = text({ max: 64, pattern: /^[0-9a-f]{64}$/ });
const natural = integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const anyObject: Check<Record<string, unknown>> = (value, path) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new ShapeError(path, 'must be an object');
  return { ...value };
};

const base64: Check<Uint8Array> = (value, path) =>
  Buffer.from(text({ max: 128 * 1024, pattern: /^[A-Za-z0-9+/]+={0,2}$/ })(value, path), 'base64');

const imageDocument = object(
  {
    version: exactly(1),
    image: object({ version: text({ max: 64 }), buildTime: natural, epoch: integer({ min: 1, max: maxEpoch }) }),
    toolsKey: sha256,
    uki: object({ sha256 }),
    system: object({
      sizeBytes: natural,
      partitionUuid: text({ max: 36 }),
      rootHash: sha256,
      salt: text({ max: 512, pattern: /^[0-9a-f]*$/ }),
      dataBlocks: natural,
      hashStartBlock: natural,
      sha256,
    }),
    keys: object({
      isDevelopment: flag,
      isTestOnly: flag,
      ownerGuid: text({ max: 36 }),
      pkCertificatePem: pem,
      kekCertificatePem: pem,
      dbCertificatePem: pem,
      policyPublicKeyPem: pem,
      formerPolicyKeys: list(object({ name: text({ max: 32, pattern: /^[a-z0-9-]+$/ }), publicKeyPem: pem }), {
        max: maxFormerPolicyKeys,
      }),
      updatePublicKeyPem: pem,
    }),
    manifest: anyObject,
  },
  { enrolment: object({ db: base64, KEK: base64, PK: base64 }) },
);

/** Where an image that is built to `outDir` waits. */
export const unsignedDirectory = (outDir: string): string => join(resolve(outDir), 'unsigned');

/** Writes the image, all of it or nothing, in place of one that waited there before. */
export async function writeUnsignedImage(
  prepared: PreparedImage,
  outDir: string,
): Promise<{ directory: string; request: string }> {
  const directory = unsignedDirectory(outDir);
  const temporary = join(resolve(outDir), `.unsigned-${randomBytes(6).toString('hex')}`);
  await mkdir(temporary, { recursive: true });
  try {
    const { version, buildTime, epoch, toolsKey, keys, uki, system, enrolment, manifest } = prepared;
    const { path: systemPath, ...ofSystem } = system;
    const { directory: _directory, ...ofKeys } = keys;
    await writeFile(join(temporary, 'uki'), uki);
    await copyFile(systemPath, join(temporary, 'system.img'));
    const image = {
      version: 1,
      image: { version, buildTime, epoch },
      toolsKey,
      uki: { sha256: await fileSha256(join(temporary, 'uki')) },
      system: ofSystem,
      keys: ofKeys,
      ...(enrolment !== undefined && { enrolment: base64Of(enrolment) }),
      manifest,
    };
    await writeFile(join(temporary, 'image.json'), `${JSON.stringify(image, undefined, 1)}\n`);
    await writeFile(join(temporary, 'signing-request.json'), encodeSigningRequest(firstRequest(prepared)));
    await rm(directory, { recursive: true, force: true });
    await rename(temporary, directory);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
  return { directory, request: join(directory, 'signing-request.json') };
}

/** Round one: the policy key. */
export function firstRequest({ version, uki, keys }: PreparedImage): SigningRequest {
  const signatures = policyRequestsOf(uki, keys);
  return {
    image: imageName(version),
    signatures,
    later: [
      {
        name: secureBootSignature,
        waitsFor: signatures.map(({ name }) => name),
        because: 'the Secure Boot signature covers the section .pcrsig, which holds the policy signatures',
      },
    ],
  };
}

/** @throws Error when there is none, or when its files are not those that were written. */
export async function readUnsignedImage(
  outDir: string,
): Promise<{ prepared: PreparedImage; signatures: Signatures; directory: string }> {
  const directory = unsignedDirectory(outDir);
  const refuse = (reason: string, cause?: unknown): never => {
    throw new Error(
      `cannot use the unsigned image in ${directory}: ${reason}; make it with: mkimage build --unsigned --out ${outDir}`,
      { cause },
    );
  };
  const json = (await readIfThere(join(directory, 'image.json'))) ?? refuse('there is none');
  let document: ReturnType<typeof imageDocument>;
  try {
    document = imageDocument(JSON.parse(json), '');
  } catch (error) {
    return refuse(`image.json: ${error instanceof Error ? error.message : String(error)}`, error);
  }
  const { image, toolsKey, system, keys, manifest } = document;
  for (const [name, expected] of [
    ['uki', document.uki.sha256],
    ['system.img', system.sha256],
  ] as const) {
    const found = await fileSha256(join(directory, name)).catch((error: unknown) => refuse(String(error), error));
    if (found !== expected) refuse(`${name} has SHA-256 ${found}, it was built with ${expected}`);
  }
  const signatures = await readIfThere(join(directory, 'signatures.json'));
  return {
    prepared: {
      ...image,
      toolsKey,
      keys: { directory, ...keys },
      uki: await readFile(join(directory, 'uki')),
      system: { path: join(directory, 'system.img'), ...system },
      enrolment: document.enrolment,
      manifest,
    },
    signatures: signatures === undefined ? new Map() : decodeSignatures(signatures),
    directory,
  };
}

/** Keeps what has come in and says what is to be signed next. */
export async function keepSignatures(
  directory: string,
  signatures: Signatures,
  request: SigningRequest,
): Promise<void> {
  await replaceFile(join(directory, 'signatures.json'), encodeSignatures(signatures));
  await replaceFile(join(directory, 'signing-request.json'), encodeSigningRequest(request));
}

/** The old content or the new, also after a power cut. */
export async function replaceFile(path: string, content: string): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    await using file = await open(temporary, 'wx');
    await file.writeFile(content);
    await file.sync();
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

function base64Of(files: EnrolmentFiles): Record<string, string> {
  return Object.fromEntries(
    Object.entries(files).map(([name, bytes]) => [name, Buffer.from(bytes).toString('base64')]),
  );
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

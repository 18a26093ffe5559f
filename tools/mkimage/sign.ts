/**
 * `mkimage sign`: gives an unsigned image its signatures, wherever they come from, in one go or in two rounds; or only makes
 * the signatures that a request asks for, on a machine that has the key and not the image.
 *
 *     build --unsigned ─▶ request 1: policy ─▶ sign ─▶ request 2: secure-boot ─▶ sign ─▶ the finished image
 */
import { readFile, rm } from 'node:fs/promises';
import { attachSignature } from '../../src/formats/authenticode.ts';
import { command, UsageError } from '../host/command-line.ts';
import type { Progress } from '../host/progress.ts';
import { type BuiltImagePaths, finishImage, imageName, type PreparedImage } from './finish-image.ts';
import { fetchPackages, readPackageLock } from './packages.ts';
import { parseSigner, pinFromStdin, policySignerOf, type Signer, type SignerOptions, signatureFrom } from './signer.ts';
import {
  checkSignature,
  decodeSignatures,
  decodeSigningRequest,
  encodeSignatures,
  type SignatureRequest,
  type Signatures,
} from './signing-request.ts';
import { openToolRoot } from './tool-root.ts';
import { approveUki, policyRequestsOf, secureBootRequestOf } from './uki.ts';
import { firstRequest, keepSignatures, readUnsignedImage, replaceFile } from './unsigned-image.ts';

/** Where signatures come from, by purpose and former policy key; what has no signer waits. */
export type SignersAtHand = Readonly<Partial<Record<SignatureRequest['purpose'], Signer>>> & {
  readonly former?: ReadonlyMap<string, Signer>;
};

function signerOf(signers: SignersAtHand, request: SignatureRequest): Signer | undefined {
  return request.purpose === 'policy' ? policySignerOf(signers, request) : signers[request.purpose];
}

export interface GivenSignature {
  readonly signature: Uint8Array;
  /** The file, for messages. */
  readonly from: string;
}

export interface SignatureSources {
  readonly outDir: string;
  readonly signers: SignersAtHand;
  /** By name. */
  readonly given: ReadonlyMap<string, GivenSignature>;
}

export interface SignImageOptions extends SignatureSources {
  readonly progress: Progress;
  readonly mirror?: string | undefined;
  readonly allowDrift?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What an image waits for: names of signatures, and the file that says what they are to cover. */
export interface Waiting {
  readonly waitsFor: readonly string[];
  readonly request: string;
}

/**
 * Takes what signatures there are and finishes the image when it has them all.
 *
 * @throws Error naming the signature that is wrong, and who gave it; then nothing has changed.
 */
export async function signImage(options: SignImageOptions): Promise<{ readonly image: BuiltImagePaths } | Waiting> {
  const { outDir, signal, progress } = options;
  const result = await signUnsignedUki(options);
  if ('waitsFor' in result) return result;
  const { uki, prepared, directory } = result;
  const fetched = await fetchPackages(await readPackageLock(), ['tools'], options);
  const toolRoot = await openToolRoot(fetched, progress);
  if (toolRoot.key !== prepared.toolsKey) {
    throw new Error(
      `cannot finish the image in ${directory}: it was built with other tools than image/lock.json names now; build it again`,
    );
  }
  const image = await finishImage({ prepared, uki, outDir, toolRoot, timings: {}, signal });
  await rm(directory, { recursive: true, force: true });
  return { image };
}

/** The signed UKI of an unsigned image, or what it waits for. Every signature is checked before anything is written. */
export async function signUnsignedUki(
  options: SignatureSources,
): Promise<{ readonly uki: Uint8Array; readonly prepared: PreparedImage; readonly directory: string } | Waiting> {
  const { outDir, signers, given } = options;
  const { prepared, signatures: kept, directory } = await readUnsignedImage(outDir);
  const { uki, keys } = prepared;
  const unused = new Set(given.keys());
  const signatures = new Map<string, Uint8Array>();
  const collect = async (requests: readonly SignatureRequest[]): Promise<string[]> => {
    const missing: string[] = [];
    for (const request of requests) {
      const signature = await signatureFor(request, { given, kept, signer: signerOf(signers, request) });
      unused.delete(request.name);
      if (signature === undefined) missing.push(request.name);
      else signatures.set(request.name, signature);
    }
    return missing;
  };
  const wait = async (waitsFor: readonly string[], request: ReturnType<typeof firstRequest>) => {
    refuseUnused(unused, waitsFor);
    await keepSignatures(directory, signatures, request);
    return { waitsFor, request: `${directory}/signing-request.json` };
  };

  const missingPolicies = await collect(policyRequestsOf(uki, keys));
  if (missingPolicies.length > 0) return await wait(missingPolicies, firstRequest(prepared));
  const approved = approveUki(uki, keys, signatures);
  const request = secureBootRequestOf(approved, keys.dbCertificatePem);
  const missing = await collect([request]);
  if (missing.length > 0)
    return await wait(missing, { image: imageName(prepared.version), signatures: [request], later: [] });
  refuseUnused(unused, []);

  const signature = signatures.get(request.name) ?? new Uint8Array(0);
  const signed = attachSignature(approved, { certificatePem: keys.dbCertificatePem, signature });
  return { uki: signed, prepared, directory };
}

/** A given signature goes before one that is kept, and that before asking the signer again. */
async function signatureFor(
  request: SignatureRequest,
  from: { given: ReadonlyMap<string, GivenSignature>; kept: Signatures; signer: Signer | undefined },
): Promise<Uint8Array | undefined> {
  const given = from.given.get(request.name);
  if (given !== undefined) {
    checkSignature(request, given.signature, given.from);
    return given.signature;
  }
  const kept = from.kept.get(request.name);
  if (kept !== undefined) {
    checkSignature(request, kept, 'signatures.json of the unsigned image');
    return kept;
  }
  return from.signer === undefined ? undefined : await signatureFrom(from.signer, request);
}

function refuseUnused(unused: ReadonlySet<string>, waitsFor: readonly string[]): void {
  const [name] = unused;
  if (name === undefined) return;
  const wanted = waitsFor.length === 0 ? 'nothing more' : `${waitsFor.join(', ')} first`;
  throw new Error(`cannot use signature ${name}: the image wants ${wanted}; see unsigned/signing-request.json`);
}

/** Makes the signatures that a request asks for, as far as there are signers. Needs no image. */
export async function answerRequest(requestJson: string, signers: SignersAtHand): Promise<Signatures> {
  const signatures = new Map<string, Uint8Array>();
  for (const request of decodeSigningRequest(requestJson).signatures) {
    const signer = signerOf(signers, request);
    if (signer !== undefined) signatures.set(request.name, await signatureFrom(signer, request));
  }
  return signatures;
}

const keySyntax = 'a key file, pkcs11:… or command:["PROGRAM",…]';

/** Options that `build` and `sign` share. */
export const signerOptions = {
  'policy-key': { type: 'string', value: 'SIGNER', summary: `signs PCR 11 policies: ${keySyntax}` },
  'secure-boot-key': { type: 'string', value: 'SIGNER', summary: `signs the UKI, as db: ${keySyntax}` },
  'former-policy-key': {
    type: 'string',
    value: 'NAME=SIGNER',
    multiple: true,
    summary: 'signs as the former policy key NAME of KEYS/former-policy; otherwise its private key there',
  },
  'pin-stdin': { type: 'boolean', summary: "read a token's PIN from a pipe, when its URI names no pin-source" },
} as const;

/** @throws Error when a signer is written wrongly, or the PIN cannot be read */
export async function signersFrom(
  values: {
    'policy-key': string | undefined;
    'secure-boot-key': string | undefined;
    'former-policy-key': readonly string[];
    'pin-stdin': boolean;
  },
  signal: AbortSignal,
): Promise<SignersAtHand> {
  const options: SignerOptions = { pin: values['pin-stdin'] ? await pinFromStdin() : undefined, signal };
  const [policy, secureBoot] = [values['policy-key'], values['secure-boot-key']];
  const former = new Map<string, Signer>();
  for (const written of values['former-policy-key']) {
    const [, name, signer] = /^([a-z0-9-]{1,32})=(.+)$/.exec(written) ?? [];
    if (name === undefined || signer === undefined)
      throw new UsageError(`--former-policy-key must be NAME=SIGNER, got ${JSON.stringify(written)}`);
    former.set(name, parseSigner(signer, options));
  }
  return {
    ...(policy === undefined ? {} : { policy: parseSigner(policy, options) }),
    ...(secureBoot === undefined ? {} : { 'secure-boot': parseSigner(secureBoot, options) }),
    ...(former.size === 0 ? {} : { former }),
  };
}

async function readInput(what: string, path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new Error(`cannot read ${what} ${path}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

async function givenSignatures(files: readonly string[], raw: readonly string[]) {
  const given = new Map<string, GivenSignature>();
  const add = (name: string, signature: Uint8Array, from: string) => {
    if (given.has(name)) throw new Error(`cannot use signature ${name} from ${from}: it is given twice`);
    given.set(name, { signature, from });
  };
  for (const file of files)
    for (const [name, signature] of decodeSignatures((await readInput('signatures', file)).toString('utf8')))
      add(name, signature, file);
  for (const pair of raw) {
    const at = pair.indexOf('=');
    if (at < 1) throw new UsageError(`--signature must be NAME=FILE, got ${JSON.stringify(pair)}`);
    const file = pair.slice(at + 1);
    add(pair.slice(0, at), await readInput('signature', file), file);
  }
  return given;
}

export const signCommand = command({
  name: 'sign',
  summary: 'Give an unsigned image its signatures, or only make those that a request asks for',
  description: [
    'DIR is where `mkimage build --unsigned` wrote to. Signatures come from signers, from files, or both. When the image',
    'has them all it is finished; until then unsigned/signing-request.json says what it waits for.',
    'With --request no image is needed: the signatures go to --out, to be given to `mkimage sign --signatures`.',
  ].join('\n'),
  positionals: [{ name: 'dir', summary: 'the directory of the image; otherwise out' }],
  options: {
    ...signerOptions,
    signatures: { type: 'string', value: 'FILE', multiple: true, summary: 'signatures made with --request elsewhere' },
    signature: {
      type: 'string',
      value: 'NAME=FILE',
      multiple: true,
      summary: 'one raw signature by the name that the request gives it',
    },
    request: { type: 'string', value: 'FILE', summary: 'make the signatures that this request asks for' },
    out: { type: 'string', value: 'FILE', summary: 'where those go' },
    mirror: { type: 'string', value: 'URI', summary: "base of Debian's archive; otherwise that of this host's apt" },
    'allow-drift': { type: 'boolean', summary: 'as for build' },
    json: { type: 'boolean', summary: 'print the result as JSON' },
  },
  run: async (values, { progress, print, signal }) => {
    const signers = await signersFrom(values, signal);
    if (values.request !== undefined) {
      if (values.out === undefined) throw new UsageError('--request wants --out FILE, where the signatures go');
      const signatures = await answerRequest(
        (await readInput('signing request', values.request)).toString('utf8'),
        signers,
      );
      if (signatures.size === 0) throw new Error('cannot sign: no signer was given for what the request asks for');
      await replaceFile(values.out, encodeSignatures(signatures));
      print(values.json ? JSON.stringify({ signed: [...signatures.keys()] }) : `wrote ${values.out}`);
      return;
    }
    if (values.out !== undefined) throw new UsageError('--out goes with --request; an image stays in its directory');
    const result = await signImage({
      outDir: values.dir ?? 'out',
      signers,
      given: await givenSignatures(values.signatures, values.signature),
      progress,
      mirror: values.mirror,
      allowDrift: values['allow-drift'],
      signal,
    });
    if (values.json) print(JSON.stringify(result, undefined, 2));
    else if ('image' in result) print(`signed: ${result.image.uki}`);
    else print(`waits for ${result.waitsFor.join(', ')}: sign what ${result.request} asks for`);
  },
});

/**
 * Where a signature comes from. One syntax wherever a key is asked for:
 *
 * | written as | is |
 * |---|---|
 * | `FILE` | a PEM private key, mode 0600 |
 * | `pkcs11:…` | a key in a token (RFC 7512): `pkcs11:token=T;object=K?module-path=/….so&pin-source=/…` |
 * | `command:["PROGRAM","ARG",…]` | a program: the bytes to be signed on stdin, the raw signature on stdout. `{name}`, `{sha256}` and `{key}` in an argument become the signature's name, the SHA-256 of the bytes and the fingerprint of the key |
 */
import { spawn } from 'node:child_process';
import { constants, createHash, createPrivateKey, type KeyObject, sign } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { spkiFingerprint } from '../../src/formats/x509.ts';
import type { Keys } from './keys.ts';
import { signWithToken } from './pkcs11.ts';
import { parsePkcs11Uri } from './pkcs11-uri.ts';
import { checkSignature, type PolicyRequest, requestedKey, type Signable } from './signing-request.ts';

export interface Signer {
  /** For messages: `file KEYS/db.key`, `token "ops"`. Holds no secret. */
  readonly description: string;
  /** The raw signature, not yet checked. */
  sign(request: Signable): Promise<Uint8Array>;
}

/** Who signs what. */
export interface Signers {
  readonly policy: Signer;
  readonly secureBoot: Signer;
  /** Former policy keys', by name. */
  readonly former: ReadonlyMap<string, Signer>;
}

/** Who signs what a policy key is to sign. */
export function policySignerOf(
  { policy, former }: { readonly policy?: Signer | undefined; readonly former?: Signers['former'] | undefined },
  request: PolicyRequest,
): Signer | undefined {
  return request.former === undefined ? policy : former?.get(request.former);
}

export interface SignerOptions {
  /** Of tokens whose URI has no pin-source. */
  readonly pin?: Uint8Array | undefined;
  readonly signal?: AbortSignal | undefined;
}

const maxPinBytes = 256;
const maxCommandOutput = 64 * 1024;

/** @throws Error when the text names no signer. Keys, tokens and programs are looked for when they are to sign. */
export function parseSigner(written: string, options: SignerOptions = {}): Signer {
  if (written.startsWith('pkcs11:')) return tokenSigner(written, options);
  if (written.startsWith('command:')) return commandSigner(written.slice('command:'.length), options);
  return fileSigner(written);
}

/** Asks the signer, and believes nothing: a signature that does not verify is an error here. */
export async function signatureFrom(signer: Signer, request: Signable): Promise<Uint8Array> {
  const signature = await signer.sign(request);
  checkSignature(request, signature, signer.description);
  return signature;
}

function fileSigner(path: string): Signer {
  return {
    description: `file ${path}`,
    sign: async (request) => {
      const pem = await readPrivate(path, 'private key');
      let key: ReturnType<typeof createPrivateKey>;
      try {
        key = createPrivateKey(pem);
      } catch (error) {
        // The cause is left out: it may quote the key.
        throw new Error(
          `cannot sign with ${path}: it is not a PEM private key (${error instanceof Error ? error.name : 'error'})`,
        );
      }
      if (key.asymmetricKeyType !== 'rsa')
        throw new Error(`cannot sign with ${path}: it is a key of type ${key.asymmetricKeyType}, not RSA`);
      return signWithKey(request, key);
    },
  };
}

/** With a private key in memory. */
export function signWithKey({ toBeSigned }: Signable, key: KeyObject): Uint8Array {
  return sign('sha256', toBeSigned, { key, padding: constants.RSA_PKCS1_PADDING });
}

function keySigner(description: string, key: KeyObject): Signer {
  return { description, sign: async (request) => signWithKey(request, key) };
}

/** Signers for keys that have been loaded. */
export function keySigners(keys: Pick<Keys, 'directory' | 'policyKey' | 'dbKey' | 'formerPolicyPrivateKeys'>): Signers {
  const former = [...keys.formerPolicyPrivateKeys].map(
    ([name, key]) => [name, keySigner(`file ${keys.directory}/former-policy/${name}.key`, key)] as const,
  );
  return {
    policy: keySigner(`file ${keys.directory}/policy.key`, keys.policyKey),
    secureBoot: keySigner(`file ${keys.directory}/db.key`, keys.dbKey),
    former: new Map(former),
  };
}

function tokenSigner(written: string, { pin }: SignerOptions): Signer {
  const uri = parsePkcs11Uri(written);
  return {
    description: `token ${JSON.stringify(uri.token ?? uri.modulePath)}`,
    sign: async ({ toBeSigned }) =>
      signWithToken(uri, {
        data: toBeSigned,
        digest: createHash('sha256').update(toBeSigned).digest(),
        pin: uri.pinSource === undefined ? pin : pinOf(await readPrivate(uri.pinSource, 'PIN')),
      }),
  };
}

/** The PIN that a pipe gives. @throws Error for a terminal, which would show it */
export async function pinFromStdin(stdin: NodeJS.ReadStream = process.stdin): Promise<Uint8Array> {
  if (stdin.isTTY)
    throw new Error(
      'cannot read PIN: stdin is a terminal and would show it; pipe it in, or say pin-source=/path in the URI',
    );
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stdin) {
    const bytes = Buffer.from(chunk as Uint8Array);
    chunks.push(bytes);
    length += bytes.length;
    if (length > maxPinBytes + 2) break;
  }
  return pinOf(Buffer.concat(chunks));
}

/** A PIN without the line end that an editor leaves. @throws Error when it is empty or too long. */
export function pinOf(content: Uint8Array): Uint8Array {
  let end = content.length;
  while (end > 0 && (content[end - 1] === 0x0a || content[end - 1] === 0x0d)) end--;
  if (end === 0 || end > maxPinBytes) throw new Error(`cannot use PIN: it has ${end} bytes, not 1 to ${maxPinBytes}`);
  return content.subarray(0, end);
}

function commandSigner(json: string, { signal }: SignerOptions): Signer {
  const [program, ...args] = parseArgv(json);
  return {
    description: `command ${JSON.stringify(program)}`,
    sign: (request) => {
      const values: Readonly<Record<string, string>> = {
        name: request.name,
        sha256: createHash('sha256').update(request.toBeSigned).digest('hex'),
        key: spkiFingerprint(requestedKey(request)),
      };
      const filled = args.map((arg) => arg.replaceAll(/\{(name|sha256|key)\}/g, (_, key: string) => values[key] ?? ''));
      return runSigner(program, filled, request.toBeSigned, signal);
    },
  };
}

function parseArgv(json: string): [program: string, ...args: string[]] {
  let argv: unknown;
  try {
    argv = JSON.parse(json);
  } catch {
    argv = undefined;
  }
  const words = Array.isArray(argv) ? argv.filter((word) => typeof word === 'string') : [];
  const [program, ...args] = words;
  if (!Array.isArray(argv) || words.length !== argv.length || program === undefined || program === '') {
    throw new Error(
      `cannot use signing command ${JSON.stringify(json)}: write a JSON list of strings, as in command:["sign-tool","--key","db"]`,
    );
  }
  return [program, ...args];
}

/** Its own way to run a program, because the signature is bytes and not text. stderr is the terminal's, for questions. */
async function runSigner(
  program: string,
  args: readonly string[],
  input: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], ...(signal !== undefined && { signal }) });
  const chunks: Buffer[] = [];
  let length = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (length <= maxCommandOutput) chunks.push(chunk);
    else child.kill();
  });
  // A program that needs only the digest in its arguments may close stdin unread.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  const ending = await new Promise<number | string>((resolve, reject) => {
    child.once('error', (error) =>
      reject(new Error(`cannot run signing command ${program}: ${error.message}`, { cause: error })),
    );
    child.once('close', (code, ended) => resolve(code ?? ended ?? 'a signal'));
  });
  if (length > maxCommandOutput)
    throw new Error(`cannot use signing command ${program}: it wrote over ${maxCommandOutput} bytes`);
  if (ending !== 0) throw new Error(`cannot use signing command ${program}: it ended with ${ending}`);
  return Buffer.concat(chunks);
}

/** Reads what only its owner may read. */
async function readPrivate(path: string, what: string): Promise<Buffer> {
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0)
      throw new Error(`mode 0${(mode & 0o777).toString(8)} lets others read it; run: chmod 600 ${path}`);
    return await readFile(path);
  } catch (error) {
    throw new Error(`cannot read ${what} ${path}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

/**
 * What a refusal means: response codes of the TPM (TCG TPM 2.0 Library, Part 2, 6.6) and of the software stack (TSS 2.0
 * Overview and Common Structures, 2.6), taken apart into who says it, what, and about which argument.
 */

/** Response codes a caller branches on, without parameter, handle or session number (Part 2, 6.6.3). */
export const TPM_RC = {
  initialize: 0x100,
  failure: 0x101,
  disabled: 0x120,
  policy: 0x126,
  nvRange: 0x146,
  nvAuthorization: 0x149,
  nvUninitialized: 0x14a,
  nvSpace: 0x14b,
  nvDefined: 0x14c,
  value: 0x084,
  hierarchy: 0x085,
  handle: 0x08b,
  authFail: 0x08e,
  signature: 0x09b,
  policyFail: 0x09d,
  integrity: 0x09f,
  badAuth: 0x0a2,
  yielded: 0x908,
  testing: 0x90a,
  lockout: 0x921,
  retry: 0x922,
} as const;

/**
 * Troubles of the machine rather than of the call, for callers that branch:
 *
 * - `no-tpm` nothing answers at the TCTI's address
 * - `tpm-1.2` a TPM of the version before answers
 * - `tpm-busy` somebody else holds the device, or the TPM asked for patience longer than about six seconds
 * - `resource-manager-absent` there is /dev/tpm0 but no /dev/tpmrm0
 * - `lockout` too many failed authorizations; those that count are refused unheard
 * - `nv-full` no room for another NV index
 * - `wrong-auth` the authorization value of a hierarchy, NV index or object is another
 * - `unexpected-response` the answer is not what the specification says: too short, too long, or its HMAC is wrong
 */
export type TpmFailure =
  | 'no-tpm'
  | 'tpm-1.2'
  | 'tpm-busy'
  | 'resource-manager-absent'
  | 'lockout'
  | 'nv-full'
  | 'wrong-auth'
  | 'unexpected-response';

/** Who refuses: the TPM, a layer of tpm2-tss, a resource manager, or this library before it asked. */
export type TpmLayer =
  | 'TPM'
  | 'ESAPI'
  | 'SAPI'
  | 'marshalling'
  | 'TCTI'
  | 'resource manager'
  | 'node-tpm2'
  | 'unknown layer';

export interface DecodedResponse {
  readonly layer: TpmLayer;
  /** `TPM_RC_POLICY_FAIL`, `TSS2_TCTI_RC_IO_ERROR`; with the number when it has no name here. */
  readonly responseName: string;
  /** `session 1`, `parameter 2`, `handle 1`; undefined when the code names none. */
  readonly subject: string | undefined;
  readonly failure: TpmFailure | undefined;
}

/** A command that the TPM or its software stack refused. */
export class TpmError extends Error implements DecodedResponse {
  override readonly name = 'TpmError';
  readonly command: string;
  /** TSS2_RC: the layer in bits 16–23, the code below. 0 when it was refused here. */
  readonly code: number;
  readonly layer: TpmLayer;
  readonly responseName: string;
  readonly subject: string | undefined;
  readonly failure: TpmFailure | undefined;

  /** @param text what tpm2-tss says of the code */
  constructor(command: string, code: number, text: string, decoded: DecodedResponse = decodeResponse(code)) {
    super(`cannot ${command}: ${describe(code, text, decoded)}`);
    this.command = command;
    this.code = code;
    this.layer = decoded.layer;
    this.responseName = decoded.responseName;
    this.subject = decoded.subject;
    this.failure = decoded.failure;
  }
}

/** A refusal by this library, which has looked at the machine or at the answer itself. */
export function ownFailure(command: string, failure: TpmFailure, text: string): TpmError {
  return new TpmError(command, 0, text, { layer: 'node-tpm2', responseName: '', subject: undefined, failure });
}

function describe(code: number, text: string, { layer, responseName, subject, failure }: DecodedResponse): string {
  const wayOut = failure === undefined ? '' : WAYS_OUT[failure];
  const end = wayOut === '' ? '' : `; ${wayOut}`;
  if (layer === 'node-tpm2') return `${text}${end}`;
  const who = [responseName, ...(subject === undefined ? [] : [subject]), `from the ${layer}`].join(', ');
  return `${who}: ${text} (0x${code.toString(16)})${end}`;
}

const WAYS_OUT: Record<TpmFailure, string> = {
  'no-tpm': 'enable the TPM 2.0 in the firmware settings',
  'tpm-1.2': 'a TPM 2.0 is needed: some firmware can switch the chip over',
  'tpm-busy': 'close the program that holds it, or use the resource manager /dev/tpmrm0',
  'resource-manager-absent': 'use a kernel with CONFIG_TCG_TPM2 spaces (4.12 or later), or /dev/tpm0 as the only user',
  lockout: 'wait until the TPM forgets the failures, or reset it with the authorization of the lockout hierarchy',
  'nv-full': 'undefine NV indices that are not needed, or clear the TPM in the firmware settings',
  'wrong-auth': '',
  'unexpected-response': 'the TPM is defective or somebody sits between; close this connection',
};

/** Takes a TSS2_RC apart. */
export function decodeResponse(code: number): DecodedResponse {
  const layer = LAYERS[(code >>> 16) & 0xff] ?? UNKNOWN_LAYER;
  if (!layer.speaksTpm) {
    const name = BASE_NAMES[code & 0xffff] ?? `0x${(code & 0xffff).toString(16)}`;
    const responseName = `TSS2_${layer.prefix}_RC_${name}`;
    return { layer: layer.name, responseName, subject: undefined, failure: stackFailure(layer.name, name) };
  }
  const plain = tpmResponseCode(code) ?? 0;
  const name = RESPONSE_NAMES[plain] ?? `0x${plain.toString(16)}`;
  return {
    layer: layer.name,
    responseName: `TPM_RC_${name}`,
    subject: code & 0x80 ? subjectOf(code) : undefined,
    failure: FAILURES[plain],
  };
}

const FAILURES: Readonly<Record<number, TpmFailure>> = {
  [TPM_RC.retry]: 'tpm-busy',
  [TPM_RC.yielded]: 'tpm-busy',
  [TPM_RC.testing]: 'tpm-busy',
  [TPM_RC.lockout]: 'lockout',
  [TPM_RC.nvSpace]: 'nv-full',
  [TPM_RC.badAuth]: 'wrong-auth',
  [TPM_RC.authFail]: 'wrong-auth',
};

/** BAD_SEQUENCE: the answer to a command with sessions has none. */
const UNEXPECTED: ReadonlySet<string> = new Set([
  'MALFORMED_RESPONSE',
  'INSUFFICIENT_RESPONSE',
  'RSP_AUTH_FAILED',
  'BAD_SEQUENCE',
]);

function stackFailure(layer: TpmLayer, name: string): TpmFailure | undefined {
  if (UNEXPECTED.has(name)) return 'unexpected-response';
  // The SAPI's answer to a response with the tag of a TPM 1.2; whatever else is wrong with a response has its own code.
  if (layer === 'SAPI' && name === 'GENERAL_FAILURE') return 'tpm-1.2';
  return undefined;
}

/** Format one (Part 2, 6.6.2): bit 6 says parameter, else bit 11 says session, else handle; the number is in bits 8–11. */
function subjectOf(code: number): string | undefined {
  const number = (code >>> 8) & 0xf;
  const [kind, position] =
    code & 0x40 ? ['parameter', number] : number & 8 ? ['session', number & 7] : ['handle', number];
  return position === 0 ? undefined : `${kind} ${position}`;
}

/** The TPM's own code without the number of the parameter, handle or session; undefined for an error of the stack. */
export function tpmResponseCode(code: number): number | undefined {
  if (!(LAYERS[(code >>> 16) & 0xff] ?? UNKNOWN_LAYER).speaksTpm) return undefined;
  const low = code & 0xfff;
  return low & 0x080 ? low & 0x0bf : low;
}

export function isTpmError(error: unknown, ...codes: number[]): error is TpmError {
  if (!(error instanceof TpmError)) return false;
  const code = tpmResponseCode(error.code);
  return error.layer !== 'node-tpm2' && code !== undefined && codes.includes(code);
}

interface Layer {
  readonly name: TpmLayer;
  readonly prefix: string;
  /** Its codes are those of the TPM: resource managers, in the stack or in the kernel, pass them on or use them. */
  readonly speaksTpm: boolean;
}

const LAYERS: Readonly<Record<number, Layer>> = {
  0: { name: 'TPM', prefix: 'TPM', speaksTpm: true },
  7: { name: 'ESAPI', prefix: 'ESYS', speaksTpm: false },
  8: { name: 'SAPI', prefix: 'SYS', speaksTpm: false },
  9: { name: 'marshalling', prefix: 'MU', speaksTpm: false },
  10: { name: 'TCTI', prefix: 'TCTI', speaksTpm: false },
  11: { name: 'resource manager', prefix: 'RESMGR', speaksTpm: true },
  12: { name: 'resource manager', prefix: 'RESMGR', speaksTpm: true },
};
const UNKNOWN_LAYER: Layer = { name: 'unknown layer', prefix: 'UNKNOWN', speaksTpm: false };

/** TPM_RC (Part 2, 6.6.3, Table 16). */
const RESPONSE_NAMES: Readonly<Record<number, string>> = {
  0x01e: 'BAD_TAG',
  0x081: 'ASYMMETRIC',
  0x082: 'ATTRIBUTES',
  0x083: 'HASH',
  0x084: 'VALUE',
  0x085: 'HIERARCHY',
  0x087: 'KEY_SIZE',
  0x088: 'MGF',
  0x089: 'MODE',
  0x08a: 'TYPE',
  0x08b: 'HANDLE',
  0x08c: 'KDF',
  0x08d: 'RANGE',
  0x08e: 'AUTH_FAIL',
  0x08f: 'NONCE',
  0x090: 'PP',
  0x092: 'SCHEME',
  0x095: 'SIZE',
  0x096: 'SYMMETRIC',
  0x097: 'TAG',
  0x098: 'SELECTOR',
  0x09a: 'INSUFFICIENT',
  0x09b: 'SIGNATURE',
  0x09c: 'KEY',
  0x09d: 'POLICY_FAIL',
  0x09f: 'INTEGRITY',
  0x0a0: 'TICKET',
  0x0a1: 'RESERVED_BITS',
  0x0a2: 'BAD_AUTH',
  0x0a3: 'EXPIRED',
  0x0a4: 'POLICY_CC',
  0x0a5: 'BINDING',
  0x0a6: 'CURVE',
  0x0a7: 'ECC_POINT',
  0x100: 'INITIALIZE',
  0x101: 'FAILURE',
  0x103: 'SEQUENCE',
  0x10b: 'PRIVATE',
  0x119: 'HMAC',
  0x120: 'DISABLED',
  0x121: 'EXCLUSIVE',
  0x124: 'AUTH_TYPE',
  0x125: 'AUTH_MISSING',
  0x126: 'POLICY',
  0x127: 'PCR',
  0x128: 'PCR_CHANGED',
  0x12d: 'UPGRADE',
  0x12e: 'TOO_MANY_CONTEXTS',
  0x12f: 'AUTH_UNAVAILABLE',
  0x130: 'REBOOT',
  0x131: 'UNBALANCED',
  0x142: 'COMMAND_SIZE',
  0x143: 'COMMAND_CODE',
  0x144: 'AUTHSIZE',
  0x145: 'AUTH_CONTEXT',
  0x146: 'NV_RANGE',
  0x147: 'NV_SIZE',
  0x148: 'NV_LOCKED',
  0x149: 'NV_AUTHORIZATION',
  0x14a: 'NV_UNINITIALIZED',
  0x14b: 'NV_SPACE',
  0x14c: 'NV_DEFINED',
  0x150: 'BAD_CONTEXT',
  0x151: 'CPHASH',
  0x152: 'PARENT',
  0x153: 'NEEDS_TEST',
  0x154: 'NO_RESULT',
  0x155: 'SENSITIVE',
  0x901: 'CONTEXT_GAP',
  0x902: 'OBJECT_MEMORY',
  0x903: 'SESSION_MEMORY',
  0x904: 'MEMORY',
  0x905: 'SESSION_HANDLES',
  0x906: 'OBJECT_HANDLES',
  0x907: 'LOCALITY',
  0x908: 'YIELDED',
  0x909: 'CANCELED',
  0x90a: 'TESTING',
  0x910: 'REFERENCE_H0',
  0x911: 'REFERENCE_H1',
  0x912: 'REFERENCE_H2',
  0x913: 'REFERENCE_H3',
  0x914: 'REFERENCE_H4',
  0x915: 'REFERENCE_H5',
  0x916: 'REFERENCE_H6',
  0x918: 'REFERENCE_S0',
  0x919: 'REFERENCE_S1',
  0x91a: 'REFERENCE_S2',
  0x91b: 'REFERENCE_S3',
  0x91c: 'REFERENCE_S4',
  0x91d: 'REFERENCE_S5',
  0x91e: 'REFERENCE_S6',
  0x920: 'NV_RATE',
  0x921: 'LOCKOUT',
  0x922: 'RETRY',
  0x923: 'NV_UNAVAILABLE',
};

/** TSS2_BASE_RC (TSS 2.0 Overview and Common Structures, 2.6.3). */
const BASE_NAMES: Readonly<Record<number, string>> = {
  1: 'GENERAL_FAILURE',
  2: 'NOT_IMPLEMENTED',
  3: 'BAD_CONTEXT',
  4: 'ABI_MISMATCH',
  5: 'BAD_REFERENCE',
  6: 'INSUFFICIENT_BUFFER',
  7: 'BAD_SEQUENCE',
  8: 'NO_CONNECTION',
  9: 'TRY_AGAIN',
  10: 'IO_ERROR',
  11: 'BAD_VALUE',
  12: 'NOT_PERMITTED',
  13: 'INVALID_SESSIONS',
  14: 'NO_DECRYPT_PARAM',
  15: 'NO_ENCRYPT_PARAM',
  16: 'BAD_SIZE',
  17: 'MALFORMED_RESPONSE',
  18: 'INSUFFICIENT_CONTEXT',
  19: 'INSUFFICIENT_RESPONSE',
  20: 'INCOMPATIBLE_TCTI',
  21: 'NOT_SUPPORTED',
  22: 'BAD_TCTI_STRUCTURE',
  23: 'MEMORY',
  24: 'BAD_TR',
  25: 'MULTIPLE_DECRYPT_SESSIONS',
  26: 'MULTIPLE_ENCRYPT_SESSIONS',
  27: 'RSP_AUTH_FAILED',
  28: 'NO_CONFIG',
};

/**
 * What a refusal means: response codes of the TPM (TCG TPM 2.0 Library, Part 2, 6.6) and of the software stack (TSS 2.0
 * Overview and Common Structures, 2.6), taken apart into who says it, what, and about which argument.
 */
import { BASE_NAMES, RESPONSE_NAMES } from './response-names.ts';

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

/** Format one (Part 2, 6.6.2): bit 6 says parameter, else bit 11 session, else handle; the number is in bits 8–11. */
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

/** What a TPM is and holds for all: properties, lockout, hierarchies, PCRs and random numbers. */
import {
  CAPABILITY,
  decodeDigests,
  decodePcrSelections,
  decodeSized,
  encodePcrSelections,
  encodeSha256DigestValues,
  encodeSized,
  type PcrSelection,
  TPM_ALG,
} from '../formats/tpm-structures.ts';
import { NO_SESSIONS, TpmConnection } from './tpm-connection.ts';
import { ownFailure } from './tpm-error.ts';
import { HIERARCHY_HANDLES, type Hierarchy, type TpmHandle } from './tpm-handle.ts';
import { ESYS, Output } from './tss.ts';

/** TPM_PT (Part 2, 6.13). */
const PROPERTY = {
  familyIndicator: 0x100,
  revision: 0x102,
  manufacturer: 0x105,
  firmwareVersion1: 0x10b,
  firmwareVersion2: 0x10c,
  nvBufferMax: 0x12c,
  permanent: 0x200,
  lockoutCounter: 0x20e,
  maxAuthFail: 0x20f,
  lockoutInterval: 0x210,
  lockoutRecovery: 0x211,
} as const;

/** TPMA_PERMANENT (Part 2, 8.6). */
const PERMANENT = { ownerAuthSet: 1, endorsementAuthSet: 2, lockoutAuthSet: 4, disableClear: 0x100, inLockout: 0x200 };

export interface TpmIdentity {
  /** Four letters, as the vendor registered them with the TCG: `IBM`, `INTC`, `STM`. */
  readonly manufacturer: string;
  /** `2.0`. */
  readonly family: string;
  /** Revision of the specification: 1.38 is 138. */
  readonly revision: number;
  /** The vendor's own numbering, 64 bits in hex. */
  readonly firmwareVersion: string;
}

export interface Lockout {
  /** Failed authorizations that count. */
  readonly counter: number;
  /** Failures at which the lockout begins. */
  readonly limit: number;
  readonly active: boolean;
  /** After so many seconds one failure is forgotten. */
  readonly recoverySeconds: number;
  /** After a failure with the lockout hierarchy's own authorization, so many seconds pass before it is heard again. */
  readonly lockoutAuthRecoverySeconds: number;
}

/** Which hierarchies have an authorization value, that is: whether somebody owns this TPM. */
export interface Ownership {
  readonly ownerAuthSet: boolean;
  readonly endorsementAuthSet: boolean;
  readonly lockoutAuthSet: boolean;
  /** Only firmware can clear the TPM. */
  readonly clearDisabled: boolean;
}

export class TpmState extends TpmConnection {
  /** Four letters, as the vendor registered them with the TCG: `IBM`, `INTC`, `STM`. */
  manufacturer(): string {
    return letters(this.#property(PROPERTY.manufacturer));
  }

  /** What the vendor says of the chip. One command. */
  identity(): TpmIdentity {
    const properties = this.#properties(PROPERTY.familyIndicator, 16);
    const value = (property: number): number => required(properties, property);
    const hex = (property: number): string => value(property).toString(16).padStart(8, '0');
    return {
      manufacturer: letters(value(PROPERTY.manufacturer)),
      family: letters(value(PROPERTY.familyIndicator)),
      revision: value(PROPERTY.revision),
      firmwareVersion: hex(PROPERTY.firmwareVersion1) + hex(PROPERTY.firmwareVersion2),
    };
  }

  /** The dictionary-attack state (Part 1, 19.8). One command. */
  lockout(): Lockout {
    const properties = this.#properties(PROPERTY.permanent, 20);
    return {
      counter: required(properties, PROPERTY.lockoutCounter),
      limit: required(properties, PROPERTY.maxAuthFail),
      active: (required(properties, PROPERTY.permanent) & PERMANENT.inLockout) !== 0,
      recoverySeconds: required(properties, PROPERTY.lockoutInterval),
      lockoutAuthRecoverySeconds: required(properties, PROPERTY.lockoutRecovery),
    };
  }

  /** One command. */
  ownership(): Ownership {
    const permanent = this.#property(PROPERTY.permanent);
    return {
      ownerAuthSet: (permanent & PERMANENT.ownerAuthSet) !== 0,
      endorsementAuthSet: (permanent & PERMANENT.endorsementAuthSet) !== 0,
      lockoutAuthSet: (permanent & PERMANENT.lockoutAuthSet) !== 0,
      clearDisabled: (permanent & PERMANENT.disableClear) !== 0,
    };
  }

  /** Handles in use from `first` up: 0x81000000 persistent objects, 0x01000000 NV indices. At most 254; one command. */
  handles(first: number): number[] {
    const capability = this.capability(CAPABILITY.handles, first, 254);
    if (capability.kind !== 'handles')
      throw ownFailure('list handles', 'unexpected-response', 'the TPM answered with something else');
    return [...capability.handles];
  }

  /** The banks that are allocated, each with its PCRs. */
  pcrBanks(): PcrSelection[] {
    const capability = this.capability(CAPABILITY.pcrs, 0, 1);
    if (capability.kind !== 'pcrs')
      throw ownFailure('read PCR banks', 'unexpected-response', 'the TPM answered with something else');
    return capability.selections.filter(({ pcrs }) => pcrs.length > 0);
  }

  /** Values of the SHA-256 bank by index; a command for eight of them. Throws when the bank lacks one of them. */
  readPcrs(indices: readonly number[]): Map<number, Buffer> {
    const values = new Map<number, Buffer>();
    let left = [...indices];
    while (left.length > 0) {
      const [counter, read, digests] = [new Output(), new Output(), new Output()];
      const selection = this.tss.structure('TPML_PCR_SELECTION', sha256Selection(left));
      this.tss.run('Esys_PCR_Read', ...NO_SESSIONS, selection, counter.buffer, read.buffer, digests.buffer);
      const found = decodePcrSelections(this.tss.take('TPML_PCR_SELECTION', read)).flatMap(({ pcrs }) => pcrs);
      const bytes = decodeDigests(this.tss.take('TPML_DIGEST', digests));
      if (found.length === 0) {
        throw new Error(
          `cannot read PCR ${left.join(', ')}: the TPM has no SHA-256 bank with it; enable SHA-256 in the firmware's TPM settings`,
        );
      }
      for (const [position, index] of found.entries()) {
        values.set(index, exactly(32, bytes[position] ?? new Uint8Array(), `read PCR ${index}`));
      }
      left = left.filter((index) => !values.has(index));
    }
    return values;
  }

  /** Extends the SHA-256 bank: PCR = SHA-256(PCR ‖ digest). */
  extendPcr(index: number, digest: Uint8Array): void {
    const values = this.tss.structure('TPML_DIGEST_VALUES', encodeSha256DigestValues(digest));
    this.tss.run('Esys_PCR_Extend', index, ESYS.password, ESYS.none, ESYS.none, values);
  }

  /** Random bytes of the TPM, at most 32 a call; encrypted on the bus when a session is given. */
  random(byteCount: number, session?: TpmHandle): Buffer {
    const bytes = new Output();
    this.tss.run('Esys_GetRandom', session?.handle ?? ESYS.none, ESYS.none, ESYS.none, byteCount, bytes.buffer);
    return exactly(byteCount, decodeSized(this.tss.take('TPM2B_DIGEST', bytes), 'TPM2B_DIGEST'), 'get random bytes');
  }

  /**
   * Gives a hierarchy another authorization value (at most 32 bytes; empty takes it away), which this connection then
   * knows. The old one must be known already ({@link TpmConnection.useAuth}) unless it is empty.
   *
   * @param session encrypts the new value on the bus
   */
  hierarchyChangeAuth(hierarchy: Hierarchy, newAuth: Uint8Array, session: TpmHandle): void {
    const structure = this.tss.structure('TPM2B_DIGEST', encodeSized(newAuth));
    try {
      const handle = HIERARCHY_HANDLES[hierarchy];
      this.tss.run('Esys_HierarchyChangeAuth', handle, session.handle, ESYS.none, ESYS.none, structure);
      this.noteAuth(handle, newAuth);
    } finally {
      structure.fill(0);
    }
  }

  /** Forgets the failed authorizations and ends a lockout (Part 3, 25.2). */
  dictionaryAttackLockReset(session?: TpmHandle): void {
    const authorization = this.authorization('lockout', session);
    this.tss.run('Esys_DictionaryAttackLockReset', ESYS.lockoutHierarchy, authorization, ESYS.none, ESYS.none);
  }

  /** Bytes that one NV read or write carries. */
  protected nvBufferMax(): number {
    return this.#property(PROPERTY.nvBufferMax);
  }

  #property(property: number): number {
    return required(this.#properties(property, 1), property);
  }

  #properties(first: number, count: number): ReadonlyMap<number, number> {
    const capability = this.capability(CAPABILITY.properties, first, count);
    return capability.kind === 'properties' ? capability.properties : new Map();
  }
}

function required(properties: ReadonlyMap<number, number>, property: number): number {
  const value = properties.get(property);
  if (value === undefined)
    throw ownFailure(`read TPM property 0x${property.toString(16)}`, 'unexpected-response', 'the TPM has none');
  return value;
}

function letters(value: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes
    .toString('latin1')
    .replace(/[^ -~]/g, '')
    .trim();
}

/** A copy of an answer that must have this size. */
export function exactly(byteCount: number, bytes: Uint8Array, command: string): Buffer {
  if (bytes.length !== byteCount) {
    throw ownFailure(command, 'unexpected-response', `the TPM gave ${bytes.length} bytes, expected ${byteCount}`);
  }
  return Buffer.from(bytes);
}

export function sha256Selection(pcrs: readonly number[]): Buffer {
  return encodePcrSelections([{ hash: TPM_ALG.sha256, pcrs }]);
}

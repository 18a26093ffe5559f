/** Non-volatile memory of a TPM (TCG TPM 2.0 Library, Part 3, section 31). */
import { decodeNvPublic, encodeNvPublic, type NvPublic, nvName } from '../formats/tpm-nv-public.ts';
import { decodeSized, encodeSized } from '../formats/tpm-structures.ts';
import { NO_SESSIONS } from './tpm-connection.ts';
import { NvIndex, type TpmHandle } from './tpm-handle.ts';
import { TpmKeys } from './tpm-keys.ts';
import type { NvAuthorization } from './tpm-sessions.ts';
import { exactly } from './tpm-state.ts';
import { ESYS, Output } from './tss.ts';

/** Every PC Client TPM carries so much in one command (PC Client PTP, 4.6.1), without being asked. */
const SURE_BUFFER_BYTES = 512;

export interface NvDefinition extends NvPublic {
  /** The index's own authorization value, at most 32 bytes; empty unless told. */
  readonly auth?: Uint8Array;
}

export class TpmNv extends TpmKeys {
  /**
   * Makes an NV index under the owner's authorization. Throws `TPM_RC.nvDefined` when it exists, `TPM_RC.nvSpace` when
   * the TPM's memory is full.
   *
   * @param session encrypts `auth` on the bus, and authorizes when the owner's authorization value is not empty
   */
  nvDefine(definition: NvDefinition, session?: TpmHandle): NvIndex {
    const made = new Output();
    const auth = definition.auth ?? new Uint8Array();
    if (auth.length > 0 && session === undefined) {
      throw new TypeError(
        'cannot define an NV index with an authorization value: pass a session from encryptedSession()',
      );
    }
    const structure = this.tss.structure('TPM2B_DIGEST', encodeSized(auth));
    try {
      this.tss.run(
        'Esys_NV_DefineSpace',
        ESYS.ownerHierarchy,
        this.authorization('owner', session),
        ESYS.none,
        ESYS.none,
        structure,
        this.tss.structure('TPM2B_NV_PUBLIC', encodeSized(encodeNvPublic(definition))),
        made.buffer,
      );
    } finally {
      structure.fill(0);
    }
    this.noteAuth(made.value, auth);
    return new NvIndex(made.value, definition);
  }

  /** Opens an existing index (one command); undefined when there is none. */
  nvOpen(index: number): NvIndex | undefined {
    const opened = this.openPersistent(index);
    return opened && new NvIndex(opened.handle, decodeNvPublic(opened.publicArea));
  }

  /** Asks the TPM for the index's public area as it is now, and for its name (Part 3, 31.6). */
  nvReadPublic(nv: NvIndex): NvPublic & { readonly name: Uint8Array } {
    const [area, name] = [new Output(), new Output()];
    this.tss.run('Esys_NV_ReadPublic', nv.handle, ...NO_SESSIONS, area.buffer, name.buffer);
    this.tss.discard(name);
    const decoded = decodeNvPublic(decodeSized(this.tss.take('TPM2B_NV_PUBLIC', area), 'TPM2B_NV_PUBLIC'));
    return { ...decoded, name: nvName(decoded) };
  }

  /**
   * Reads `byteCount` bytes, one command for each 512 (or what the TPM offers more). Throws `TPM_RC.nvUninitialized` when
   * nothing was ever written, `TPM_RC.nvRange` beyond the end, `TPM_RC.nvAuthorization` when this authorization may not.
   */
  nvRead(nv: NvIndex, byteCount: number, authorization: NvAuthorization & { readonly offset?: number }): Buffer {
    const first = authorization.offset ?? 0;
    const parts = this.#chunks(byteCount).map(({ start, length }) => {
      const data = new Output();
      this.tss.run(
        'Esys_NV_Read',
        ...this.nvAuthorization(nv, authorization),
        this.nvSession(nv, authorization),
        ESYS.none,
        ESYS.none,
        length,
        first + start,
        data.buffer,
      );
      const wire = this.tss.take('TPM2B_MAX_NV_BUFFER', data);
      const part = exactly(length, decodeSized(wire, 'TPM2B_MAX_NV_BUFFER'), `read NV index ${nv.label}`);
      wire.fill(0);
      return part;
    });
    const whole = Buffer.concat(parts);
    for (const part of parts) part.fill(0);
    return whole;
  }

  /** Writes, one command for each 512 bytes (or what the TPM offers more). Only one command is all or nothing. */
  nvWrite(nv: NvIndex, bytes: Uint8Array, authorization: NvAuthorization & { readonly offset?: number }): void {
    const first = authorization.offset ?? 0;
    for (const { start, length } of this.#chunks(bytes.length)) {
      const wire = encodeSized(bytes.subarray(start, start + length));
      const data = this.tss.structure('TPM2B_MAX_NV_BUFFER', wire);
      try {
        this.tss.run(
          'Esys_NV_Write',
          ...this.nvAuthorization(nv, authorization),
          this.nvSession(nv, authorization),
          ESYS.none,
          ESYS.none,
          data,
          first + start,
        );
      } finally {
        wire.fill(0);
        data.fill(0);
      }
    }
  }

  /** Counts an index with `NV.counter` up by one; the first count starts above every counter the TPM ever had. */
  nvIncrement(nv: NvIndex, authorization: NvAuthorization): void {
    this.tss.run(
      'Esys_NV_Increment',
      ...this.nvAuthorization(nv, authorization),
      this.nvSession(nv, authorization),
      ESYS.none,
      ESYS.none,
    );
  }

  /** Removes an index of the owner with its content. */
  nvUndefine(nv: NvIndex, session?: TpmHandle): void {
    const authorization = this.authorization('owner', session);
    this.tss.run('Esys_NV_UndefineSpace', ESYS.ownerHierarchy, nv.handle, authorization, ESYS.none, ESYS.none);
    this.noteAuth(nv.handle, new Uint8Array());
  }

  #chunks(byteCount: number): { start: number; length: number }[] {
    const size = byteCount <= SURE_BUFFER_BYTES ? SURE_BUFFER_BYTES : this.nvBufferMax();
    const chunks: { start: number; length: number }[] = [];
    for (let start = 0; start < byteCount; start += size) {
      chunks.push({ start, length: Math.min(size, byteCount - start) });
    }
    return chunks;
  }
}

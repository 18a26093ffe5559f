/** Files that hold what goes into a Secure Boot variable, in the forms in which operators have them. */
import { X509Certificate } from 'node:crypto';
import { ByteReader } from '../../src/formats/byte-reader.ts';
import { decodeSignatureLists, dummyDbx, encodeCertificateList } from '../../src/formats/efi-signature-list.ts';
import { decodeInput, readInputFile } from './input-file.ts';

const maxVariableBytes = 1024 * 1024;

/**
 * The variable's content: the files' signature lists one after the other, as firmware keeps them.
 *
 * Each file is a certificate (PEM or DER), an EFI signature list (`.esl`), an authenticated write (`.auth`), or the
 * variable as efivarfs shows it. `dummy` instead of a file is the list that virt-fw-vars puts into dbx.
 *
 * @param ownerGuid of the entries made from certificates; firmware measures it.
 */
export async function readSecureBootVariable(
  paths: readonly string[],
  ownerGuid: string | undefined,
): Promise<Uint8Array> {
  const lists: Uint8Array[] = [];
  for (const path of paths) {
    if (path === 'dummy') lists.push(dummyDbx());
    else {
      const bytes = await readInputFile(path, 'the Secure Boot keys', maxVariableBytes);
      lists.push(decodeInput(path, () => signatureListsOf(bytes, ownerGuid)));
    }
  }
  return Buffer.concat(lists);
}

function signatureListsOf(bytes: Uint8Array, ownerGuid: string | undefined): Uint8Array {
  const certificate = certificateOf(bytes);
  if (certificate !== undefined) {
    if (ownerGuid === undefined) {
      throw new Error(
        'it is a certificate, and firmware measures the owner GUID of the entry too; give it with --owner GUID (the file owner-guid beside the keys), or the variable as .esl',
      );
    }
    return encodeCertificateList(ownerGuid, certificate.toString());
  }
  for (const offset of [0, efivarfsPrefix(bytes), authenticatedHeaderSize(bytes)]) {
    if (offset !== undefined && isSignatureLists(bytes.subarray(offset))) return bytes.subarray(offset);
  }
  throw new Error('it is no certificate (PEM, DER), EFI signature list, .auth file or variable of efivarfs');
}

function certificateOf(bytes: Uint8Array): X509Certificate | undefined {
  const isPem = Buffer.from(bytes).includes('-----BEGIN CERTIFICATE-----');
  // A list never begins with the tag of a DER sequence of this length: that would be a GUID of nobody.
  if (!isPem && bytes[0] !== 0x30) return undefined;
  try {
    return new X509Certificate(bytes);
  } catch (error) {
    if (isPem) throw error;
    return undefined;
  }
}

/** efivarfs puts the variable's attributes, 4 bytes, in front. */
function efivarfsPrefix(bytes: Uint8Array): number | undefined {
  return bytes.length > 4 && (bytes[0] ?? 0) < 0x80 && bytes[1] === 0 && bytes[2] === 0 && bytes[3] === 0
    ? 4
    : undefined;
}

/** EFI_TIME and WIN_CERTIFICATE_UEFI_GUID, whose first field is its length (UEFI §8.2.2). */
function authenticatedHeaderSize(bytes: Uint8Array): number | undefined {
  if (bytes.length < 24) return undefined;
  const reader = new ByteReader(bytes, 'authenticated write').seek(16, 'WIN_CERTIFICATE');
  const size = 16 + reader.u32('length');
  const isGuidCertificate = reader.u16('revision') === 0x0200 && reader.u16('type') === 0x0ef1;
  return isGuidCertificate && size <= bytes.length ? size : undefined;
}

function isSignatureLists(bytes: Uint8Array): boolean {
  try {
    decodeSignatureLists(bytes);
    return true;
  } catch {
    return false;
  }
}

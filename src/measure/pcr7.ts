/**
 * PCR 7: the Secure Boot policy and which of its certificates let the image run (TCG PC Client Platform Firmware Profile
 * §3.3.4.8), as EDK II measures it. Boards may add events (DeployedMode, option ROM authorities): there the value that the
 * machine itself shows at enrolment counts, and this prediction is a cross-check.
 */
import {
  decodeSignatureLists,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SecureBootVariables,
} from '../formats/efi-signature-list.ts';
import { encodeGuid } from '../formats/guid.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr, separator } from './pcr.ts';

export interface Pcr7Options {
  readonly variables: SecureBootVariables;
  readonly isSecureBootOn: boolean;
  /**
   * DER of the db certificate that verified the image. Firmware measures an authority once, in the form in which it lies in
   * db. @default the first certificate in db
   */
  readonly authority?: Uint8Array;
}

/** UEFI_VARIABLE_DATA: GUID ‖ u64 characters of the name ‖ u64 length ‖ name, UTF-16 without NUL ‖ data. */
export function encodeVariableData(name: string, vendorGuid: string, data: Uint8Array): Uint8Array {
  const sizes = Buffer.alloc(16);
  sizes.writeBigUInt64LE(BigInt(name.length), 0);
  sizes.writeBigUInt64LE(BigInt(data.length), 8);
  return Buffer.concat([encodeGuid(vendorGuid), sizes, Buffer.from(name, 'utf16le'), data]);
}

/** @throws RangeError when Secure Boot is on and db has no such certificate: then no image would run. */
export function predictPcr7(options: Pcr7Options): PcrPrediction {
  const { pk, kek, db, dbx } = options.variables;
  const variable = (name: string, vendorGuid: string, data: Uint8Array): Measurement =>
    measure(`variable ${name} (${data.length} bytes)`, encodeVariableData(name, vendorGuid, data));
  return predictPcr([
    variable('SecureBoot', efiGlobalVariable, Uint8Array.of(options.isSecureBootOn ? 1 : 0)),
    variable('PK', efiGlobalVariable, pk),
    variable('KEK', efiGlobalVariable, kek),
    variable('db', efiImageSecurityDatabase, db),
    variable('dbx', efiImageSecurityDatabase, dbx),
    separator(),
    ...(options.isSecureBootOn ? [authority(db, options.authority)] : []),
  ]);
}

function authority(db: Uint8Array, wanted: Uint8Array | undefined): Measurement {
  const certificates = decodeSignatureLists(db).filter(({ type }) => type === 'x509');
  const entries = certificates.flatMap(({ signatures }) => signatures);
  const entry = wanted === undefined ? entries[0] : entries.find(({ data }) => Buffer.compare(data, wanted) === 0);
  if (entry === undefined)
    throw new RangeError("cannot predict PCR 7: db does not hold the image signer's certificate");
  const data = Buffer.concat([encodeGuid(entry.ownerGuid), entry.data]);
  return measure('authority db', encodeVariableData('db', efiImageSecurityDatabase, data));
}

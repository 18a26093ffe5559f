/**
 * PCR 7: the Secure Boot policy and which of its certificates let the image run (TCG PC Client Platform Firmware Profile
 * §3.3.4.8), as EDK II measures it. Boards may add events (DeployedMode, option ROM authorities): there the value that the
 * machine itself shows at enrolment counts, and this prediction is a cross-check.
 */
import { X509Certificate } from 'node:crypto';
import { verifyAuthenticode } from '../formats/authenticode.ts';
import {
  decodeSignatureLists,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SecureBootVariables,
} from '../formats/efi-signature-list.ts';
import { encodeVariableData } from '../formats/efi-variable-data.ts';
import { encodeGuid } from '../formats/guid.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr, separator } from './pcr.ts';

export { encodeVariableData };

export interface Pcr7Options {
  readonly variables: SecureBootVariables;
  readonly isSecureBootOn: boolean;
  /**
   * DER of the db certificate that verified the image. Firmware measures an authority once, in the form in which it lies in
   * db. @default the first certificate in db
   */
  readonly authority?: Uint8Array;
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

/**
 * The entry of db that lets firmware run an image, to be spread into {@link Pcr7Options}: a certificate that signed it or
 * that issued the signer's. Nothing with Secure Boot off.
 *
 * @throws RangeError when firmware would not run the image: unsigned, signed by nobody in db, or in dbx by its digest.
 */
export function findAuthority(
  image: Uint8Array,
  { variables, isSecureBootOn }: Pick<Pcr7Options, 'variables' | 'isSecureBootOn'>,
): Pick<Pcr7Options, 'authority'> {
  if (!isSecureBootOn) return {};
  const refuse = (reason: string): never => {
    throw new RangeError(`cannot predict PCR 7: with Secure Boot on, firmware does not run this image: ${reason}`);
  };
  const { digest, signatures } = verifyAuthenticode(image);
  if (signatures.length === 0) refuse('it is not signed');
  const isDenied = decodeSignatureLists(variables.dbx).some(
    ({ type, signatures: entries }) =>
      type === 'sha256' && entries.some(({ data }) => Buffer.compare(data, digest) === 0),
  );
  if (isDenied) refuse(`its digest ${Buffer.from(digest).toString('hex')} is in dbx`);
  const valid = signatures.filter(({ isValid }) => isValid);
  if (valid.length === 0) refuse(signatures[0]?.reason ?? 'its signature does not verify');
  const certificatesIn = (lists: Uint8Array): Uint8Array[] =>
    decodeSignatureLists(lists)
      .filter(({ type }) => type === 'x509')
      .flatMap(({ signatures: entries }) => entries.map(({ data }) => data));
  const trusted = certificatesIn(variables.db);
  const revoked = certificatesIn(variables.dbx);
  const vouchesFor = (signer: X509Certificate) => (der: Uint8Array) =>
    Buffer.compare(der, signer.raw) === 0 || issued(der, signer);
  // Firmware goes through db in its order for each signature, and takes the first certificate that fits.
  for (const { signer } of valid) {
    if (signer === undefined) continue;
    if (revoked.some(vouchesFor(signer))) refuse(`its signer, ${nameOf(signer)}, is in dbx`);
    const found = trusted.find(vouchesFor(signer));
    if (found !== undefined) return { authority: found };
  }
  return refuse(`its signer, ${nameOf(valid[0]?.signer)}, is not in db`);
}

const nameOf = (certificate: X509Certificate | undefined): string =>
  certificate?.subject.replaceAll('\n', ', ') ?? 'unknown';

function issued(issuerDer: Uint8Array, certificate: X509Certificate): boolean {
  try {
    const issuer = new X509Certificate(issuerDer);
    return certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
  } catch {
    // Firmware skips a db entry that is no certificate, and so do we.
    return false;
  }
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

/**
 * A set of authenticated writes that takes a machine out of Setup Mode, checked before any of it is written: firmware in
 * Setup Mode takes nearly anything, and a machine that then trusts neither its owner nor its own image is a visit.
 */
import { X509Certificate } from 'node:crypto';
import {
  authenticatedWriteProblem,
  certificatesOf,
  decodeAuthenticatedWrite,
  type EnrolledVariable,
  enrolledVariables,
} from './authenticated-variable.ts';

/** The `.auth` files, by variable. */
export type EnrolmentFiles = Readonly<Record<EnrolledVariable, Uint8Array>>;

/** The certificates that the machine will hold. */
export type EnrolledCertificates = Readonly<Record<EnrolledVariable, readonly X509Certificate[]>>;

/**
 * Checks that PK is one certificate and signed by itself, KEK by PK, db by KEK (or PK), and that db lets the image start.
 *
 * @param imageSigner whose signature the image has that the machine boots
 * @throws Error naming the file and what is wrong with it
 */
export function checkEnrolment(files: EnrolmentFiles, imageSigner: X509Certificate): EnrolledCertificates {
  const decoded = new Map(
    enrolledVariables.map((variable) => {
      const { name } = variable;
      const write = attempt(name, () => decodeAuthenticatedWrite(files[name]));
      const certificates = attempt(name, () => certificatesOf(write.lists).map((der) => new X509Certificate(der)));
      if (certificates.length === 0) refuse(name, 'it holds no certificate');
      const problem = authenticatedWriteProblem(variable, write);
      if (problem !== undefined) refuse(name, problem);
      return [name, { signer: write.signer, certificates }] as const;
    }),
  );
  const certificates = (name: EnrolledVariable) => decoded.get(name)?.certificates ?? [];
  const isSignedBy = (name: EnrolledVariable, ...by: EnrolledVariable[]) => {
    const signer = decoded.get(name)?.signer;
    return signer !== undefined && by.flatMap(certificates).some((certificate) => signer.raw.equals(certificate.raw));
  };
  if (certificates('PK').length !== 1) refuse('PK', `it holds ${certificates('PK').length} certificates, not one`);
  if (!isSignedBy('PK', 'PK')) refuse('PK', 'it is not signed by the key that it enrols');
  if (!isSignedBy('KEK', 'PK')) refuse('KEK', 'it is not signed by the key in PK.auth');
  if (!isSignedBy('db', 'KEK', 'PK')) refuse('db', 'it is not signed by a key in KEK.auth');
  if (!certificates('db').some((trusted) => isTrustedBy(imageSigner, trusted))) {
    const names = certificates('db').map(nameOf).join('; ');
    refuse(
      'db',
      `the image is signed by ${nameOf(imageSigner)}, and db would trust only ${names}: the machine would never start it again`,
    );
  }
  return { db: certificates('db'), KEK: certificates('KEK'), PK: certificates('PK') };
}

/** One line for people. */
export function nameOf(certificate: X509Certificate): string {
  return `"${certificate.subject.replaceAll('\n', ', ')}" (SHA-256 ${certificate.fingerprint256.replaceAll(':', '').toLowerCase()})`;
}

/** The same certificate, or one that the trusted authority issued. */
function isTrustedBy(signer: X509Certificate, trusted: X509Certificate): boolean {
  if (signer.raw.equals(trusted.raw)) return true;
  try {
    return trusted.ca && signer.checkIssued(trusted) && signer.verify(trusted.publicKey);
  } catch {
    return false;
  }
}

function attempt<T>(name: EnrolledVariable, work: () => T): T {
  try {
    return work();
  } catch (error) {
    return refuse(name, error instanceof Error ? error.message : String(error));
  }
}

function refuse(name: EnrolledVariable, reason: string): never {
  throw new Error(`cannot enrol ${name}.auth: ${reason}`);
}

/**
 * Names in certificates. TLS server names are roles, not addresses, so that certificates survive a change of address
 * and forwarded ports work; clients override the target name.
 */
import { createHash, type KeyObject, type X509Certificate } from 'node:crypto';
import { spkiFingerprint } from '../formats/x509.ts';

export const CURATOR_SERVER_NAME = 'curator.ashlar.internal';

/** A node whose data does not open has no ID; its TLS key is of one boot. */
export const RECOVERY_SERVER_NAME = 'recovery.node.ashlar.internal';

/** The organization in a certificate's subject says what its holder is. */
export const ORGANIZATION = {
  operator: 'ashlar-operator',
  node: 'ashlar-node',
  curator: 'ashlar-curator',
  authority: 'ashlar-ca',
} as const;

export function nodeServerName(nodeId: string): string {
  return `${nodeId}.node.ashlar.internal`;
}

/** `node-` and the first 16 hex digits of the SHA-256 of the key's SubjectPublicKeyInfo. */
export function nodeIdOf(publicKey: KeyObject): string {
  const spki = publicKey.export({ type: 'spki', format: 'der' });
  return `node-${createHash('sha256').update(spki).digest('hex').slice(0, 16)}`;
}

export function isNodeId(text: string): boolean {
  return /^node-[0-9a-f]{16}$/.test(text);
}

/** The fingerprint of a certificate's key, as the console shows it. */
export function certificateFingerprint(certificate: X509Certificate): string {
  return spkiFingerprint(certificate.publicKey);
}

/** Checks the form of a fingerprint. Throws an error that says what one looks like. */
export function checkFingerprint(text: string): string {
  if (!/^SHA256:[A-Za-z0-9_-]{43}$/.test(text)) {
    throw new Error(
      `cannot use ${JSON.stringify(text.slice(0, 80))} as a fingerprint: it must be SHA256: and 43 characters, as the console of the node shows it`,
    );
  }
  return text;
}

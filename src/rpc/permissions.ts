/**
 * Who may call what: certificate → principal → permissions. A method's permission is the option in its descriptor
 * (proto/ashlar/auth/v1/permission.proto), read at run time. Deny is the default at each step: a certificate that maps
 * to nobody, a method without an option, a permission that the principal's kind is not listed with.
 */
import type { X509Certificate } from 'node:crypto';
import { type DescMethod, getOption, hasOption } from '@bufbuild/protobuf';
import { Permission, permission as permissionOption } from './gen/ashlar/auth/v1/permission_pb.ts';
import { RpcError } from './rpc-error.ts';
import { isNodeId, nodeIdOf, ORGANIZATION } from './tls-names.ts';

/** Whom a certificate stands for. */
export type Principal =
  | { readonly kind: 'owner' }
  | { readonly kind: 'operator'; readonly name: string }
  /** A member, by a certificate of the cluster. */
  | { readonly kind: 'node'; readonly nodeId: string; readonly certificate: X509Certificate }
  /** The curator's own machine before it is a member, by its self-signed certificate. */
  | { readonly kind: 'new-node'; readonly nodeId: string; readonly certificate: X509Certificate };

/** The certificates that mean something to a server. */
export interface IdentityTrust {
  readonly authority: X509Certificate;
  readonly owner?: X509Certificate;
  readonly newNode?: X509Certificate;
}

const GRANTS: Readonly<Record<Principal['kind'], ReadonlySet<Permission>>> = {
  // The owner's key is kept away from daily work: it certifies operators and does nothing else.
  owner: new Set([Permission.ANY_AUTHENTICATED, Permission.OWNER]),
  operator: new Set([
    Permission.ANY_AUTHENTICATED,
    Permission.OPERATOR_READ,
    Permission.OPERATOR_POWER,
    Permission.OPERATOR_SEAL,
  ]),
  node: new Set([Permission.ANY_AUTHENTICATED, Permission.NODE_REGISTER, Permission.NODE_SELF]),
  'new-node': new Set([Permission.NODE_REGISTER]),
};

/** The permission in a method's descriptor. Throws when there is none: such a method cannot be served. */
export function permissionOf(method: DescMethod): Permission {
  const permission = hasOption(method, permissionOption) ? getOption(method, permissionOption) : Permission.UNSPECIFIED;
  if (permission === Permission.UNSPECIFIED) {
    throw new Error(
      `cannot serve ${method.parent.typeName}.${method.name}: it has no permission; give it the option ashlar.auth.v1.permission in its proto`,
    );
  }
  return permission;
}

/** Throws PERMISSION_DENIED unless the principal holds the method's permission. */
export function checkPermission(principal: Principal, method: DescMethod): void {
  const permission = permissionOf(method);
  if (GRANTS[principal.kind].has(permission)) return;
  throw new RpcError(
    'PERMISSION_DENIED',
    `${describePrincipal(principal)} may not call ${method.parent.typeName}.${method.name}: it needs ${permissionName(permission)}`,
  );
}

/**
 * Whom the certificate stands for. The handshake has checked its chain and dates when the connection was made; both are
 * checked again because a connection may outlive a certificate and because trust in one root must not become a role
 * that only another root gives. Throws UNAUTHENTICATED.
 */
export function identify(certificate: X509Certificate, trust: IdentityTrust, now: Date): Principal {
  const fingerprint = certificate.fingerprint256;
  if (now < certificate.validFromDate || now > certificate.validToDate) {
    throw new RpcError(
      'UNAUTHENTICATED',
      `your certificate is valid from ${certificate.validFromDate.toISOString()} to ${certificate.validToDate.toISOString()}, and it is ${now.toISOString()} here`,
    );
  }
  if (fingerprint === trust.owner?.fingerprint256) return { kind: 'owner' };
  if (fingerprint === trust.newNode?.fingerprint256) {
    return { kind: 'new-node', nodeId: nodeIdOf(certificate.publicKey), certificate };
  }
  if (!certificate.ca && certificate.checkIssued(trust.authority) && certificate.verify(trust.authority.publicKey)) {
    const { O: organization, CN: name } = certificate.toLegacyObject().subject;
    if (typeof name === 'string' && organization === ORGANIZATION.operator) return { kind: 'operator', name };
    if (
      typeof name === 'string' &&
      organization === ORGANIZATION.node &&
      isNodeId(name) &&
      name === nodeIdOf(certificate.publicKey)
    ) {
      return { kind: 'node', nodeId: name, certificate };
    }
  }
  throw new RpcError('UNAUTHENTICATED', 'your certificate stands for nobody that this server knows');
}

export function describePrincipal(principal: Principal): string {
  switch (principal.kind) {
    case 'owner':
      return 'the owner';
    case 'operator':
      return `operator ${principal.name}`;
    case 'node':
      return `node ${principal.nodeId}`;
    case 'new-node':
      return `new node ${principal.nodeId}`;
  }
}

function permissionName(permission: Permission): string {
  return Object.entries(Permission).find(([, value]) => value === permission)?.[0] ?? String(permission);
}

/**
 * PKCS #11 URIs (RFC 7512), as far as choosing a signing key goes:
 * `pkcs11:token=LABEL;object=LABEL;id=%01?module-path=/…/module.so&pin-source=/path`.
 */

const format = 'PKCS #11 URI';

/** The parts of a URI that choose a key; all others are refused, so that none is thought to count that does not. */
export interface Pkcs11Uri {
  readonly modulePath: string;
  /** Label of the token. */
  readonly token?: string;
  /** CKA_LABEL of the key. */
  readonly object?: string;
  /** CKA_ID of the key. */
  readonly id?: Uint8Array;
  /** File with the PIN. */
  readonly pinSource?: string;
}

/** RFC 7512. @throws Error naming the attribute that is wrong. */
export function parsePkcs11Uri(uri: string): Pkcs11Uri {
  const refuse = (reason: string): never => {
    throw new Error(`cannot use ${format} ${JSON.stringify(withoutPinValue(uri))}: ${reason}`);
  };
  const match = /^pkcs11:([^?]*)(?:\?(.*))?$/s.exec(uri);
  if (match === null) return refuse('it does not begin with pkcs11:');
  const attributes = new Map<string, string>();
  const pairs = [...(match[1] ?? '').split(';'), ...(match[2] ?? '').split('&')].filter((pair) => pair !== '');
  for (const pair of pairs) {
    const at = pair.indexOf('=');
    if (at < 1) return refuse(`${JSON.stringify(pair)} is not NAME=VALUE`);
    const name = pair.slice(0, at);
    if (attributes.has(name)) return refuse(`${name} is there twice`);
    attributes.set(name, pair.slice(at + 1));
  }
  const decode = (name: string): string | undefined => {
    const value = attributes.get(name);
    if (value === undefined) return undefined;
    try {
      return decodeURIComponent(value);
    } catch {
      return refuse(`${name} is not percent-encoded UTF-8`);
    }
  };
  for (const name of attributes.keys()) {
    if (name === 'pin-value')
      return refuse('pin-value would show the PIN to every process; put it into a file and say pin-source=/path');
    if (!['token', 'object', 'id', 'type', 'module-path', 'pin-source'].includes(name))
      return refuse(`${name} is not understood; use token, object, id, module-path and pin-source`);
  }
  const modulePath = decode('module-path');
  if (modulePath === undefined || !modulePath.startsWith('/'))
    return refuse("module-path is missing; add ?module-path=/absolute/path of the token's .so");
  const [token, object, id, type] = [decode('token'), decode('object'), attributes.get('id'), decode('type')];
  if (type !== undefined && type !== 'private') return refuse(`type is ${type}, only a private key can sign`);
  if (object === undefined && id === undefined) return refuse('it names no key; add object=LABEL or id=%01');
  const pinSource = decode('pin-source')?.replace(/^file:(\/\/)?(?=\/)/, '');
  if (pinSource !== undefined && !pinSource.startsWith('/'))
    return refuse('pin-source must be the absolute path of a file');
  return {
    modulePath,
    ...(token === undefined ? {} : { token }),
    ...(object === undefined ? {} : { object }),
    ...(id === undefined ? {} : { id: percentDecoded(id) ?? refuse('id is not percent-encoded') }),
    ...(pinSource === undefined ? {} : { pinSource }),
  };
}

/** For messages: a PIN that somebody wrote into the URI is not repeated. */
export function withoutPinValue(uri: string): string {
  return uri.replace(/(pin-value=)[^&;]*/g, '$1…');
}

function percentDecoded(text: string): Uint8Array | undefined {
  if (!/^(?:%[0-9a-fA-F]{2}|[A-Za-z0-9._~:[\]@!$'()*+,=&-])*$/.test(text)) return undefined;
  return Buffer.from(
    text.replaceAll(/%([0-9a-fA-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16))),
    'latin1',
  );
}

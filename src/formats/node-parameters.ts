/**
 * Node parameters: what an operator tells a machine before its first boot (docs/architecture.md). They come from the
 * ESP or from the hypervisor, unauthenticated: at most 64 KiB of JSON, every key and length checked here, and measured
 * into PCR 14 by whoever reads them, before this decoder sees them.
 */
import { isIP } from 'node:net';
import { type Check, type Checked, exactly, flag, list, object, ShapeError, text } from './json-shape.ts';

export const NODE_PARAMETERS_MAX_BYTES = 64 * 1024;

const pem = (label: string) =>
  text({
    max: 16 * 1024,
    pattern: new RegExp(`^-----BEGIN ${label}-----\\r?\\n[A-Za-z0-9+/=\\r\\n]+-----END ${label}-----\\r?\\n?$`),
  });

/** An IPv4 or IPv6 address: a node has no resolver, and a name could hold a second line of chrony's configuration. */
const timeServer: Check<string> = (value, path) => {
  const address = text({ max: 45 })(value, path);
  if (isIP(address) === 0) throw new ShapeError(path, `must be an IP address, not ${JSON.stringify(address)}`);
  return address;
};

const nodeParameters = object(
  {
    version: exactly(1),
    cluster: object({ bootstrap: object({ ownerCertificatePem: pem('CERTIFICATE') }) }),
    recovery: object({ publicKeyPem: pem('PUBLIC KEY') }),
  },
  {
    time: object({ servers: list(timeServer, { max: 8 }) }),
    tpm: object({ required: flag }),
    secureBoot: object({ enrolKeys: flag }),
  },
);

export type NodeParameters = Checked<typeof nodeParameters>;

/** Node parameters that cannot be used. The message says what is wrong and where; it holds no secret. */
export class NodeParametersError extends Error {
  constructor(problem: string, options?: ErrorOptions) {
    super(`cannot use the node parameters: ${problem}`, options);
    this.name = 'NodeParametersError';
  }
}

/** Reads node parameters. Throws `NodeParametersError`. */
export function decodeNodeParameters(bytes: Uint8Array): NodeParameters {
  if (bytes.length > NODE_PARAMETERS_MAX_BYTES)
    throw new NodeParametersError(`they have ${bytes.length} bytes, at most ${NODE_PARAMETERS_MAX_BYTES} are allowed`);
  let document: unknown;
  try {
    document = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    // The parser's own message quotes the input, which is not ours to show on a console.
    const reason = error instanceof SyntaxError ? 'they are not JSON' : 'they are not UTF-8';
    throw new NodeParametersError(reason);
  }
  // The version comes first: an unknown version explains every other difference.
  try {
    if (typeof document === 'object' && document !== null && 'version' in document)
      exactly(1)(document.version, 'version');
    return nodeParameters(document, '');
  } catch (error) {
    if (error instanceof ShapeError) throw new NodeParametersError(error.message, { cause: error });
    throw error;
  }
}

/** Writes node parameters as the decoder reads them. Throws `NodeParametersError` when they would be refused. */
export function encodeNodeParameters(parameters: NodeParameters): Uint8Array {
  const bytes = new TextEncoder().encode(`${JSON.stringify(parameters, null, 2)}\n`);
  decodeNodeParameters(bytes);
  return bytes;
}

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  decodeNodeParameters,
  encodeNodeParameters,
  NODE_PARAMETERS_MAX_BYTES,
  type NodeParameters,
  NodeParametersError,
} from './node-parameters.ts';

const body = fc.stringMatching(/^[A-Za-z0-9+/]{4,64}$/);
const pem = (label: string) => body.map((base64) => `-----BEGIN ${label}-----\n${base64}\n-----END ${label}-----\n`);
const parameters: fc.Arbitrary<NodeParameters> = fc.record(
  {
    version: fc.constant(1 as const),
    cluster: fc.record({ bootstrap: fc.record({ ownerCertificatePem: pem('CERTIFICATE') }) }),
    recovery: fc.record({ publicKeyPem: pem('PUBLIC KEY') }),
    time: fc.record({ servers: fc.array(fc.oneof(fc.ipV4(), fc.ipV6()), { maxLength: 8 }) }),
    tpm: fc.record({ required: fc.boolean() }),
  },
  { requiredKeys: ['version', 'cluster', 'recovery'] },
);
const example: NodeParameters = {
  version: 1,
  cluster: {
    bootstrap: { ownerCertificatePem: '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n' },
  },
  recovery: { publicKeyPem: '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n' },
};
const bytesOf = (document: unknown) => new TextEncoder().encode(JSON.stringify(document));
const refused = (document: unknown, message: RegExp) =>
  assert.throws(
    () => decodeNodeParameters(document instanceof Uint8Array ? document : bytesOf(document)),
    (error) => error instanceof NodeParametersError && message.test(error.message),
  );

test('what is encoded decodes to the same parameters', () => {
  fc.assert(
    fc.property(parameters, (value) => {
      assert.deepEqual(decodeNodeParameters(encodeNodeParameters(value)), structuredClone(value));
    }),
  );
});

test('no bytes make the decoder throw anything but its own error', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array({ maxLength: 200 }),
        fc.json().map((text) => Buffer.from(text)),
      ),
      (bytes) => {
        try {
          decodeNodeParameters(bytes);
        } catch (error) {
          assert.ok(error instanceof NodeParametersError, String(error));
        }
      },
    ),
  );
});

test('an unknown key is refused by its name', () => {
  refused({ ...example, tmp: { required: true } }, /: tmp is not a key that is known here/);
  refused({ ...example, tpm: { require: true } }, /: tpm\.require is not a key/);
  refused(Buffer.from(JSON.stringify(example).replace('{', '{"__proto__":{},')), /__proto__ is not a key/);
});

test('a missing key is named', () => refused({ ...example, recovery: {} }, /recovery\.publicKeyPem is missing/));

test('another version is the first thing said', () => refused({ version: 2, other: 1 }, /version must be 1, not 2/));

test('more than 64 KiB are refused before they are parsed', () =>
  refused(new Uint8Array(NODE_PARAMETERS_MAX_BYTES + 1), /65537 bytes, at most 65536/));

test('what is not UTF-8 or not JSON is refused without quoting it', () => {
  refused(Uint8Array.of(0x22, 0xff, 0x22), /not UTF-8/);
  refused(Buffer.from('secret{'), /: they are not JSON$/);
});

test('a time server cannot smuggle a second line or an option', () => {
  refused({ ...example, time: { servers: ['192.0.2.1\nallow all'] } }, /time\.servers\[0\] must be an IP address/);
  refused({ ...example, time: { servers: ['192.0.2.1 iburst'] } }, /time\.servers\[0\] must be an IP address/);
});

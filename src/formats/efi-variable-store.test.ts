import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { decodeSignatureLists, secureBootVariables } from './efi-signature-list.ts';
import {
  enrollSecureBoot,
  readVariables,
  type StoredVariable,
  setVariable,
  writeVariables,
} from './efi-variable-store.ts';
import { emptyVariableStore, mutations } from './fixtures.ts';
import { createCertificate } from './x509.ts';

const vendorGuid = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
const variable = (name: string, data: Uint8Array): StoredVariable => ({ name, vendorGuid, attributes: 7, data });
const summary = (variables: readonly StoredVariable[]) =>
  variables.map(({ name, data }) => [name, Buffer.from(data).toString('hex')]);

function certificate(commonName: string): string {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const name = { commonName };
  return createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: Uint8Array.of(1),
    notBefore: new Date('2025-06-07T00:00:00Z'),
    notAfter: new Date('2035-01-01T00:00:00Z'),
    isCa: true,
    usages: [],
  });
}
const keys = {
  ownerGuid: '12345678-1234-4234-8234-123456789abc',
  pkCertificatePem: certificate('PK'),
  kekCertificatePem: certificate('KEK'),
  dbCertificatePem: certificate('db'),
};

describe('the variable store', () => {
  it('is empty at first', () => {
    assert.deepEqual(readVariables(emptyVariableStore()), []);
  });

  it('gives back what was written, sorted by name', () => {
    const entry = fc.tuple(fc.stringMatching(/^[A-Za-zé0-9]{1,12}$/), fc.uint8Array({ minLength: 1, maxLength: 60 }));
    fc.assert(
      fc.property(fc.uniqueArray(entry, { selector: ([name]) => name, maxLength: 12 }), (entries) => {
        const written = writeVariables(
          emptyVariableStore(),
          entries.map(([name, data]) => variable(name, data)),
        );
        const expected = entries
          .toSorted(([a], [b]) => (a < b ? -1 : 1))
          .map(([name, data]) => [name, Buffer.from(data).toString('hex')]);
        assert.deepEqual(summary(readVariables(written)), expected);
      }),
      { seed: 12, numRuns: 60 },
    );
  });

  it('replaces and deletes one variable and leaves the others', () => {
    let image = setVariable(emptyVariableStore(), variable('A', Uint8Array.of(1)));
    image = setVariable(image, variable('B', Uint8Array.of(2)));
    image = setVariable(image, variable('A', Uint8Array.of(3)));
    assert.deepEqual(summary(readVariables(image)), [
      ['A', '03'],
      ['B', '02'],
    ]);
    assert.deepEqual(summary(readVariables(setVariable(image, variable('A', new Uint8Array(0))))), [['B', '02']]);
  });

  it('counts the replacement, not the old copy, when the power went between them', () => {
    const image = Buffer.from(
      writeVariables(emptyVariableStore(), [variable('A', Uint8Array.of(1)), variable('A', Uint8Array.of(2))]),
    );
    image[72 + 28 + 2] = 0x3e;
    assert.deepEqual(summary(readVariables(image)), [['A', '02']]);
    image[72 + 28 + 2] = 0x3f;
    image[72 + 28 + 64 + 4 + 2] = 0x3e;
    assert.deepEqual(summary(readVariables(image)), [['A', '01']]);
    image[72 + 28 + 64 + 4 + 2] = 0x3f;
    image[72 + 28 + 2] = 0x3c;
    assert.deepEqual(summary(readVariables(image)), [['A', '02']]);
  });

  it('refuses what is not a store, and more than fits', () => {
    assert.throws(() => readVariables(new Uint8Array(4096)), /FileSystemGuid at offset 0x10/);
    assert.throws(() => readVariables(emptyVariableStore().subarray(0, 4000)), /FvLength/);
    const wrongSum = emptyVariableStore();
    wrongSum[50] = (wrongSum[50] ?? 0) ^ 1;
    assert.throws(() => readVariables(wrongSum), /do not sum to zero/);
    assert.throws(() => setVariable(emptyVariableStore(), variable('A', new Uint8Array(9000))), /do not fit the store/);
  });

  it('answers mutated images with variables or a FormatError', () => {
    const image = enrollSecureBoot(emptyVariableStore(), secureBootVariables(keys));
    for (const bytes of mutations(image, { seed: 13, count: 2000, window: 600 })) {
      try {
        readVariables(bytes);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});

describe('enrollSecureBoot', () => {
  it('writes the keys, turns enforcement on and is the same twice', () => {
    const image = enrollSecureBoot(emptyVariableStore(), secureBootVariables({ ...keys, dbx: 'dummy' }));
    assert.deepEqual(enrollSecureBoot(emptyVariableStore(), secureBootVariables({ ...keys, dbx: 'dummy' })), image);
    const variables = new Map(readVariables(image).map((found) => [found.name, found]));
    assert.deepEqual([...variables.keys()], ['CustomMode', 'KEK', 'PK', 'SecureBootEnable', 'db', 'dbx']);
    assert.deepEqual([...(variables.get('SecureBootEnable')?.data ?? [])], [1]);
    assert.deepEqual([...(variables.get('CustomMode')?.data ?? [])], [0]);
    assert.equal(variables.get('db')?.attributes, 0x27);
    assert.equal(Buffer.from(variables.get('db')?.timestamp ?? []).toString('hex'), `e9070607${'00'.repeat(12)}`);
    assert.equal(decodeSignatureLists(variables.get('dbx')?.data ?? new Uint8Array(0))[0]?.type, 'sha256');
  });

  it('writes no dbx when it is empty', () => {
    const names = readVariables(enrollSecureBoot(emptyVariableStore(), secureBootVariables(keys))).map(
      ({ name }) => name,
    );
    assert.ok(!names.includes('dbx'));
  });
});

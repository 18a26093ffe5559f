import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import {
  decodeDer,
  decodeDerElements,
  decodeDerPrefix,
  decodeOid,
  derChildren,
  derElement,
  derInteger,
  derNamedBits,
  derOctetString,
  derOid,
  derSequence,
  derSetOf,
  derTime,
} from './der.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('DER', () => {
  it('encodes integers, bits, times and identifiers in their shortest form', () => {
    assert.equal(hex(derInteger(0)), '020100');
    assert.equal(hex(derInteger(127)), '02017f');
    assert.equal(hex(derInteger(128)), '02020080');
    assert.equal(hex(derInteger(Uint8Array.of(0, 0, 1))), '020101');
    assert.equal(hex(derNamedBits([0])), '03020780');
    assert.equal(hex(derNamedBits([5, 6])), '03020106');
    assert.equal(hex(derOid('1.2.840.113549.1.1.11')), '06092a864886f70d01010b');
    assert.equal(Buffer.from(derTime(new Date('2049-12-31T23:59:59Z'))).toString('latin1', 2), '491231235959Z');
    assert.equal(Buffer.from(derTime(new Date('2050-01-01T00:00:00Z'))).toString('latin1', 2), '20500101000000Z');
  });

  it('sorts the members of a SET OF', () => {
    assert.equal(hex(derSetOf(derInteger(2), derInteger(1))), hex(derSetOf(derInteger(1), derInteger(2))));
  });

  it('reads back what it wrote, with every length form', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 400 }), { maxLength: 5 }), (contents) => {
        const outer = derSequence(...contents.map(derOctetString));
        const children = derChildren(decodeDer(outer, 'test'), 'test');
        assert.deepEqual(
          children.map((child) => hex(child.content)),
          contents.map(hex),
        );
      }),
      { seed: 1, numRuns: 100 },
    );
    const long = derOctetString(new Uint8Array(70_000));
    assert.equal(decodeDer(long, 'test').content.length, 70_000);
  });

  it('reads back object identifiers', () => {
    const arcs = fc.tuple(
      fc.integer({ min: 0, max: 2 }),
      fc.integer({ min: 0, max: 39 }),
      fc.array(fc.nat(), { maxLength: 6 }),
    );
    fc.assert(
      fc.property(arcs, ([first, second, rest]) => {
        const dotted = [first, second, ...rest].join('.');
        assert.equal(decodeOid(decodeDer(derOid(dotted), 'test'), 'test'), dotted);
      }),
      { seed: 1, numRuns: 100 },
    );
  });

  it('refuses what is not DER, naming field and offset', () => {
    const refuse = (bytes: string, message: RegExp) =>
      assert.throws(() => decodeDer(Buffer.from(bytes, 'hex'), 'test'), message);
    refuse('', /DER tag at offset 0x0/);
    refuse('3080', /indefinite length/);
    refuse('048101aa', /not minimal/);
    refuse('0402aa', /needs 2 bytes, 1 are left/);
    refuse('0401aabb', /1 bytes follow/);
    refuse('1f0100', /multi-byte tags/);
    refuse('0485010000000000', /5 length octets/);
  });

  it('answers any bytes with elements or a FormatError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          for (const element of decodeDerElements(bytes, 'test')) assert.ok(element.content.length <= bytes.length);
          decodeDerPrefix(bytes, 'test');
        } catch (error) {
          assert.ok(error instanceof FormatError);
        }
      }),
      { seed: 2, numRuns: 1000 },
    );
  });

  it('keeps the tag it is given', () => {
    assert.equal(decodeDer(derElement(0xa1), 'test').tag, 0xa1);
  });
});

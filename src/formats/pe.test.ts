import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { minimalPe, mutations } from './fixtures.ts';
import { buildUki, decodePe, findPeSection, peSectionContent, replacePeSection } from './pe.ts';

describe('decodePe', () => {
  it('reads sections and their contents', () => {
    const bytes = minimalPe({ text: Buffer.from('abc') });
    const image = decodePe(bytes);
    assert.deepEqual(
      image.sections.map(({ name }) => name),
      ['.text', '.sbat'],
    );
    assert.equal(Buffer.from(peSectionContent(bytes, image.sections[0]!)).toString(), 'abc');
    assert.equal(image.certificateTable.size, 0);
  });

  it('adds zeros where memory is larger than the file, within a limit', () => {
    const bytes = minimalPe();
    const section = decodePe(bytes).sections[0]!;
    assert.equal(peSectionContent(bytes, { ...section, virtualSize: 0x1000 }).length, 0x1000);
    assert.throws(() => peSectionContent(bytes, { ...section, virtualSize: 0xffff_ffff }), /at most/);
  });

  it('names field and offset of what is wrong', () => {
    const broken = (offset: number, value: number) => {
      const bytes = minimalPe();
      new DataView(bytes.buffer, bytes.byteOffset).setUint32(offset, value, true);
      return () => decodePe(bytes);
    };
    assert.throws(broken(0, 0), /DOS magic at offset 0x0/);
    assert.throws(broken(0x3c, 0xffff_fff0), /e_lfanew at offset 0x40: points to 4294967280/);
    assert.throws(broken(0x80, 0), /signature at offset 0x80/);
    assert.throws(broken(0x84, 0xffff_8664), /NumberOfSections at offset 0x86: 65535 is over the limit of 96/);
    assert.throws(broken(0x98 + 60, 1 << 30), /SizeOfHeaders/);
    assert.throws(broken(0x98 + 240 + 16, 1 << 30), /section "\.text" at offset 0x188: raw data/);
    assert.throws(() => decodePe(new Uint8Array(10)), /e_lfanew|DOS magic/);
  });

  it('refuses two sections of the wanted name', () => {
    const image = decodePe(minimalPe());
    const twice = { ...image, sections: [...image.sections, ...image.sections] };
    assert.throws(() => findPeSection(twice, '.sbat'), /2 sections named \.sbat/);
  });

  it('answers mutated files with an image or a FormatError', () => {
    for (const bytes of mutations(minimalPe(), { seed: 11, count: 3000, window: 0x200 })) {
      try {
        const image = decodePe(bytes);
        for (const section of image.sections)
          assert.ok(section.pointerToRawData + section.sizeOfRawData <= bytes.length || section.sizeOfRawData === 0);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});

describe('buildUki', () => {
  const sections = [
    { name: '.osrel', data: Buffer.from('ID=ashlar\n') },
    { name: '.cmdline', data: Buffer.from('quiet') },
    { name: '.initrd', data: new Uint8Array(0x1234).fill(7) },
    { name: '.linux', data: minimalPe({ text: Buffer.from('kernel') }) },
  ];

  it('follows the PE rules for every appended section', () => {
    const stub = minimalPe();
    const uki = buildUki({ stub, sections });
    const image = decodePe(uki);
    assert.deepEqual(
      image.sections.map(({ name }) => name),
      ['.text', '.sbat', '.osrel', '.cmdline', '.initrd', '.linux'],
    );
    let end = 0;
    for (const section of image.sections) {
      assert.ok(section.virtualAddress >= end);
      assert.equal(section.virtualAddress % 0x1000, 0);
      assert.equal(section.pointerToRawData % 0x200, 0);
      assert.equal(section.sizeOfRawData % 0x200, 0);
      end = section.virtualAddress + section.virtualSize;
    }
    assert.equal(image.sizeOfImage, Math.ceil(end / 0x1000) * 0x1000);
    assert.equal(image.timeDateStamp, 0);
    assert.equal(findPeSection(image, '.linux')?.characteristics, 0x4000_0020);
    assert.equal(findPeSection(image, '.initrd')?.characteristics, 0x4000_0040);
    assert.equal(uki.length % 0x200, 0);
  });

  it('gives back exactly the contents it was given', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 3000 }), { maxLength: 8 }), (contents) => {
        const uki = buildUki({ stub: minimalPe(), sections: contents.map((data, i) => ({ name: `.s${i}`, data })) });
        const image = decodePe(uki);
        for (const [i, data] of contents.entries()) {
          assert.deepEqual(Buffer.from(peSectionContent(uki, findPeSection(image, `.s${i}`)!)), Buffer.from(data));
        }
      }),
      { seed: 3, numRuns: 40 },
    );
  });

  it('withdraws the NX promise only when the kernel does not make it', () => {
    const withKernel = (dllCharacteristics: number) =>
      decodePe(buildUki({ stub: minimalPe(), sections: [{ name: '.linux', data: minimalPe({ dllCharacteristics }) }] }))
        .dllCharacteristics;
    assert.equal(withKernel(0x160), 0x160);
    assert.equal(withKernel(0x60), 0x60);
  });

  it('refuses what it cannot append', () => {
    const add =
      (name: string, count = 1) =>
      () =>
        buildUki({
          stub: minimalPe(),
          sections: Array.from({ length: count }, (_, i) => ({
            name: count === 1 ? name : `.${i}`,
            data: new Uint8Array(1),
          })),
        });
    assert.throws(add('.toolongname'), /not 1 to 8 ASCII/);
    assert.throws(add('.sbat'), /there already/);
    assert.throws(add('', 60), /room for 26 more section headers, 60 are wanted/);
  });
});

describe('replacePeSection', () => {
  it('changes that section, nothing else, and not the input', () => {
    const before = buildUki({ stub: minimalPe(), sections: [{ name: '.note', data: Buffer.from('one') }] });
    const input = Buffer.from(before);
    const after = replacePeSection(input, '.note', Buffer.from('two'));
    assert.deepEqual(input, Buffer.from(before));
    const expected = buildUki({ stub: minimalPe(), sections: [{ name: '.note', data: Buffer.from('two') }] });
    assert.deepEqual(after, expected);
  });

  it('refuses another length, and a section that is not there', () => {
    const image = buildUki({ stub: minimalPe(), sections: [{ name: '.note', data: Buffer.from('one') }] });
    assert.throws(() => replacePeSection(image, '.note', Buffer.from('three')), /has 3 bytes, the new content 5/);
    assert.throws(() => replacePeSection(image, '.none', Buffer.from('x')), /\.none: there is none/);
  });
});

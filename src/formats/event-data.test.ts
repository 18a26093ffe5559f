import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import { formatDevicePath } from './device-path.ts';
import { dummyDbx } from './efi-signature-list.ts';
import { decodeVariableData, encodeVariableData } from './efi-variable-data.ts';
import { eventBinding } from './event-binding.ts';
import { decodeEventData } from './event-data.ts';
import { decodeEventLog, type EventLogEntry } from './event-log.ts';
import { eventType, eventTypeName } from './event-types.ts';
import { encodeEventLog, mutations } from './fixtures.ts';
import { encodeGptEvent } from './gpt.ts';
import { encodeGuid } from './guid.ts';

const global = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
const security = 'd719b2cb-3d3a-4596-a3bc-dad00e67656f';
const partition = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b';

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex');
const u16 = (value: number): Buffer => Buffer.of(value & 0xff, value >> 8);
const u64 = (value: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const wide = (text: string): Buffer => Buffer.from(text, 'utf16le');
const node = (type: number, subType: number, body: Uint8Array): Buffer =>
  Buffer.concat([Buffer.of(type, subType), u16(body.length + 4), body]);
const end = node(0x7f, 0xff, Buffer.alloc(0));

const bootPath = Buffer.concat([
  node(2, 1, hex('d041030a 00000000')),
  node(1, 1, hex('02 1f')),
  node(4, 1, Buffer.concat([hex('01000000'), u64(0x800), u64(0x1000), encodeGuid(partition), hex('02 02')])),
  node(4, 4, wide('\\EFI\\BOOT\\BOOTX64.EFI\0')),
  end,
]);
const bootPathText = `PciRoot(0x0)/Pci(0x1F,0x2)/HD(1,GPT,${partition},0x800,0x1000)/\\EFI\\BOOT\\BOOTX64.EFI`;

function decode(type: number, data: Uint8Array): ReturnType<typeof decodeEventData> {
  return decodeEventData({ type, typeName: eventTypeName(type), data });
}

describe('formatDevicePath', () => {
  it('writes a path as UEFI does', () => {
    assert.deepEqual(formatDevicePath(bootPath), { text: bootPathText, warnings: [] });
    const network = Buffer.concat([
      node(3, 0x0b, Buffer.concat([hex('525400123456'), Buffer.alloc(26), hex('01')])),
      node(3, 0x0c, hex('c0000202 c0000201 0000 0000 1100 00')),
      node(3, 0x18, Buffer.from('http://boot.example/a.efi')),
      node(3, 0x17, hex('01000000 0011223344556677')),
      end,
    ]);
    assert.equal(
      formatDevicePath(network).text,
      'MAC(525400123456,0x1)/IPv4(192.0.2.1,UDP,DHCP,192.0.2.2)/Uri(http://boot.example/a.efi)/NVMe(0x1,77-66-55-44-33-22-11-00)',
    );
  });

  it('shows what it does not know, and what is cut, as bytes, and says so', () => {
    assert.deepEqual(formatDevicePath(Buffer.concat([node(9, 9, hex('0102')), node(4, 1, hex('01')), end])), {
      text: 'Path(9,9,0102)/Path(4,1,01)',
      warnings: [],
    });
    assert.match(formatDevicePath(bootPath.subarray(0, -4)).warnings.join(), /has no end/);
    assert.match(formatDevicePath(hex('0101ffff')).warnings.join(), /says that it has 65535 bytes/);
    assert.match(formatDevicePath(Buffer.alloc(4000, hex('09090400'))).warnings.join(), /over 128 parts/);
  });
});

describe('variables in events', () => {
  it('are read back as they are measured', () => {
    const variable = decodeVariableData(encodeVariableData('SecureBoot', global, Uint8Array.of(1)));
    assert.deepEqual(
      { ...variable, data: [...variable.data] },
      { name: 'SecureBoot', vendorGuid: global, data: [1], trailingBytes: 0 },
    );
  });

  it('are decoded by what they are', () => {
    const { efiVariableDriverConfig: config, efiVariableBoot: boot } = eventType;
    const value = (type: number, name: string, guid: string, data: Uint8Array): unknown => {
      const decoded = decode(type, encodeVariableData(name, guid, data));
      assert.deepEqual(decoded.warnings, []);
      return decoded.data.kind === 'variable' ? decoded.data.value : decoded.data;
    };
    assert.deepEqual(value(config, 'SecureBoot', global, Uint8Array.of(1)), { kind: 'boolean', value: true });
    assert.deepEqual(value(config, 'dbx', security, Buffer.alloc(0)), { kind: 'empty' });
    assert.deepEqual(value(config, 'dbx', security, dummyDbx()), {
      kind: 'signature-lists',
      signatures: [
        {
          ownerGuid: 'a0baa8a3-041d-48a8-bc87-c36d121b5e3d',
          type: 'sha256',
          sha256: createHash('sha256').digest('hex'),
        },
      ],
    });
    assert.deepEqual(value(boot, 'BootOrder', global, hex('0100 0a00')), {
      kind: 'boot-order',
      entries: ['0001', '000A'],
    });
    const option = Buffer.concat([hex('01000000'), u16(bootPath.length), wide('Ashlar A\0'), bootPath, hex('beef')]);
    assert.deepEqual(value(boot, 'Boot0001', global, option), {
      kind: 'load-option',
      isActive: true,
      description: 'Ashlar A',
      devicePath: bootPathText,
      optionalDataHex: 'beef',
    });
  });

  it('whose content is broken are shown as bytes with a warning', () => {
    const broken = decode(eventType.efiVariableDriverConfig, encodeVariableData('db', security, hex('00112233')));
    assert.match(broken.warnings.join(), /the content of variable "db": cannot decode EFI signature list/);
    const lying = encodeVariableData('db', security, hex('00112233'));
    lying[24] = 0xff;
    assert.deepEqual(decode(eventType.efiVariableDriverConfig, lying).data.kind, 'bytes');
  });
});

describe('decodeEventData', () => {
  it('reads each type of the specification', () => {
    const text = (value: string, encoding: 'ascii' | 'utf-16' = 'ascii') => ({ kind: 'text', text: value, encoding });
    const gpt = encodeGptEvent({
      diskGuid: global,
      sectorSize: 512,
      diskSectors: 100_000,
      partitions: [
        {
          number: 1,
          typeGuid: partition,
          uniqueGuid: security,
          name: 'ESP',
          startLba: 2048,
          endLba: 4095,
          attributes: 0n,
        },
      ],
    });
    const image = Buffer.concat([u64(0x7e00_0000), u64(4096), u64(0), u64(bootPath.length), bootPath]);
    const cases: [number, Uint8Array, unknown][] = [
      [eventType.separator, Buffer.alloc(4), { kind: 'separator', meaning: 'end of firmware', value: '0x0' }],
      [eventType.separator, hex('01000000'), { kind: 'separator', meaning: 'error', value: '0x1' }],
      [eventType.efiAction, Buffer.from('Exit Boot Services Invocation'), text('Exit Boot Services Invocation')],
      [eventType.ipl, wide('.linux\0'), text('.linux', 'utf-16')],
      [eventType.ipl, Buffer.from('grub_cmd: boot\0'), text('grub_cmd: boot')],
      [eventType.sCrtmVersion, wide('1.2\0'), text('1.2', 'utf-16')],
      [eventType.sCrtmVersion, encodeGuid(global), text(global)],
      [eventType.postCode, Buffer.from('ACPI DATA'), text('ACPI DATA')],
      [eventType.efiHcrtmEvent, Buffer.from('HCRTM'), text('HCRTM')],
      [eventType.compactHash, hex('00ff00ff'), { kind: 'bytes', hex: '00ff00ff' }],
      [eventType.prebootCert, Buffer.alloc(0), { kind: 'empty' }],
      [
        eventType.eventTag,
        Buffer.concat([hex('ec223b8f 0d000000'), Buffer.from('Linux initrd\0')]),
        {
          kind: 'tag',
          id: '0x8f3b22ec',
          name: 'Linux initrd',
          hex: '4c696e757820696e6974726400',
          text: 'Linux initrd',
        },
      ],
      [
        eventType.efiPlatformFirmwareBlob2,
        Buffer.concat([hex('02'), Buffer.from('FV'), u64(0xff00_0000), u64(4096)]),
        { kind: 'firmware-blob', description: 'FV', address: '0xff000000', sizeBytes: '0x1000' },
      ],
      [
        eventType.efiHandoffTables,
        Buffer.concat([u64(1), encodeGuid(global), u64(0x1234)]),
        { kind: 'tables', tables: [{ guid: global, address: '0x1234' }] },
      ],
      [
        eventType.efiBootServicesApplication,
        image,
        {
          kind: 'image-load',
          address: '0x7e000000',
          sizeBytes: '0x1000',
          linkTimeAddress: '0x0',
          devicePath: bootPathText,
        },
      ],
      [
        eventType.efiGptEvent,
        gpt,
        {
          kind: 'partition-table',
          diskGuid: global,
          partitions: [{ typeGuid: partition, uniqueGuid: security, startLba: '0x800', endLba: '0xfff', name: 'ESP' }],
        },
      ],
      [
        eventType.efiVariableAuthority,
        encodeVariableData('db', security, Buffer.concat([encodeGuid(global), Buffer.alloc(32, 7)])),
        {
          kind: 'authority',
          name: 'db',
          vendorGuid: security,
          sizeBytes: 48,
          value: {
            kind: 'signature-lists',
            signatures: [{ ownerGuid: global, type: 'sha256', sha256: '07'.repeat(32) }],
          },
        },
      ],
      [
        eventType.efiSpdmFirmwareBlob,
        Buffer.from('SPDM Device Sec\0\x02'),
        { kind: 'device', signature: 'SPDM Device Sec', hex: '02' },
      ],
      [eventType.noAction, Buffer.from('StartupLocality\0\x03'), { kind: 'startup-locality', locality: 3 }],
      [
        eventType.noAction,
        Buffer.concat([Buffer.from('SP800-155 Event\0'), hex('37010000'), encodeGuid(global)]),
        {
          kind: 'reference-manifest',
          signature: 'SP800-155 Event',
          vendorId: 0x137,
          guid: global,
          strings: [],
          restHex: '',
        },
      ],
      [
        eventType.noAction,
        Buffer.from('NvIndexInstance\0\x01'),
        { kind: 'no-action', signature: 'NvIndexInstance', hex: '01' },
      ],
    ];
    for (const [type, data, expected] of cases) {
      assert.deepEqual(decode(type, data), { data: expected, warnings: [] }, eventTypeName(type));
    }
  });

  it('has a reader for every type that the specification names', () => {
    for (const type of Object.values(eventType)) {
      const { warnings } = decode(type, Buffer.from('something that is long enough for a beginning'));
      assert.ok(!warnings.join().includes('not in the specification'), eventTypeName(type));
    }
  });

  it('says of what it cannot read that it cannot', () => {
    assert.match(decode(0x402, hex('ff')).warnings.join(), /type 0x402 is not in the specification/);
    assert.match(decode(eventType.noAction, hex('00'.repeat(20))).warnings.join(), /no signature/);
    assert.match(decode(eventType.efiGptEvent, hex('00')).warnings.join(), /header at offset 0x0: needs 92 bytes/);
    assert.deepEqual(decode(eventType.efiGptEvent, hex('00')).data, { kind: 'bytes', hex: '00' });
    assert.match(decode(eventType.separator, hex('0000')).warnings.join(), /2 bytes instead of 4/);
  });

  it('takes any data whatever for any type', () => {
    const seed = Buffer.concat([u64(1), u64(2), u64(3), u64(bootPath.length), bootPath]);
    for (const type of [...Object.values(eventType), 0x1234]) {
      for (const data of mutations(seed, { seed: type, count: 100 })) decode(type, data);
    }
  });
});

describe('eventBinding', () => {
  const entryOf = (type: number, data: Uint8Array): EventLogEntry => {
    const [entry] = decodeEventLog(encodeEventLog([{ pcr: 1, type, data }])).entries;
    assert.ok(entry);
    return entry;
  };

  it('tells data that the register vouches for from data that may say anything', () => {
    assert.equal(eventBinding(entryOf(eventType.efiAction, Buffer.from('said'))), 'bound');
    const edited = { ...entryOf(eventType.efiAction, Buffer.from('said')), data: Buffer.from('made up') };
    assert.equal(eventBinding(edited), 'contradicts');
    assert.equal(eventBinding({ ...edited, type: eventType.ipl }), 'free');
    assert.equal(eventBinding(entryOf(eventType.noAction, Buffer.from('said'))), 'free');
  });

  it('knows that of a boot variable the content alone may be measured, and not of others', () => {
    const data = encodeVariableData('BootOrder', global, hex('0100'));
    const measured = { ...entryOf(eventType.efiVariableBoot, hex('0100')), data };
    assert.equal(eventBinding(measured), 'bound');
    assert.equal(eventBinding({ ...measured, type: eventType.efiVariableDriverConfig }), 'contradicts');
  });

  it('is not taken in by one true digest beside a false one', () => {
    const entry = entryOf(eventType.efiAction, Buffer.from('said'));
    const digests = new Map(entry.digests).set('sha256', Buffer.alloc(32));
    assert.equal(eventBinding({ ...entry, digests }), 'contradicts');
  });
});

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { eventBinding } from '../formats/event-binding.ts';
import { decodeEventData } from '../formats/event-data.ts';
import { decodeEventLog } from '../formats/event-log.ts';
import { encodeEventLog, skipWithout } from '../formats/fixtures.ts';
import { replayAllBanks, replayEventLog } from './event-log-replay.ts';
import { comparePcrs } from './pcr-comparison.ts';

/** A first boot of an image in a virtual machine, Secure Boot on, and what its TPM said afterwards. */
const recordedUrl = new URL('../formats/recorded/ovmf-2025.02-first-boot.bin', import.meta.url);
const recorded = decodeEventLog(readFileSync(recordedUrl));
const said: Readonly<Record<string, string>> = {
  0: 'c01ed7cbd94138845ba7dc8cd47d88e99fb9540db37bea323074a78a9a467a39',
  1: '5d26a5f4eb2706c3594302c0418dcc56ef3738e49f32855e3258b8569453a937',
  2: '3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969',
  3: '3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969',
  4: '9aa9f9118e65f1e6d35a2675c13f3e88fb90fab86fd69b76c61a233254f07ac4',
  5: 'eb1322f05a08b9c78e27ee5a90d16395f6719465f9f508271d638a64e7231bec',
  6: '3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969',
  7: 'b80644dc015aff2201e99acd2875d2b2171381348bbb34409d630a95dd3a07a4',
  9: 'bf3e0c8b2e9d961a19978d8186a490ec3eb4b8089c588f4ec5cde3e34af5e00c',
  11: '4ac86c053ddbbf6d2698c05f749bd016feefd4eef31c188985b2eb4b910779b9',
  12: '00'.repeat(32),
  14: '8850f6d474ed99ff97cad9817c2339aaabaf7e335c9750e54cfd467bff5cc142',
  17: 'ff'.repeat(32),
};
const actual = new Map(Object.entries(said).map(([pcr, value]) => [Number(pcr), Buffer.from(value, 'hex')]));

const hex = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString('hex');

describe('the log of a real boot', () => {
  it('explains what the TPM said', () => {
    const { banks, warnings } = replayAllBanks(recorded);
    assert.deepEqual(warnings, []);
    assert.deepEqual(banks.get('sha256'), replayEventLog(recorded));
    const verdicts = comparePcrs('sha256', banks.get('sha256') ?? new Map(), actual).map(
      ({ pcr, verdict }): [number, string] => [pcr, verdict],
    );
    const equal = [0, 1, 2, 3, 4, 5, 6, 7, 9].map((pcr): [number, string] => [pcr, 'equal']);
    assert.deepEqual(verdicts, [
      ...equal,
      [11, 'equal after boot phases'],
      [12, 'untouched'],
      [14, 'no events'],
      [17, 'untouched'],
    ]);
  });

  it('is read without a warning', () => {
    assert.deepEqual(recorded.warnings, []);
    for (const entry of recorded.entries) {
      const { data, warnings } = decodeEventData(entry);
      assert.deepEqual([...entry.warnings, ...warnings], [], entry.typeName);
      assert.notEqual(data.kind, 'bytes');
      assert.notEqual(eventBinding(entry), 'contradicts');
    }
  });

  it('is read alike by tpm2_eventlog: types, registers, digests, replay', {
    skip: skipWithout('tpm2_eventlog'),
  }, () => {
    const { stdout } = spawnSync('tpm2_eventlog', [fileURLToPath(recordedUrl)], { encoding: 'utf8' });
    const [events = '', pcrs = ''] = stdout.split(/^pcrs:$/m);
    const found = events.split(/^- EventNum: /m).slice(2);
    assert.deepEqual(
      found.map((event) => ({
        index: Number(/^\d+/.exec(event)?.[0]),
        pcr: Number(/PCRIndex: (\d+)/.exec(event)?.[1]),
        typeName: /EventType: (\S+)/.exec(event)?.[1],
        digest: /Digest: "([0-9a-f]+)"/.exec(event)?.[1],
        size: Number(/EventSize: (\d+)/.exec(event)?.[1]),
      })),
      recorded.entries.map(({ index, pcr, typeName, digests, data }) => ({
        ...{ index, pcr, typeName, digest: hex(digests.get('sha256')), size: data.length },
      })),
    );
    const theirs = [...pcrs.matchAll(/^ +(\d+) *: 0x([0-9a-f]+)$/gm)].map(([, pcr, value]) => [Number(pcr), value]);
    const ours = [...replayEventLog(recorded)].toSorted(([a], [b]) => a - b).map(([pcr, value]) => [pcr, hex(value)]);
    assert.deepEqual(theirs, ours);
  });

  it('differs in the register whose event was edited, and in no other', () => {
    const bytes = readFileSync(recordedUrl);
    const entry = recorded.entries.find(({ typeName }) => typeName === 'EV_EFI_BOOT_SERVICES_APPLICATION');
    const digest = entry?.digests.get('sha256');
    assert.ok(digest);
    bytes[bytes.indexOf(digest)] = (digest[0] ?? 0) ^ 1;
    const verdicts = comparePcrs('sha256', replayEventLog(decodeEventLog(bytes)), actual);
    assert.deepEqual(
      verdicts.filter(({ verdict }) => verdict === 'differs').map(({ pcr }) => pcr),
      [4],
    );
  });

  it('is decoded and replayed in five milliseconds a hundred kilobytes, in all its banks', () => {
    const start = readFileSync(recordedUrl);
    const header = 32 + 33;
    const bytes = Buffer.concat([start, ...Array.from({ length: 12 }, () => start.subarray(header))]);
    assert.ok(bytes.length > 98_000);
    const times = Array.from({ length: 30 }, () => {
      const before = process.cpuUsage();
      replayAllBanks(decodeEventLog(bytes));
      const { user, system } = process.cpuUsage(before);
      return (user + system) / 1000;
    });
    // The least is what it costs; the others are what else the machine does.
    assert.ok(Math.min(...times) <= 5, `took ${Math.min(...times)} ms`);
  });
});

describe('replayAllBanks', () => {
  const digest = (algorithm: string, ...parts: Uint8Array[]): Buffer =>
    parts.reduce((state, part) => state.update(part), createHash(algorithm)).digest();

  it('replays each bank by its own digests', () => {
    const data = Buffer.from('x');
    const { banks } = replayAllBanks(decodeEventLog(encodeEventLog([{ pcr: 8, type: 5, data }])));
    assert.deepEqual([...banks.keys()], ['sha1', 'sha256']);
    for (const [algorithm, size] of [
      ['sha1', 20],
      ['sha256', 32],
    ] as const) {
      const expected = digest(algorithm, Buffer.alloc(size), digest(algorithm, data));
      assert.equal(hex(banks.get(algorithm)?.get(8)), expected.toString('hex'));
    }
  });

  it('says which registers it cannot vouch for, and replays the rest', () => {
    const log = decodeEventLog(
      encodeEventLog([
        { pcr: 1, type: 5, data: Buffer.from('a') },
        { pcr: 2, type: 5, data: Buffer.from('b') },
      ]),
    );
    const [first, ...others] = log.entries;
    assert.ok(first);
    const digests = new Map([...first.digests].filter(([name]) => name === 'sha1'));
    const { banks, warnings } = replayAllBanks({ ...log, entries: [{ ...first, digests }, ...others] });
    assert.deepEqual(warnings, ['bank sha256: PCR 1 has events without a digest for it']);
    assert.deepEqual([...(banks.get('sha256')?.keys() ?? [])], [2]);
    assert.deepEqual([...(banks.get('sha1')?.keys() ?? [])], [1, 2]);
  });

  it('takes the start-up locality of PCR 0 only before its first event', () => {
    const locality = { pcr: 0, type: 3, data: Buffer.from('StartupLocality\0\x03') };
    const event = { pcr: 0, type: 5, data: Buffer.from('a') };
    const value = (events: (typeof event)[]) => replayAllBanks(decodeEventLog(encodeEventLog(events)));
    assert.equal(hex(value([locality]).banks.get('sha1')?.get(0)), `${'00'.repeat(19)}03`);
    assert.deepEqual(value([event, locality]).banks, value([event]).banks);
    assert.match(value([event, locality]).warnings.join(), /start-up locality after the first event/);
  });
});

describe('comparePcrs', () => {
  it('takes a register of the firmware that has no event for a log that was cut', () => {
    const [cut] = comparePcrs('sha256', new Map(), new Map([[4, Buffer.alloc(32, 1)]]));
    assert.equal(cut?.verdict, 'differs');
  });

  it('takes one boot phase, not two in the wrong order', () => {
    const phases = ['enter-initrd', 'leave-initrd'].map((phase) => createHash('sha256').update(phase).digest());
    const chain = (list: Buffer[]): Buffer =>
      list.reduce((value, phase) => createHash('sha256').update(value).update(phase).digest(), Buffer.alloc(32));
    const verdict = (list: Buffer[]) =>
      comparePcrs('sha256', new Map([[11, Buffer.alloc(32)]]), new Map([[11, chain(list)]]))[0]?.verdict;
    assert.equal(verdict(phases.slice(0, 1)), 'equal after boot phases');
    assert.equal(verdict(phases.toReversed()), 'differs');
  });
});

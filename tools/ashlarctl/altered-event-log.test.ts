import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { decodeAllowedImage } from '../../src/measure/allowed-image.ts';
import { judge } from '../../src/measure/judge.ts';

const SAMPLE = join(import.meta.dirname, '../../docs/evidence-sample');

test('what a log says of Secure Boot is refused when it is not what was measured, though every digest is right', async () => {
  const measurements = await readFile(join(SAMPLE, 'measurements.json'), 'utf8');
  const source = await readFile(join(SAMPLE, 'evidence.json'), 'utf8');
  const time = new Date((JSON.parse(source) as { time: string }).time);
  const policy = { images: [decodeAllowedImage(measurements, 'sample')], time };
  assert.deepEqual(failures(judge(source, policy)), []);

  const evidence = JSON.parse(source) as { eventLog: string };
  const log = Buffer.from(evidence.eventLog, 'base64');
  // The end of a certificate that the KEK or db variable holds: data of an event of PCR 7, no digest.
  const at = log.indexOf(Buffer.from('KEK', 'utf16le')) + 600;
  log.writeUInt8(log.readUInt8(at) ^ 1, at);
  const altered = JSON.stringify({ ...evidence, eventLog: log.toString('base64') });
  assert.deepEqual(failures(judge(altered, policy)), ['event-log']);
});

function failures({ checks }: ReturnType<typeof judge>): string[] {
  return checks.filter(({ outcome }) => outcome === 'failed').map(({ name }) => name);
}

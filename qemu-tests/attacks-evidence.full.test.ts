/**
 * Evidence of a real node, taken once over its API, and then everything that somebody could make of it. The judge refuses
 * each, by the name of the check that fails (docs/attacks.md). That the evidence is accepted as it came is the first test.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { decodeEventLog } from '../src/formats/event-log.ts';
import { encodeEventLog } from '../src/formats/fixtures.ts';
import { decodePem } from '../src/formats/x509.ts';
import { decodeAllowedImage } from '../src/measure/allowed-image.ts';
import { decodeEvidence, type Evidence, encodeEvidence } from '../src/measure/evidence.ts';
import { type JudgePolicy, judge } from '../src/measure/judge.ts';
import { authorityOf, bootTpm, takeTestEvidence } from '../src/tpm/evidence-fixture.ts';
import { startSoftwareTpm } from '../src/tpm/swtpm-fixture.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { provisionedNode } from './lab/provisioned-node.ts';

type Judged = (change: Partial<Evidence>, policy?: Partial<JudgePolicy>) => string[];

/** The node's evidence, and a judge that names the checks which fail once it is changed. */
async function evidenceOf(lab: Lab): Promise<{ good: Evidence; failures: Judged }> {
  const { evidencePath } = await provisionedNode(lab);
  const good = decodeEvidence(await readFile(evidencePath));
  const measurements = await readFile(lab.image.measurementsPath, 'utf8');
  const authority = await readFile(lab.tpmAuthorityPath, 'latin1');
  const policy: JudgePolicy = {
    images: [decodeAllowedImage(measurements, 'the image')],
    time: new Date(),
    nonce: good.nonce,
    tlsSpki: good.tlsSpki,
    ekAuthorities: [decodePem('CERTIFICATE', authority)],
  };
  const failures: Judged = (change, otherPolicy = {}) => {
    const verdict = judge(encodeEvidence({ ...good, ...change }), { ...policy, ...otherPolicy });
    const failed = verdict.checks.filter(({ outcome }) => outcome === 'failed');
    for (const { name, detail } of failed) lab.context.diagnostic(`${name}: ${detail.slice(0, 200)}`);
    assert.equal(verdict.accepted, failed.length === 0);
    return failed.map(({ name }) => name);
  };
  return { good, failures };
}

vmTest('the evidence of a node, as it came, is accepted with every check made', async (lab) => {
  const { failures } = await evidenceOf(lab);
  assert.deepEqual(failures({}), []);
});

vmTest('a quote replayed, or dressed up for another nonce or another TLS key, is refused', async (lab) => {
  const { good, failures } = await evidenceOf(lab);
  const nonce = randomBytes(32);
  assert.deepEqual(failures({}, { nonce }), ['nonce']);
  assert.deepEqual(failures({ nonce }, { nonce }), ['qualifying-data']);
  const tlsSpki = Buffer.from(good.tlsSpki);
  tlsSpki.writeUInt8(tlsSpki.readUInt8(tlsSpki.length - 1) ^ 1, tlsSpki.length - 1);
  assert.deepEqual(failures({}, { tlsSpki }), ['tls-key']);
  assert.deepEqual(failures({ tlsSpki }, { tlsSpki }), ['qualifying-data']);
});

vmTest('the keys of another TPM, which was told the same, do not pass for the node’s', async (lab) => {
  const { good, failures } = await evidenceOf(lab);
  await using other = await startSoftwareTpm({ manufactured: true });
  await bootTpm(other, good.eventLog);
  const theirs = takeTestEvidence(other, good.eventLog);
  assert.deepEqual(failures({ ak: theirs.ak }), ['activation', 'quote-signer', 'quote-signature']);
  const { ak, quote, pcrs } = theirs;
  const withOurs = failures({ ak, quote, pcrs });
  for (const check of ['qualifying-data', 'activation']) assert.ok(withOurs.includes(check), check);
  assert.deepEqual(failures({}, { ekAuthorities: [authorityOf(other)] }), ['ek-chain']);
});

vmTest('an event log that was edited, cut, left without an event, or put in another order is refused', async (lab) => {
  const { good, failures } = await evidenceOf(lab);
  const events = decodeEventLog(good.eventLog).entries.map(({ pcr, type, data, digests }) => ({
    pcr,
    type,
    data,
    digest: digests.get('sha256') ?? new Uint8Array(32),
  }));
  const logOf = (changed: typeof events) => ({ eventLog: encodeEventLog(changed) });
  assert.deepEqual(failures(logOf(events)), [], 'written anew without a change it must still pass');
  const inPcr7 = events.flatMap(({ pcr }, index) => (pcr === 7 ? [index] : []));
  const [first = 0, second = 0] = inPcr7;
  const swapped = events.with(first, events[second] ?? assert.fail()).with(second, events[first] ?? assert.fail());
  assert.ok(failures(logOf(swapped)).includes('replay'));
  assert.ok(failures(logOf(events.toSpliced(first, 1))).includes('replay'));
  const edited = events.map((event, index) => (index === first ? { ...event, digest: randomBytes(32) } : event));
  assert.ok(failures(logOf(edited)).includes('replay'));
  assert.ok(failures({ eventLog: good.eventLog.subarray(0, -7) }).includes('event-log'));
});

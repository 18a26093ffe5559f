/** The judge on evidence of a real TPM (swtpm), and on everything that an attacker can make of it. */
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { mutations, seededRandom } from '../formats/fixtures.ts';
import { decodeAttest, decodeTpmPublicKey, encodeAttest, encodeTpmPublicKey } from '../formats/tpm-attest.ts';
import { objectName } from '../formats/tpm-public-area.ts';
import { createCertificate, decodePem } from '../formats/x509.ts';
import { decodeEvidence, type Evidence, encodeEvidence, qualifyingData } from '../measure/evidence.ts';
import { checkNames, type JudgePolicy, judge, type Verdict } from '../measure/judge.ts';
import { makeCredential } from '../measure/make-credential.ts';
import {
  authorityOf,
  bootTpm,
  encodeLog,
  initExtends,
  type NodeState,
  type TestMachine,
  takeTestEvidence,
  testMachine,
} from './evidence-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';

let tpm: SoftwareTpm;
let good: Evidence;
let policy: JudgePolicy;
const board = testMachine();
const log = encodeLog(board.events);

before(async () => {
  tpm = await startSoftwareTpm({ manufactured: true });
  await bootTpm(tpm, log);
  good = takeTestEvidence(tpm, log);
  policy = {
    images: [board.image],
    time: new Date(),
    nonce: good.nonce,
    tlsSpki: good.tlsSpki,
    ekAuthorities: [authorityOf(tpm)],
  };
});
after(() => tpm[Symbol.asyncDispose]());

const judgeEvidence = (evidence: Evidence, change: Partial<JudgePolicy> = {}): Verdict =>
  judge(encodeEvidence(evidence), { ...policy, ...change });

const failures = (verdict: Verdict): string[] =>
  verdict.checks.filter(({ outcome }) => outcome === 'failed').map(({ name }) => name);

/** Refused, with exactly these checks failed, and the first for this reason. */
function assertRefused(verdict: Verdict, names: readonly string[], reason: RegExp): void {
  assert.equal(verdict.accepted, false);
  assert.deepEqual(failures(verdict), names);
  assert.match(verdict.checks.find(({ name }) => name === names[0])?.detail ?? '', reason);
}

/** Boots the TPM another way, takes evidence, and boots it again as it was. */
async function evidenceOf(machine: TestMachine, state?: NodeState): Promise<Evidence> {
  const eventLog = encodeLog(machine.events);
  await bootTpm(tpm, eventLog, state);
  try {
    return takeTestEvidence(tpm, eventLog);
  } finally {
    await bootTpm(tpm, log);
  }
}

/** The policy for evidence that is taken anew, with nonce and TLS key of its own. */
const fresh = (evidence: Evidence): Partial<JudgePolicy> => ({ nonce: evidence.nonce, tlsSpki: evidence.tlsSpki });

test('genuine evidence of both kinds of endorsement key is accepted, with every check made', () => {
  const verdict = judgeEvidence(good);
  assert.deepEqual(
    verdict.checks.filter(({ outcome }) => outcome !== 'passed').map(({ name }) => name),
    ['ak-enrolled'],
  );
  assert.equal(verdict.accepted, true);
  assert.deepEqual(verdict.reservations, []);
  assert.equal(verdict.image, 'an image');
  const clock = verdict.checks.find(({ name }) => name === 'clock')?.detail ?? '';
  assert.match(clock, /^reset \d+, restart 0, \d+ ms powered in its life, clock (not )?safe.*firmware 0x[0-9a-f]{16}$/);
  assert.deepEqual(
    verdict.checks.map(({ name }) => name),
    checkNames,
  );
  assert.ok(verdict.registers.every(({ equal }) => equal));
  assert.equal(verdict.registers.length, 16);

  const ecc = takeTestEvidence(tpm, log, { kind: 'ecc-p256' });
  const { ekAuthorities: _, ...withoutAuthorities } = policy;
  const second = judge(encodeEvidence(ecc), { ...withoutAuthorities, ...fresh(ecc) });
  assert.deepEqual(failures(second), []);
});

test('what was not compared is said', () => {
  const { images, time } = policy;
  const verdict = judge(encodeEvidence(good), { images, time });
  assert.equal(verdict.accepted, true);
  assert.match(verdict.reservations.join('\n'), /^no nonce was compared.*\nnobody vouched for the TPM/);
});

test('an enrolled attestation key vouches for its TPM in place of a maker', () => {
  const { images, time, nonce = new Uint8Array(0) } = policy;
  const enrolled = { akName: objectName(good.ak.publicArea) };
  const verdict = judge(encodeEvidence(good), { images, time, nonce, enrolled });
  assert.equal(verdict.accepted, true);
  assert.deepEqual(verdict.reservations, []);
});

describe('evidence is refused', () => {
  test('when its nonce is not the verifier’s: a quote replayed', () => {
    assertRefused(judgeEvidence(good, { nonce: randomBytes(32) }), ['nonce'], /^[0-9a-f]{64}, expected [0-9a-f]{64}$/);
  });

  test('when it writes the verifier’s nonce over its own', () => {
    const nonce = randomBytes(32);
    assertRefused(judgeEvidence({ ...good, nonce }, { nonce }), ['qualifying-data'], /expected/);
  });

  test('when the TLS key is not that of the connection, or not that of the quote', () => {
    const tlsSpki = randomBytes(91);
    assertRefused(judgeEvidence(good, { tlsSpki }), ['tls-key'], /expected/);
    assertRefused(judgeEvidence({ ...good, tlsSpki }, { tlsSpki }), ['qualifying-data'], /expected/);
  });

  test('when the attestation key is another, with the real quote', () => {
    const key = decodeTpmPublicKey(good.ak.publicArea);
    const other = encodeTpmPublicKey({ ...key, authPolicy: new Uint8Array(32) });
    assertRefused(
      judgeEvidence({ ...good, ak: { publicArea: other } }),
      ['activation', 'quote-signer'],
      /credentialBlob is/,
    );
  });

  test('when the attestation key is in another TPM than the endorsement key', async () => {
    await using other = await startSoftwareTpm();
    await bootTpm(other, log);
    const theirs = takeTestEvidence(other, log);
    // Their TPM, their quote, and the endorsement key and challenge of ours.
    const mixed = { ...theirs, ek: good.ek, activation: good.activation };
    assertRefused(judgeEvidence(mixed, fresh(theirs)), ['qualifying-data', 'activation'], /expected/);
  });

  test('when the endorsement key’s certificate is of an unknown maker', () => {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    // The name is the maker's; the key is not.
    const name = { commonName: 'swtpm-localca' };
    const pem = createCertificate({
      subject: name,
      publicKey,
      issuer: { name, key: privateKey },
      serialNumber: Uint8Array.of(1),
      notBefore: new Date('2025-01-01T00:00:00Z'),
      notAfter: new Date('2099-01-01T00:00:00Z'),
      isCa: true,
      usages: [],
    });
    assertRefused(
      judgeEvidence(good, { ekAuthorities: [decodePem('CERTIFICATE', pem)] }),
      ['ek-chain'],
      /its issuer, CN=swtpm-localca, is not among the trusted authorities/,
    );
  });

  test('when the certificate is about another key than the endorsement key', () => {
    const mixed = { ...good, ek: { ...good.ek, certificates: [authorityOf(tpm)] } };
    assertRefused(judgeEvidence(mixed), ['ek-certificate', 'ek-chain'], /none of the 1 certificates is about this rsa/);
    const none = { ...good, ek: { ...good.ek, certificates: [] } };
    assertRefused(judgeEvidence(none), ['ek-certificate', 'ek-chain'], /brings no certificate/);
  });

  test('when the quote is changed, or the values beside it', () => {
    const attest = decodeAttest(good.quote.attest);
    assert.ok(attest.quote !== undefined);
    const pcrs = new Map(good.pcrs).set(15, new Uint8Array(32));
    assertRefused(judgeEvidence({ ...good, pcrs }), ['pcr-digest'], /expected/);
    const changed = encodeAttest({ ...attest, quote: attest.quote, clock: { ...attest.clock, resetCount: 99 } });
    assertRefused(
      judgeEvidence({ ...good, quote: { ...good.quote, attest: changed } }),
      ['quote-signature'],
      /did not/,
    );
    const notTpm = encodeAttest({ ...attest, quote: attest.quote, magic: 0x12345678 });
    assertRefused(
      judgeEvidence({ ...good, quote: { ...good.quote, attest: notTpm } }),
      ['quote-type', 'quote-signature'],
      /magic is 0x12345678/,
    );
  });

  test('when the quote covers fewer registers, or another bank', () => {
    const fewer = takeTestEvidence(tpm, log, { pcrs: [0, 7, 11] });
    assertRefused(
      judgeEvidence(fewer, fresh(fewer)),
      ['quote-selection', 'pcr-digest'],
      /^sha256:0,7,11, expected sha256:0,1,/,
    );
    const attest = decodeAttest(good.quote.attest);
    assert.ok(attest.quote !== undefined);
    const selections = [{ hash: 4, pcrs: [...good.pcrs.keys()] }];
    const sha1 = encodeAttest({ ...attest, quote: { ...attest.quote, selections } });
    assertRefused(
      judgeEvidence({ ...good, quote: { ...good.quote, attest: sha1 } }),
      ['quote-signature', 'quote-selection'],
      /did not make/,
    );
  });

  test('when the log has SHA-1 digests alone', () => {
    const sha1Log = Buffer.alloc(32 + 4);
    sha1Log.writeUInt32LE(4, 4);
    sha1Log.writeUInt32LE(4, 28);
    assertRefused(
      judgeEvidence({ ...good, eventLog: sha1Log }),
      ['event-log', 'replay', 'secure-boot', 'pcr-4'],
      /banks sha1; expected sha256/,
    );
  });

  test('when the event log is edited, cut, reordered or empty of meaning', () => {
    const edited = board.events.map((event, index) => (index === 0 ? { ...event, data: Buffer.from('other') } : event));
    assertRefused(judgeEvidence({ ...good, eventLog: encodeLog(edited) }), ['replay'], /PCR 0 is/);
    const cut = board.events.slice(0, -1);
    assertRefused(judgeEvidence({ ...good, eventLog: encodeLog(cut) }), ['replay'], /PCR 5 is/);
    const [first, second, third, ...rest] = board.events;
    assert.ok(first && second && third);
    const reordered = [first, third, second, ...rest];
    assertRefused(judgeEvidence({ ...good, eventLog: encodeLog(reordered) }), ['replay'], /PCR 7 is/);
    assertRefused(
      judgeEvidence({ ...good, eventLog: log.subarray(0, log.length - 10) }),
      ['event-log', 'replay'],
      /cannot be read/,
    );
    assertRefused(
      judgeEvidence({ ...good, eventLog: randomBytes(64) }),
      ['event-log', 'replay', 'secure-boot', 'pcr-4'],
      /cannot decode TPM event log|banks/,
    );
  });

  test('when the SecureBoot event says 1 and has the digest of 0', async () => {
    const off = testMachine({ isSecureBootOn: false });
    const evidence = await evidenceOf(off);
    assertRefused(
      judgeEvidence(evidence, fresh(evidence)),
      ['secure-boot', 'pcr-7'],
      /SecureBoot variable says 00, expected 01/,
    );
    const claims = off.events.map((event) => {
      if (!Buffer.from(event.data).includes(Buffer.from('SecureBoot', 'utf16le'))) return event;
      const said = Buffer.from(event.data);
      said[said.length - 1] = 1;
      return { ...event, data: said, digest: hashOf(event.data) };
    });
    const lie = { ...evidence, eventLog: encodeLog(claims) };
    assertRefused(
      judgeEvidence(lie, fresh(lie)),
      ['event-log', 'secure-boot', 'pcr-7'],
      /does not have the digest of what it says/,
    );
  });

  test('when another image runs', async () => {
    const evidence = await evidenceOf(testMachine({ content: 'another image' }));
    assertRefused(judgeEvidence(evidence, fresh(evidence)), ['pcr-4', 'pcr-11'], /expected [0-9a-f]{64} alone/);
  });

  test('when another boot application ran before the image, whatever the log calls it', async () => {
    const tool = { pcr: 4, type: 0x8000_0007, data: Buffer.from('Calling EFI Application from Boot Option\0') };
    const position = board.events.findIndex(({ type }) => type === 0x8000_0003);
    const evidence = await evidenceOf({ ...board, events: board.events.toSpliced(position, 0, tool) });
    assertRefused(judgeEvidence(evidence, fresh(evidence)), ['pcr-4'], /EV_EFI_ACTION\) is [0-9a-f]{64}, expected/);
  });

  test('when a phase is missing: before leave-initrd, before enter-initrd', async () => {
    const early = await evidenceOf(board, { extends: initExtends.slice(0, 3) });
    assertRefused(judgeEvidence(early, fresh(early)), ['replay', 'pcr-11'], /PCR 11 is/);
    assert.match(
      judgeEvidence(early).checks.find(({ name }) => name === 'pcr-11')?.detail ?? '',
      /before leave-initrd/,
    );
    const none = await evidenceOf(board, { extends: [] });
    assert.match(judgeEvidence(none).checks.find(({ name }) => name === 'pcr-11')?.detail ?? '', /before its init/);
  });

  test('when something was injected into PCR 12 or 13, logged or not', async () => {
    const digest = randomBytes(32);
    const silent = await evidenceOf(board, { extends: [{ pcr: 12, digest }, ...initExtends] });
    assertRefused(judgeEvidence(silent, fresh(silent)), ['replay', 'pcr-12-13'], /PCR 12 is/);
    const logged = { ...board, events: [...board.events, { pcr: 13, type: 0xd, data: Buffer.from('sysext') }] };
    const evidence = await evidenceOf(logged);
    assertRefused(judgeEvidence(evidence, fresh(evidence)), ['pcr-12-13'], /PCR 13 is [0-9a-f]{64}, expected zeros/);
  });

  test('when volume or parameters are not the enrolled ones', () => {
    const other = '11'.repeat(32);
    assertRefused(judgeEvidence(good, { enrolled: { pcr14: other } }), ['pcr-14'], /enrolled was 1111/);
    assertRefused(judgeEvidence(good, { enrolled: { pcr15: other } }), ['pcr-15'], /enrolled was 1111/);
    assertRefused(judgeEvidence(good, { enrolled: { pcr7: other } }), ['pcr-7'], /enrolled was 1111/);
    assertRefused(judgeEvidence(good, { enrolled: { akName: randomBytes(34) } }), ['ak-enrolled'], /expected/);
    const pcr7 = Buffer.from(good.pcrs.get(7) ?? []).toString('hex');
    assert.equal(judgeEvidence(good, { enrolled: { pcr7 } }).accepted, true);
  });
});

test('a key that could sign anything, or leave the TPM, is no attestation key', () => {
  const key = decodeTpmPublicKey(good.ak.publicArea);
  for (const [attributes, reason] of [
    [key.attributes & ~(1 << 16), /lacks restricted/],
    [key.attributes & ~(1 << 1), /lacks fixedTpm/],
    [key.attributes | (1 << 17), /must not have decrypt/],
  ] as const) {
    const publicArea = encodeTpmPublicKey({ ...key, attributes });
    const { outcome, detail = '' } =
      judgeEvidence({ ...good, ak: { publicArea } }).checks.find(({ name }) => name === 'ak-attributes') ?? {};
    assert.equal(outcome, 'failed');
    assert.match(detail, reason);
  }
});

test('an endorsement key that is not exactly of a template is refused, with each difference', () => {
  const key = decodeTpmPublicKey(good.ek.publicArea);
  const { symmetricBits: _, ...withoutSymmetric } = key;
  for (const [changed, reason] of [
    [{ ...key, attributes: key.attributes | (1 << 18) }, /attributes are 0x700b2; expected/],
    [{ ...key, authPolicy: new Uint8Array(0) }, /policy is none/],
    [{ ...key, symmetricBits: 256 }, /not AES-128-CFB alone/],
    [withoutSymmetric, /not AES-128-CFB alone/],
    [{ ...key, nameHash: 'sha384' as const }, /name is in sha384/],
  ] as const) {
    const ek = { ...good.ek, publicArea: encodeTpmPublicKey(changed) };
    const { outcome, detail = '' } =
      judgeEvidence({ ...good, ek }).checks.find(({ name }) => name === 'ek-template') ?? {};
    assert.equal(outcome, 'failed');
    assert.match(detail, reason);
  }
});

test('a challenge that was for another key is found out by making it again', () => {
  const { secret } = good.activation;
  const otherName = Buffer.concat([Uint8Array.of(0, 0x0b), randomBytes(32)]);
  const credential = makeCredential(good.ek.publicArea, otherName, secret);
  assertRefused(judgeEvidence({ ...good, activation: { ...credential, secret } }), ['activation'], /credentialBlob is/);
  const other = makeCredential(good.ek.publicArea, otherName, secret).encryptedSecret;
  const swapped = { ...good.activation, encryptedSecret: other };
  assertRefused(judgeEvidence({ ...good, activation: swapped }), ['activation'], /encryptedSecret is/);
});

test('one letter of the file changed: accepted only when what it belongs to is not signed, and never an exception', () => {
  const content = encodeEvidence(good);
  const random = seededRandom(5);
  let readable = 0;
  for (let round = 0; round < 400; round += 1) {
    const at = Math.floor(random() * content.length);
    const letter = '0123456789abcdef'[Math.floor(random() * 16)] ?? '';
    const damaged = `${content.slice(0, at)}${letter}${content.slice(at + 1)}`;
    const verdict = judge(damaged, policy);
    if (verdict.checks.length > 1) readable += 1;
    // Who the node says it is, when, and the log's descriptions are not signed.
    if (verdict.accepted) assert.deepEqual(signedParts(damaged), signedParts(content));
  }
  assert.ok(readable > 100, `${readable} of 400 could be read`);
});

test('damage inside the binary parts fails a check and throws nothing', () => {
  const parts: [Uint8Array, (damaged: Uint8Array) => Evidence][] = [
    [good.quote.attest, (attest) => ({ ...good, quote: { ...good.quote, attest } })],
    [good.quote.signature, (signature) => ({ ...good, quote: { ...good.quote, signature } })],
    [good.ak.publicArea, (publicArea) => ({ ...good, ak: { publicArea } })],
    [good.ek.publicArea, (publicArea) => ({ ...good, ek: { ...good.ek, publicArea } })],
    [good.ek.certificates[0] ?? new Uint8Array(0), (one) => ({ ...good, ek: { ...good.ek, certificates: [one] } })],
    [
      good.activation.credentialBlob,
      (credentialBlob) => ({ ...good, activation: { ...good.activation, credentialBlob } }),
    ],
  ];
  for (const [original, change] of parts)
    for (const damaged of mutations(original, { seed: 9, count: 150 })) {
      if (damaged.length === 0 || Buffer.compare(damaged, original) === 0) continue;
      assert.equal(judgeEvidence(change(damaged)).accepted, false);
    }
});

test('a policy without an image is the caller’s mistake', () => {
  assert.throws(() => judge(encodeEvidence(good), { ...policy, images: [] }), /allows no image/);
});

test('qualifying data is the digest of its three parts in order', () => {
  const [nonce, secret, tlsSpki] = [randomBytes(32), randomBytes(32), randomBytes(91)];
  assert.deepEqual(qualifyingData({ nonce, secret, tlsSpki }), hashOf(Buffer.concat([nonce, secret, tlsSpki])));
});

function signedParts(source: string): unknown {
  const { nonce, tlsSpki, ek, ak, activation, quote, pcrs } = decodeEvidence(source);
  return { nonce, tlsSpki, ek: ek.publicArea, ak, activation, quote, pcrs };
}

function hashOf(content: Uint8Array): Uint8Array {
  return createHash('sha256').update(content).digest();
}

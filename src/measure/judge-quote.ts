/** The checks of who said it, to whom, and whether a TPM signed it. One function each; `judge.ts` runs them. */
import { createHash } from 'node:crypto';
import { ATTEST_QUOTE, TPM_GENERATED, verifyTpmSignature } from '../formats/tpm-attest.ts';
import { OBJECT } from '../formats/tpm-public-area.ts';
import { TPM_ALG } from '../formats/tpm-structures.ts';
import { describeTpm, findEkCertificate, nameOf, verifyEkChain } from './ek-certificate.ts';
import { qualifyingData, quotedPcrs } from './evidence.ts';
import { type CheckRule, type Finding, failed, hex, type JudgedCase, notDone, passed } from './judged-case.ts';
import { makeCredential } from './make-credential.ts';
import { pcrDigest } from './policy.ts';

/** TPM_RH_ENDORSEMENT: the parent of every primary key in the endorsement hierarchy (Part 2, 7.4). */
const endorsementHierarchy = Buffer.from('4000000b', 'hex');
/** fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt. */
const endorsementAttributes = 0x000300b2;
/** PolicyA of the templates: PolicySecret(TPM_RH_ENDORSEMENT). */
const endorsementPolicy = '837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa';

function nonce({ evidence, policy }: JudgedCase): Finding {
  const found = hex(evidence.nonce);
  if (policy.nonce === undefined) return notDone(`${found}, and no nonce was given to compare it with`);
  return compare(found, hex(policy.nonce));
}

function tlsKey({ evidence, policy }: JudgedCase): Finding {
  const found = hex(createHash('sha256').update(evidence.tlsSpki).digest());
  if (policy.tlsSpki === undefined)
    return passed(`SHA-256 ${found}, in the quote by qualifying-data; no connection here to compare it with`);
  return compare(found, hex(createHash('sha256').update(policy.tlsSpki).digest()));
}

function qualifyingDataCheck({ evidence, attest }: JudgedCase): Finding {
  const { nonce, tlsSpki, activation } = evidence;
  return compare(hex(attest().extraData), hex(qualifyingData({ nonce, secret: activation.secret, tlsSpki })));
}

/**
 * A certificate is about the numbers of a key alone. That the rest is as the TCG's templates L-1 and L-2 say (EK Credential
 * Profile B.3.3, B.3.4) makes it the key that every TPM gives under this name, and leaves nothing to choose.
 */
function endorsementKey({ ek }: JudgedCase): Finding {
  const key = ek();
  const kind = key.type === 'rsa' ? `RSA ${key.modulus.length * 8}` : key.curve;
  const differences = [
    ...(kind === 'RSA 2048' || kind === 'P-256' ? [] : [`it is ${kind}`]),
    ...(key.type === 'rsa' && key.exponent !== 65537 ? [`its exponent is ${key.exponent}`] : []),
    ...(key.nameHash === 'sha256' ? [] : [`its name is in ${key.nameHash}`]),
    ...(key.attributes === endorsementAttributes ? [] : [`its attributes are 0x${key.attributes.toString(16)}`]),
    ...(hex(key.authPolicy) === endorsementPolicy ? [] : [`its policy is ${hex(key.authPolicy) || 'none'}`]),
    ...(key.symmetricBits === 128 && key.scheme === undefined ? [] : ['its algorithms are not AES-128-CFB alone']),
  ];
  return differences.length === 0
    ? passed(`${kind}, template ${key.type === 'rsa' ? 'L-1' : 'L-2'}`)
    : failed(`${differences.join('; ')}; expected the TCG's template L-1 or L-2`);
}

function ekCertificate({ evidence, ek, policy }: JudgedCase): Finding {
  // Some TPMs come without. Then nobody can vouch for them, which is what ek-chain is about.
  if (evidence.ek.certificates.length === 0 && policy.ekAuthorities === undefined)
    return notDone('the TPM brings no certificate for its endorsement key');
  const certificate = findEkCertificate(evidence.ek.certificates, ek());
  const { manufacturer, model, version } = describeTpm(certificate);
  return passed(
    `issued by ${nameOf(certificate.issuer)}, for a TPM of ${manufacturer || '?'}, model ${model || '?'}, version ${version || '?'}`,
  );
}

function ekChain({ evidence, ek, policy }: JudgedCase): Finding {
  const { ekAuthorities } = policy;
  if (ekAuthorities === undefined) return notDone('no trusted authorities were given');
  const certificate = findEkCertificate(evidence.ek.certificates, ek());
  const chain = verifyEkChain(certificate, {
    others: evidence.ek.certificates,
    authorities: ekAuthorities,
    time: policy.time,
  });
  return passed(`by way of ${chain.join(' → ')}`);
}

function enrolledAk({ policy, akName }: JudgedCase): Finding {
  const wanted = policy.enrolled?.akName;
  if (wanted === undefined) return notDone('no attestation key was enrolled to compare it with');
  return compare(hex(akName), hex(wanted));
}

function attestationKey({ ak }: JudgedCase): Finding {
  const key = ak();
  const wanted = ['fixedTpm', 'fixedParent', 'sensitiveDataOrigin', 'restricted', 'sign'] as const;
  const problem = attributeProblem(key.attributes, wanted, ['decrypt']);
  if (problem !== undefined) return failed(`0x${key.attributes.toString(16)}: ${problem}`);
  if (key.nameHash !== 'sha256') return failed(`its name is in ${key.nameHash}, expected sha256`);
  const scheme = key.scheme === undefined ? 'none' : `${key.scheme.name} ${key.scheme.hash}`;
  if (key.scheme?.hash !== 'sha256' || key.scheme.name === 'rsapss')
    return failed(`its scheme is ${scheme}, expected ecdsa sha256 or rsassa sha256`);
  return passed(`${scheme}, attributes 0x${key.attributes.toString(16)}`);
}

/**
 * The verifier has opened up its challenge: made again, it must be the same, so it was for this endorsement key and this
 * attestation key. That the TPM answered it is in the quote, whose qualifying data contains the secret.
 */
function activation({ evidence, akName }: JudgedCase): Finding {
  const { credentialBlob, encryptedSecret, secret, random } = evidence.activation;
  const again = makeCredential(evidence.ek.publicArea, akName, secret, random);
  if (hex(again.credentialBlob) !== hex(credentialBlob))
    return failed(`credentialBlob is ${hex(credentialBlob)}, expected ${hex(again.credentialBlob)}`);
  if (hex(again.encryptedSecret) !== hex(encryptedSecret))
    return failed(`encryptedSecret is ${hex(encryptedSecret)}, expected ${hex(again.encryptedSecret)}`);
  return passed(`made for endorsement key and attestation key ${hex(akName)}`);
}

function quoteType({ attest }: JudgedCase): Finding {
  const { magic, type } = attest();
  if (magic !== TPM_GENERATED)
    return failed(`magic is 0x${magic.toString(16)}, expected 0x${TPM_GENERATED.toString(16)}: no TPM made it`);
  if (type !== ATTEST_QUOTE) return failed(`type is 0x${type.toString(16)}, expected 0x${ATTEST_QUOTE.toString(16)}`);
  return passed('TPM_GENERATED, TPM_ST_ATTEST_QUOTE');
}

/** Part 1, 16: the qualified name of a primary key is H(handle of its hierarchy ‖ its name). */
function quoteSigner({ attest, akName }: JudgedCase): Finding {
  const digest = createHash('sha256').update(endorsementHierarchy).update(akName).digest();
  return compare(hex(attest().qualifiedSigner), `000b${hex(digest)}`);
}

function quoteSignature({ evidence, ak, signature }: JudgedCase): Finding {
  const made = signature();
  if (made.hash !== 'sha256') return failed(`is over ${made.hash}, expected sha256`);
  if (!verifyTpmSignature(ak(), made, evidence.quote.attest))
    return failed('the attestation key did not make this signature over this statement');
  return passed(`${made.scheme} ${made.hash}`);
}

function quoteSelection({ attest }: JudgedCase): Finding {
  const selections = attest().quote?.selections ?? [];
  const shown = selections
    .map(({ hash, pcrs }) => `${bankNames.get(hash) ?? `0x${hash.toString(16)}`}:${pcrs.join(',')}`)
    .join('+');
  const [only] = selections;
  if (selections.length === 1 && only?.hash === TPM_ALG.sha256 && only.pcrs.join() === quotedPcrs.join())
    return passed(shown);
  return failed(`${shown || 'nothing'}, expected sha256:${quotedPcrs.join(',')} alone`);
}

function pcrDigestCheck({ attest, evidence }: JudgedCase): Finding {
  return compare(hex(attest().quote?.pcrDigest ?? new Uint8Array(0)), hex(pcrDigest(evidence.pcrs)));
}

function clock({ attest }: JudgedCase): Finding {
  const { clock: info, firmwareVersion } = attest();
  return passed(
    `reset ${info.resetCount}, restart ${info.restartCount}, ${info.clockMs} ms powered in its life, ` +
      `clock ${info.safe ? 'safe' : 'not safe yet'}, TPM firmware 0x${firmwareVersion.toString(16).padStart(16, '0')}`,
  );
}

const bankNames = new Map<number, string>([
  [TPM_ALG.sha1, 'sha1'],
  [TPM_ALG.sha256, 'sha256'],
  [TPM_ALG.sha384, 'sha384'],
  [TPM_ALG.sha512, 'sha512'],
]);

export const quoteRules: readonly CheckRule[] = [
  {
    name: 'nonce',
    title: 'The nonce is the verifier’s',
    check: nonce,
    reservation: 'no nonce was compared: this may be an old statement of the node (give --nonce)',
  },
  { name: 'tls-key', title: 'The TLS key is that of the connection', check: tlsKey },
  {
    name: 'qualifying-data',
    title: 'The quote binds nonce, activation and TLS key',
    check: qualifyingDataCheck,
  },
  {
    name: 'ek-template',
    title: 'The endorsement key is of a standard template',
    check: endorsementKey,
  },
  { name: 'ek-certificate', title: 'A certificate is about this endorsement key', check: ekCertificate },
  {
    name: 'ek-chain',
    title: 'A trusted maker vouches for the TPM',
    check: ekChain,
    reservation: 'nobody vouched for the TPM: it may be a program that imitates one (give --ek-ca)',
  },
  { name: 'ak-enrolled', title: 'The attestation key is the enrolled one', check: enrolledAk },
  { name: 'ak-attributes', title: 'The attestation key signs only what a TPM states', check: attestationKey },
  { name: 'activation', title: 'The challenge was for these two keys', check: activation },
  { name: 'quote-type', title: 'The statement is a quote that a TPM made', check: quoteType },
  { name: 'quote-signer', title: 'The attestation key is the quote’s signer', check: quoteSigner },
  { name: 'quote-signature', title: 'The signature is the attestation key’s', check: quoteSignature },
  { name: 'quote-selection', title: 'The quote covers PCR 0 to 15 of the SHA-256 bank', check: quoteSelection },
  { name: 'pcr-digest', title: 'The quote is over these PCR values', check: pcrDigestCheck },
  { name: 'clock', title: 'The TPM’s clock and firmware, for comparison with other times', check: clock },
];

function compare(found: string, expected: string): Finding {
  return found === expected ? passed(found) : failed(`${found || 'nothing'}, expected ${expected}`);
}

type Attribute = keyof typeof OBJECT;

function attributeProblem(
  attributes: number,
  wanted: readonly Attribute[],
  unwanted: readonly Attribute[],
): string | undefined {
  const missing = wanted.filter((name) => (attributes & OBJECT[name]) === 0);
  const extra = unwanted.filter((name) => (attributes & OBJECT[name]) !== 0);
  const parts = [
    ...(missing.length > 0 ? [`lacks ${missing.join(', ')}`] : []),
    ...(extra.length > 0 ? [`must not have ${extra.join(', ')}`] : []),
  ];
  return parts.length === 0 ? undefined : parts.join('; ');
}

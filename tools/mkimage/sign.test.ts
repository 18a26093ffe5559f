import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { minimalPe, skipWithout } from '../../src/formats/fixtures.ts';
import { runProcess } from '../host/run-process.ts';
import type { PreparedImage } from './finish-image.ts';
import { generateKeys, loadKeys, loadPublicKeys, rotatePolicyKey } from './keys.ts';
import { answerRequest, type GivenSignature, type SignersAtHand, signUnsignedUki } from './sign.ts';
import { keySigners, parseSigner } from './signer.ts';
import { decodeSigningRequest, encodeSignatures, encodeSigningRequest } from './signing-request.ts';
import { makeSoftHsm, type SoftHsm, skipWithoutSoftHsm } from './softhsm-fixture.ts';
import { layOutUki, signUki } from './uki.ts';
import { readUnsignedImage, writeUnsignedImage } from './unsigned-image.ts';

const skipToken = skipWithoutSoftHsm();
const skipOpenssl = skipWithout('openssl');
const none: ReadonlyMap<string, GivenSignature> = new Map();

const parts = {
  stub: minimalPe(),
  kernel: minimalPe({ text: Buffer.from('kernel') }),
  initrd: Buffer.from('initramfs'),
  cmdline: 'quiet',
  osRelease: 'ID=ashlar\n',
  uname: '6.12.1-ashlar',
  epoch: 2,
};

let directory: string;
let privateKeys: string;
let publicKeys: string;
let prepared: PreparedImage;
/** What a build with the keys at hand makes. */
let online: Uint8Array;
let softHsm: SoftHsm;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-sign-'));
  privateKeys = join(directory, 'private');
  publicKeys = join(directory, 'public');
  await generateKeys(privateKeys, { isDevelopment: false });
  // All that the build machine gets: certificates and public keys.
  await cp(privateKeys, publicKeys, { recursive: true, filter: (path) => !path.endsWith('.key') });
  const keys = await loadPublicKeys(publicKeys);
  const uki = layOutUki({ ...parts, policyKeys: keys });
  const systemPath = join(directory, 'system.img');
  await writeFile(systemPath, 'the system partition');
  const hash = createHash('sha256').update('the system partition').digest('hex');
  prepared = {
    version: '1.2.3',
    buildTime: 1_700_000_000,
    epoch: 2,
    toolsKey: hash,
    keys,
    uki,
    system: {
      path: systemPath,
      sizeBytes: 20,
      partitionUuid: '01234567-89ab-cdef-0123-456789abcdef',
      rootHash: hash,
      salt: hash,
      dataBlocks: 1,
      hashStartBlock: 1,
      sha256: hash,
    },
    enrolment: undefined,
    manifest: { name: 'ashlar', partitions: [] },
  };
  const withKeys = await loadKeys(privateKeys);
  online = await signUki(uki, withKeys, keySigners(withKeys));
  if (skipToken !== false) return;
  const files = { db: join(privateKeys, 'db.key'), policy: join(privateKeys, 'policy.key') };
  softHsm = await makeSoftHsm(join(directory, 'softhsm'), files, { token: 'ops key', pin: '987654' });
  process.env['SOFTHSM2_CONF'] = softHsm.env.SOFTHSM2_CONF;
});
after(async () => {
  delete process.env['SOFTHSM2_CONF'];
  await rm(directory, { recursive: true });
});

/** A new unsigned image in a directory of its own. */
async function unsignedImage(): Promise<{ outDir: string; requestPath: string }> {
  const outDir = await mkdtemp(join(directory, 'out-'));
  const { request } = await writeUnsignedImage(prepared, outDir);
  return { outDir, requestPath: request };
}

async function signedWith(outDir: string, signers: SignersAtHand): Promise<Uint8Array> {
  const result = await signUnsignedUki({ outDir, signers, given: none });
  assert.ok('uki' in result);
  return result.uki;
}

const bothFrom = (write: (name: 'policy' | 'db') => string): SignersAtHand => ({
  policy: parseSigner(write('policy')),
  'secure-boot': parseSigner(write('db')),
});

describe('the image signed elsewhere is byte for byte the one signed at build', () => {
  it('with key files', async () => {
    const { outDir } = await unsignedImage();
    assert.deepEqual(
      await signedWith(
        outDir,
        bothFrom((name) => join(privateKeys, `${name}.key`)),
      ),
      online,
    );
  });

  it('with a command', { skip: skipOpenssl }, async () => {
    const { outDir } = await unsignedImage();
    const command = (name: string) =>
      `command:${JSON.stringify(['openssl', 'dgst', '-sha256', '-sign', join(privateKeys, `${name}.key`)])}`;
    assert.deepEqual(await signedWith(outDir, bothFrom(command)), online);
  });

  it('with a PKCS #11 token', { skip: skipToken }, async () => {
    const { outDir } = await unsignedImage();
    assert.deepEqual(
      await signedWith(
        outDir,
        bothFrom((name) => softHsm.uri(name)),
      ),
      online,
    );
  });

  it('in two rounds, with raw signatures that openssl made from the request alone', { skip: skipOpenssl }, async () => {
    const { outDir, requestPath } = await unsignedImage();
    const signAll = async (key: string) => {
      const { signatures } = decodeSigningRequest(await readFile(requestPath, 'utf8'));
      return new Map(
        signatures.map(({ name, toBeSigned }) => [
          name,
          {
            signature: execFileSync('openssl', ['dgst', '-sha256', '-sign', join(privateKeys, key)], {
              input: toBeSigned,
            }),
            from: 'openssl',
          },
        ]),
      );
    };
    const policies = await signAll('policy.key');
    assert.deepEqual([...policies.keys()], ['policy/ashlar-epoch-1', 'policy/ashlar-epoch-2']);
    const first = await signUnsignedUki({ outDir, signers: {}, given: policies });
    assert.deepEqual('waitsFor' in first && first.waitsFor, ['secure-boot']);
    const second = await signUnsignedUki({ outDir, signers: {}, given: await signAll('db.key') });
    assert.ok('uki' in second);
    assert.deepEqual(second.uki, online);
  });

  it('with signatures made from the request on a machine without the image', async () => {
    const { outDir, requestPath } = await unsignedImage();
    const signers = bothFrom((name) => join(privateKeys, `${name}.key`));
    for (const round of [1, 2]) {
      const answer = await answerRequest(await readFile(requestPath, 'utf8'), signers);
      const given = new Map([...answer].map(([name, signature]) => [name, { signature, from: 'a file' }]));
      const result = await signUnsignedUki({ outDir, signers: {}, given });
      if (round === 2) {
        assert.ok('uki' in result);
        assert.deepEqual(result.uki, online);
      }
    }
  });
});

describe('an image that a former policy key approves, too', () => {
  it('waits for that key under its name, and is byte for byte the one signed at build', async () => {
    const rotated = join(directory, 'rotated');
    const { former } = await rotatePolicyKey(privateKeys, rotated);
    const keys = await loadKeys(rotated);
    const uki = layOutUki({ ...parts, policyKeys: keys });
    const atBuild = await signUki(uki, keys, keySigners(keys));
    const outDir = await mkdtemp(join(directory, 'out-'));
    const { directory: keysDirectory, ...publicParts } = await loadPublicKeys(rotated);
    await writeUnsignedImage({ ...prepared, uki, keys: { directory: keysDirectory, ...publicParts } }, outDir);
    const own = bothFrom((name) => join(rotated, `${name}.key`));
    const first = await signUnsignedUki({ outDir, signers: own, given: none });
    const wanted = ['ashlar-epoch-1', 'ashlar-epoch-2'].map((ref) => `former-policy/${former}/${ref}`);
    assert.deepEqual('waitsFor' in first && first.waitsFor, wanted);
    const signer = parseSigner(join(rotated, 'former-policy', `${former}.key`));
    const request = await readFile(join(outDir, 'unsigned', 'signing-request.json'), 'utf8');
    assert.equal(encodeSigningRequest(decodeSigningRequest(request)), request);
    const answer = await answerRequest(request, { former: new Map([[former, signer]]) });
    assert.deepEqual([...answer.keys()], wanted);
    const given = new Map([...answer].map(([name, signature]) => [name, { signature, from: 'a file' }]));
    const second = await signUnsignedUki({ outDir, signers: own, given });
    assert.ok('uki' in second);
    assert.deepEqual(second.uki, atBuild);
    const swapped = new Map([[former, parseSigner(join(rotated, 'policy.key'))]]);
    await assert.rejects(answerRequest(request, { former: swapped }), new RegExp(`former-policy/${former}\\.pub`));
  });

  it('says which option names who signs, when nobody does', async () => {
    const rotated = join(directory, 'rotated');
    const keys = await loadPublicKeys(rotated);
    const withoutFormer = keySigners({ ...(await loadKeys(rotated)), formerPolicyPrivateKeys: new Map() });
    const uki = layOutUki({ ...parts, policyKeys: keys });
    await assert.rejects(signUki(uki, keys, withoutFormer), /--former-policy-key [0-9a-f]{16}=SIGNER/);
  });
});

describe('a signing request', () => {
  it('says why Secure Boot comes second', async () => {
    const { requestPath } = await unsignedImage();
    const { later } = decodeSigningRequest(await readFile(requestPath, 'utf8'));
    assert.deepEqual(later[0]?.waitsFor, ['policy/ashlar-epoch-1', 'policy/ashlar-epoch-2']);
    assert.match(later[0].because, /covers the section \.pcrsig/);
  });

  it('is refused when its bytes are not what it says they are', async () => {
    const { requestPath } = await unsignedImage();
    const text = await readFile(requestPath, 'utf8');
    const forged = JSON.parse(text) as { signatures: { toBeSigned: string; pcr11: string }[] };
    assert.ok(forged.signatures[0]);
    forged.signatures[0].toBeSigned = Buffer.from('something else').toString('base64');
    assert.throws(() => decodeSigningRequest(JSON.stringify(forged)), /signatures\[0\]\.toBeSigned is not what/);
    forged.signatures[0].pcr11 = 'not hex';
    assert.throws(() => decodeSigningRequest(JSON.stringify(forged)), /signatures\[0\]\.pcr11/);
    assert.equal(encodeSigningRequest(decodeSigningRequest(text)), text);
  });
});

describe('a signature that is wrong', () => {
  it('is refused by name and source, and leaves everything as it was', async () => {
    const { outDir, requestPath } = await unsignedImage();
    const unsigned = join(outDir, 'unsigned');
    const before = await Promise.all((await readdir(unsigned)).map((name) => readFile(join(unsigned, name))));
    const swapped: SignersAtHand = { policy: parseSigner(join(privateKeys, 'db.key')) };
    await assert.rejects(
      signUnsignedUki({ outDir, signers: swapped, given: none }),
      /cannot use signature policy\/ashlar-epoch-1 from file .*db\.key: it does not verify; .*policy\.pub, SHA256:/,
    );
    const good = await answerRequest(
      await readFile(requestPath, 'utf8'),
      bothFrom((name) => join(privateKeys, `${name}.key`)),
    );
    const damaged = new Map([...good].map(([name, signature]) => [name, { signature, from: 'a.json' }]));
    const second = damaged.get('policy/ashlar-epoch-2');
    assert.ok(second);
    second.signature[7] = (second.signature[7] ?? 0) ^ 1;
    await assert.rejects(
      signUnsignedUki({ outDir, signers: {}, given: damaged }),
      /policy\/ashlar-epoch-2 from a\.json: it does not verify/,
    );
    assert.deepEqual(
      await Promise.all((await readdir(unsigned)).map((name) => readFile(join(unsigned, name)))),
      before,
    );
    assert.deepEqual(await readdir(outDir), ['unsigned']);
  });

  it('is refused when the image does not ask for it', async () => {
    const { outDir } = await unsignedImage();
    const given = new Map([['secure-boot', { signature: new Uint8Array(256), from: 'early.bin' }]]);
    await assert.rejects(
      signUnsignedUki({ outDir, signers: {}, given }),
      /cannot use signature secure-boot: the image wants policy\/ashlar-epoch-1, policy\/ashlar-epoch-2 first/,
    );
  });

  it('is refused when it comes from a command that failed, wrote nothing, or is not there', async () => {
    const { outDir } = await unsignedImage();
    for (const [argv, reason] of [
      [['false'], /signing command false: it ended with 1/],
      [['true'], /from command "true": it has 0 bytes, not 256/],
      [['no-such-program-here'], /cannot run signing command no-such-program-here/],
    ] as const) {
      const policy = parseSigner(`command:${JSON.stringify(argv)}`);
      await assert.rejects(signUnsignedUki({ outDir, signers: { policy }, given: none }), reason);
    }
  });
});

describe('an unsigned image', () => {
  it('comes back from its directory as it went, with what is for the ESP', async () => {
    const outDir = await mkdtemp(join(directory, 'out-'));
    const enrolment = { db: Buffer.from('db'), KEK: Buffer.from('kek'), PK: Buffer.from('pk') };
    await writeUnsignedImage({ ...prepared, enrolment }, outDir);
    const { prepared: found, directory: where } = await readUnsignedImage(outDir);
    const moved = { ...prepared.system, path: join(where, 'system.img') };
    assert.deepEqual(
      { ...found, uki: new Uint8Array(found.uki) },
      { ...prepared, enrolment, system: moved, keys: { ...prepared.keys, directory: where } },
    );
  });

  it('is refused when one of its files was changed after the build', async () => {
    const { outDir } = await unsignedImage();
    await writeFile(join(outDir, 'unsigned/system.img'), 'another system');
    await assert.rejects(
      signUnsignedUki({ outDir, signers: {}, given: none }),
      /system\.img has SHA-256 [0-9a-f]{64}, it was built with/,
    );
  });

  it('is asked for by name when there is none', async () => {
    await assert.rejects(
      signUnsignedUki({ outDir: join(directory, 'nowhere'), signers: {}, given: none }),
      /nowhere\/unsigned: there is none; make it with: mkimage build --unsigned/,
    );
  });

  it('refuses kept signatures that somebody changed', async () => {
    const { outDir, requestPath } = await unsignedImage();
    const answer = await answerRequest(await readFile(requestPath, 'utf8'), {
      policy: parseSigner(join(privateKeys, 'policy.key')),
    });
    const given = new Map([...answer].map(([name, signature]) => [name, { signature, from: 'a file' }]));
    await signUnsignedUki({ outDir, signers: {}, given });
    const forged = new Map([...answer].map(([name]) => [name, new Uint8Array(256)]));
    await writeFile(join(outDir, 'unsigned/signatures.json'), encodeSignatures(forged));
    await assert.rejects(
      signUnsignedUki({ outDir, signers: {}, given: none }),
      /policy\/ashlar-epoch-1 from signatures\.json of the unsigned image: it does not verify/,
    );
  });
});

describe('a token', { skip: skipToken }, () => {
  it('gets the PIN from a file or from whoever calls', async () => {
    const { outDir } = await unsignedImage();
    const signers = {
      policy: parseSigner(softHsm.uri('policy', ''), { pin: Buffer.from('987654') }),
      'secure-boot': parseSigner(softHsm.uri('db')),
    };
    assert.deepEqual(await signedWith(outDir, signers), online);
  });

  it('refuses a wrong PIN once, not again and again, and the PIN is in no message', async () => {
    const { outDir } = await unsignedImage();
    const policy = parseSigner(softHsm.uri('policy', ''), { pin: Buffer.from('135790') });
    await assert.rejects(
      signUnsignedUki({ outDir, signers: { policy }, given: none }),
      (error: Error) => /token "ops key": CKR_PIN_INCORRECT/.test(error.message) && !/135790/.test(String(error.stack)),
    );
  });

  it('names what is missing: the PIN, the token, the key, the module', async () => {
    const { outDir } = await unsignedImage();
    for (const [uri, reason] of [
      [softHsm.uri('policy', ''), /token "ops key": it wants a PIN; add &pin-source/],
      [softHsm.uri('policy').replace('ops%20key', 'other'), /0 are labelled "other"; .* shows .*"ops key"/],
      [softHsm.uri('nobody'), /no private key has object=nobody/],
      [softHsm.uri('policy').replace('libsofthsm2', 'nothing'), /cannot load PKCS #11 module .*nothing\.so/],
    ] as const) {
      await assert.rejects(signUnsignedUki({ outDir, signers: { policy: parseSigner(uri) }, given: none }), reason);
    }
  });

  it('is asked for the PIN again when the key wants it for each signature', async () => {
    const { outDir } = await unsignedImage();
    if (skipWithout('pkcs11-tool') !== false) return;
    const key = join(directory, 'always.der');
    const pem = join(privateKeys, 'policy.key');
    execFileSync('openssl', ['pkey', '-in', pem, '-outform', 'DER', '-out', key]);
    const module = /module-path=([^&]+)/.exec(softHsm.uri('x'))?.[1] ?? '';
    const login = ['--module', module, '--token-label', 'ops key', '--login', '--pin', '987654'];
    const write = ['--write-object', key, '--type', 'privkey', '--label', 'always', '--always-auth', '--usage-sign'];
    await runProcess('pkcs11-tool', [...login, ...write]);
    const signers = { policy: parseSigner(softHsm.uri('always')), 'secure-boot': parseSigner(softHsm.uri('db')) };
    assert.deepEqual(await signedWith(outDir, signers), online);
  });
});

describe('a signer', () => {
  it('is refused when its PIN stands in the URI, without repeating it', () => {
    assert.throws(
      () => parseSigner('pkcs11:token=t;object=k?module-path=/m.so&pin-value=24680'),
      (error: Error) => /pin-source=\/path/.test(error.message) && !/24680/.test(error.message),
    );
  });

  it('is refused when the URI says what is not understood, or too little', () => {
    for (const [uri, reason] of [
      ['pkcs11:token=t;object=k', /module-path is missing/],
      ['pkcs11:token=t?module-path=/m.so', /names no key/],
      ['pkcs11:object=k;serial=1?module-path=/m.so', /serial is not understood/],
      ['pkcs11:object=k;type=public?module-path=/m.so', /only a private key can sign/],
      ['pkcs11:object=k;object=l?module-path=/m.so', /object is there twice/],
      ['command:openssl dgst', /write a JSON list of strings/],
      ['command:[]', /write a JSON list of strings/],
    ] as const) {
      assert.throws(() => parseSigner(uri), reason);
    }
  });

  it('puts name, digest and key of the signature into the arguments of a command', async () => {
    const { outDir, requestPath } = await unsignedImage();
    const seen = join(directory, 'seen');
    const script = 'printf "%s\\n" "$@" > "$0"; cat > /dev/null';
    const argv = ['sh', '-c', script, seen, '{name}', '{sha256}', '{key}', '{else}'];
    const policy = parseSigner(`command:${JSON.stringify(argv)}`);
    await assert.rejects(signUnsignedUki({ outDir, signers: { policy }, given: none }), /it has 0 bytes/);
    const [request] = (
      JSON.parse(await readFile(requestPath, 'utf8')) as { signatures: { sha256: string; keyFingerprint: string }[] }
    ).signatures;
    assert.deepEqual((await readFile(seen, 'utf8')).trimEnd().split('\n'), [
      'policy/ashlar-epoch-1',
      request?.sha256,
      request?.keyFingerprint,
      '{else}',
    ]);
  });

  it('is refused when others can read its key file', async () => {
    const { outDir } = await unsignedImage();
    const readable = join(directory, 'readable.key');
    await writeFile(readable, await readFile(join(privateKeys, 'policy.key')), { mode: 0o644 });
    await assert.rejects(
      signUnsignedUki({ outDir, signers: { policy: parseSigner(readable) }, given: none }),
      /mode 0644 lets others read it; run: chmod 600/,
    );
  });
});

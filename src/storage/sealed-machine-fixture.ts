/**
 * A machine for tests of sealing: a real swtpm and a partition that is a file, booted with images of any epoch, by the
 * code of the node. Its power can be cut at each write to the TPM's memory or to the disk.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { extendPcr, sha256, zeroPcr } from '../measure/pcr.ts';
import { encodePcrSignatures, signPcr11 } from '../measure/pcr-signature.ts';
import { policyRefOfEpoch } from '../measure/policy.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../tpm/swtpm-fixture.ts';
import { Tpm } from '../tpm/tpm.ts';
import { type DataDevice, dataDevice } from './data-device.ts';
import { encodeRecoveryToken, readRecoveryPublicKey } from './data-key.ts';
import { openDataVolume, readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID, makePartitionFile } from './data-volume-fixture.ts';
import type { SealingMachine } from './generation.ts';
import { REQUEST_OFFSET } from './luks-metadata.ts';
import { encodeResealRequest, type ResealRequest } from './reseal-request.ts';
import { sealedVolume } from './sealed-volume.ts';
import type { SettledVolume } from './volume-lock.ts';

const EFI_GLOBAL = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
const ENTER_INITRD = sha256('enter-initrd');
/** What changes the TPM's memory for good. */
const TPM_WRITES: ReadonlySet<string> = new Set([
  'evictControl',
  'nvDefine',
  'nvWrite',
  'nvUndefine',
  'hierarchyChangeAuth',
]);

/** One for all machines: making them takes longer than the tests. */
export const POLICY_KEY = generateKeyPairSync('rsa', { modulusLength: 2048 });
/** The one after it: images of this key are approved by the first, too. */
export const NEXT_POLICY_KEY = generateKeyPairSync('rsa', { modulusLength: 2048 });
export const RECOVERY_KEY_PAIR = generateKeyPairSync('rsa', { modulusLength: 2048 });

export interface Boot {
  /** Of the image. @default 1 */
  readonly epoch?: number;
  /** Whose image it is. @default 'first' */
  readonly policyKey?: 'first' | 'next';
  /** The Secure Boot state that the firmware measures. @default 'keys' */
  readonly firmware?: string;
  /** @default 1 */
  readonly secureBoot?: number;
  /** @default 0 */
  readonly setupMode?: number;
  /** PCRs that something else moves as well. */
  readonly injected?: readonly number[];
  /** How the TPM is reached. @default directly */
  readonly tcti?: string;
  /** What the node talks to in place of the connection. */
  readonly wrap?: (tpm: Tpm) => Tpm;
  /** The power goes after so many writes; a disk write that is cut leaves its first half. @default never */
  readonly writes?: number;
}

/** The power went. */
export class PowerCut extends Error {
  override readonly name = 'PowerCut';
}

export interface BootedMachine {
  readonly machine: SealingMachine;
  readonly device: DataDevice;
  /** Writes so far. */
  readonly writes: () => number;
  readonly isMarked: () => boolean;
  mark(): void;
}

export interface OpenedMachine {
  readonly settled: SettledVolume;
  readonly volumeKey: Buffer;
  readonly requestKey: Buffer;
  /** Writes to TPM and disk that it took. */
  readonly writes: number;
}

export interface SealedMachine extends AsyncDisposable {
  readonly tpm: SoftwareTpm;
  readonly device: DataDevice;
  readonly recoveryKey: Buffer;
  /** What the firmware leaves in PCR 7, lower-case hex. */
  pcr7(firmware: string): string;
  /** Restarts the TPM and boots to the point where stage 1 is over. */
  boot<T>(boot: Boot, body: (booted: BootedMachine) => T | Promise<T>): Promise<T>;
  /** First boot, or a later one when the partition is marked, as `data-partition.ts` does both. */
  start(boot?: Boot): Promise<OpenedMachine>;
  /** Leaves a request for the next boot. */
  request(opened: OpenedMachine, request: ResealRequest): void;
  /** All that survives power: the TPM's memory, the disk and its mark. */
  save(): Saved;
  restore(saved: Saved): Promise<void>;
}

export interface Saved {
  readonly tpm: string;
  readonly disk: Buffer;
  readonly isMarked: boolean;
}

export async function sealedMachine(): Promise<SealedMachine> {
  const tpm = await startSoftwareTpm();
  const path = join(tpm.directory, 'partition');
  makePartitionFile(path);
  const device = dataDevice(path);
  const recoveryKey = randomBytes(32);
  const recoveryPem = RECOVERY_KEY_PAIR.publicKey.export({ format: 'pem', type: 'spki' }).toString();
  const recovery = { key: recoveryKey, token: encodeRecoveryToken(recoveryKey, readRecoveryPublicKey(recoveryPem)) };
  let isMarked = false;
  let saves = 0;

  const boot: SealedMachine['boot'] = async (options, body) => {
    await tpm.restart();
    const budget = cuttingAfter(options.writes ?? Number.POSITIVE_INFINITY);
    using connection = new Tpm(options.tcti ?? tpm.tcti);
    extendAsFirmware(connection, options);
    const machine = describeMachine(tpm.directory, budget.tpm(options.wrap?.(connection) ?? connection), options);
    writeFirmwareVariables(machine.efivars, options);
    const mark = () => budget.write(() => void (isMarked = true));
    return await body({ machine, device: budget.device(device), writes: budget.count, isMarked: () => isMarked, mark });
  };

  const start: SealedMachine['start'] = (options = {}) =>
    boot(options, (booted) => {
      const directory = { path: tpm.directory };
      const lock = sealedVolume(booted.machine, directory);
      const isFirst = !booted.isMarked();
      if (isFirst) {
        using prepared = lock.prepare(FIXTURE_UUID);
        prepared.create(booted.device, recovery);
      }
      const header = readDataHeader(booted.device, FIXTURE_UUID);
      using unlocked = lock.unlock(booted.device, header);
      const key = { slot: unlocked.slot, key: unlocked.slotKey };
      using volume = openDataVolume(path, header, key, directory);
      const settled = unlocked.settle(volume.volumeKey);
      // As when the power goes: nothing that comes later happens.
      if (booted.writes() > (options.writes ?? Number.POSITIVE_INFINITY)) throw new PowerCut();
      if (isFirst) booted.mark();
      unlocked.takeOwnership();
      const requestKey = settled.requestKey ?? assert.fail('no key for requests');
      return { settled, volumeKey: Buffer.from(volume.volumeKey), requestKey, writes: booted.writes() };
    });

  return {
    tpm,
    device,
    recoveryKey,
    boot,
    start,
    pcr7: (firmware) => Buffer.from(extendPcr(zeroPcr(), sha256(firmware))).toString('hex'),
    request(opened, request) {
      const generation = opened.settled.sealing?.generation ?? assert.fail('no generation');
      device.write(REQUEST_OFFSET, encodeResealRequest(request, generation, opened.requestKey));
    },
    save() {
      const copy = join(tpm.directory, `saved-${(saves += 1)}`);
      mkdirSync(copy);
      cpSync(join(tpm.directory, 'tpm2-00.permall'), join(copy, 'tpm2-00.permall'));
      return { tpm: copy, disk: readFileSync(path), isMarked };
    },
    async restore(saved) {
      await tpm.restart(() => {
        rmSync(join(tpm.directory, 'tpm2-00.permall'));
        cpSync(join(saved.tpm, 'tpm2-00.permall'), join(tpm.directory, 'tpm2-00.permall'));
      });
      writeFileSync(path, saved.disk);
      isMarked = saved.isMarked;
    },
    [Symbol.asyncDispose]: () => tpm[Symbol.asyncDispose](),
  };
}

function imageDigests({ epoch = 1, policyKey = 'first' }: Boot): Uint8Array[] {
  return [sha256('.linux'), sha256(`an image of epoch ${epoch} and the ${policyKey} key`), ENTER_INITRD];
}

function extendAsFirmware(tpm: Tpm, boot: Boot): void {
  const { firmware = 'keys', injected = [] } = boot;
  tpm.extendPcr(7, sha256(firmware));
  for (const digest of imageDigests(boot)) tpm.extendPcr(11, digest);
  for (const index of injected) tpm.extendPcr(index, sha256('injected'));
}

function describeMachine(directory: string, tpm: Tpm, boot: Boot): SealingMachine {
  const { epoch = 1, policyKey = 'first' } = boot;
  const pcr11 = imageDigests(boot).reduce((pcr, digest) => extendPcr(pcr, digest), zeroPcr());
  const refs = Array.from({ length: epoch }, (_, index) => policyRefOfEpoch(index + 1));
  const keys = policyKey === 'first' ? [POLICY_KEY] : [NEXT_POLICY_KEY, POLICY_KEY];
  const signatures = keys.flatMap((key) =>
    refs.map((policyRef) => signPcr11({ pcr11, policyRef, key: key.privateKey })),
  );
  const pcrSignaturePath = join(directory, 'pcrsig.json');
  writeFileSync(pcrSignaturePath, encodePcrSignatures(signatures));
  const [policyKeyPem = '', ...formerPolicyKeyPems] = keys.map(({ publicKey }) =>
    publicKey.export({ format: 'pem', type: 'spki' }).toString(),
  );
  return {
    tpm,
    policy: { policyKeyPem, formerPolicyKeyPems, policyRef: policyRefOfEpoch(epoch) },
    pcrSignaturePath,
    efivars: join(directory, 'efivars'),
  };
}

function writeFirmwareVariables(efivars: string, { secureBoot = 1, setupMode = 0 }: Boot): void {
  mkdirSync(efivars, { recursive: true });
  for (const [name, value] of Object.entries({ SecureBoot: secureBoot, SetupMode: setupMode })) {
    writeFileSync(join(efivars, `${name}-${EFI_GLOBAL}`), Buffer.of(6, 0, 0, 0, value));
  }
}

/** Counts writes; from the one after `limit` on nothing is written any more, but for the first half of that one. */
function cuttingAfter(limit: number) {
  let count = 0;
  const write = (whole: () => unknown, half?: () => void) => {
    count += 1;
    if (count <= limit) return whole();
    if (count === limit + 1) half?.();
    throw new PowerCut(`the power goes at write ${count}`);
  };
  return {
    write,
    count: () => count,
    device: (device: DataDevice): DataDevice => ({
      ...device,
      write: (offset, bytes) =>
        void write(
          () => device.write(offset, bytes),
          () => device.write(offset, bytes.subarray(0, bytes.length >> 1)),
        ),
    }),
    tpm: (tpm: Tpm): Tpm =>
      new Proxy(tpm, {
        get(target, property) {
          const value: unknown = Reflect.get(target, property, target);
          if (typeof value !== 'function') return value;
          const bound = (value as (...args: unknown[]) => unknown).bind(target);
          if (!TPM_WRITES.has(String(property))) return bound;
          return (...args: unknown[]) => write(() => bound(...args));
        },
      }),
  };
}

/**
 * Enrolling the operator's Secure Boot keys from a machine in Setup Mode, so that nobody has to click through firmware
 * menus:
 *
 *     Setup Mode, allowed by the node parameters, no data yet
 *       → db.auth, KEK.auth, PK.auth from EFI/ashlar/keys of the ESP
 *       → checked: each signed by the next, and db lets the image of this very disk start
 *       → written in this order; with PK the machine leaves Setup Mode → restart → Secure Boot is enforced
 *
 * The files hold certificates and signatures that were made where the keys are; no private key is ever on a node. Whoever
 * can write the ESP of a machine in Setup Mode could enrol keys without our help: so this adds no power, but surprise, and
 * therefore happens only when `secureBoot.enrolKeys` says so. It changes PCR 7, to which data is sealed: never once there is
 * data.
 */
import { closeSync, constants, existsSync, openSync, writeSync } from 'node:fs';
import { authenticatedAttributes, enrolledVariables } from '../formats/authenticated-variable.ts';
import { verifyAuthenticode } from '../formats/authenticode.ts';
import {
  checkEnrolment,
  type EnrolledCertificates,
  type EnrolmentFiles,
  nameOf,
} from '../formats/secure-boot-enrolment.ts';
import { ioctl } from '../linux/ioctl.ts';
import { isErrno } from '../linux/libc.ts';
import { holdsInitialisedData } from '../storage/data-partition-plan.ts';
import { readSystemDisk } from '../storage/partition-table.ts';
import type { Logger } from '../supervisor/log-store.ts';
import { readLimited, withEsp } from './esp.ts';
import { readSecureBoot } from './machine.ts';
import { withWritableEfiVariables } from './mounts.ts';

const KEYS = 'EFI/ashlar/keys';
/** What the firmware starts next, whatever started this time. */
const UKI = 'EFI/BOOT/BOOTX64.EFI';
const MAX_UKI_BYTES = 256 * 1024 * 1024;
const MAX_AUTH_BYTES = 64 * 1024;

/** linux/fs.h: flags of an inode. efivarfs makes variables immutable that it does not know to be harmless. */
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IMMUTABLE_FL = 0x10;

export interface SecureBootEnrolmentOptions {
  /** The disk that the system came from, `vda`. */
  readonly disk: string;
  /** PARTUUID of the running system. */
  readonly partitionUuid: string;
  /** `secureBoot.enrolKeys` of the node parameters. */
  readonly isAllowed: boolean;
}

/**
 * @returns true when keys were enrolled: the machine must restart now.
 * @throws Error, for a human, when it is allowed and cannot be done. Until PK is written the machine stays in Setup Mode.
 */
export async function enrolSecureBoot(options: SecureBootEnrolmentOptions, log: Logger): Promise<boolean> {
  if (!options.isAllowed || (await readSecureBoot()) !== 'setup') return false;
  const { gpt } = readSystemDisk(`/dev/${options.disk}`, options.partitionUuid);
  if (holdsInitialisedData(gpt)) {
    throw new Error(
      'cannot enrol Secure Boot keys: this disk has data already, which is sealed to the keys that the machine had; put ' +
        'those back in the firmware setup, or wipe the disk to begin anew',
    );
  }
  const found = await withEsp(options.disk, log, readEnrolment);
  if (found === null) throw new Error('cannot enrol Secure Boot keys: the disk has no ESP that can be read');
  for (const name of ['PK', 'KEK', 'db'] as const) {
    for (const certificate of found.certificates[name]) log.info(`Secure Boot ${name}: ${nameOf(certificate)}`);
  }
  withWritableEfiVariables((directory) => writeEnrolment(found.files, directory));
  const now = await readSecureBoot();
  if (now === 'setup')
    throw new Error('cannot enrol Secure Boot keys: the firmware took them and is still in Setup Mode');
  log.info('Secure Boot keys are enrolled; the machine restarts, and from then on starts only what db trusts');
  return true;
}

/** Reads and checks the files on the ESP, and that they let the UKI on it start. */
export async function readEnrolment(
  esp: string,
): Promise<{ files: EnrolmentFiles; certificates: EnrolledCertificates }> {
  const read = async (name: string) => {
    const bytes = await readLimited(`${esp}/${KEYS}/${name}.auth`, MAX_AUTH_BYTES + 1);
    if (bytes === null) {
      throw new Error(
        `cannot enrol Secure Boot keys: the ESP has no ${KEYS}/${name}.auth; make it with: mkimage keys export-auth, and build with: --enrolment DIR`,
      );
    }
    return bytes;
  };
  const files = { db: await read('db'), KEK: await read('KEK'), PK: await read('PK') };
  const uki = await readLimited(`${esp}/${UKI}`, MAX_UKI_BYTES);
  if (uki === null) throw new Error(`cannot enrol Secure Boot keys: the ESP has no ${UKI}, nothing would start`);
  const [signature] = verifyAuthenticode(uki).signatures;
  if (signature?.signer === undefined || !signature.isValid) {
    throw new Error(
      `cannot enrol Secure Boot keys: ${UKI} would not start: ${signature?.reason ?? 'it is not signed'}`,
    );
  }
  return { files, certificates: checkEnrolment(files, signature.signer) };
}

/**
 * Writes the variables, PK last.
 *
 * @param directory efivarfs
 * @throws Error naming the variable that the firmware refused
 */
export function writeEnrolment(files: EnrolmentFiles, directory: string): void {
  for (const { name, vendorGuid } of enrolledVariables) {
    const path = `${directory}/${name}-${vendorGuid}`;
    const attributes = Buffer.alloc(4);
    attributes.writeUInt32LE(authenticatedAttributes);
    try {
      if (existsSync(path)) makeMutable(path);
      writeOnce(path, Buffer.concat([attributes, files[name]]));
    } catch (error) {
      throw new Error(
        `cannot enrol Secure Boot keys: the firmware refused ${name}: ${error instanceof Error ? error.message : String(error)}; clear the keys in the firmware setup and start again`,
        { cause: error },
      );
    }
  }
}

/** One write() is one SetVariable(); a second one would be another. O_TRUNC would be a write of nothing. */
function writeOnce(path: string, bytes: Uint8Array): void {
  const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT, 0o600);
  try {
    const written = writeSync(fd, bytes);
    if (written !== bytes.length) throw new Error(`${written} of ${bytes.length} bytes were written`);
  } finally {
    closeSync(fd);
  }
}

/** File systems other than efivarfs have no such flags, which is as good. */
function makeMutable(path: string): void {
  const fd = openSync(path, 'r');
  try {
    const flags = Buffer.alloc(8);
    ioctl(fd, FS_IOC_GETFLAGS, flags);
    const value = flags.readUInt32LE();
    if ((value & FS_IMMUTABLE_FL) === 0) return;
    flags.writeUInt32LE((value & ~FS_IMMUTABLE_FL) >>> 0);
    ioctl(fd, FS_IOC_SETFLAGS, flags);
  } catch (error) {
    if (!isErrno(error, 'ENOTTY', 'EOPNOTSUPP')) throw error;
  } finally {
    closeSync(fd);
  }
}

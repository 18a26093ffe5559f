/**
 * `mkimage inspect`: what an image holds and whether its parts agree with each other, without booting it. The image may
 * come from anywhere: everything is read through the bounded decoders of `src/formats`.
 */
import { createHash, createPublicKey } from 'node:crypto';
import { constants, type FileHandle, open } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { verifyAuthenticode } from '../../src/formats/authenticode.ts';
import { decodeCpio } from '../../src/formats/cpio.ts';
import { openFat32 } from '../../src/formats/fat32.ts';
import { type DecodedGpt, decodeGpt, gptHeadSize, gptTailSize } from '../../src/formats/gpt.ts';
import { formatUuid } from '../../src/formats/guid.ts';
import { type InitramfsMember, splitInitramfs } from '../../src/formats/initramfs.ts';
import { decodePe, findPeSection, peSectionContent } from '../../src/formats/pe.ts';
import { computeVerityRootHash } from '../../src/formats/verity-tree.ts';
import { decodePcrSignatures, policyKeyFingerprint, verifyPcrSignature } from '../../src/measure/pcr-signature.ts';
import { predictPcr4 } from '../../src/measure/pcr4.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { maxFormerPolicyKeys, signedPcr11Policy } from '../../src/measure/policy.ts';
import { command } from '../host/command-line.ts';
import { type Beside, inspectBeside } from './inspect-beside.ts';
import { formatInspection } from './inspect-report.ts';

const espType = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b';
const bootPath = 'EFI/BOOT/BOOTX64.EFI';
const otherUkiPaths = ['EFI/ashlar/a.efi', 'EFI/ashlar/b.efi'];
const systemFile = 'etc/ashlar/system.json';
const maxUkiBytes = 512 * 1024 * 1024;
const maxInitrdBytes = 1024 * 1024 * 1024;
const maxTextSection = 64 * 1024;
/** Of the superblock (fs/erofs/erofs_fs.h in the kernel), little-endian. */
const erofs = { magic: 0xe0f5e1e2, offset: 1024 };

export interface UkiInspection {
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly authenticodeDigest: string;
  readonly sections: readonly { name: string; sizeBytes: number; sha256: string }[];
  readonly commandLine: string | undefined;
  readonly osRelease: Readonly<Record<string, string>>;
  readonly uname: string | undefined;
  readonly signatures: readonly {
    signer: string | undefined;
    certificateSha256: string | undefined;
    isValid: boolean;
    reason?: string;
  }[];
  readonly pcrSignatures: readonly {
    pcrs: readonly number[];
    policyRef: string;
    policy: string;
    keyFingerprint: string;
    /** Made by the key in `.pcrpkey` or a former one of the initramfs, for this image's PCR 11 in phase enter-initrd. */
    isValid: boolean;
  }[];
  readonly pcrs: {
    readonly pcr4: Readonly<Record<'secure-boot-on' | 'secure-boot-off', string>>;
    readonly pcr11: Readonly<Record<'firmware' | 'enter-initrd' | 'leave-initrd', string>>;
  };
  /** From the initramfs; undefined when it holds no description of a system partition. */
  readonly system: SystemDescription | undefined;
}

interface SystemDescription {
  readonly version: string;
  readonly buildTime: number;
  readonly partitionUuid: string;
  readonly rootHash: string;
  readonly salt: string;
  readonly dataBlocks: number;
  readonly blockSize: number;
}

export interface DiskInspection {
  readonly diskGuid: string;
  readonly sizeBytes: number;
  readonly isTableConsistent: boolean;
  readonly partitions: readonly {
    number: number;
    name: string;
    typeGuid: string;
    uniqueGuid: string;
    startLba: number;
    sizeBytes: number;
    attributes: string;
    /** Of a system partition that the UKI names: the root hash computed from its data. */
    rootHash?: string;
  }[];
  readonly ukiPath: string;
}

export interface Inspection extends Beside {
  readonly file: string;
  readonly kind: 'uki' | 'disk';
  readonly disk?: DiskInspection;
  readonly uki: UkiInspection;
  /** What contradicts what. Empty for an image as mkimage makes it. */
  readonly problems: readonly string[];
}

/**
 * @param path a UKI (`.efi`) or a disk image.
 * @throws Error, one sentence, when it is neither or is malformed.
 */
export async function inspectImage(path: string): Promise<Inspection> {
  try {
    // Without waiting: a named pipe, which has nothing to be inspected, would be waited for until somebody writes.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const status = await file.stat();
    if (!status.isFile()) throw new Error(status.isDirectory() ? 'it is a directory' : 'it is not a regular file');
    const { size } = status;
    const magic = await readExactly(file, 0, Math.min(size, 2));
    if (await isErofs(file, size))
      throw new Error(
        'it is the content of a system partition (erofs), which does not say what it should be: check it with veritysetup as docs/image.md shows, and inspect the .efi or .disk.img beside it',
      );
    const problems: string[] = [];
    const found =
      magic[0] === 0x4d && magic[1] === 0x5a
        ? { kind: 'uki' as const, uki: inspectUki(await readUki(file, size), problems) }
        : { kind: 'disk' as const, ...(await inspectDisk(file, size, problems)) };
    const beside = await inspectBeside(dirname(resolve(path)), found.uki, problems);
    return { file: path, ...found, ...beside, problems };
  } catch (error) {
    throw new Error(`cannot inspect ${path}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

async function readExactly(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0)
      throw new Error(`the file ends at ${offset + done}, ${length - done} bytes before what it should hold`);
    done += bytesRead;
  }
  return bytes;
}

async function isErofs(file: FileHandle, size: number): Promise<boolean> {
  if (size < erofs.offset + 4) return false;
  return (await readExactly(file, erofs.offset, 4)).readUInt32LE() === erofs.magic;
}

async function readUki(file: FileHandle, size: number): Promise<Uint8Array> {
  if (size > maxUkiBytes) throw new Error(`the UKI has ${size} bytes, over the limit of ${maxUkiBytes}`);
  return await readExactly(file, 0, size);
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

function inspectUki(uki: Uint8Array, problems: string[]): UkiInspection {
  const image = decodePe(uki);
  const content = (name: string): Uint8Array | undefined => {
    const section = findPeSection(image, name);
    return section === undefined ? undefined : peSectionContent(uki, section);
  };
  const text = (name: string): string | undefined => {
    const bytes = content(name);
    if (bytes === undefined) return undefined;
    if (bytes.length > maxTextSection)
      throw new RangeError(`section ${name} has ${bytes.length} bytes, over the limit of ${maxTextSection}`);
    return Buffer.from(bytes).toString('utf8').replace(/\0+$/, '');
  };
  if (findPeSection(image, '.linux') === undefined)
    throw new Error('it is a PE image but no UKI: there is no .linux section');
  const { digest, signatures } = verifyAuthenticode(uki);
  if (signatures.length === 0) problems.push('the UKI is not signed');
  for (const { reason } of signatures)
    if (reason !== undefined) problems.push(`the UKI's signature does not verify: ${reason}`);
  const pcr11 = predictPcr11OfUki(uki);
  const { system, formerPolicyKeys } = findSystemDescription(content('.initrd'));
  return {
    sizeBytes: uki.length,
    sha256: sha256(uki),
    authenticodeDigest: hex(digest),
    sections: image.sections.map((section) => {
      const bytes = peSectionContent(uki, section);
      return { name: section.name, sizeBytes: bytes.length, sha256: sha256(bytes) };
    }),
    commandLine: text('.cmdline'),
    osRelease: parseOsRelease(text('.osrel') ?? ''),
    uname: text('.uname'),
    signatures: signatures.map(({ signer, isValid, reason }) => ({
      signer: signer?.subject.replaceAll('\n', ', '),
      certificateSha256: signer === undefined ? undefined : sha256(signer.raw),
      isValid,
      ...(reason === undefined ? {} : { reason }),
    })),
    pcrSignatures: inspectPcrSignatures(
      text('.pcrsig'),
      [text('.pcrpkey'), ...formerPolicyKeys],
      pcr11['enter-initrd'].value,
      problems,
    ),
    pcrs: {
      pcr4: {
        'secure-boot-on': hex(predictPcr4(uki, { isSecureBootOn: true }).value),
        'secure-boot-off': hex(predictPcr4(uki, { isSecureBootOn: false }).value),
      },
      pcr11: {
        firmware: hex(pcr11.firmware.value),
        'enter-initrd': hex(pcr11['enter-initrd'].value),
        'leave-initrd': hex(pcr11['leave-initrd'].value),
      },
    },
    system,
  };
}

function parseOsRelease(text: string): Record<string, string> {
  const pairs = text.split('\n').flatMap((line): [string, string][] => {
    const match = /^([A-Z0-9_]+)=(?:"(.*)"|'(.*)'|(.*))$/.exec(line.trim());
    return match?.[1] === undefined ? [] : [[match[1], match[2] ?? match[3] ?? match[4] ?? '']];
  });
  return Object.fromEntries(pairs);
}

function inspectPcrSignatures(
  json: string | undefined,
  [keyPem, ...formerKeyPems]: readonly (string | undefined)[],
  pcr11: Uint8Array,
  problems: string[],
): UkiInspection['pcrSignatures'] {
  if (json === undefined || keyPem === undefined) {
    problems.push('the UKI carries no PCR signature: nothing can be unsealed under it');
    return [];
  }
  const keys = new Map(
    [keyPem, ...formerKeyPems].flatMap((pem) => {
      const key = pem === undefined ? undefined : createPublicKey(pem);
      return key === undefined ? [] : [[hex(policyKeyFingerprint(key)), key] as const];
    }),
  );
  const expectedPolicy = hex(signedPcr11Policy(pcr11));
  const signatures = decodePcrSignatures(json);
  if (signatures.length === 0) problems.push('.pcrsig is an empty list: nothing can be unsealed under the UKI');
  return signatures.map((signature) => {
    const policy = hex(signature.policy);
    const keyFingerprint = hex(signature.keyFingerprint);
    const key = keys.get(keyFingerprint);
    const isMade = key !== undefined && verifyPcrSignature(signature, key);
    if (!isMade)
      problems.push('a PCR signature was made neither by the key in .pcrpkey nor by a former one in system.json');
    else if (policy !== expectedPolicy)
      problems.push('a PCR signature approves another PCR 11 than this image will have');
    return {
      pcrs: signature.pcrs,
      policyRef: signature.policyRef,
      policy,
      keyFingerprint,
      isValid: isMade && policy === expectedPolicy,
    };
  });
}

/** The kernel unpacks members in order, so the last file of a name is the one that counts. */
function findSystemDescription(initrd: Uint8Array | undefined): {
  system: SystemDescription | undefined;
  formerPolicyKeys: readonly string[];
} {
  if (initrd === undefined) return { system: undefined, formerPolicyKeys: [] };
  const files = splitInitramfs(initrd).flatMap((member) => decodeCpio(decompress(member)));
  const file = files.findLast(({ path }) => path === systemFile);
  return file === undefined ? { system: undefined, formerPolicyKeys: [] } : parseSystemDescription(file.data);
}

function decompress({ compression, bytes }: InitramfsMember): Uint8Array {
  const limit = { maxOutputLength: maxInitrdBytes };
  if (compression === 'zstd') return zstdDecompressSync(bytes, limit);
  return compression === 'gzip' ? gunzipSync(bytes, limit) : bytes;
}

function parseSystemDescription(bytes: Uint8Array): { system: SystemDescription; formerPolicyKeys: readonly string[] } {
  const value: unknown = JSON.parse(Buffer.from(bytes).toString('utf8'));
  const fields: Record<string, unknown> = typeof value === 'object' && value !== null ? { ...value } : {};
  const refuse = (key: string): never => {
    throw new Error(`${systemFile} in the initramfs: ${key} is missing or malformed`);
  };
  const string = (key: string, pattern: RegExp): string => {
    const field = fields[key];
    return typeof field === 'string' && pattern.test(field) ? field : refuse(key);
  };
  const natural = (key: string, limit: number): number => {
    const field = fields[key];
    return typeof field === 'number' && Number.isSafeInteger(field) && field >= 0 && field <= limit
      ? field
      : refuse(key);
  };
  const former: unknown = fields['formerPolicyKeyPems'] ?? [];
  const isKeyList = (value: unknown): value is string[] =>
    Array.isArray(value) && value.length <= maxFormerPolicyKeys && value.every((pem) => typeof pem === 'string');
  const system = {
    version: string('version', /^[\x20-\x7e]{1,64}$/),
    buildTime: natural('buildTime', 2 ** 40),
    partitionUuid: string('partitionUuid', /^[0-9a-f-]{36}$/),
    rootHash: string('rootHash', /^[0-9a-f]{64}$/),
    salt: string('salt', /^([0-9a-f]{2}){0,256}$/),
    dataBlocks: natural('dataBlocks', 2 ** 32),
    blockSize: fields['blockSize'] === 4096 ? (4096 as const) : refuse('blockSize'),
  };
  return { system, formerPolicyKeys: isKeyList(former) ? former : refuse('formerPolicyKeyPems') };
}

async function inspectDisk(
  file: FileHandle,
  size: number,
  problems: string[],
): Promise<{ disk: DiskInspection; uki: UkiInspection }> {
  const sectorSize = 512;
  const minimum = gptHeadSize(sectorSize) + gptTailSize(sectorSize);
  if (size < minimum)
    throw new Error(`it is neither a PE image nor a disk image: ${size} bytes hold no partition table`);
  const diskSectors = Math.floor(size / sectorSize);
  const gpt = decodeGpt({
    head: await readExactly(file, 0, gptHeadSize(sectorSize)),
    tail: await readExactly(file, diskSectors * sectorSize - gptTailSize(sectorSize), gptTailSize(sectorSize)),
    sectorSize,
    diskSectors,
  });
  if (!gpt.isConsistent) problems.push(`the two partition tables differ; read from the ${gpt.source} one`);
  const esp = gpt.partitions.find(({ typeGuid }) => typeGuid === espType);
  if (esp === undefined) throw new Error('the disk has no EFI system partition');
  const espOffset = esp.startLba * sectorSize;
  const espSize = (esp.endLba - esp.startLba + 1) * sectorSize;
  const fat = await openFat32(async (offset, length) => {
    if (offset + length > espSize)
      throw new RangeError(`the file system reaches ${offset + length}, past its partition of ${espSize} bytes`);
    return await readExactly(file, espOffset + offset, length);
  }, espSize);
  const bytes = await fat.readFile(bootPath);
  if (bytes === undefined) throw new Error(`the EFI system partition has no ${bootPath}`);
  for (const path of otherUkiPaths) {
    const other = await fat.readFile(path);
    if (other !== undefined && Buffer.compare(other, bytes) !== 0) problems.push(`${path} differs from ${bootPath}`);
  }
  const uki = inspectUki(bytes, problems);
  const partitions = await inspectPartitions(file, gpt, uki.system, problems);
  return {
    disk: {
      diskGuid: gpt.diskGuid,
      sizeBytes: size,
      isTableConsistent: gpt.isConsistent,
      partitions,
      ukiPath: bootPath,
    },
    uki,
  };
}

async function inspectPartitions(
  file: FileHandle,
  gpt: DecodedGpt,
  system: SystemDescription | undefined,
  problems: string[],
): Promise<DiskInspection['partitions']> {
  const result: DiskInspection['partitions'][number][] = [];
  for (const { number, name, typeGuid, uniqueGuid, startLba, endLba, attributes } of gpt.partitions) {
    const sizeBytes = (endLba - startLba + 1) * gpt.sectorSize;
    const isSystem = system !== undefined && uniqueGuid === system.partitionUuid;
    const rootHash = isSystem ? await rootHashOf(file, startLba * gpt.sectorSize, sizeBytes, system) : undefined;
    if (rootHash !== undefined && rootHash !== system?.rootHash) {
      problems.push(`partition ${number} (${name}) has root hash ${rootHash}, the UKI expects ${system?.rootHash}`);
    }
    const plain = {
      number,
      name,
      typeGuid,
      uniqueGuid,
      startLba,
      sizeBytes,
      attributes: `0x${attributes.toString(16)}`,
    };
    result.push({ ...plain, ...(rootHash === undefined ? {} : { rootHash }) });
  }
  if (system === undefined) return result;
  if (!result.some(({ rootHash }) => rootHash !== undefined)) {
    problems.push(`no partition has the UUID ${system.partitionUuid} that the UKI looks for`);
  }
  if (formatUuid(Buffer.from(system.rootHash, 'hex').subarray(0, 16)) !== system.partitionUuid) {
    problems.push('the partition UUID in the UKI is not derived from the root hash');
  }
  return result;
}

async function rootHashOf(
  file: FileHandle,
  offset: number,
  sizeBytes: number,
  system: SystemDescription,
): Promise<string> {
  const { blockSize, dataBlocks, salt } = system;
  const length = dataBlocks * blockSize;
  if (length === 0 || length > sizeBytes)
    throw new Error(`the UKI expects ${dataBlocks} blocks of system data, the partition has ${sizeBytes} bytes`);
  const pieces = async function* (): AsyncGenerator<Uint8Array> {
    const step = 1024 * blockSize;
    for (let at = 0; at < length; at += step) yield await readExactly(file, offset + at, Math.min(step, length - at));
  };
  return hex(await computeVerityRootHash(pieces(), { salt: Buffer.from(salt, 'hex'), blockSize }));
}

export const inspectCommand = command({
  name: 'inspect',
  summary: 'Show what an image holds, who signed it and what a TPM will say of it',
  description: 'IMAGE is a UKI (.efi) or a disk image. The exit code is 1 when its parts contradict each other.',
  positionals: [{ name: 'image', summary: 'the file', required: true }],
  options: { json: { type: 'boolean', summary: 'print JSON' } },
  run: async ({ image, json }, { print }) => {
    const inspection = await inspectImage(image);
    print(json ? JSON.stringify(inspection, null, 2) : formatInspection(inspection));
    return inspection.problems.length === 0 ? 0 : 1;
  },
});

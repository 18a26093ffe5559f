/**
 * The disk image: GPT, the ESP with the UKI, the system partition in slot A, slot B empty. DATA is the node's to add.
 * The file is sparse: what is empty takes no space.
 */
import { type FileHandle, mkdtemp, open, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encodeGpt, type Gpt, gptTailSize } from '../../src/formats/gpt.ts';
import type { EnrolmentFiles } from '../../src/formats/secure-boot-enrolment.ts';
import { diskLayout, partitionAlignmentBytes } from '../../src/storage/disk-layout.ts';
import { inputHash } from '../host/cache.ts';
import type { SystemImage } from './system-image.ts';
import { uuidFrom } from './system-image.ts';
import { runInToolRoot, type ToolRoot } from './tool-root.ts';

const SECTOR = 512;
const HOLE_UNIT = 64 * 1024;
/** FAT has no time before 1980. */
const FAT_EPOCH = 315_532_800;

export interface DiskImageOptions {
  path: string;
  uki: Uint8Array;
  /** Becomes EFI/ashlar/keys on the ESP. @default none */
  enrolment?: EnrolmentFiles | undefined;
  system: SystemImage;
  buildTime: number;
  toolRoot: ToolRoot;
  signal?: AbortSignal | undefined;
}

/** Writes the image to `path`. @throws RangeError when the system image is larger than its partition */
export async function writeDiskImage(options: DiskImageOptions): Promise<Gpt> {
  const { esp, systemA, systemB } = diskLayout;
  if (options.system.sizeBytes > systemA.sizeBytes) {
    throw new RangeError(
      `cannot make the disk image: the system image has ${options.system.sizeBytes} bytes, its partition ${systemA.sizeBytes}; take files out of image/system/manifest.json`,
    );
  }
  const starts = [esp, systemA, systemB].reduce<number[]>(
    (all, { sizeBytes }) => [...all, (all.at(-1) ?? 0) + sizeBytes],
    [partitionAlignmentBytes],
  );
  const end = starts.at(-1) ?? 0;
  const diskBytes = end + Math.ceil(gptTailSize(SECTOR) / partitionAlignmentBytes) * partitionAlignmentBytes;
  const ids = [
    inputHash('esp', options.system.rootHash),
    options.system.rootHash,
    inputHash('slot b', options.system.rootHash),
  ];
  const gpt: Gpt = {
    diskGuid: uuidFrom(inputHash('disk', options.system.rootHash)),
    sectorSize: SECTOR,
    diskSectors: diskBytes / SECTOR,
    partitions: [esp, systemA, systemB].map(({ number, name, typeGuid, sizeBytes }, index) => ({
      number,
      name,
      typeGuid,
      uniqueGuid: uuidFrom(ids[index] ?? ''),
      startLba: (starts[index] ?? 0) / SECTOR,
      endLba: ((starts[index] ?? 0) + sizeBytes) / SECTOR - 1,
      attributes: 0n,
    })),
  };
  await using file = await open(options.path, 'wx');
  await file.truncate(diskBytes);
  for (const { offset, bytes } of encodeGpt(gpt)) await file.write(bytes, 0, bytes.length, offset);
  await writeSparse(file, await readFile(options.system.path), starts[1] ?? 0);
  await writeEsp(options, starts[0] ?? 0);
  return gpt;
}

/** Makes the FAT file system where it is to be, inside the disk image. */
async function writeEsp(options: DiskImageOptions, offset: number): Promise<void> {
  const { toolRoot, signal, buildTime } = options;
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-esp-'));
  try {
    // A file's time comes from its source, a directory's from SOURCE_DATE_EPOCH.
    const seconds = Math.max(buildTime, FAT_EPOCH);
    const add = async (name: string, content: Uint8Array) => {
      await writeFile(join(directory, name), content);
      await utimes(join(directory, name), seconds, seconds);
    };
    await add('uki', options.uki);
    const auth = Object.entries(options.enrolment ?? {});
    for (const [name, content] of auth) await add(`${name}.auth`, content);
    const volumeId = options.system.rootHash.slice(0, 8);
    const kibibytes = diskLayout.esp.sizeBytes / 1024;
    const script = [
      `mkfs.vfat --invariant -F 32 -S ${SECTOR} -s 1 -i ${volumeId} -n ESP --offset ${offset / SECTOR} /disk ${kibibytes}`,
      `mmd -i /disk@@${offset} ::/EFI ::/EFI/BOOT ::/EFI/ashlar`,
      `mcopy -m -i /disk@@${offset} /in/uki ::/EFI/BOOT/BOOTX64.EFI`,
      `mcopy -m -i /disk@@${offset} /in/uki ::/EFI/ashlar/a.efi`,
      ...(auth.length === 0 ? [] : [`mmd -i /disk@@${offset} ::/EFI/ashlar/keys`]),
      ...auth.map(([name]) => `mcopy -m -i /disk@@${offset} /in/${name}.auth ::/EFI/ashlar/keys/${name}.auth`),
    ].join(' && ');
    await runInToolRoot(toolRoot, 'sh', ['-c', script], {
      binds: [
        { source: directory, target: '/in' },
        { source: options.path, target: '/disk', writable: true },
      ],
      env: { SOURCE_DATE_EPOCH: String(seconds), MTOOLS_SKIP_CHECK: '1' },
      signal,
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Writes what is not zero; the rest of the file is a hole already. */
async function writeSparse(file: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  const zeros = Buffer.alloc(HOLE_UNIT);
  let start = 0;
  const flush = async (end: number) => {
    if (end > start) await file.write(bytes, start, end - start, offset + start);
  };
  for (let at = 0; at < bytes.length; at += HOLE_UNIT) {
    const unit = bytes.subarray(at, at + HOLE_UNIT);
    if (unit.equals(zeros.subarray(0, unit.length))) {
      await flush(at);
      start = at + unit.length;
    }
  }
  await flush(bytes.length);
}

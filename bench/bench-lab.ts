/** What every benchmark starts from: an image built now, firmware that trusts it, an owner, machines of one kind. */
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type BuiltImage, readBuiltImage } from '../qemu-tests/lab/built-image.ts';
import { Operator } from '../qemu-tests/lab/operator.ts';
import type { Firmware, MachineOptions } from '../qemu-tests/machine/machine.ts';
import { makeSecureFirmware } from '../qemu-tests/machine/secure-firmware.ts';
import type { Progress } from '../tools/host/progress.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';

export interface BenchLab extends AsyncDisposable {
  readonly directory: string;
  readonly image: BuiltImage;
  readonly firmware: Firmware;
  readonly ownerDirectory: string;
  /** A machine with the image, whose state lies in `name` below the lab's directory. */
  machineOptions(name: string, overrides?: Partial<MachineOptions>): MachineOptions;
}

export async function openBenchLab(progress: Progress, signal: AbortSignal): Promise<BenchLab> {
  // On the checkout's disk: /tmp may be memory, which is what some of this measures.
  const directory = await mkdtemp(join(import.meta.dirname, '..', 'out', 'bench-'));
  const dispose = () => rm(directory, { recursive: true, force: true });
  try {
    const imageDirectory = join(directory, 'image');
    await buildImage({ outDir: imageDirectory, allowDrift: true, progress, signal });
    const image = await readBuiltImage(imageDirectory);
    const firmware = await makeSecureFirmware(join(directory, 'firmware'), await developmentKeys(), {
      progress,
      allowDrift: true,
    });
    const ownerDirectory = join(directory, 'owner');
    await Operator.prepare(ownerDirectory);
    const nodeParameters = await Operator.nodeParameters(ownerDirectory);
    return {
      directory,
      image,
      firmware,
      ownerDirectory,
      machineOptions: (name, overrides = {}) => ({
        directory: join(directory, name),
        authorityDirectory: join(directory, 'tpm-authority'),
        firmware,
        image: { path: image.diskImagePath, format: 'raw' },
        network: { kind: 'user', guestPorts: [7400, 7401] },
        nodeParameters,
        note: (text) => progress.warn(text),
        ...overrides,
      }),
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

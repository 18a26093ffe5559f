/**
 * Whether QEMU may use KVM. /dev/kvm that opens proves nothing (nested virtualisation may be switched off below us): so
 * a virtual machine whose whole firmware is five bytes of code runs, and must answer through the debug-exit device.
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { cacheDirectory } from '../../tools/host/cache.ts';
import { runProcess } from '../../tools/host/run-process.ts';

export type Accelerator = 'kvm' | 'tcg';

const PROBE_DEADLINE_MS = 10_000;
const ANSWER = 0x2a;
/** The port QEMU's isa-debug-exit listens at; a byte b written there ends QEMU with exit code 2b + 1. */
const DEBUG_EXIT_PORT = 0xf4;

/** The machine's answer, probed once for each boot of this host. */
export async function detectAccelerator(): Promise<Accelerator> {
  const bootId = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  const cachePath = join(cacheDirectory(), 'accelerator', bootId);
  const known = await readFile(cachePath, 'utf8').catch(() => undefined);
  if (known === 'kvm' || known === 'tcg') return known;
  const accelerator: Accelerator = (await runsCode('kvm')) ? 'kvm' : 'tcg';
  await mkdir(dirname(cachePath), { recursive: true });
  await writeFile(cachePath, accelerator);
  return accelerator;
}

/** Whether a machine with this accelerator executes instructions. Takes up to ten seconds when it does not. */
export async function runsCode(accelerator: Accelerator): Promise<boolean> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-probe-'));
  try {
    const firmwarePath = join(directory, 'probe.bin');
    await writeFile(firmwarePath, probeFirmware());
    const { code } = await runProcess(
      'qemu-system-x86_64',
      [
        ...['-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max', '-machine', 'q35', '-m', '64'],
        ...['-nodefaults', '-display', 'none', '-no-reboot', '-bios', firmwarePath],
        ...['-device', `isa-debug-exit,iobase=${DEBUG_EXIT_PORT},iosize=1`],
      ],
      { allowFailure: true, signal: AbortSignal.timeout(PROBE_DEADLINE_MS) },
    );
    return code === ANSWER * 2 + 1;
  } catch (error) {
    if (error instanceof DOMException && error.name === 'TimeoutError') return false;
    throw error;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** 64 KiB that end at 4 GiB; the processor starts 16 bytes below the end. */
function probeFirmware(): Uint8Array {
  const firmware = new Uint8Array(65_536).fill(0xf4);
  // mov al, ANSWER; out DEBUG_EXIT_PORT, al; then hlt for ever.
  firmware.set([0xb0, ANSWER, 0xe6, DEBUG_EXIT_PORT, 0xf4, 0xeb, 0xfd], firmware.length - 16);
  return firmware;
}

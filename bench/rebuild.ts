/**
 * What an edit costs: the checkout is copied, built, and then built again after one line was added to init, which is in
 * the initramfs and in the system partition, so that nearly everything of ours is made anew.
 */
import { appendFile, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { copyCheckout } from '../qemu-tests/lab/checkout-copy.ts';

const OUT = join(import.meta.dirname, '..', 'out');
const CHANGED_FILE = 'src/init/main.ts';

/** Milliseconds of each of `count` rebuilds. */
export async function benchRebuild(
  count: number,
  signal: AbortSignal,
  report: (text: string) => void,
): Promise<number[]> {
  const directory = await mkdtemp(join(OUT, 'rebuild-'));
  try {
    const copy = await copyCheckout(join(directory, 'checkout'));
    const image = join(directory, 'image');
    report('first build');
    await copy.build(image, signal);
    const durations: number[] = [];
    for (let run = 0; run < count; run++) {
      report(`rebuild ${run + 1} of ${count}`);
      // An assignment that nobody reads, but that no minifier may drop.
      const line = `Reflect.set(globalThis, 'ashlarRebuild', '${process.pid}-${run}');\n`;
      await appendFile(join(copy.directory, CHANGED_FILE), line);
      const startMs = performance.now();
      await copy.build(image, signal);
      durations.push(performance.now() - startMs);
    }
    return durations;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** A copy of the checkout's tracked files, for images of changed sources: the checkout itself is never touched. */
import { cp, mkdir, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { runProcess } from '../../tools/host/run-process.ts';

const REPOSITORY = join(import.meta.dirname, '..', '..');

export interface CheckoutCopy {
  readonly directory: string;
  /** Builds an image from the copy's sources, with the copy's tools, into `outDirectory`. */
  build(outDirectory: string, signal?: AbortSignal): Promise<void>;
}

export async function copyCheckout(directory: string): Promise<CheckoutCopy> {
  const { stdout } = await runProcess('git', ['ls-files', '-z'], { cwd: REPOSITORY });
  for (const path of stdout.split('\0').filter((name) => name !== '')) {
    await mkdir(join(directory, dirname(path)), { recursive: true });
    await cp(join(REPOSITORY, path), join(directory, path));
  }
  await symlink(join(REPOSITORY, 'node_modules'), join(directory, 'node_modules'));
  return {
    directory,
    build: async (outDirectory, signal) => {
      const args = [join(directory, 'tools/mkimage/main.ts'), 'build', '--out', outDirectory, '--allow-drift'];
      await runProcess(process.execPath, args, { cwd: directory, ...(signal !== undefined && { signal }) });
    },
  };
}

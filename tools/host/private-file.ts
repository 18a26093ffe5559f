/** Files that hold a private key. */
import { stat } from 'node:fs/promises';

/**
 * Throws when others than the file's owner may read or write it, with the command that changes this.
 *
 * @param problem what cannot be done then: `cannot load keys`
 */
export async function refuseSharedFile(path: string, problem: string): Promise<void> {
  const { mode } = await stat(path);
  if ((mode & 0o077) === 0) return;
  throw new Error(
    `${problem}: ${path} has mode 0${(mode & 0o777).toString(8)}, others can read it; run: chmod 600 ${path}`,
  );
}

/** Files of a package that the lock names, unpacked once into the cache. */
import { cachedDirectory } from '../../tools/host/cache.ts';
import type { Progress } from '../../tools/host/progress.ts';
import { runProcess } from '../../tools/host/run-process.ts';
import { fetchPackages, type PackageGroup, type PackageLock, readPackageLock } from '../../tools/mkimage/packages.ts';

export interface LockedPackageOptions {
  readonly progress: Progress;
  /** Take the suite's newest when the mirror no longer has the locked version. @default false */
  readonly allowDrift?: boolean;
  /** @default the image's: image/lock.json and its suites */
  readonly from?: { readonly lock: PackageLock; readonly suites: readonly string[] };
}

/** The directory that holds the package's files. */
export async function unpackLockedPackage(
  group: PackageGroup,
  name: string,
  options: LockedPackageOptions,
): Promise<string> {
  const { from, ...fetching } = options;
  const lock = from?.lock ?? (await readPackageLock());
  const packages = await fetchPackages(lock, [group], { ...fetching, suites: from?.suites });
  const entry = packages.packages.find((candidate) => candidate.name === name);
  if (entry === undefined) {
    throw new Error(`cannot unpack ${name}: the package lock does not have it; make a new one with: mkimage lock`);
  }
  return cachedDirectory('objects', `package-${entry.sha256}`, async (directory) => {
    await runProcess('dpkg-deb', ['-x', await packages.file(entry), directory]);
  });
}

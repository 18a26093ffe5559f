/** What package-lock.json says of a package. npm checked the files against it when it installed them. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface LockedNpmPackage {
  readonly name: string;
  readonly version: string;
  /** As in Subresource Integrity: `sha512-…`. */
  readonly integrity: string;
}

/** @throws Error naming a package of which it says nothing, and the way out */
export async function lockedNpmPackages(names: Iterable<string>): Promise<LockedNpmPackage[]> {
  const { packages } = JSON.parse(await readFile(join(import.meta.dirname, '../../package-lock.json'), 'utf8')) as {
    packages: Record<string, { version?: string; integrity?: string }>;
  };
  return [...new Set(names)].sort().map((name) => {
    const { version, integrity } = packages[`node_modules/${name}`] ?? {};
    if (version === undefined || integrity === undefined) {
      throw new Error(
        `cannot tell which ${name} is in the image: package-lock.json has no version and integrity of it; run: npm install`,
      );
    }
    return { name, version, integrity };
  });
}

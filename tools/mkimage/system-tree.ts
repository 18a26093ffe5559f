/**
 * The system partition's content: image/system/manifest.json and the root file system of each service, with the
 * libraries that their programs name.
 *
 * A service sees its rootfs only. What it shares with the system (libc, the executable) is the same file once: equal
 * files become hard links when the tree is written.
 */
import { createHash } from 'node:crypto';
import { posix } from 'node:path';
import { mountPoints, type ServiceManifest } from '../../src/supervisor/service-manifest.ts';
import { type ElfReader, FileTree, type TreeEntry, type TreeFile } from './file-tree.ts';
import { addManifest, type BuiltFiles, readImageManifest } from './image-manifest.ts';
import type { ImagePackages } from './image-packages.ts';
import { checkTree } from './tree-rules.ts';

/** Our roles that run as services; their program is the one executable under another name. */
const SERVICE_ROLES: readonly string[] = ['agent', 'curator'];

export async function buildSystemTree(options: {
  packages: ImagePackages;
  services: readonly ServiceManifest[];
  /** File name → text, as checked. */
  serviceManifestTexts: Readonly<Record<string, string>>;
  built: BuiltFiles;
  /** By service: files for /usr/lib/ashlar of its root alone, in place of what is built. @default none */
  serviceFiles?: Readonly<Record<string, BuiltFiles>>;
  readElf: ElfReader;
}): Promise<TreeEntry[]> {
  const { packages, services, serviceManifestTexts, built, serviceFiles = {}, readElf } = options;
  const tree = new FileTree(packages, readElf);
  addMergedUsr(tree, '');
  await addManifest(tree, await readImageManifest('system'), built);
  for (const [fileName, content] of Object.entries(serviceManifestTexts)) {
    tree.add(textFile(`/usr/share/ashlar/services/${fileName}`, content));
  }
  for (const service of services) {
    const ofService = serviceFiles[service.name] ?? {};
    for (const [name, made] of Object.entries(ofService)) {
      const path = `/services/${service.name}/rootfs/usr/lib/ashlar/${name}`;
      tree.add({ type: 'file', path, mode: 0o644, ...made });
    }
    await addService(tree, service, { ...built, ...ofService });
  }
  const entries = tree.entries();
  await checkTree('system partition', entries, readElf);
  return entries;
}

async function addService(tree: FileTree, service: ServiceManifest, built: BuiltFiles): Promise<void> {
  const root = `/services/${service.name}/rootfs`;
  tree.directory(root);
  addMergedUsr(tree, root);
  for (const path of [...mountPoints(service), ...service.rootfs.directories]) tree.directory(root + path);
  for (const { path, content } of service.rootfs.files) tree.add(textFile(root + path, content));
  for (const path of service.rootfs.binaries) {
    const role = SERVICE_ROLES.find((name) => path === `/usr/bin/${name}`);
    if (role === undefined) tree.packageFile(root + path, { mode: 0o755, from: path });
    else addRole(tree, root, role, built);
  }
  for (const path of service.rootfs.libraries)
    await tree.library(posix.basename(path), root, `the service ${service.name}`);
  await tree.closeOverLibraries(root);
}

function addRole(tree: FileTree, root: string, role: string, built: BuiltFiles): void {
  const place = (path: string, mode: number, name: string) => {
    const made = built[name];
    if (made === undefined) throw new Error(`cannot place ${path}: the build makes no ${name}`);
    tree.add({ type: 'file', path: root + path, mode, ...made });
  };
  place('/usr/bin/ashlar', 0o755, 'executable');
  tree.link(`${root}/usr/bin/${role}`, 'ashlar');
  place(`/usr/lib/ashlar/${role}.js`, 0o644, `${role}.js`);
}

/** Programs name their dynamic linker under /lib64. */
export function addMergedUsr(tree: FileTree, root: string): void {
  for (const name of ['bin', 'lib', 'lib64', 'sbin']) {
    tree.directory(`${root}/usr/${name}`);
    tree.link(`${root}/${name}`, `usr/${name}`);
  }
}

export function textFile(path: string, content: string): TreeFile {
  return { type: 'file', path, mode: 0o644, ...builtText(content) };
}

/** Text that the build makes. */
export function builtText(content: string): Omit<TreeFile, 'path' | 'mode' | 'type'> {
  const bytes = Buffer.from(content, 'utf8');
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  return { content: { kind: 'bytes', bytes }, sha256, size: bytes.length, origin: 'ashlar' };
}

/**
 * What no image may hold. An attacker who can run one program on a node should find no second one that runs what he
 * brings along: no shell, no interpreter but ours (which takes roles, not scripts), nothing setuid, nothing to load into
 * the kernel.
 */
import { posix } from 'node:path';
import type { ElfReader, TreeEntry } from './file-tree.ts';

const FORBIDDEN_PROGRAM =
  /^(?:[bdkzc]?a?sh|ksh\d*|mksh|fish|tcsh|csh|rbash|busybox|toybox|perl[\d.]*|python[\d.]*|pypy[\d.]*|lua(?:jit)?[\d.]*|[gmn]?awk|tclsh[\d.]*|wish|expect|ruby[\d.]*|php[\d.]*|guile|node|nodejs|deno|bun|qjs|ed|vi|vim|ex|sed|env|xargs|gdb|socat|nc|ncat|netcat|ssh|sshd|sudo|su)$/;

/** @throws one error that lists every breach */
export async function checkTree(name: string, entries: readonly TreeEntry[], readElf: ElfReader): Promise<void> {
  const breaches: string[] = [];
  const paths = new Map(entries.map((entry) => [entry.path, entry]));
  for (const entry of entries) {
    if (FORBIDDEN_PROGRAM.test(posix.basename(entry.path)) && entry.type !== 'directory') {
      breaches.push(`${entry.path}: a shell, an interpreter, or a tool that runs others`);
    }
    if ((entry.mode & 0o7000) !== 0)
      breaches.push(`${entry.path}: setuid, setgid or sticky (mode ${entry.mode.toString(8)})`);
    if ((entry.mode & 0o022) !== 0 && entry.type !== 'link' && entry.type !== 'device') {
      breaches.push(`${entry.path}: writable by others than root (mode ${entry.mode.toString(8)})`);
    }
    if (/\.ko(?:\.(?:gz|xz|zst))?$/.test(entry.path)) breaches.push(`${entry.path}: a kernel module`);
    if (entry.type === 'link' && resolveLink(paths, entry.path) === undefined) {
      breaches.push(`${entry.path}: a link to ${entry.target}, which is not there`);
    }
    if (entry.type === 'file' && (entry.mode & 0o111) !== 0 && (await readElf(entry)) === undefined) {
      breaches.push(`${entry.path}: executable, but no ELF program`);
    }
  }
  if (breaches.length > 0) throw new Error(`cannot build the ${name}: it would hold\n  ${breaches.join('\n  ')}`);
}

/** The entry that a path leads to, links followed inside the tree; a service's rootfs is a root of its own. */
export function resolveLink(paths: ReadonlyMap<string, TreeEntry>, start: string): TreeEntry | undefined {
  const root = /^\/services\/[^/]+\/rootfs(?=\/)/.exec(start)?.[0] ?? '';
  let rest = start.slice(root.length).split('/').filter(Boolean);
  let at = root;
  for (let links = 0; links < 40; ) {
    const part = rest.shift();
    if (part === undefined) return paths.get(at);
    if (part === '..') {
      at = at === root ? root : posix.dirname(at) === '/' ? '' : posix.dirname(at);
      continue;
    }
    const entry = paths.get(`${at}/${part}`);
    if (entry === undefined) return undefined;
    if (entry.type !== 'link') {
      at = entry.path;
      continue;
    }
    links += 1;
    if (entry.target.startsWith('/')) at = root;
    rest = [...entry.target.split('/').filter((step) => step !== '' && step !== '.'), ...rest];
  }
  return undefined;
}

import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/**
 * Where Ashlar's host tools keep things, by the XDG Base Directory Specification 0.8. A relative value in the
 * environment is ignored, as the specification demands: it would mean another directory after each `cd`.
 */
function baseDirectory(variable: string, underHome: string): string {
  const configured = process.env[variable];
  if (configured !== undefined && isAbsolute(configured)) return configured;
  return join(homedir(), underHome);
}

/** What can be made again: packages, kernels, tool roots. */
export function xdgCacheDirectory(): string {
  return join(baseDirectory('XDG_CACHE_HOME', '.cache'), 'ashlar');
}

/** What cannot be made again: keys. */
export function xdgDataDirectory(): string {
  return join(baseDirectory('XDG_DATA_HOME', '.local/share'), 'ashlar');
}

/** The operator's choices: contexts of ashlarctl. */
export function xdgConfigDirectory(): string {
  return join(baseDirectory('XDG_CONFIG_HOME', '.config'), 'ashlar');
}

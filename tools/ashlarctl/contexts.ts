/**
 * Contexts: how ashlarctl remembers clusters. One file for each below the configuration directory, mode 0600 because it
 * holds the operator's key, replaced as a whole:
 *
 *     contexts/NAME.json    endpoint, the cluster's CA, the operator's key and certificate, endpoints of nodes
 *     current-context       the name of the one that is used unless --context says otherwise
 */
import { X509Certificate } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Checked, dictionary, exactly, object, text } from '../../src/formats/json-shape.ts';
import { xdgConfigDirectory } from '../host/xdg.ts';

const pem = text({ min: 1, max: 16 * 1024 });
const endpoint = text({ min: 3, max: 300 });

const contextFile = object({
  version: exactly(1),
  clusterId: text({ min: 1, max: 128 }),
  /** `HOST:PORT` of the cluster API. */
  endpoint,
  authorityPem: pem,
  operator: object({ name: text({ min: 1, max: 63 }), certificatePem: pem, privateKeyPem: pem }),
  /** `HOST:PORT` by node ID, `*` for all others: for forwarded ports. */
  nodeEndpoints: dictionary(/^(\*|node-[0-9a-f]{16})$/, endpoint, { max: 1000 }),
});

export type Context = Checked<typeof contextFile>;

export interface ContextStore {
  list(): Promise<string[]>;
  /** The current context's name, if one was chosen. */
  current(): Promise<string | undefined>;
  /** Undefined when there is none of this name. Throws when it is damaged. */
  read(name: string): Promise<Context | undefined>;
  /** The named context, else the current one. Throws an error that says how to get one. */
  get(name: string | undefined): Promise<{ name: string; context: Context }>;
  write(name: string, context: Context): Promise<void>;
  use(name: string): Promise<void>;
  remove(name: string): Promise<void>;
}

export function openContexts(directory: string = xdgConfigDirectory()): ContextStore {
  const fileOf = (name: string) => join(directory, 'contexts', `${checkContextName(name)}.json`);
  const currentFile = join(directory, 'current-context');
  const store: ContextStore = {
    async list() {
      const names = await readdir(join(directory, 'contexts')).catch(missing);
      return (names ?? [])
        .filter((name) => name.endsWith('.json'))
        .map((name) => name.slice(0, -'.json'.length))
        .sort();
    },
    async current() {
      return (await readFile(currentFile, 'utf8').catch(missing))?.trim() || undefined;
    },
    async read(name) {
      const content = await readFile(fileOf(name), 'utf8').catch(missing);
      if (content === undefined) return undefined;
      try {
        return contextFile(JSON.parse(content), '');
      } catch (cause) {
        throw new Error(
          `cannot read context ${name}: ${cause instanceof Error ? cause.message : String(cause)}; remove it with: ashlarctl context remove ${name}`,
          { cause },
        );
      }
    },
    async get(wanted) {
      const name = wanted ?? (await store.current());
      if (name === undefined) {
        const names = await store.list();
        throw new Error(
          names.length === 0
            ? 'cannot tell which cluster: there is no context yet; make one with: ashlarctl cluster take-ownership'
            : `cannot tell which cluster: choose one of ${names.join(', ')} with: ashlarctl context use NAME`,
        );
      }
      const context = await store.read(name);
      if (context === undefined) {
        throw new Error(`cannot use context ${name}: there is none of that name; see: ashlarctl context list`);
      }
      return { name, context };
    },
    write: (name, context) => writePrivately(fileOf(name), `${JSON.stringify(context, null, 2)}\n`),
    async use(name) {
      await store.get(name);
      await writePrivately(currentFile, `${name}\n`);
    },
    async remove(name) {
      if (!(await store.list()).includes(checkContextName(name))) await store.get(name);
      await rm(fileOf(name));
      if ((await store.current()) === name) await rm(currentFile);
    },
  };
  return store;
}

export function operatorCertificate(context: Context): X509Certificate {
  return new X509Certificate(context.operator.certificatePem);
}

function checkContextName(name: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name)) return name;
  throw new Error(`cannot use ${JSON.stringify(name)} as a context's name: take letters, digits, dots, dashes`);
}

/** Whole or not at all, and readable by nobody else from its first byte on. */
async function writePrivately(path: string, content: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.${process.pid}.new`;
  {
    await using file = await open(temporary, 'w', 0o600);
    await file.writeFile(content);
    await file.sync();
  }
  await rename(temporary, path);
}

function missing(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT') return undefined;
  throw error;
}

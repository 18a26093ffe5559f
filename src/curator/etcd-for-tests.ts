/** A real etcd with mutual TLS on loopback ports of its own. Only tests import this. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { testAuthority, testIdentity } from '../rpc/certificates-for-tests.ts';
import { type EtcdOptions, openEtcd } from './etcd-client.ts';

export const NO_ETCD =
  'there is no etcd: neither on the PATH nor as the locked package in the cache (a built image leaves it there)';

export interface TestEtcd extends AsyncDisposable {
  readonly options: EtcdOptions;
  /** Cuts it off as a crash would. */
  kill(): Promise<void>;
  /** Starts it again on the same data and ports. */
  start(): Promise<void>;
}

/** The etcd to test with: from `ASHLAR_TEST_ETCD`, the PATH, or the package that the image locks, if it is cached. */
export async function findEtcd(): Promise<string | undefined> {
  const named = process.env.ASHLAR_TEST_ETCD;
  const onPath = (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, 'etcd'));
  for (const path of named === undefined ? onPath : [named]) if (await exists(path)) return path;
  return fromLockedPackage();
}

async function fromLockedPackage(): Promise<string | undefined> {
  const lock: { packages: { name: string; sha256: string }[] } = JSON.parse(
    await readFile(join(import.meta.dirname, '../../image/lock.json'), 'utf8'),
  );
  const sha256 = lock.packages.find(({ name }) => name === 'etcd-server')?.sha256;
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'ashlar');
  const deb = join(cache, 'packages', `${sha256}.deb`);
  if (sha256 === undefined || !(await exists(deb))) return undefined;
  const directory = join(tmpdir(), `ashlar-test-etcd-${sha256.slice(0, 16)}-${process.getuid?.() ?? 0}`);
  const binary = join(directory, 'usr/bin/etcd');
  if (!(await exists(binary))) {
    await mkdir(directory, { recursive: true });
    await promisify(execFile)('dpkg-deb', ['-x', deb, directory]);
  }
  return binary;
}

/** @param binary from `findEtcd` */
export async function startEtcd(binary: string): Promise<TestEtcd> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-etcd-'));
  const authority = testAuthority('etcd CA');
  const server = testIdentity({
    name: { organization: 'ashlar-etcd', commonName: 'etcd' },
    issuer: authority,
    dnsNames: ['localhost'],
  });
  const client = testIdentity({ name: { organization: 'ashlar-etcd', commonName: 'curator' }, issuer: authority });
  const file = async (name: string, content: string) => {
    await writeFile(join(directory, name), content, { mode: 0o600 });
    return join(directory, name);
  };
  const [ca, certificate, key] = await Promise.all([
    file('ca.crt', authority.certificatePem),
    file('server.crt', server.certificatePem),
    file('server.key', server.privateKeyPem),
  ]);
  const [clientPort, peerPort] = await freePorts(2);
  const options: EtcdOptions = {
    address: `127.0.0.1:${clientPort}`,
    caPem: authority.certificatePem,
    certificatePem: client.certificatePem,
    privateKeyPem: client.privateKeyPem,
  };
  const args = [
    '--name=self',
    `--data-dir=${join(directory, 'data')}`,
    `--listen-client-urls=https://127.0.0.1:${clientPort}`,
    `--advertise-client-urls=https://localhost:${clientPort}`,
    `--listen-peer-urls=http://127.0.0.1:${peerPort}`,
    `--initial-advertise-peer-urls=http://127.0.0.1:${peerPort}`,
    `--initial-cluster=self=http://127.0.0.1:${peerPort}`,
    '--client-cert-auth=true',
    `--trusted-ca-file=${ca}`,
    `--cert-file=${certificate}`,
    `--key-file=${key}`,
    '--tls-min-version=TLS1.3',
    '--heartbeat-interval=50',
    '--election-timeout=250',
    '--unsafe-no-fsync',
    '--log-outputs=stderr',
  ];
  let child = spawn(binary, args, { stdio: 'ignore' });
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  };
  await answering(options);
  return {
    options,
    kill,
    async start() {
      child = spawn(binary, args, { stdio: 'ignore' });
      await answering(options);
    },
    async [Symbol.asyncDispose]() {
      await kill();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function answering(options: EtcdOptions): Promise<void> {
  using etcd = openEtcd(options);
  const deadline = Date.now() + 15_000;
  for (;;) {
    try {
      await etcd.get('/');
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => {
    const address = server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

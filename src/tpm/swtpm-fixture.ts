/**
 * A software TPM for tests: a real swtpm with state of its own, stopped and deleted at the end of the scope. swtpm makes
 * a new TPM at its first start, with the SHA-1 and SHA-2 banks that real ones have (no swtpm_setup, which takes longer
 * than most of these tests).
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface SoftwareTpm extends AsyncDisposable {
  /** TCTI for `Tpm` and for tpm2-tools' `-T`. */
  readonly tcti: string;
  /** Runs one of the tpm2-tools on this TPM, in the TPM's own directory; returns stdout. */
  tool(name: string, ...args: string[]): string;
  /** Where {@link tool} runs. */
  readonly directory: string;
  /** Switches it off and on: PCRs are as after power-on, NV and seeds stay. `whileOff` may change what they are kept in. */
  restart(whileOff?: () => void): Promise<void>;
}

/** tpm2-tss would write every expected refusal to stderr. Must be set before its first call. */
process.env['TSS2_LOG'] = 'all+NONE';

/**
 * @param options.manufactured with endorsement keys' certificates in NV, of an authority whose certificate is
 *   `authority/issuer-certificate.pem` in the TPM's directory (takes a second longer) @default false
 * @param options.family of the specification @default '2.0'
 */
export async function startSoftwareTpm(
  options: { manufactured?: boolean; family?: '1.2' | '2.0' } = {},
): Promise<SoftwareTpm> {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-swtpm-'));
  if (options.manufactured === true) manufacture(directory);
  const socket = join(directory, 'socket');
  const tcti = `swtpm:path=${socket}`;
  const family = options.family === '1.2' ? [] : ['--tpm2'];
  let stop = await startProcess(directory, socket, family);
  return {
    tcti,
    directory,
    tool: (name, ...args) =>
      execFileSync(name, args, {
        cwd: directory,
        env: { ...process.env, TPM2TOOLS_TCTI: tcti },
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    async restart(whileOff) {
      await stop();
      whileOff?.();
      stop = await startProcess(directory, socket, family);
    },
    async [Symbol.asyncDispose]() {
      await stop();
      rmSync(directory, { recursive: true });
    },
  };
}

function manufacture(directory: string): void {
  const authority = join(directory, 'authority');
  mkdirSync(authority);
  const write = (name: string, lines: readonly string[]): string => {
    const path = join(authority, name);
    writeFileSync(path, `${lines.join('\n')}\n`);
    return path;
  };
  const localca = write('localca.conf', [
    `statedir = ${authority}`,
    `signingkey = ${join(authority, 'signing-key.pem')}`,
    `issuercert = ${join(authority, 'issuer-certificate.pem')}`,
    `certserial = ${join(authority, 'serial')}`,
  ]);
  const setup = write('setup.conf', [
    'create_certs_tool = /usr/bin/swtpm_localca',
    `create_certs_tool_config = ${localca}`,
    `create_certs_tool_options = ${write('localca.options', ['--platform-manufacturer Ashlar', '--platform-version 1', '--platform-model test'])}`,
  ]);
  execFileSync(
    'swtpm_setup',
    [
      ...['--tpm2', '--tpmstate', directory, '--createek', '--create-ek-cert', '--pcr-banks', 'sha1,sha256'],
      ...['--config', setup, '--logfile', join(authority, 'log')],
    ],
    { stdio: 'ignore' },
  );
}

async function startProcess(
  directory: string,
  socket: string,
  family: readonly string[],
): Promise<() => Promise<void>> {
  const child = spawn(
    'swtpm',
    [
      ['socket', ...family, '--tpmstate', `dir=${directory}`, '--flags', 'not-need-init,startup-clear'],
      ['--server', `type=unixio,path=${socket}`, '--ctrl', `type=unixio,path=${socket}.ctrl`],
    ].flat(),
    { stdio: 'ignore' },
  );
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  for (let waitedMs = 0; !(await listens(socket)) || !(await listens(`${socket}.ctrl`)); waitedMs += 10) {
    if (waitedMs > 10_000 || child.exitCode !== null) throw new Error(`cannot start swtpm in ${directory}`);
    await sleep(10);
  }
  return async () => {
    child.kill();
    await exited;
    rmSync(socket, { force: true });
    rmSync(`${socket}.ctrl`, { force: true });
  };
}

/** The socket's file appears before swtpm listens on it. */
async function listens(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

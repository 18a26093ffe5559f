/**
 * A software TPM for tests: a real swtpm with state of its own, stopped and deleted at the end of the scope. swtpm makes
 * a new TPM at its first start, with the SHA-1 and SHA-2 banks that real ones have (no swtpm_setup, which takes longer
 * than most of these tests).
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
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
  /** Switches it off and on: PCRs are as after power-on, NV and seeds stay. */
  restart(): Promise<void>;
}

/** tpm2-tss would write every expected refusal to stderr. Must be set before its first call. */
process.env['TSS2_LOG'] = 'all+NONE';

export async function startSoftwareTpm(): Promise<SoftwareTpm> {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-swtpm-'));
  const socket = join(directory, 'socket');
  const tcti = `swtpm:path=${socket}`;
  let stop = await startProcess(directory, socket);
  return {
    tcti,
    directory,
    tool: (name, ...args) =>
      execFileSync(name, ['-T', tcti, ...args], {
        cwd: directory,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
      }),
    async restart() {
      await stop();
      stop = await startProcess(directory, socket);
    },
    async [Symbol.asyncDispose]() {
      await stop();
      rmSync(directory, { recursive: true });
    },
  };
}

async function startProcess(directory: string, socket: string): Promise<() => Promise<void>> {
  const child = spawn(
    'swtpm',
    [
      ['socket', '--tpm2', '--tpmstate', `dir=${directory}`, '--flags', 'not-need-init,startup-clear'],
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

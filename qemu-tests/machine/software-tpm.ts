/**
 * A TPM 2.0 in software (swtpm), one for each machine, with endorsement key certificates from a test authority as a
 * manufacturer would install them. Its state directory is the chip: it stays over power cycles, and moving it to another
 * machine moves the TPM.
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runProcess } from '../../tools/host/run-process.ts';
import { type SpawnedProgram, spawnProgram, withinDeadline } from './spawned-program.ts';

const START_DEADLINE_MS = 20_000;
const END_DEADLINE_MS = 10_000;

/**
 * Makes a new TPM in `stateDirectory`, with keys of its own. The authority is made at first use, and kept.
 *
 * @param pcrBank the one bank that is switched on. @default 'sha256'
 */
export async function manufactureTpm(
  stateDirectory: string,
  authorityDirectory: string,
  pcrBank: 'sha256' | 'sha1' = 'sha256',
): Promise<void> {
  await mkdir(stateDirectory, { recursive: true });
  const configuration = await configureAuthority(authorityDirectory);
  await runProcess('swtpm_setup', [
    ...['--tpm2', '--tpmstate', stateDirectory, '--createek', '--create-ek-cert', '--pcr-banks', pcrBank],
    ...['--config', configuration, '--overwrite'],
  ]);
}

async function configureAuthority(directory: string): Promise<string> {
  await mkdir(directory, { recursive: true });
  const path = (name: string) => join(directory, name);
  await writeFile(
    path('localca.conf'),
    [
      `statedir = ${directory}`,
      `signingkey = ${path('signing-key.pem')}`,
      `issuercert = ${path('issuer-certificate.pem')}`,
      `certserial = ${path('serial')}`,
      '',
    ].join('\n'),
  );
  await writeFile(
    path('localca.options'),
    '--platform-manufacturer Ashlar\n--platform-version 1\n--platform-model test\n',
  );
  await writeFile(
    path('setup.conf'),
    [
      'create_certs_tool = /usr/bin/swtpm_localca',
      `create_certs_tool_config = ${path('localca.conf')}`,
      `create_certs_tool_options = ${path('localca.options')}`,
      'active_pcr_banks = sha256',
      '',
    ].join('\n'),
  );
  return path('setup.conf');
}

/** Copies a TPM that is switched off: two machines with one chip's secrets, as no real machine can be. For snapshots. */
export async function copyTpm(from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  await cp(join(from, 'tpm2-00.permall'), join(to, 'tpm2-00.permall'));
}

/** Where a TPM that is on keeps what it says. */
export interface TpmLogs {
  /** What swtpm says; appended to. */
  readonly logPath: string;
  /** All commands and responses since it was switched on, for `tpm-recording.ts`. */
  readonly trafficPath: string;
}

/** swtpm writes commands and responses into its log from this level on. */
const TRAFFIC_LEVEL = 20;

function recordTraffic({ trafficPath }: TpmLogs): string[] {
  return ['--log', `file=${trafficPath},level=${TRAFFIC_LEVEL},truncate`];
}

/**
 * Switches a TPM on for QEMU, which connects to `controlSocket`. It ends by itself when QEMU's connection ends, however
 * that happens: a TPM loses its power with its machine.
 */
export async function startTpm(stateDirectory: string, controlSocket: string, logs: TpmLogs): Promise<SpawnedProgram> {
  const program = await spawnProgram({
    command: 'swtpm',
    args: [
      ...['socket', '--tpm2', '--tpmstate', `dir=${stateDirectory}`],
      ...['--ctrl', `type=unixio,path=${controlSocket}`, '--terminate'],
      ...recordTraffic(logs),
    ],
    logPath: logs.logPath,
  });
  await waitForSocket(program, controlSocket);
  return program;
}

/**
 * Switches a TPM on by itself and hands its TCTI to `use`, for tpm2-tools on this host: what an engineer with the chip
 * in a programmer could do.
 *
 * @param places `directory` is for sockets: its path must be short
 */
export async function withTpmOnHost(
  stateDirectory: string,
  places: TpmLogs & { readonly directory: string },
  use: (tcti: string) => Promise<void>,
): Promise<void> {
  const socket = join(places.directory, 'tpm-host');
  await using program = await spawnProgram({
    command: 'swtpm',
    args: [
      ...['socket', '--tpm2', '--tpmstate', `dir=${stateDirectory}`, '--flags', 'startup-clear'],
      ...['--server', `type=unixio,path=${socket}`, '--ctrl', `type=unixio,path=${socket}.ctrl`],
      ...recordTraffic(places),
    ],
    logPath: places.logPath,
  });
  await waitForSocket(program, `${socket}.ctrl`);
  const tcti = `swtpm:path=${socket}`;
  await use(tcti);
  await runProcess('tpm2_shutdown', ['-T', tcti]);
  await runProcess('swtpm_ioctl', ['--unix', `${socket}.ctrl`, '-s']);
  await withinDeadline(program.ended, END_DEADLINE_MS, 'cannot switch the TPM off');
}

async function waitForSocket(program: SpawnedProgram, path: string): Promise<void> {
  const deadline = performance.now() + START_DEADLINE_MS;
  while (!existsSync(path)) {
    if (!program.running || performance.now() > deadline) {
      await program.kill();
      throw new Error(`cannot start the TPM: swtpm does not listen at ${path}:\n${program.lastWords()}`);
    }
    await sleep(20);
  }
}

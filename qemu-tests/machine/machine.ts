/**
 * A machine: QEMU with UEFI firmware (Secure Boot with our keys), a TPM, a disk, a network card, a watchdog and a serial
 * line. What stays when its power goes — disk, firmware variables, TPM — lies in its directory; `powerOn` and `powerCut`
 * may be called again and again. Faults are put in while it is off, from outside, as a person with the machine on the
 * desk could.
 */

import { appendFileSync, existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runProcess } from '../../tools/host/run-process.ts';
import { type Accelerator, detectAccelerator } from './accelerator.ts';
import { type MachineNetwork, qemuCommand } from './machine-arguments.ts';
import { connectQmp, type QmpClient, type QmpEvent } from './qmp.ts';
import { SerialConsole, type SerialLine } from './serial-console.ts';
import { copyTpm, manufactureTpm, startTpm, type TpmLogs, withTpmOnHost } from './software-tpm.ts';
import { type SpawnedProgram, spawnProgram, withinDeadline } from './spawned-program.ts';
import { parseTpmRecording, replayExtends, type TpmExchange } from './tpm-recording.ts';

const MIB = 1024 * 1024;
const DEFAULT_DISK_MIB = 4096;
/** Under TCG on a busy host the kernel's check of the timer interrupt can starve; it then panics before init starts. */
const TIMER_CHECK_PANIC = /IO-APIC \+ timer doesn't work/;
const TIMER_PANIC_RETRIES = 2;
const SERIAL_LOG = 'serial.log';

export interface Firmware {
  /** Executable part, shared and read-only. */
  readonly codePath: string;
  /** Variables of a new machine, with the Secure Boot keys enrolled; each machine gets a copy. */
  readonly variablesPath: string;
}

export interface DiskImage {
  readonly path: string;
  readonly format: 'raw' | 'qcow2';
}

/** What stays of a machine that is off; another can start from it. */
export interface MachineSnapshot {
  readonly directory: string;
}

export interface MachineOptions {
  /** Of this machine alone; made when missing. Everything about it is here, and stays: removing it is the caller's. */
  readonly directory: string;
  /** Shared by the machines of a run: the test authority that certifies their TPMs. */
  readonly authorityDirectory: string;
  readonly firmware: Firmware;
  /** The disk's content; the machine writes to an overlay. */
  readonly image: DiskImage;
  /** Start with disk, variables and TPM of this snapshot instead of new ones. */
  readonly snapshot?: MachineSnapshot;
  /** At least the image's size. @default 4096 */
  readonly diskMib?: number;
  /** @default 1024 */
  readonly memoryMib?: number;
  /** @default 2 */
  readonly cpus?: number;
  /** @default true */
  readonly tpm?: boolean;
  /** @default QEMU's network, nothing forwarded */
  readonly network?: MachineNetwork;
  /** The raw bytes, since tests give wrong ones. */
  readonly nodeParameters?: Uint8Array;
  readonly smbiosStrings?: readonly string[];
  /** Told what went wrong without being the test's business, such as a boot repeated for TCG's sake. @default stderr */
  readonly note?: (text: string) => void;
  /** @default found by a probe */
  readonly accelerator?: Accelerator;
}

export interface WaitForLineOptions {
  /** How long from now. */
  readonly deadlineMs: number;
  /** Look at lines from this one on. @default the first line since the last power-on, reset or `mark()` */
  readonly after?: SerialLine;
  /** A line that makes waiting pointless. @default a kernel panic, or init's own verdict */
  readonly failOn?: RegExp | 'nothing';
}

const FAILURE = /Kernel panic - not syncing|\binit: FAILED /;

export class Machine implements AsyncDisposable {
  readonly directory: string;
  readonly console = new SerialConsole();
  /** How often a boot had to be repeated because TCG starved the kernel's timer check. */
  timerPanics = 0;
  readonly #options: MachineOptions;
  readonly #accelerator: Accelerator;
  /** Sockets: their paths may have 107 bytes, which a directory of evidence can exceed. */
  readonly #socketDirectory: string;
  #network: MachineNetwork;
  #nodeParameters: Uint8Array | undefined;
  #smbiosStrings: readonly string[];
  #tpmDirectory: string | undefined;
  #qemu: SpawnedProgram | undefined;
  #tpm: SpawnedProgram | undefined;
  #qmp: QmpClient | undefined;
  #markedLine = 0;
  #bootAttempts = 0;
  readonly #events: QmpEvent[] = [];
  readonly #eventWaiters = new Set<() => void>();

  constructor(options: MachineOptions, accelerator: Accelerator, socketDirectory: string) {
    this.directory = options.directory;
    this.#options = options;
    this.#accelerator = accelerator;
    this.#socketDirectory = socketDirectory;
    this.#network = options.network ?? { kind: 'user', guestPorts: [] };
    this.#nodeParameters = options.nodeParameters;
    this.#smbiosStrings = options.smbiosStrings ?? [];
    this.#tpmDirectory = options.tpm === false ? undefined : join(options.directory, 'tpm');
  }

  // ---- power ----------------------------------------------------------------------------------------------------

  async powerOn(): Promise<void> {
    this.#bootAttempts = 0;
    await this.#startQemu();
  }

  /** The mains go: nothing of the machine gets to write a last word. */
  async powerCut(): Promise<void> {
    await this.#qemu?.kill();
    await this.#release();
  }

  /** The reset button. */
  async reset(): Promise<void> {
    this.mark();
    await this.qmp('system_reset');
  }

  /** Asks the system to shut down, as ACPI's power button does. */
  async pressPowerButton(): Promise<void> {
    await this.qmp('system_powerdown');
  }

  /** Waits until the machine has switched itself off. */
  async waitForPowerOff(deadlineMs: number): Promise<void> {
    const qemu = this.#running('wait for the power-off');
    const code = await withinDeadline(qemu.ended, deadlineMs, 'cannot wait for the machine to switch itself off');
    const lastWords = qemu.lastWords();
    await this.#release();
    if (code !== 0) throw new Error(`cannot wait for the power-off: QEMU exited with ${code}:\n${lastWords}`);
  }

  /** Waits for the firmware to start over: the system or its watchdog reset the machine. Counts from the last mark. */
  async waitForReset(deadlineMs: number): Promise<void> {
    await this.waitForEvent((event) => event.event === 'RESET' && event.data?.guest === true, deadlineMs);
  }

  /** @throws Error when the machine resets or goes off within this time */
  async assertStaysUp(durationMs: number): Promise<void> {
    const from = this.#events.length;
    await sleep(durationMs);
    const restart = this.#events.slice(from).find((event) => event.event === 'RESET' || event.event === 'WATCHDOG');
    if (!this.isOn || restart !== undefined) {
      throw new Error(`the machine did not stay up: ${this.isOn ? JSON.stringify(restart) : 'it is off'}`);
    }
  }

  get isOn(): boolean {
    return this.#qemu?.running === true;
  }

  // ---- what it says ---------------------------------------------------------------------------------------------

  /** Waits look at lines and events from now on. */
  mark(): void {
    this.#markedLine = this.console.lines.length;
    this.#events.length = 0;
  }

  /**
   * The first matching line of the serial console.
   *
   * @throws Error with the last lines, when the deadline passes, the machine fails or goes off
   */
  async waitForLine(pattern: RegExp, options: WaitForLineOptions): Promise<SerialLine> {
    const failOn = options.failOn === 'nothing' ? undefined : (options.failOn ?? FAILURE);
    for (;;) {
      const from = options.after === undefined ? this.#markedLine : options.after.index + 1;
      const either = new RegExp(`(?:${pattern.source})|(?:${TIMER_CHECK_PANIC.source})`, pattern.flags);
      const line = await this.console.waitFor(either, {
        from,
        deadlineMs: options.deadlineMs,
        ...(failOn !== undefined && { failOn }),
      });
      if (!TIMER_CHECK_PANIC.test(line.text)) return line;
      await this.#repeatStarvedBoot();
    }
  }

  /** Lines since the last power-on, reset or mark. */
  linesSinceMark(): readonly SerialLine[] {
    return this.console.lines.slice(this.#markedLine);
  }

  /** Everything between the machine and its TPM since the last power-on, while it runs and after. */
  async tpmExchanges(): Promise<TpmExchange[]> {
    return parseTpmRecording(await readFile(this.tpmTrafficPath, 'utf8'));
  }

  /** The SHA-256 PCRs, in hex by index, as the TPM was told them: also of a machine whose system says nothing. */
  async pcrs(): Promise<Readonly<Record<string, string>>> {
    return replayExtends(await this.tpmExchanges());
  }

  async waitForEvent(wanted: (event: QmpEvent) => boolean, deadlineMs: number): Promise<QmpEvent> {
    const { promise, resolve } = Promise.withResolvers<QmpEvent>();
    const look = () => {
      const found = this.#events.find(wanted);
      if (found !== undefined) resolve(found);
    };
    this.#eventWaiters.add(look);
    look();
    try {
      return await withinDeadline(promise, deadlineMs, 'cannot wait for an event of the machine');
    } finally {
      this.#eventWaiters.delete(look);
    }
  }

  /** The port on 127.0.0.1 that leads to `guestPort`. */
  async hostPort(guestPort: number): Promise<number> {
    const text = (await this.qmp('human-monitor-command', { 'command-line': 'info usernet' })) as string;
    for (const line of text.split('\n')) {
      const match = /^\s*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s/.exec(line);
      if (match !== null && Number(match[2]) === guestPort) return Number(match[1]);
    }
    throw new Error(`cannot reach the machine's port ${guestPort}: it is not forwarded; QEMU says:\n${text}`);
  }

  async qmp(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.#qmp === undefined) throw new Error(`cannot run QMP command ${command}: the machine is off`);
    return this.#qmp.execute(command, args);
  }

  // ---- what is done to it while it is off -------------------------------------------------------------------------

  setNetwork(network: MachineNetwork): void {
    this.#checkOff('change the network');
    this.#network = network;
  }

  setNodeParameters(bytes: Uint8Array | undefined): void {
    this.#checkOff('change the node parameters');
    this.#nodeParameters = bytes;
  }

  setSmbiosStrings(strings: readonly string[]): void {
    this.#checkOff('change the SMBIOS strings');
    this.#smbiosStrings = strings;
  }

  /** Takes the TPM out, and puts in the one in `stateDirectory` (made when there is none), or none. */
  async changeTpm(stateDirectory: string | undefined): Promise<void> {
    this.#checkOff('change the TPM');
    if (stateDirectory !== undefined) await this.#ensureTpm(stateDirectory);
    this.#tpmDirectory = stateDirectory;
  }

  get tpmDirectory(): string | undefined {
    return this.#tpmDirectory;
  }

  /** tpm2-tools on this host talk to the machine's TPM. */
  async withTpm(use: (tcti: string) => Promise<void>): Promise<void> {
    this.#checkOff('use the TPM');
    if (this.#tpmDirectory === undefined) throw new Error('cannot use the TPM: the machine has none');
    // Not over the recording of the last boot, which a test may want to read yet.
    const places = {
      ...this.#tpmLogs(join(this.directory, 'tpm-on-host-traffic.log')),
      directory: this.#socketDirectory,
    };
    await withTpmOnHost(this.#tpmDirectory, places, use);
  }

  /** Changes the firmware's variables: an image in the layout of OVMF's flash, for efi-variable-store.ts. */
  async changeVariables(change: (image: Uint8Array) => Uint8Array): Promise<void> {
    this.#checkOff("change the firmware's variables");
    await writeFile(this.variablesPath, change(await readFile(this.variablesPath)));
  }

  async diskSizeBytes(): Promise<number> {
    return virtualSize({ path: this.diskPath, format: 'qcow2' });
  }

  /** Reads from the disk as the machine sees it. */
  async readDisk(offset: number, length: number): Promise<Buffer> {
    const path = join(this.directory, 'read');
    await this.copyFromDisk(offset, length, path);
    const bytes = await readFile(path);
    await rm(path);
    return bytes;
  }

  /** Copies a part of the disk to a file. */
  async copyFromDisk(offset: number, length: number, path: string): Promise<void> {
    this.#checkOff('read the disk');
    const isWhole = (block: number) => offset % block === 0 && length % block === 0;
    const block = [MIB, 4096, 512, 1].find(isWhole) ?? 1;
    await runProcess('qemu-img', [
      ...['dd', '-f', 'qcow2', '-O', 'raw', `bs=${block}`, `skip=${offset / block}`],
      ...[`count=${(offset + length) / block}`, `if=${this.diskPath}`, `of=${path}`],
    ]);
    const { size } = await stat(path);
    if (size !== length) throw new Error(`cannot read the disk: qemu-img gave ${size} of ${length} bytes`);
  }

  /** Copies a file onto the disk. */
  async copyToDisk(path: string, offset: number): Promise<void> {
    this.#checkOff('write to the disk');
    const { size } = await stat(path);
    await runProcess('qemu-io', ['-f', 'qcow2', '-c', `write -s ${path} ${offset} ${size}`, this.diskPath]);
  }

  /** Writes to the disk. */
  async writeDisk(offset: number, bytes: Uint8Array): Promise<void> {
    const path = join(this.directory, 'to-write');
    await writeFile(path, bytes);
    await this.copyToDisk(path, offset);
    await rm(path);
  }

  /** One bit of the disk turns round, as cosmic rays, bad cables and attackers do it. */
  async flipBit(offset: number): Promise<void> {
    const sector = Math.floor(offset / 512) * 512;
    const bytes = await this.readDisk(sector, 512);
    bytes.writeUInt8(bytes.readUInt8(offset - sector) ^ 0x01, offset - sector);
    await this.writeDisk(sector, bytes);
  }

  /** Disk, firmware variables and TPM, for other machines to start from. The machine may go on afterwards. */
  async snapshot(directory: string): Promise<MachineSnapshot> {
    this.#checkOff('take a snapshot');
    await mkdir(directory, { recursive: true });
    await copyFile(this.diskPath, join(directory, 'disk.qcow2'));
    await copyFile(this.variablesPath, join(directory, 'variables.fd'));
    if (this.#tpmDirectory !== undefined) await copyTpm(this.#tpmDirectory, join(directory, 'tpm'));
    return { directory };
  }

  /** Of the last power-on, in swtpm's words. */
  get tpmTrafficPath(): string {
    return join(this.directory, 'tpm-traffic.log');
  }

  get diskPath(): string {
    return join(this.directory, 'disk.qcow2');
  }

  /** The firmware's variables, in the layout of OVMF's flash. */
  get variablesPath(): string {
    return join(this.directory, 'variables.fd');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.powerCut();
    await rm(this.#socketDirectory, { recursive: true, force: true });
  }

  // ---- inside -----------------------------------------------------------------------------------------------------

  /** Called once, by `createMachine`. */
  async prepare(): Promise<void> {
    const { image, snapshot, firmware, diskMib } = this.#options;
    await mkdir(this.directory, { recursive: true });
    const backing: DiskImage =
      snapshot === undefined ? image : { path: join(snapshot.directory, 'disk.qcow2'), format: 'qcow2' };
    const size = await virtualSize(backing);
    const wanted = snapshot === undefined ? Math.max(size, (diskMib ?? DEFAULT_DISK_MIB) * MIB) : size;
    await runProcess('qemu-img', [
      ...['create', '-q', '-f', 'qcow2', '-F', backing.format, '-b', backing.path, this.diskPath, String(wanted)],
    ]);
    const variables = snapshot === undefined ? firmware.variablesPath : join(snapshot.directory, 'variables.fd');
    await copyFile(variables, this.variablesPath);
    if (this.#tpmDirectory === undefined) return;
    if (snapshot !== undefined) await copyTpm(join(snapshot.directory, 'tpm'), this.#tpmDirectory);
    else await this.#ensureTpm(this.#tpmDirectory);
  }

  #tpmLogs(trafficPath: string): TpmLogs {
    return { logPath: join(this.directory, 'tpm.log'), trafficPath };
  }

  async #ensureTpm(stateDirectory: string): Promise<void> {
    if (existsSync(join(stateDirectory, 'tpm2-00.permall'))) return;
    await manufactureTpm(stateDirectory, this.#options.authorityDirectory);
  }

  async #startQemu(): Promise<void> {
    this.#checkOff('switch the machine on');
    this.#bootAttempts++;
    this.mark();
    const qmpSocket = join(this.#socketDirectory, 'qmp');
    const tpmSocket = join(this.#socketDirectory, 'tpm');
    const nodeParametersPath = join(this.directory, 'node-parameters');
    if (this.#nodeParameters !== undefined) await writeFile(nodeParametersPath, this.#nodeParameters);
    await rm(qmpSocket, { force: true });
    await rm(tpmSocket, { force: true });
    if (this.#tpmDirectory !== undefined) {
      this.#tpm = await startTpm(this.#tpmDirectory, tpmSocket, this.#tpmLogs(this.tpmTrafficPath));
    }
    const { command, args } = qemuCommand({
      accelerator: this.#accelerator,
      memoryMib: this.#options.memoryMib ?? 1024,
      cpus: this.#options.cpus ?? 2,
      firmwareCodePath: this.#options.firmware.codePath,
      firmwareVariablesPath: this.variablesPath,
      diskPath: this.diskPath,
      diskSerial: 'ashlar-disk-0',
      ...(this.#tpmDirectory !== undefined && { tpmSocket }),
      network: this.#network,
      ...(this.#nodeParameters !== undefined && { nodeParametersPath }),
      smbiosStrings: this.#smbiosStrings,
      qmpSocket,
    });
    const serialLog = join(this.directory, SERIAL_LOG);
    appendFileSync(serialLog, `\n==== power on ====\n`);
    this.console.powerOn();
    const qemu = await spawnProgram({
      command,
      args,
      logPath: join(this.directory, 'qemu.log'),
      onStdout: (chunk) => {
        appendFileSync(serialLog, chunk);
        this.console.receive(chunk);
      },
    });
    this.#qemu = qemu;
    void qemu.ended.then((code) => this.console.fail(`the machine is off (QEMU exited with ${code})`));
    try {
      this.#qmp = await connectQmp(
        qmpSocket,
        (event) => this.#onEvent(event),
        () => qemu.running,
      );
    } catch (error) {
      const lastWords = qemu.lastWords();
      await this.powerCut();
      throw new Error(`cannot switch the machine on: QEMU says:\n${lastWords}`, { cause: error });
    }
  }

  #onEvent(event: QmpEvent): void {
    this.#events.push(event);
    for (const look of this.#eventWaiters) look();
  }

  async #repeatStarvedBoot(): Promise<void> {
    if (this.#accelerator !== 'tcg' || this.#bootAttempts > TIMER_PANIC_RETRIES) {
      throw new Error(`cannot boot: the kernel's timer check failed ${this.#bootAttempts} times`);
    }
    this.timerPanics++;
    const note = this.#options.note ?? ((text: string) => process.stderr.write(`${text}\n`));
    note(`the kernel panicked in its timer check, starved by emulation; boot ${this.#bootAttempts} is repeated`);
    await this.powerCut();
    await this.#startQemu();
  }

  async #release(): Promise<void> {
    this.#qmp?.[Symbol.dispose]();
    await this.#tpm?.kill();
    this.#qmp = undefined;
    this.#tpm = undefined;
    this.#qemu = undefined;
  }

  #running(purpose: string): SpawnedProgram {
    if (this.#qemu === undefined) throw new Error(`cannot ${purpose}: the machine is off`);
    return this.#qemu;
  }

  #checkOff(purpose: string): void {
    if (this.isOn) throw new Error(`cannot ${purpose}: the machine is on; cut its power first`);
  }
}

/** Makes a machine that is off. */
export async function createMachine(options: MachineOptions): Promise<Machine> {
  const accelerator = options.accelerator ?? (await detectAccelerator());
  const machine = new Machine(options, accelerator, await mkdtemp(join(tmpdir(), 'ashlar-vm-')));
  try {
    await machine.prepare();
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

/** Makes a machine and switches it on. */
export async function startMachine(options: MachineOptions): Promise<Machine> {
  const machine = await createMachine(options);
  try {
    await machine.powerOn();
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

async function virtualSize(image: DiskImage): Promise<number> {
  if (image.format === 'raw') return (await stat(image.path)).size;
  const { stdout } = await runProcess('qemu-img', ['info', '--output=json', '-f', image.format, image.path]);
  return (JSON.parse(stdout) as { 'virtual-size': number })['virtual-size'];
}

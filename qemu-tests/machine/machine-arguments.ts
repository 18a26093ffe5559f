/** From what a machine is to QEMU's command line. Pure, so that what a test runs can be read and tested. */
import type { Accelerator } from './accelerator.ts';

export type MachineNetwork =
  /** QEMU's own network: the host's connections, no privileges. With `restrict`, only the forwarded ports. */
  | { readonly kind: 'user'; readonly guestPorts: readonly number[]; readonly restrict?: boolean }
  /** A link that is up, with nobody at its other end: no DHCP server will ever answer. */
  | { readonly kind: 'silent' }
  /** A tap device of a network namespace, in which QEMU then runs; see private-network.ts. The firmware may boot from it. */
  | { readonly kind: 'tap'; readonly namespace: string; readonly tap: string }
  /** No network card. */
  | { readonly kind: 'none' };

export interface MachineHardware {
  readonly accelerator: Accelerator;
  readonly memoryMib: number;
  readonly cpus: number;
  readonly firmwareCodePath: string;
  readonly firmwareVariablesPath: string;
  readonly diskPath: string;
  readonly diskSerial: string;
  /** Of the TPM's control socket; without one the machine has no TPM. */
  readonly tpmSocket?: string;
  readonly network: MachineNetwork;
  /** Given to the machine as fw_cfg `opt/ashlar/node-parameters`. */
  readonly nodeParametersPath?: string;
  /** OEM strings (SMBIOS type 11), which the machine's owner, or an attacker with its BMC, can set. */
  readonly smbiosStrings: readonly string[];
  readonly qmpSocket: string;
}

/** The program and its arguments, in the network namespace that the machine's network is in. */
export function qemuCommand(hardware: MachineHardware): { command: string; args: string[] } {
  const args = qemuArguments(hardware);
  const { network } = hardware;
  if (network.kind !== 'tap') return { command: 'qemu-system-x86_64', args };
  return { command: 'ip', args: ['netns', 'exec', network.namespace, 'qemu-system-x86_64', ...args] };
}

export function qemuArguments(hardware: MachineHardware): string[] {
  return [
    ...processor(hardware.accelerator),
    ...['-smp', String(hardware.cpus), '-m', String(hardware.memoryMib)],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none'],
    ...firmware(hardware),
    ...disk(hardware),
    ...network(hardware.network),
    ...tpm(hardware.tpmSocket),
    ...['-device', 'virtio-rng-pci', '-device', 'i6300esb', '-action', 'watchdog=reset'],
    ...['-chardev', 'stdio,id=serial,signal=off', '-serial', 'chardev:serial'],
    ...['-qmp', `unix:${escape(hardware.qmpSocket)},server=on,wait=off`],
    ...(hardware.nodeParametersPath === undefined
      ? []
      : ['-fw_cfg', `name=opt/ashlar/node-parameters,file=${escape(hardware.nodeParametersPath)}`]),
    ...hardware.smbiosStrings.flatMap((text) => ['-smbios', `type=11,value=${escape(text)}`]),
  ];
}

function processor(accelerator: Accelerator): string[] {
  // SMM, because the firmware keeps its variables, and so Secure Boot, out of the system's reach only with it.
  const machine = ['-machine', 'q35,smm=on'];
  if (accelerator === 'kvm') return [...machine, '-accel', 'kvm', '-cpu', 'host'];
  // cx16: QEMU 7.2's emulation of cmpxchg16b corrupted a guest kernel's flags now and then. erms, fsrm: with them a kernel
  // clears and copies pages by `rep stosb`, which TCG carries out byte by byte.
  return [...machine, '-accel', 'tcg,thread=multi', '-cpu', 'max,cx16=off,erms=off,fsrm=off'];
}

function firmware(hardware: MachineHardware): string[] {
  return [
    ...['-global', 'driver=cfi.pflash01,property=secure,value=on', '-global', 'ICH9-LPC.disable_s3=1'],
    ...['-drive', `if=pflash,unit=0,format=raw,readonly=on,file=${escape(hardware.firmwareCodePath)}`],
    ...['-drive', `if=pflash,unit=1,format=raw,file=${escape(hardware.firmwareVariablesPath)}`],
    // The firmware must not look for a network to boot from when the disk is refused: that takes a minute.
    ...['-fw_cfg', 'name=opt/org.tianocore/IPv4PXESupport,string=no'],
    ...['-fw_cfg', 'name=opt/org.tianocore/IPv6PXESupport,string=no'],
    // A private network is there for HTTP boot over IPv4; by IPv6 it would ask first, for a minute, in vain.
    ...(hardware.network.kind === 'tap' ? ['-fw_cfg', 'name=opt/org.tianocore/IPv6Support,string=no'] : []),
  ];
}

function disk({ diskPath, diskSerial }: MachineHardware): string[] {
  // `cache=unsafe` spares the host's disk, not the guest's promise: a flush of the guest still moves all that qcow2
  // holds back into the host's page cache, which a killed QEMU cannot take along. What was not flushed is partly lost
  // (qcow2 keeps its tables in QEMU's memory), as in a real disk's volatile cache.
  return [
    ...['-drive', `if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file=${escape(diskPath)}`],
    ...['-device', `virtio-blk-pci,drive=disk,serial=${escape(diskSerial)}`],
  ];
}

function network(network: MachineNetwork): string[] {
  if (network.kind === 'none') return ['-nic', 'none'];
  const device = ['-device', 'virtio-net-pci,netdev=net0,mac=52:54:00:a5:41:a1,romfile='];
  if (network.kind === 'silent') return ['-netdev', 'hubport,id=net0,hubid=0', ...device];
  if (network.kind === 'tap') {
    return ['-netdev', `tap,id=net0,ifname=${escape(network.tap)},script=no,downscript=no`, ...device];
  }
  // Port 0: the host chooses, so that runs at the same time cannot collide. QEMU tells which over QMP.
  const forwards = network.guestPorts.map((port) => `,hostfwd=tcp:127.0.0.1:0-:${port}`).join('');
  return ['-netdev', `user,id=net0,restrict=${network.restrict ? 'on' : 'off'}${forwards}`, ...device];
}

function tpm(socket: string | undefined): string[] {
  if (socket === undefined) return [];
  return [
    ...['-chardev', `socket,id=tpm,path=${escape(socket)}`, '-tpmdev', 'emulator,id=tpm0,chardev=tpm'],
    ...['-device', 'tpm-crb,tpmdev=tpm0'],
  ];
}

/** QEMU separates options by commas; a comma of a value is doubled. */
function escape(value: string): string {
  return value.replaceAll(',', ',,');
}

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type MachineHardware, qemuArguments } from './machine-arguments.ts';

const hardware: MachineHardware = {
  accelerator: 'tcg',
  memoryMib: 1024,
  cpus: 2,
  firmwareCodePath: '/f/CODE.fd',
  firmwareVariablesPath: '/f/VARS.fd',
  diskPath: '/m/disk.qcow2',
  diskSerial: 'disk',
  network: { kind: 'user', guestPorts: [7400, 7401] },
  smbiosStrings: [],
  qmpSocket: '/m/qmp',
};

/** Values given to `option`, in order. */
function valuesOf(args: readonly string[], option: string): string[] {
  return args.flatMap((arg, index) => (args[index - 1] === option ? [arg] : []));
}

test('a comma in a value does not become a QEMU option', () => {
  const args = qemuArguments({ ...hardware, smbiosStrings: ['a=1,path=/etc/shadow'] });
  assert.deepEqual(valuesOf(args, '-smbios'), ['type=11,value=a=1,,path=/etc/shadow']);
});

test('forwarded ports listen on the loopback address only', () => {
  const netdev = valuesOf(qemuArguments(hardware), '-netdev').join();
  assert.deepEqual(netdev.match(/hostfwd=[^,]*/g), ['hostfwd=tcp:127.0.0.1:0-:7400', 'hostfwd=tcp:127.0.0.1:0-:7401']);
});

test('a machine without a TPM has no TPM device', () => {
  assert.ok(!qemuArguments(hardware).join(' ').includes('tpm'));
  assert.ok(qemuArguments({ ...hardware, tpmSocket: '/m/tpm' }).includes('tpm-crb,tpmdev=tpm0'));
});

test('boot order is left to the firmware', () => {
  // QEMU's bootindex makes OVMF rewrite BootOrder, which would hide what the node wrote there.
  assert.ok(!qemuArguments(hardware).join(' ').includes('bootindex'));
});

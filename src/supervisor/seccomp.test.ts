import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { type SeccompProfile, seccompProfile } from './seccomp.ts';
import { loadServiceManifests } from './service-manifest.ts';

const AF = { unix: 1, inet: 2, key: 15, netlink: 16, packet: 17, alg: 38, vsock: 40, xdp: 44 };
const NETLINK = { route: 0, netfilter: 12, generic: 16 };
const LIBSECCOMP = '/usr/lib/x86_64-linux-gnu/libseccomp.so.2';

/** Whether the generated rules refuse socket(family, …, protocol), judged as libseccomp does: as 64-bit numbers. */
function refuses(profile: SeccompProfile, family: number, protocol = 0): boolean {
  const given = [family, 0, protocol];
  return profile.syscalls.some(
    ({ names, args = [] }) =>
      names.includes('socket') &&
      args.every(({ index, value, op }) => {
        const argument = given[index] ?? 0;
        return op === 'SCMP_CMP_GE' ? argument >= value : argument === value;
      }),
  );
}

test('no service may speak to the packet filter, and only the DHCP client sends frames', () => {
  const profiles = loadServiceManifests(join(import.meta.dirname, '../../image/system/services')).map((one) => ({
    service: one.name,
    profile: seccompProfile(one.seccomp),
  }));
  assert.equal(profiles.length, 5);
  for (const { service, profile } of profiles) {
    assert.ok(refuses(profile, AF.netlink, NETLINK.netfilter), service);
    assert.ok(refuses(profile, 2 ** 32 + AF.netlink, NETLINK.netfilter), `${service}: a family cut down by the kernel`);
    assert.ok(refuses(profile, AF.netlink, 2 ** 32 + NETLINK.netfilter), `${service}: a protocol cut down`);
    for (const family of [AF.key, AF.alg, AF.vsock, AF.xdp]) assert.ok(refuses(profile, family), service);
    for (const family of [AF.unix, AF.inet, AF.netlink]) assert.ok(!refuses(profile, family), service);
    assert.equal(refuses(profile, AF.packet), service !== 'dhcpcd');
    assert.equal(refuses(profile, AF.netlink, NETLINK.generic), service !== 'dhcpcd');
  }
});

/** Loads the filter with libseccomp, as crun does, and says for each socket what the kernel answers. */
const PROGRAM = `
  import koffi from 'koffi';
  const { profile, sockets, library } = JSON.parse(process.argv[1]);
  const seccomp = koffi.load(library), libc = koffi.load('libc.so.6');
  const init = seccomp.func('void *seccomp_init(uint32_t action)');
  const resolve = seccomp.func('int seccomp_syscall_resolve_name(const char *name)');
  const add = seccomp.func('int seccomp_rule_add_array(void *ctx, uint32_t action, int syscall, unsigned int count, void *args)');
  const load = seccomp.func('int seccomp_load(void *ctx)');
  const syscall = libc.func('long syscall(long number, long a, long b, long c)');
  const ops = { SCMP_CMP_EQ: 4, SCMP_CMP_GE: 5, SCMP_CMP_MASKED_EQ: 7 };
  const filter = init(0x7fff0000);
  for (const { names, errnoRet, args = [] } of profile.syscalls) {
    const packed = Buffer.alloc(24 * Math.max(1, args.length));
    args.forEach(({ index, value, valueTwo = 0, op }, at) => {
      packed.writeUInt32LE(index, at * 24);
      packed.writeUInt32LE(ops[op], at * 24 + 4);
      packed.writeBigUInt64LE(BigInt(value), at * 24 + 8);
      packed.writeBigUInt64LE(BigInt(valueTwo), at * 24 + 16);
    });
    for (const name of names) {
      const number = resolve(name);
      if (number < 0) continue;
      const result = add(filter, 0x00050000 | errnoRet, number, args.length, packed);
      if (result !== 0) throw new Error('rule for ' + name + ': ' + result);
    }
  }
  const loaded = load(filter);
  if (loaded !== 0) throw new Error('seccomp_load: ' + loaded);
  console.log(JSON.stringify(sockets.map(([family, protocol]) =>
    Number(syscall(41, BigInt(family), 3n, BigInt(protocol))) >= 0 ? 'made' : koffi.errno() === 1 ? 'refused' : koffi.errno())));
`;

test('the kernel refuses by these filters what they name, and lets through what services use', {
  skip: existsSync(LIBSECCOMP) ? process.getuid?.() !== 0 && 'packet sockets need root' : 'libseccomp is not here',
}, () => {
  const sockets = [
    [AF.netlink, NETLINK.netfilter],
    [2 ** 32 + AF.netlink, NETLINK.netfilter],
    [AF.netlink, 2 ** 32 + NETLINK.netfilter],
    [AF.packet, 0],
    [AF.netlink, NETLINK.generic],
    [AF.netlink, NETLINK.route],
  ];
  const answers = (profile: Pick<SeccompProfile, 'syscalls'>) => {
    // Node.js itself has taken up io_uring before its filter comes, and must go on.
    const syscalls = profile.syscalls.filter(({ names }) => names.includes('socket'));
    const input = JSON.stringify({ profile: { syscalls }, sockets, library: LIBSECCOMP });
    const ran = spawnSync(process.execPath, ['--input-type=module', '-e', PROGRAM, input], {
      encoding: 'utf8',
      cwd: import.meta.dirname,
    });
    assert.equal(ran.status, 0, ran.stderr);
    return JSON.parse(ran.stdout) as string[];
  };
  const none = { syscalls: [] };
  assert.deepEqual(answers(none), Array(6).fill('made'), 'without a filter all of them are made');
  const refused = ['refused', 'refused', 'refused'];
  assert.deepEqual(answers(seccompProfile('default')), [...refused, 'refused', 'refused', 'made']);
  assert.deepEqual(answers(seccompProfile('time')), [...refused, 'refused', 'refused', 'made']);
  assert.deepEqual(answers(seccompProfile('network')), [...refused, 'made', 'made', 'made']);
});

/** Who listens on the bus of the TPM, from the first boot to the end of a resealing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Tpm } from '../tpm/tpm.ts';
import { tapTpm } from '../tpm/tpm-bus-fixture.ts';
import { sealedMachine } from './sealed-machine-fixture.ts';

/** Calls that take or give a secret, and where it is: among the arguments, or in the result. */
const SECRETS: Readonly<Record<string, (args: readonly unknown[], result: unknown) => unknown>> = {
  seal: ([, , parts]) => (parts as { secret: Uint8Array }).secret,
  unseal: (_args, result) => result,
  random: (_args, result) => result,
  nvDefine: ([definition]) => (definition as { auth: Uint8Array }).auth,
  nvWrite: ([, bytes]) => bytes,
  nvRead: (_args, result) => result,
  useAuth: ([, auth]) => auth,
  hierarchyChangeAuth: ([, auth]) => auth,
};

/** Notes each secret before its owner wipes it. */
function noteSecrets(tpm: Tpm, secrets: Map<string, Buffer[]>): Tpm {
  return new Proxy(tpm, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      const name = String(property);
      return (...args: unknown[]) => {
        const result: unknown = (value as (...all: unknown[]) => unknown).apply(target, args);
        const secret = SECRETS[name]?.(args, result);
        if (secret instanceof Uint8Array) secrets.set(name, [...(secrets.get(name) ?? []), Buffer.from(secret)]);
        return result;
      };
    },
  });
}

test('no key, share or authorization value crosses the bus in clear, nor half of one', async () => {
  await using machine = await sealedMachine();
  await using bus = await tapTpm(machine.tpm);
  const secrets = new Map<string, Buffer[]>();
  const wrap = (tpm: Tpm) => noteSecrets(tpm, secrets);
  const opened = await machine.start({ tcti: bus.tcti, wrap });
  machine.request(opened, { reason: 'a new epoch' });
  assert.equal((await machine.start({ tcti: bus.tcti, wrap, epoch: 2 })).settled.sealing?.generation, 2);

  assert.deepEqual([...secrets.keys()].sort(), Object.keys(SECRETS).sort(), 'each kind of secret was met');
  const transfers = await bus.transfers();
  const wire = Buffer.concat(transfers.flatMap(({ command, response }) => [command, response]));
  for (const [name, found] of secrets) {
    for (const secret of found) {
      // Of an anchor what follows its version; what is public in it is not told either.
      const bytes = name.startsWith('nv') && secret.length > 32 ? secret.subarray(4, 36) : secret;
      for (const half of [bytes.subarray(0, 16), bytes.subarray(16, 32)]) {
        assert.equal(wire.indexOf(half), -1, `a secret of ${name}`);
      }
    }
  }
  const commands = new Set(await bus.commands());
  for (const command of ['Create', 'NV_DefineSpace', 'NV_Write', 'NV_UndefineSpace', 'HierarchyChangeAuth', 'Unseal']) {
    assert.ok(commands.has(command), command);
  }
});

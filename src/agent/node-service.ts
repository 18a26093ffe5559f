/** NodeService: the node's API, answered by init through the agent. */
import { NodeService } from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import { implement, type RegisteredService } from '../rpc/grpc-service.ts';
import type { InitClient } from '../rpc/init-client.ts';
import { describePrincipal, type Principal } from '../rpc/permissions.ts';
import { RpcError, type RpcLog } from '../rpc/rpc-error.ts';
import { attest, attestationIdentityMessage, checkAttestRequest, checkPcr7 } from './attestation.ts';
import type { InitConnection } from './init-connection.ts';
import { checkReason } from './reason.ts';
import { logLineMessage, nodeStatusMessage, serviceMessage } from './status-message.ts';

const TAIL_MAX = 100_000;
const LINES_PER_MESSAGE = 200;

export function createNodeService(init: InitConnection, log: RpcLog): RegisteredService {
  const end = async (what: 'reboot' | 'poweroff', reason: string, principal: Principal) => {
    const checked = checkReason(reason);
    const said = `${checked} (${describePrincipal(principal)})`;
    log.info(`${what} asked for by ${describePrincipal(principal)}: ${checked}`);
    await init.run((client: InitClient) => client[what](said));
    return {};
  };
  return implement(NodeService, {
    getStatus: () =>
      init.run(async (client) => {
        const [status, services] = await Promise.all([client.status(), client.services()]);
        return { status: nodeStatusMessage(status, byName(services)) };
      }),
    listServices: () => init.run(async (client) => ({ services: byName(await client.services()).map(serviceMessage) })),
    async *streamLogs({ name, tail, follow }, { signal }) {
      if (tail !== undefined && tail > TAIL_MAX) {
        throw new RpcError('INVALID_ARGUMENT', `tail must be at most ${TAIL_MAX}, not ${tail}`);
      }
      if (!/^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$/.test(name)) {
        throw new RpcError('INVALID_ARGUMENT', `${JSON.stringify(name.slice(0, 80))} is not the name of a log`);
      }
      const params = { follow, ...(name !== '' && { name }), ...(tail !== undefined && { tail }) };
      const entries = init.stream((client) => client.logs(params, signal));
      for await (const batch of batches(entries, LINES_PER_MESSAGE)) yield { lines: batch.map(logLineMessage) };
    },
    getEventLog: () => init.run(async (client) => ({ eventLog: await client.eventLog() })),
    getAttestationIdentity: () =>
      init.run(async (client) => attestationIdentityMessage(await client.attestationIdentity())),
    attest: (request, { principal }) => {
      const params = checkAttestRequest(request);
      log.info(`attestation asked for by ${describePrincipal(principal)}`);
      return init.run((client) => attest(client, params));
    },
    getSealing: () => init.run(async (client) => ({ sealing: await client.sealing() })),
    async requestReseal(request, { principal }) {
      const reason = checkReason(request.reason);
      const pcr7 = checkPcr7(request);
      log.info(`reseal asked for by ${describePrincipal(principal)}: ${reason}`);
      await init.run((client) =>
        client.requestReseal({ reason: `${reason} (${describePrincipal(principal)})`, ...pcr7 }),
      );
      return {};
    },
    reboot: ({ reason }, { principal }) => end('reboot', reason, principal),
    powerOff: ({ reason }, { principal }) => end('poweroff', reason, principal),
  });
}

function byName<T extends { name: string }>(services: readonly T[]): T[] {
  return services.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/** What is ready together, together: at most `size` at once, and nothing waits for company. */
async function* batches<T>(items: AsyncIterable<T>, size: number): AsyncIterable<T[]> {
  const iterator = items[Symbol.asyncIterator]();
  let next = iterator.next();
  try {
    for (;;) {
      const first = await next;
      if (first.done) return;
      const batch = [first.value];
      next = iterator.next();
      while (batch.length < size) {
        const ready = await Promise.race([next, immediately()]);
        if (ready === undefined || ready.done) break;
        batch.push(ready.value);
        next = iterator.next();
      }
      yield batch;
    }
  } finally {
    // The iterator answers this only after `next`, which may never come: nobody waits for either any more.
    next.catch(() => undefined);
    iterator.return?.().catch(() => undefined);
  }
}

function immediately(): Promise<undefined> {
  return new Promise((resolve) => setImmediate(resolve, undefined));
}

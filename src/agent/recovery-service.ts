/** RecoveryService: the API of a node whose data does not open, answered by init through the agent. */
import { RecoveryService } from '../rpc/gen/ashlar/node/v1/recovery_pb.ts';
import { implement, type RegisteredService } from '../rpc/grpc-service.ts';
import type { InitClient } from '../rpc/init-client.ts';
import { RpcError, type RpcLog } from '../rpc/rpc-error.ts';
import { attest, attestationIdentityMessage, checkAttestRequest } from './attestation.ts';
import type { InitConnection } from './init-connection.ts';
import { checkReason } from './reason.ts';

/** The recovery slot's key is 32 bytes; what goes with it, and all that RSA-OAEP can carry, is below this. */
const SECRET_MIN_BYTES = 32;
const SECRET_MAX_BYTES = 512;

export function createRecoveryService(init: InitConnection, log: RpcLog): RegisteredService {
  const end = async (what: 'reboot' | 'poweroff', reason: string) => {
    const said = `${checkReason(reason)} (the owner)`;
    log.info(`${what}: ${said}`);
    await init.run((client: InitClient) => client[what](said));
    return {};
  };
  return implement(RecoveryService, {
    getRecoveryState: () =>
      init.run(async (client) => {
        const [{ version, bootId }, state] = await Promise.all([client.status(), client.recoveryState()]);
        const { encryptedRecoveryKey, ...told } = state;
        return { ...told, version, bootId, encryptedRecoveryKey: Buffer.from(encryptedRecoveryKey, 'base64') };
      }),
    getRecoveryAttestationIdentity: () =>
      init.run(async (client) => ({ identity: attestationIdentityMessage(await client.attestationIdentity()) })),
    attestRecovery({ request }) {
      if (request === undefined) throw new RpcError('INVALID_ARGUMENT', 'the request is missing');
      const params = checkAttestRequest(request);
      log.info('attestation asked for by the owner');
      return init.run(async (client) => ({ attestation: await attest(client, params) }));
    },
    recover({ recoverySecret }) {
      const { length } = recoverySecret;
      if (length < SECRET_MIN_BYTES || length > SECRET_MAX_BYTES) {
        // How long it is and no more: what was sent may be another secret.
        throw new RpcError(
          'INVALID_ARGUMENT',
          `the recovery secret must be ${SECRET_MIN_BYTES} to ${SECRET_MAX_BYTES} bytes, not ${length}`,
        );
      }
      log.info('recovery asked for by the owner');
      const encoded = Buffer.from(recoverySecret).toString('base64');
      recoverySecret.fill(0);
      return init.run((client) => client.recover({ recoverySecret: encoded }));
    },
    rebootRefused: ({ reason }) => end('reboot', reason),
    powerOffRefused: ({ reason }) => end('poweroff', reason),
  });
}

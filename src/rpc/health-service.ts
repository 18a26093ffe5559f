/** The standard gRPC health service (grpc.health.v1). */
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from './gen/grpc/health/v1/health_pb.ts';
import { implement, type RegisteredService } from './grpc-service.ts';
import { RpcError } from './rpc-error.ts';

export interface HealthReporter {
  readonly service: RegisteredService;
  /** All services of a server share one state here: they stand on the same store or socket. */
  set(isServing: boolean): void;
}

/** Starts NOT_SERVING. `names` are the full names of the services that may be asked for, besides the empty one. */
export function createHealth(names: readonly string[]): HealthReporter {
  let isServing = false;
  const known = new Set(['', ...names]);
  const listeners = new Set<() => void>();
  const status = () => (isServing ? ServingStatus.SERVING : ServingStatus.NOT_SERVING);
  return {
    set(value) {
      if (value === isServing) return;
      isServing = value;
      for (const listener of listeners) listener();
    },
    service: implement(Health, {
      async check({ service }) {
        if (!known.has(service)) throw new RpcError('NOT_FOUND', `there is no service ${JSON.stringify(service)} here`);
        return { status: status() };
      },
      async *watch({ service }, { signal }) {
        if (!known.has(service)) {
          yield { status: ServingStatus.SERVICE_UNKNOWN };
          await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
          return;
        }
        while (!signal.aborted) {
          const told = status();
          yield { status: told };
          while (!signal.aborted && status() === told) await change(listeners, signal);
        }
      },
    }),
  };
}

function change(listeners: Set<() => void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      listeners.delete(done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    if (signal.aborted) return resolve();
    listeners.add(done);
    signal.addEventListener('abort', done);
  });
}

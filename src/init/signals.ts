/** Requests to stop that come from outside the protocol: signals, Ctrl-Alt-Del, the power button. */
import { disableCtrlAltDel } from '../linux/reboot.ts';
import type { Logger } from '../supervisor/log-store.ts';
import { watchPowerButton } from './power-button.ts';

export type StopAction = 'reboot' | 'poweroff';

/** Calls `stop` for every request. For PID 1 the kernel drops signals without a handler, so this is all there is. */
export function watchStopRequests(log: Logger, stop: (action: StopAction, reason: string) => void): Disposable {
  try {
    disableCtrlAltDel();
  } catch (error) {
    log.warning(`Ctrl-Alt-Del will restart without a shutdown: ${String(error)}`);
  }
  const listeners = {
    SIGINT: () => stop('reboot', 'Ctrl-Alt-Del'),
    SIGTERM: () => stop('poweroff', 'SIGTERM'),
    SIGPWR: () => stop('poweroff', 'SIGPWR: the power supply is failing'),
  } as const;
  for (const [signal, listener] of Object.entries(listeners)) process.on(signal, listener);
  const button = watchPowerButton(() => stop('poweroff', 'the power button was pressed'));
  return {
    [Symbol.dispose]: () => {
      for (const [signal, listener] of Object.entries(listeners)) process.off(signal, listener);
      button[Symbol.dispose]();
    },
  };
}

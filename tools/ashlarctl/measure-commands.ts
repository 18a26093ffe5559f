/** `ashlarctl measure …`: what a machine's TPM will say and did say, on any Linux, without a node. */
import { commandGroup } from '../host/command-line.ts';
import { measureLog } from './measure-log.ts';
import { measurePredict } from './measure-predict.ts';
import { measureVerify } from './measure-verify.ts';

export const measureCommands = commandGroup({
  name: 'measure',
  summary: 'predict PCRs, read TPM event logs, judge evidence; needs no node',
  commands: [measurePredict, measureLog, measureVerify],
});

/** The agent's process, in its bundle: `/config` is from init and says which of the two agents it is, `/data` is its own. */
import { runService } from '../rpc/service-process.ts';
import { runAgent } from './agent.ts';
import { readAgentConfig, readNodeKeys } from './config.ts';
import { readRecoveryConfig, runRecoveryAgent } from './recovery-agent.ts';

runService(async ({ log, signal }) => {
  const recovery = await readRecoveryConfig('/config');
  if (recovery !== undefined) return runRecoveryAgent({ ...recovery, log, signal });
  const config = await readAgentConfig('/config/config.json');
  const keys = await readNodeKeys('/config', config.nodeId);
  await runAgent({ config, keys, dataDirectory: '/data', log, signal });
});

/** The agent's process, in its bundle: `/config` is from init, `/data` is its own. */
import { runService } from '../rpc/service-process.ts';
import { runAgent } from './agent.ts';
import { readAgentConfig, readNodeKeys } from './config.ts';

runService(async ({ log, signal }) => {
  const config = await readAgentConfig('/config/config.json');
  const keys = await readNodeKeys('/config', config.nodeId);
  await runAgent({ config, keys, dataDirectory: '/data', log, signal });
});

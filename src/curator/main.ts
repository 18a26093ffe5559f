/** The curator's process, in its bundle: `/config` is from init. */
import { runService } from '../rpc/service-process.ts';
import { readCuratorConfig, readCuratorKeys } from './config.ts';
import { runCurator } from './curator.ts';

runService(async ({ log, signal }) => {
  const config = await readCuratorConfig('/config/config.json');
  const keys = await readCuratorKeys('/config');
  await runCurator({ config, keys, log, signal });
});

/** Run by reaper.integration.test.ts as PID 1 of a namespace. */
import { runReaperStorm } from './reaper-storm.ts';

process.stdout.write(JSON.stringify(await runReaperStorm(20_000)));
process.exit(0);

/** The operator's command line: a thin layer over the APIs of cluster and node. */
import { runCommandLine } from '../host/command-line.ts';
import { ashlarctl } from './commands.ts';

process.exitCode = await runCommandLine(ashlarctl, process.argv.slice(2));

/** The operator's command line: a thin layer over the APIs of cluster and node. */
import { commandGroup, runCommandLine } from '../host/command-line.ts';
import { clusterCommands } from './cluster-commands.ts';
import { contextCommands } from './context-commands.ts';
import { nodeCommands } from './node-commands.ts';

const ashlarctl = commandGroup({
  name: 'ashlarctl',
  summary: 'Operate Ashlar clusters.',
  commands: [clusterCommands, nodeCommands, contextCommands],
});

process.exitCode = await runCommandLine(ashlarctl, process.argv.slice(2));

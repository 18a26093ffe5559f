/** All of ashlarctl's commands. */
import { commandGroup } from '../host/command-line.ts';
import { clusterCommands } from './cluster-commands.ts';
import { contextCommands } from './context-commands.ts';
import { measureCommands } from './measure-commands.ts';
import { nodeCommands } from './node-commands.ts';

export const ashlarctl = commandGroup({
  name: 'ashlarctl',
  summary: 'Operate Ashlar clusters.',
  commands: [clusterCommands, nodeCommands, measureCommands, contextCommands],
});

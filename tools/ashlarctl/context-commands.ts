/** `ashlarctl context …` */

import { command, commandGroup } from '../host/command-line.ts';
import { COMMON_OPTIONS, checkEndpointOption, OVERRIDE_OPTION, printJson } from './command-options.ts';
import { parseOverrides } from './connection.ts';
import { type Context, openContexts, operatorCertificate } from './contexts.ts';
import { fields, table } from './table.ts';

const { json } = COMMON_OPTIONS;

const list = command({
  name: 'list',
  summary: 'the clusters that ashlarctl knows',
  options: { json },
  async run(values, { print }) {
    const store = openContexts();
    const current = await store.current();
    const entries = [];
    for (const name of await store.list()) {
      const context = await store.read(name);
      if (context !== undefined) entries.push({ isCurrent: name === current, ...contextJson(name, context) });
    }
    if (values.json) return printJson(print, entries);
    if (entries.length === 0) return print('There is no context yet; make one with: ashlarctl cluster take-ownership');
    const rows = entries.map((entry) => [
      `${entry.isCurrent ? '*' : ' '} ${entry.name}`,
      entry.clusterId,
      entry.endpoint,
      entry.operator,
      entry.certificateNotAfter.slice(0, 10),
    ]);
    for (const line of table(['  CONTEXT', 'CLUSTER', 'ENDPOINT', 'OPERATOR', 'CERTIFIED UNTIL'], rows)) print(line);
  },
});

const use = command({
  name: 'use',
  summary: 'make a context the current one',
  options: { json },
  positionals: [{ name: 'name', summary: 'the context', required: true }],
  async run(values, { print }) {
    await openContexts().use(values.name);
    if (values.json) return printJson(print, { current: values.name });
    print(`${values.name} is the current context.`);
  },
});

const show = command({
  name: 'show',
  summary: 'one context, without its key',
  options: { json },
  positionals: [{ name: 'name', summary: 'the context; the current one unless given' }],
  async run(values, { print }) {
    const { name, context } = await openContexts().get(values.name);
    const shown = contextJson(name, context);
    if (values.json) return printJson(print, shown);
    for (const line of fields([
      ['Context', name],
      ['Cluster', shown.clusterId],
      ['Endpoint', shown.endpoint],
      ['Operator', shown.operator],
      ['Certified', `until ${shown.certificateNotAfter}`],
      ['Node endpoints', Object.entries(shown.nodeEndpoints).map(([node, address]) => `${node} = ${address}`)],
    ]))
      print(line);
  },
});

const set = command({
  name: 'set',
  summary: "change a context's endpoints",
  options: {
    context: COMMON_OPTIONS.context,
    endpoint: { type: 'string', value: 'HOST:PORT', summary: 'the cluster API' },
    'endpoint-override': OVERRIDE_OPTION,
    json,
  },
  async run(values, { print }) {
    if (values.endpoint !== undefined) checkEndpointOption(values.endpoint);
    const store = openContexts();
    const { name, context } = await store.get(values.context);
    const changed: Context = {
      ...context,
      endpoint: values.endpoint ?? context.endpoint,
      nodeEndpoints: { ...context.nodeEndpoints, ...parseOverrides(values['endpoint-override']) },
    };
    await store.write(name, changed);
    if (values.json) return printJson(print, contextJson(name, changed));
    print(`${name} is changed; see: ashlarctl context show ${name}`);
  },
});

const remove = command({
  name: 'remove',
  summary: 'forget a context, with its operator key',
  options: { json },
  positionals: [{ name: 'name', summary: 'the context', required: true }],
  async run(values, { print }) {
    await openContexts().remove(values.name);
    if (values.json) return printJson(print, { removed: values.name });
    print(`${values.name} is removed.`);
  },
});

export const contextCommands = commandGroup({
  name: 'context',
  summary: 'the clusters that ashlarctl knows',
  commands: [list, use, show, set, remove],
});

function contextJson(name: string, context: Context) {
  return {
    name,
    clusterId: context.clusterId,
    endpoint: context.endpoint,
    operator: context.operator.name,
    certificateNotAfter: operatorCertificate(context).validToDate.toISOString(),
    nodeEndpoints: context.nodeEndpoints,
  };
}

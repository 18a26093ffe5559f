/**
 * Declarative command lines: a tree of groups and commands, each command with a table of options from which the types
 * of its values follow. Parsing is node:util's; what is here is help, errors that a person can use, and signals.
 *
 * Exit codes: what `run` returns (0 when nothing), 1 when it throws, 2 when the command line is wrong, 130 and 143 after
 * SIGINT and SIGTERM, 141 when the reader of its output went away.
 */
import { parseArgs } from 'node:util';
import { type HelpSection, renderHelp } from './command-help.ts';
import { nearest } from './nearest.ts';
import { createProgress, type Progress } from './progress.ts';

const DUPLICATE_SIGNAL_MS = 500;

export interface StringOption {
  readonly type: 'string';
  readonly summary: string;
  /** Names the value in help, as in `--out DIR`. @default 'VALUE' */
  readonly value?: string;
  readonly default?: string;
  readonly required?: boolean;
  readonly choices?: readonly string[];
  /** May be given more than once; the value is a list. */
  readonly multiple?: boolean;
  readonly short?: string;
}

export interface IntegerOption {
  readonly type: 'integer';
  readonly summary: string;
  readonly value?: string;
  readonly default?: number;
  readonly required?: boolean;
  /** @default 0 */
  readonly minimum?: number;
  readonly maximum?: number;
  readonly short?: string;
}

export interface BooleanOption {
  readonly type: 'boolean';
  readonly summary: string;
  readonly short?: string;
}

export type Option = StringOption | IntegerOption | BooleanOption;
/** Keys are the options' names as written on the command line, without the dashes: `'allow-drift'`. */
export type OptionTable = Readonly<Record<string, Option>>;

export interface Positional {
  readonly name: string;
  readonly summary: string;
  readonly required?: boolean;
  /** Takes all that follow; only the last may. */
  readonly many?: boolean;
}

type ValueOf<O extends Option> = O extends { type: 'boolean' }
  ? boolean
  : O extends { multiple: true }
    ? string[]
    :
        | (O extends { type: 'integer' } ? number : O extends { choices: readonly (infer C)[] } ? C : string)
        | (O extends { required: true } | { default: string | number } ? never : undefined);

type PositionalValue<P extends Positional> = P extends { many: true }
  ? string[]
  : P extends { required: true }
    ? string
    : string | undefined;

/** Values of the options by name, and of the positionals by theirs. */
export type Values<O extends OptionTable, P extends readonly Positional[]> = {
  [K in keyof O]: ValueOf<O[K]>;
} & { [E in P[number] as E['name']]: PositionalValue<E> };

export interface CommandContext {
  /** Aborted by SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
  readonly progress: Progress;
  /** The positional arguments as given. */
  readonly positionals: readonly string[];
  /** Writes one line to stdout. */
  readonly print: (line: string) => void;
}

export interface Command {
  readonly kind: 'command';
  readonly name: string;
  readonly summary: string;
  readonly description?: string | undefined;
  readonly options: OptionTable;
  readonly positionals: readonly Positional[];
  readonly run: (values: Record<string, unknown>, context: CommandContext) => Promise<number | undefined>;
}

export interface CommandGroup {
  readonly kind: 'group';
  readonly name: string;
  readonly summary: string;
  readonly description?: string | undefined;
  readonly commands: readonly (Command | CommandGroup)[];
}

export function command<
  const O extends OptionTable = Record<never, never>,
  const P extends readonly Positional[] = readonly [],
>(definition: {
  name: string;
  summary: string;
  /** Paragraphs below the usage line; lines are kept as they are. */
  description?: string;
  options?: O;
  positionals?: P;
  run: (values: Values<O, P>, context: CommandContext) => Promise<number | void>;
}): Command {
  return {
    kind: 'command',
    name: definition.name,
    summary: definition.summary,
    description: definition.description,
    options: definition.options ?? {},
    positionals: definition.positionals ?? [],
    // The one place where the parsed values meet the types that the table promises; parseCommand checks each of them.
    run: async (values, context) => (await definition.run(values as Values<O, P>, context)) ?? undefined,
  };
}

export function commandGroup(definition: {
  name: string;
  summary: string;
  description?: string;
  commands: readonly (Command | CommandGroup)[];
}): CommandGroup {
  return { kind: 'group', ...definition };
}

/** The command line is wrong, as opposed to what it asked for. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

export interface CommandLineOutput {
  stdout: NodeJS.WritableStream;
  stderr: NodeJS.WriteStream;
}

/**
 * Runs the command that `argv` names (without the interpreter and the script: `process.argv.slice(2)`) and gives the
 * exit code, to be put in `process.exitCode`. Never throws.
 */
export async function runCommandLine(
  root: Command | CommandGroup,
  argv: readonly string[],
  output: CommandLineOutput = process,
): Promise<number> {
  return await runWithSignals(output, (signal) => runFoundCommand(root, argv, output, signal));
}

async function runFoundCommand(
  root: Command | CommandGroup,
  argv: readonly string[],
  output: CommandLineOutput,
  signal: AbortSignal,
): Promise<number> {
  const { node, path, rest, problem } = findCommand(root, argv);
  const beforeTerminator = rest.includes('--') ? rest.slice(0, rest.indexOf('--')) : rest;
  const isHelpAsked = beforeTerminator.includes('--help') || (beforeTerminator.includes('-h') && !hasShort(node, 'h'));
  // Help on a command that is not there would be help on something else, and look like success.
  if (isHelpAsked && problem === undefined) {
    output.stdout.write(renderHelp(path.join(' '), node.summary, helpSections(node, path)));
    return 0;
  }
  const json = beforeTerminator.includes('--json');
  try {
    if (problem !== undefined) throw new UsageError(problem);
    if (node.kind === 'group') {
      output.stderr.write(renderHelp(path.join(' '), node.summary, helpSections(node, path)));
      return 2;
    }
    const { values, positionals } = parseCommand(node, rest);
    const code = await node.run(values, {
      signal,
      progress: createProgress({ stream: output.stderr }),
      positionals,
      print: (line) => void output.stdout.write(`${line}\n`),
    });
    return code ?? 0;
  } catch (error) {
    // Interrupted: that is what was asked for, and runWithSignals knows its code.
    if (signal.aborted) return 1;
    reportError(error, path.join(' '), json, output);
    return error instanceof UsageError ? 2 : 1;
  }
}

async function runWithSignals(
  { stdout, stderr }: CommandLineOutput,
  run: (signal: AbortSignal) => Promise<number>,
): Promise<number> {
  const abort = new AbortController();
  let signalCode: number | undefined;
  let firstMs = 0;
  const interrupt = (code: number) => {
    // Whoever asks twice does not want to wait for tidiness. But one Ctrl-C may come twice: from the terminal, and
    // passed on by npm or the bootstrap.
    if (signalCode !== undefined) {
      if (performance.now() - firstMs > DUPLICATE_SIGNAL_MS) process.exit(code);
      return;
    }
    firstMs = performance.now();
    signalCode = code;
    abort.abort(new Error('interrupted'));
  };
  const onInterrupt = () => interrupt(130);
  const onTerminate = () => interrupt(143);
  const onOutputError = (error: NodeJS.ErrnoException) => {
    // The reader of our output went away (`| head`): nobody is left to write for.
    if (error.code !== 'EPIPE') throw error;
    interrupt(141);
  };
  process.on('SIGINT', onInterrupt).on('SIGTERM', onTerminate);
  for (const stream of [stdout, stderr]) stream.on('error', onOutputError);
  try {
    const code = await run(abort.signal);
    // A write that fails says so later: its error must still find us here.
    for (const stream of [stdout, stderr])
      if (stream === process.stdout || stream === process.stderr) await flushed(stream);
    return signalCode ?? code;
  } finally {
    process.off('SIGINT', onInterrupt).off('SIGTERM', onTerminate);
    for (const stream of [stdout, stderr]) stream.off('error', onOutputError);
  }
}

/** When all that was written is with the system, or its error was emitted: that is after the write's callback. */
function flushed(stream: NodeJS.WritableStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write('', () => setImmediate(resolve));
  });
}

function reportError(error: unknown, path: string, json: boolean, output: CommandLineOutput): void {
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof UsageError) output.stderr.write(`error: ${message} (see: ${path} --help)\n`);
  else if (process.env.ASHLAR_DEBUG === '1' && error instanceof Error) output.stderr.write(`error: ${error.stack}\n`);
  else output.stderr.write(`error: ${message}\n`);
  if (json) output.stdout.write(`${JSON.stringify({ error: { message } })}\n`);
}

interface FoundCommand {
  node: Command | CommandGroup;
  path: string[];
  rest: readonly string[];
  problem?: string;
}

/** Follows the names at the start of `argv` down the tree. Stops with a `problem` at the first that leads nowhere. */
function findCommand(root: Command | CommandGroup, argv: readonly string[]): FoundCommand {
  let node = root;
  const path = [root.name];
  for (let index = 0; ; index++) {
    const rest = argv.slice(index);
    const word = argv[index];
    if (node.kind === 'command' || word === undefined || word === '--help' || word === '-h')
      return { node, path, rest };
    if (word.startsWith('-')) return { node, path, rest, problem: `${word} must come after a command` };
    const names = node.commands.map((candidate) => candidate.name);
    const next = node.commands.find((candidate) => candidate.name === word);
    if (next === undefined) {
      const hint = didYouMean(nearest(word, names));
      return { node, path, rest, problem: `${path.join(' ')} has no command ${JSON.stringify(word)}${hint}` };
    }
    node = next;
    path.push(word);
  }
}

function parseCommand(
  node: Command,
  argv: readonly string[],
): { values: Record<string, unknown>; positionals: string[] } {
  const { tokens } = parseArgs({
    args: [...argv],
    strict: false,
    tokens: true,
    options: Object.fromEntries(
      Object.entries(node.options).map(([name, option]) => [
        name,
        {
          type: option.type === 'boolean' ? ('boolean' as const) : ('string' as const),
          ...(option.short !== undefined && { short: option.short }),
        },
      ]),
    ),
  });

  const values: Record<string, unknown> = {};
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value);
    if (token.kind !== 'option') continue;
    const option = Object.hasOwn(node.options, token.name) ? node.options[token.name] : undefined;
    if (option === undefined) {
      const hint = didYouMean(nearest(token.name, [...Object.keys(node.options), 'help']), '--');
      throw new UsageError(`unknown option ${token.rawName}${hint}`);
    }
    const value = parseOption(token.rawName, option, token.value, token.inlineValue === true);
    if (option.type === 'string' && option.multiple) {
      values[token.name] = [...((values[token.name] as string[] | undefined) ?? []), value];
    } else if (token.name in values && option.type !== 'boolean') {
      throw new UsageError(`${token.rawName} may be given once only`);
    } else {
      values[token.name] = value;
    }
  }
  for (const [name, option] of Object.entries(node.options)) {
    if (name in values) continue;
    if (option.type === 'boolean') values[name] = false;
    else if (option.type === 'string' && option.multiple)
      values[name] = option.default === undefined ? [] : [option.default];
    else if (option.required) throw new UsageError(`--${name} ${option.value ?? 'VALUE'} is required`);
    else values[name] = option.default;
  }
  return { values: { ...values, ...assignPositionals(node.positionals, positionals) }, positionals };
}

function parseOption(
  rawName: string,
  option: Option,
  value: string | undefined,
  inline: boolean,
): string | number | boolean {
  if (option.type === 'boolean') {
    if (value !== undefined) throw new UsageError(`${rawName} takes no value, got ${JSON.stringify(value)}`);
    return true;
  }
  const negativeNumber = option.type === 'integer' && value !== undefined && /^-\d+$/.test(value);
  if (value === undefined || (!inline && value.length > 1 && value.startsWith('-') && !negativeNumber)) {
    throw new UsageError(`${rawName} needs a value: ${rawName} ${option.value ?? 'VALUE'}`);
  }
  if (option.type === 'integer') {
    const number = /^-?\d+$/.test(value) ? Number(value) : Number.NaN;
    const minimum = option.minimum ?? 0;
    const maximum = option.maximum ?? Number.MAX_SAFE_INTEGER;
    if (!(number >= minimum && number <= maximum)) {
      const range = option.maximum === undefined ? `of at least ${minimum}` : `from ${minimum} to ${maximum}`;
      throw new UsageError(`${rawName} must be a whole number ${range}, got ${JSON.stringify(value)}`);
    }
    return number;
  }
  if (option.choices !== undefined && !option.choices.includes(value)) {
    const hint = didYouMean(nearest(value, option.choices));
    throw new UsageError(`${rawName} must be one of ${option.choices.join(', ')}, got ${JSON.stringify(value)}${hint}`);
  }
  return value;
}

function assignPositionals(table: readonly Positional[], given: readonly string[]): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  let used = 0;
  for (const positional of table) {
    const taken = positional.many ? given.slice(used) : given.slice(used, used + 1);
    if (positional.required && taken.length === 0) throw new UsageError(`${positional.name.toUpperCase()} is missing`);
    values[positional.name] = positional.many ? taken : taken[0];
    used += taken.length;
  }
  if (used < given.length) throw new UsageError(`unexpected argument ${JSON.stringify(given[used])}`);
  return values;
}

function didYouMean(candidate: string | undefined, prefix = ''): string {
  return candidate === undefined ? '' : `, did you mean ${prefix}${candidate}?`;
}

function hasShort(node: Command | CommandGroup, letter: string): boolean {
  return node.kind === 'command' && Object.values(node.options).some((option) => option.short === letter);
}

function helpSections(node: Command | CommandGroup, path: readonly string[]): HelpSection[] {
  const description = node.description === undefined ? [] : [{ text: node.description }];
  if (node.kind === 'group') {
    return [
      { text: `Usage: ${path.join(' ')} COMMAND` },
      ...description,
      { heading: 'Commands', rows: node.commands.map((entry) => ({ term: entry.name, text: entry.summary })) },
      { text: `${path.join(' ')} COMMAND --help tells more.` },
    ];
  }
  const words = node.positionals.map((positional) => {
    const word = `${positional.name.toUpperCase()}${positional.many ? '…' : ''}`;
    return positional.required ? word : `[${word}]`;
  });
  const options = Object.entries(node.options).map(([name, option]) => ({
    term: `${option.short === undefined ? '    ' : `-${option.short}, `}--${name}${option.type === 'boolean' ? '' : ` ${option.value ?? 'VALUE'}`}`,
    text: `${option.summary}${optionRemarks(option)}`,
  }));
  return [
    { text: `Usage: ${[...path, '[OPTIONS]', ...words].join(' ')}` },
    ...description,
    {
      heading: 'Arguments',
      rows: node.positionals.map((entry) => ({ term: entry.name.toUpperCase(), text: entry.summary })),
    },
    { heading: 'Options', rows: [...options, { term: '    --help', text: 'show this and exit' }] },
  ];
}

function optionRemarks(option: Option): string {
  if (option.type === 'boolean') return '';
  const remarks = [];
  if (option.type === 'string' && option.choices !== undefined) remarks.push(`one of ${option.choices.join(', ')}`);
  if (option.type === 'string' && option.multiple) remarks.push('may be repeated');
  if (option.required) remarks.push('required');
  if (option.default !== undefined) remarks.push(`default ${option.default}`);
  return remarks.length === 0 ? '' : ` (${remarks.join('; ')})`;
}

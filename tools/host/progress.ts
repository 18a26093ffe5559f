/**
 * What a person sees of a long step. On a terminal, one live line for each running step below everything already said:
 *
 *     ✓ packages fetched 12s
 *     ⠋ kernel  42 %  1m12s  CC net/ipv4/tcp.o
 *
 * Without one, plain lines at a step's start, at its end, and now and then between. All of it goes to stderr: stdout is
 * for results.
 */
const SPINNER = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const REDRAW_MS = 100;
const PLAIN_REPORT_MS = 15_000;

export interface StepUpdate {
  /** 0 … 1 */
  fraction?: number;
  detail?: string;
}

export interface Progress {
  /** Shows `title` while `work` runs; passes its result or error on. Steps may be nested or run at once. */
  step<T>(title: string, work: (report: (update: StepUpdate) => void) => Promise<T>): Promise<T>;
  note(text: string): void;
  warn(text: string): void;
}

export interface ProgressOptions {
  /** @default process.stderr */
  stream?: NodeJS.WriteStream;
  /** Milliseconds from any fixed point. @default performance.now */
  now?: () => number;
}

interface RunningStep {
  readonly title: string;
  readonly startMs: number;
  fraction: number | undefined;
  detail: string | undefined;
  lastPlainMs: number;
}

type Outcome = 'done' | 'failed';

/** What a terminal and a plain stream do differently. */
interface Display {
  started(step: RunningStep): void;
  updated(step: RunningStep): void;
  ended(step: RunningStep, outcome: Outcome): void;
  say(line: string): void;
}

export function createProgress(options: ProgressOptions = {}): Progress {
  const stream = options.stream ?? process.stderr;
  const now = options.now ?? (() => performance.now());
  const display = stream.isTTY ? terminalDisplay(stream, now) : plainDisplay(stream, now);
  return {
    async step(title, work) {
      const startMs = now();
      const step: RunningStep = { title, startMs, fraction: undefined, detail: undefined, lastPlainMs: startMs };
      display.started(step);
      let outcome: Outcome = 'failed';
      try {
        const result = await work((update) => {
          if (update.fraction !== undefined) step.fraction = Math.min(1, Math.max(0, update.fraction));
          if (update.detail !== undefined) step.detail = singleLine(update.detail);
          display.updated(step);
        });
        outcome = 'done';
        return result;
      } finally {
        display.ended(step, outcome);
      }
    },
    note: (text) => display.say(text),
    warn: (text) => display.say(`warning: ${text}`),
  };
}

function terminalDisplay(stream: NodeJS.WriteStream, now: () => number): Display {
  const running = new Set<RunningStep>();
  let drawnLines = 0;
  let timer: NodeJS.Timeout | undefined;

  /** One write for everything: whatever else writes to the terminal comes before or after, not between. */
  const redraw = (finishedLines: readonly string[] = []) => {
    const width = Math.max(20, stream.columns || 80) - 1;
    const height = Math.max(1, (stream.rows || 24) - 1);
    const frame = SPINNER[Math.floor(now() / REDRAW_MS) % SPINNER.length];
    const live = [...running].slice(-height).map((step) => `${fit(`${frame} ${describe(step, now())}`, width)}\n`);
    const back = drawnLines === 0 ? '' : `\x1b[${drawnLines}F`;
    stream.write(`${back}\x1b[J${finishedLines.map((line) => `${line}\n`).join('')}${live.join('')}`);
    drawnLines = live.length;
  };
  const keepTurning = () => {
    if (running.size === 0) {
      clearInterval(timer);
      timer = undefined;
    } else if (timer === undefined) {
      timer = setInterval(redraw, REDRAW_MS, []);
      timer.unref();
    }
  };
  return {
    started(step) {
      running.add(step);
      redraw();
      keepTurning();
    },
    // The timer shows it: at most ten times a second, however often a step reports.
    updated() {},
    ended(step, outcome) {
      running.delete(step);
      redraw([`${outcome === 'done' ? '✓' : '✗'} ${step.title} ${formatDuration(now() - step.startMs)}`]);
      keepTurning();
    },
    say: (line) => redraw([line]),
  };
}

function plainDisplay(stream: NodeJS.WriteStream, now: () => number): Display {
  const running = new Set<RunningStep>();
  let timer: NodeJS.Timeout | undefined;
  const reportIfDue = (step: RunningStep) => {
    if (now() - step.lastPlainMs < PLAIN_REPORT_MS) return;
    step.lastPlainMs = now();
    stream.write(`${describe(step, now())}\n`);
  };
  const keepReporting = () => {
    if (running.size === 0) {
      clearInterval(timer);
      timer = undefined;
    } else if (timer === undefined) {
      // A step that reports nothing is alive too, and a silent log looks like a hang.
      timer = setInterval(() => running.forEach(reportIfDue), 1000);
      timer.unref();
    }
  };
  return {
    started(step) {
      running.add(step);
      stream.write(`${step.title} …\n`);
      keepReporting();
    },
    updated: reportIfDue,
    ended(step, outcome) {
      running.delete(step);
      stream.write(`${step.title}: ${outcome} ${formatDuration(now() - step.startMs)}\n`);
      keepReporting();
    },
    say: (line) => stream.write(`${line}\n`),
  };
}

function describe(step: RunningStep, nowMs: number): string {
  const parts = [step.title];
  if (step.fraction !== undefined) parts.push(`${Math.floor(step.fraction * 100)} %`.padStart(5));
  parts.push(formatDuration(nowMs - step.startMs));
  if (step.detail !== undefined && step.detail !== '') parts.push(step.detail);
  return parts.join('  ');
}

/** `7s`, `1m12s`, `1h02m`. */
export function formatDuration(durationMs: number): string {
  const seconds = Math.floor(durationMs / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${String(seconds % 60).padStart(2, '0')}s`;
  return `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, '0')}m`;
}

/** Output of foreign programs ends up here: no line break or escape sequence of theirs may move our cursor. */
function singleLine(text: string): string {
  return text.replace(/[\x00-\x1f\x7f-\x9f]+/g, ' ').trim();
}

function fit(line: string, width: number): string {
  const characters = Array.from(line);
  return characters.length <= width ? line : `${characters.slice(0, width - 1).join('')}…`;
}

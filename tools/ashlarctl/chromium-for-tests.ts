/**
 * A headless Chromium for tests of pages: DevTools protocol over a pipe (file descriptors 3 and 4, messages end with NUL),
 * so that no port is opened. It gets a profile of its own, and does nothing on the network.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

const FLAGS = [
  ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
  ...['--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars'],
  '--remote-debugging-pipe',
];
const CALL_DEADLINE_MS = 120_000;

/** A reason to skip a test, or false when there is a Chromium. */
export function skipWithoutChromium(): string | false {
  return spawnSync('chromium', ['--version']).status === 0 ? false : 'chromium is not installed';
}

export interface PageView {
  readonly widthPx: number;
  readonly heightPx: number;
  /** @default 'screen' */
  readonly media?: 'screen' | 'print';
  /** Device pixels for each of CSS; below 1 for a small picture. @default 1 */
  readonly scale?: number;
}

export interface Browser extends AsyncDisposable {
  /** Opens a file as a person would who has got it by mail. */
  open(path: string, view: PageView): Promise<void>;
  /** The value of an expression in the page, which may have no script of its own. */
  evaluate<T>(expression: string): Promise<T>;
  /** PNG of the page's top, as high as the view. */
  screenshot(): Promise<Uint8Array>;
  pdf(): Promise<Uint8Array>;
}

type Answer = Readonly<Record<string, unknown>>;

export async function startChromium(): Promise<Browser> {
  const profile = mkdtempSync(join(tmpdir(), 'ashlar-chromium-'));
  const child = spawn('chromium', [...FLAGS, `--user-data-dir=${profile}`, 'about:blank'], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
  });
  const call = protocol(child);
  const { targetId } = await call('Target.createTarget', { url: 'about:blank' });
  const { sessionId } = await call('Target.attachToTarget', { targetId, flatten: true });
  const page = (method: string, parameters: object = {}) => call(method, parameters, String(sessionId));
  const evaluate = async (expression: string): Promise<unknown> => {
    const { result } = await page('Runtime.evaluate', { expression, returnByValue: true });
    return (result as { value: unknown }).value;
  };
  return {
    async open(path, { widthPx, heightPx, media = 'screen', scale = 1 }) {
      const size = { width: widthPx, height: heightPx, deviceScaleFactor: scale, mobile: widthPx < 600 };
      await page('Emulation.setDeviceMetricsOverride', size);
      await page('Emulation.setEmulatedMedia', { media });
      await page('Page.navigate', { url: `file://${path}` });
      while ((await evaluate('document.readyState + location.protocol')) !== 'completefile:') await sleep(20);
    },
    evaluate: async <T>(expression: string) => (await evaluate(expression)) as T,
    screenshot: async () => bytesOf(await page('Page.captureScreenshot', { format: 'png' })),
    pdf: async () => bytesOf(await page('Page.printToPDF', { preferCSSPageSize: true, printBackground: true })),
    async [Symbol.asyncDispose]() {
      const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      if (child.exitCode === null) {
        child.kill('SIGKILL');
        await exited;
      }
      // Its helpers may still write for a moment.
      rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    },
  };
}

function protocol(child: ChildProcess) {
  const input = child.stdio[3] as Writable;
  const output = child.stdio[4] as Readable;
  const pending = new Map<number, PromiseWithResolvers<Answer>>();
  let received = Buffer.alloc(0);
  let lastId = 0;
  output.on('data', (chunk: Buffer) => {
    received = Buffer.concat([received, chunk]);
    for (let end = received.indexOf(0); end !== -1; end = received.indexOf(0)) {
      const message = JSON.parse(received.subarray(0, end).toString()) as {
        id?: number;
        result?: Answer;
        error?: object;
      };
      received = received.subarray(end + 1);
      const waiting = pending.get(message.id ?? -1);
      if (message.error === undefined) waiting?.resolve(message.result ?? {});
      else waiting?.reject(new Error(`chromium refused: ${JSON.stringify(message.error)}`));
    }
  });
  return async (method: string, parameters: object, sessionId?: string): Promise<Answer> => {
    lastId += 1;
    const id = lastId;
    const waiting = Promise.withResolvers<Answer>();
    pending.set(id, waiting);
    const answered = new AbortController();
    input.write(
      `${JSON.stringify({ id, method, params: parameters, ...(sessionId !== undefined && { sessionId }) })}\0`,
    );
    const late = sleep(CALL_DEADLINE_MS, undefined, { signal: answered.signal }).then(() => {
      throw new Error(`chromium did not answer ${method} within ${CALL_DEADLINE_MS} ms`);
    });
    try {
      return await Promise.race([waiting.promise, late]);
    } finally {
      pending.delete(id);
      answered.abort();
      late.catch(() => undefined);
    }
  };
}

function bytesOf(answer: Answer): Uint8Array {
  return Buffer.from(String(answer['data']), 'base64');
}

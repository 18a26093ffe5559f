import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { cacheDirectory, cachedDirectory, cachedFile, cacheEntryOf, fileSha256, inputHash } from './cache.ts';

let home: string;
before(async () => {
  home = await mkdtemp(join(tmpdir(), 'ashlar-cache-test-'));
  process.env.XDG_CACHE_HOME = home;
});
after(async () => rm(home, { recursive: true, force: true }));

const cacheModule = JSON.stringify(new URL('./cache.ts', import.meta.url).href);
function startProcess(script: string) {
  return spawn(process.execPath, ['--input-type=module', '-e', `import { cachedFile } from ${cacheModule};${script}`], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

test('a file is made once and found afterwards', async () => {
  let made = 0;
  const produce = async (path: string) => {
    made++;
    await writeFile(path, 'content');
  };
  const first = await cachedFile('objects', 'once', produce);
  assert.equal(await cachedFile('objects', 'once', produce), first);
  assert.equal(first, join(cacheDirectory(), 'objects', 'once'));
  assert.equal(await readFile(first, 'utf8'), 'content');
  assert.equal(made, 1);
});

test('a failed maker leaves nothing, and the next one is asked again', async () => {
  const failing = async (path: string) => {
    await writeFile(path, 'half');
    throw new Error('download broke');
  };
  await assert.rejects(cachedFile('failing', 'key', failing), /download broke/);
  assert.deepEqual(await readdir(join(cacheDirectory(), 'failing')), ['.locks']);
  await cachedFile('failing', 'key', (path) => writeFile(path, 'whole'));
});

test('a maker that leaves no file is an error', async () => {
  await assert.rejects(
    cachedFile('objects', 'nothing', async () => {}),
    /cannot cache objects\/nothing: its maker left no file/,
  );
});

test('a directory is on the disk before it has its name', {
  skip: spawnSync('strace', ['-V']).status === 0 ? false : 'strace is not installed',
}, async () => {
  const trace = join(home, 'trace');
  const program = `import { cachedDirectory } from ${cacheModule}; import { writeFile } from 'node:fs/promises';
    await cachedDirectory('toolroot', 'synced', (at) => writeFile(at + '/tool', 'x'));`;
  const node = [process.execPath, '--input-type=module', '-e', program];
  const ran = spawnSync('strace', ['-f', '-o', trace, '-e', 'trace=syncfs,rename', ...node], { encoding: 'utf8' });
  assert.equal(ran.status, 0, ran.stderr);
  const calls = [...(await readFile(trace, 'utf8')).matchAll(/(syncfs\(\d+\) += 0|rename\(.*"[^"]*synced"\) += 0)/g)];
  assert.deepEqual(
    calls.map(([call]) => call.slice(0, 6)),
    ['syncfs', 'rename'],
  );
});

test('the entry that a path lies in is known, for advice', () => {
  const entry = join(cacheDirectory(), 'objects', 'packages-1');
  assert.equal(cacheEntryOf(join(entry, 'libc6/usr/lib/x')), entry);
  assert.equal(cacheEntryOf('/etc/passwd'), undefined);
});

test('a checked product that was damaged is made again, and says so', async () => {
  const notes: string[] = [];
  const options = { isChecked: true, note: (text: string) => void notes.push(text) };
  let made = 0;
  const file = () => cachedFile('checked', 'file', (path) => writeFile(path, `made ${++made}`), options);
  const path = await file();
  assert.equal(await file(), path);
  assert.equal(made, 1, 'an intact one is taken as it is');
  for (const damage of [() => truncate(path, 3), () => writeFile(path, 'made 2!'), () => writeFile(path, '')]) {
    await damage();
    notes.length = 0;
    assert.match(await readFile(await file(), 'utf8'), /^made \d$/);
    assert.match(notes.join(), /checked\/file is damaged.* made again/);
  }
  assert.equal(made, 4);

  const directory = () =>
    cachedDirectory(
      'checked',
      'directory',
      async (at) => {
        await mkdir(join(at, 'sub'));
        await writeFile(join(at, 'sub/a'), 'a');
        await writeFile(join(at, 'b'), 'b');
      },
      options,
    );
  const tree = await directory();
  for (const damage of [
    () => writeFile(join(tree, 'sub/a'), 'A'),
    () => rm(join(tree, 'b')),
    () => writeFile(join(tree, 'c'), 'c'),
  ]) {
    await damage();
    await directory();
    assert.deepEqual((await readdir(tree, { recursive: true })).sort(), ['b', 'sub', 'sub/a']);
    assert.equal(await readFile(join(tree, 'sub/a'), 'utf8'), 'a');
  }
});

test('a directory appears only when complete', async () => {
  const final = join(cacheDirectory(), 'toolroot', 'abc');
  const path = await cachedDirectory('toolroot', 'abc', async (temporary) => {
    await writeFile(join(temporary, 'tool'), 'x');
    assert.equal(existsSync(final), false);
  });
  assert.equal(path, final);
  assert.deepEqual(await readdir(path), ['tool']);
});

test('callers in one process that ask at once share one making', async () => {
  let made = 0;
  const notes: string[] = [];
  const ask = () =>
    cachedFile(
      'objects',
      'shared',
      async (path) => {
        made++;
        await sleep(60);
        await writeFile(path, 'x');
      },
      { note: (text) => notes.push(text) },
    );
  await Promise.all([ask(), ask(), ask()]);
  assert.equal(made, 1);
  assert.deepEqual(new Set(notes), new Set(['waiting for another build of objects/shared']));
});

test('processes that ask at once share one making', async () => {
  const script = `
    import { appendFile, writeFile } from 'node:fs/promises';
    await cachedFile('objects', 'processes', async (path) => {
      process.stdout.write('made');
      await new Promise((resolve) => setTimeout(resolve, 300));
      await writeFile(path, 'x');
    }, { note() {} });`;
  const outputs = await Promise.all(
    [1, 2, 3].map(async () => {
      const child = startProcess(script);
      let text = '';
      child.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
      });
      assert.deepEqual(await once(child, 'close'), [0, null]);
      return text;
    }),
  );
  assert.equal(outputs.join(''), 'made');
});

test('a killed maker holds no lock, and its half-made file is swept by a maker of another key', async () => {
  const child = startProcess(`
    import { writeFile } from 'node:fs/promises';
    await cachedFile('swept', 'killed', async (path) => {
      await writeFile(path, 'half');
      process.stdout.write('ready');
      await new Promise((resolve) => setTimeout(resolve, 60_000));
    });`);
  await once(child.stdout, 'data');
  const directory = join(cacheDirectory(), 'swept');
  const temporaries = async () => (await readdir(directory)).filter((name) => name.startsWith('.tmp@'));

  await cachedFile('swept', 'other', (path) => writeFile(path, 'x'));
  assert.equal((await temporaries()).length, 1, 'the work of a living process stays');

  child.kill('SIGKILL');
  await once(child, 'close');
  await cachedFile('swept', 'third', (path) => writeFile(path, 'x'));
  assert.deepEqual(await temporaries(), []);
  assert.equal(await readFile(await cachedFile('swept', 'killed', (path) => writeFile(path, 'new')), 'utf8'), 'new');
});

test('a wait for another maker ends with the signal', async () => {
  const abort = new AbortController();
  const made = Promise.withResolvers<void>();
  const making = Promise.withResolvers<void>();
  const slow = cachedFile('objects', 'slow', async (path) => {
    making.resolve();
    await made.promise;
    await writeFile(path, 'x');
  });
  await making.promise;
  const waiting = cachedFile('objects', 'slow', async () => {}, { signal: abort.signal, note: () => abort.abort() });
  await assert.rejects(waiting, { name: 'AbortError' });
  made.resolve();
  await slow;
});

test('a key that could leave its directory is refused', async () => {
  for (const key of ['../x', 'a/b', '', '.hidden', 'a@b']) {
    await assert.rejects(
      cachedFile('objects', key, async () => {}),
      /must be a plain file name/,
    );
  }
});

test('an input hash tells apart lists whose parts only concatenate alike', () => {
  assert.notEqual(inputHash('ab', 'c'), inputHash('a', 'bc'));
  assert.notEqual(inputHash('a'), inputHash('a', ''));
  assert.notEqual(inputHash('a'), inputHash(Buffer.from('a')));
  assert.match(inputHash('a'), /^[0-9a-f]{64}$/);
});

test('the hash of a file is SHA-256 of its bytes', async () => {
  const path = join(home, 'abc');
  await writeFile(path, 'abc');
  assert.equal(await fileSha256(path), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
});

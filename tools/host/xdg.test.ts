import assert from 'node:assert/strict';
import { homedir } from 'node:os';
import { test } from 'node:test';
import { xdgCacheDirectory, xdgConfigDirectory, xdgDataDirectory } from './xdg.ts';

test('directories follow the environment, and the home directory where it says nothing usable', () => {
  process.env.XDG_CACHE_HOME = '/var/cache/me';
  process.env.XDG_DATA_HOME = 'relative';
  delete process.env.XDG_CONFIG_HOME;
  assert.equal(xdgCacheDirectory(), '/var/cache/me/ashlar');
  assert.equal(xdgDataDirectory(), `${homedir()}/.local/share/ashlar`);
  assert.equal(xdgConfigDirectory(), `${homedir()}/.config/ashlar`);
});

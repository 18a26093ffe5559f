import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BUNDLES, bundle, refuseDynamicCode } from './bundle.ts';

for (const code of [
  'eval("1")',
  'x=new Function("return 1")',
  'Function("return this")()',
  'a=(0,eval)("1"),eval ("2")',
  'await import("x")',
]) {
  test(`${code} in a bundle is refused`, () => {
    assert.throws(() => refuseDynamicCode('x.js', code), /cannot use x.js: it makes code from strings/);
  });
}

for (const code of ['x.eval(1)', 'evaluate(1)', 'f.import(a)', 'class Function2{}', 'a instanceof Function']) {
  test(`${code} in a bundle passes`, () => {
    refuseDynamicCode('x.js', code);
  });
}

for (const [name, entry] of Object.entries(BUNDLES)) {
  test(`${name} holds all that it needs but Node's own modules`, async () => {
    const made = await bundle(name, entry);
    const required = [...made.code.matchAll(/\brequire\("([^"]+)"\)/g)].map(([, module]) => module ?? '');
    const { isBuiltin } = await import('node:module');
    // koffi tries the packages of other platforms in turn, inside a try block, when its own fails.
    const foreign = required.filter((module) => !isBuiltin(module) && !module.startsWith('@koromix/koffi-'));
    assert.deepEqual(foreign, []);
  });

  test(`${name} is the same when bundled again`, async () => {
    assert.equal((await bundle(name, entry)).code, (await bundle(name, entry)).code);
  });
}

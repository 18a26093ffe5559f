import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { after, describe, it } from 'node:test';
import type { FileCoverage } from './block-coverage.ts';
import { plantedTree } from './planted-tree.ts';
import { runFuzz } from './run-fuzz.ts';
import { seededBugs } from './seeded-bugs.ts';
import { seedsOf } from './seeds.ts';
import { fuzzTargets } from './targets.ts';

/** A short run from good seeds: the campaign is in fuzz.full.test.ts. */
const executions = 800;
/** Parts of a hundred of all branches; a decoder's encoders, which are in the same file, count as not taken. */
const leastTaken: Readonly<Record<string, number>> = {
  'event-log': 80,
  pe: 70,
  'signature-list': 50,
  tpm: 65,
  evidence: 75,
  gpt: 55,
  certificate: 45,
};

const percent = (coverage: readonly FileCoverage[]): number => {
  const sum = (key: 'taken' | 'branches'): number => coverage.reduce((total, file) => total + file[key], 0);
  return Math.round((100 * sum('taken')) / sum('branches'));
};

describe('hostile input', () => {
  for (const { name } of fuzzTargets) {
    it(`breaks no promise of ${name}, and its branches are tried`, async (t) => {
      const seeds = await seedsOf(name);
      const result = await runFuzz({ target: name, seeds, seed: 20_261_128, executions, isGuided: false });
      const shown = result.findings.map(({ input, problem }) => `${problem}: ${Buffer.from(input).toString('base64')}`);
      assert.deepEqual(shown, []);
      const taken = percent(result.coverage);
      for (const file of result.coverage) t.diagnostic(`${file.file}: ${file.taken} of ${file.branches} branches`);
      assert.ok(taken >= (leastTaken[name] ?? 100), `only ${taken} % of the branches were taken`);
    });
  }
});

describe('a bug put into a decoder', () => {
  const trees: string[] = [];
  after(() => Promise.all(trees.map((tree) => rm(tree, { recursive: true }))));
  for (const { name: target } of fuzzTargets) {
    const bug = seededBugs.find((candidate) => candidate.target === target);
    assert.ok(bug);
    it(`is found in ${target}: ${bug.name}`, async () => {
      const tree = await plantedTree(bug);
      trees.push(tree);
      const result = await runFuzz({
        ...{ target, tree, seeds: await seedsOf(target), seed: 1, executions: 20_000 },
        ...{ isGuided: false, measuresCoverage: false, maxFindings: 1 },
      });
      assert.equal(result.findings.length, 1);
    });
  }
});

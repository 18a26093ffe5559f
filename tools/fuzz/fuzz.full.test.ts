/** The whole campaign; with `--record` its result goes to docs/fuzzing.md. */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { describe, it } from 'node:test';
import { recordCampaign, runCampaign } from './campaign.ts';
import { plantedTree } from './planted-tree.ts';
import { runFuzz } from './run-fuzz.ts';
import { seededBugs } from './seeded-bugs.ts';
import { seedsOf } from './seeds.ts';

const seed = Number(process.env.ASHLAR_TEST_SEED ?? 1) >>> 0;
const leastExecutions = 10_000_000;

describe('the fuzzing campaign', () => {
  it('finds no broken promise in ten million inputs', async () => {
    const results = await runCampaign({ seed, lanes: availableParallelism() });
    const problems = results.flatMap(({ target, findings }) =>
      findings.map(({ problem, input }) => `${target}: ${problem}: ${Buffer.from(input).toString('base64')}`),
    );
    assert.deepEqual(problems, []);
    assert.ok(results.reduce((sum, { executions }) => sum + executions, 0) >= leastExecutions);
    if (process.env.ASHLAR_TEST_RECORD === '1') await recordCampaign(results, new Date());
  });

  for (const bug of seededBugs) {
    it(`would find this in ${bug.target}: ${bug.name}`, async () => {
      const tree = await plantedTree(bug);
      try {
        const result = await runFuzz({
          ...{ target: bug.target, tree, seeds: await seedsOf(bug.target), seed, executions: 200_000 },
          ...{ isGuided: false, measuresCoverage: false, maxFindings: 1 },
        });
        assert.equal(result.findings.length, 1);
      } finally {
        await rm(tree, { recursive: true });
      }
    });
  }
});

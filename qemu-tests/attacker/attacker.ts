/**
 * The attacks from inside a node, run by the test variant's service `attacker`. Its output, one line `ATTACK NAME: RESULT`
 * each, is read by attacks-inside.full.test.ts over the node's API.
 */
import { Tpm } from '../../src/tpm/tpm.ts';

function attempt(name: string, attack: () => string): void {
  let result: string;
  try {
    result = `SUCCEEDED ${attack()}`;
  } catch (error) {
    result = `refused: ${error instanceof Error ? error.message : String(error)}`;
  }
  process.stdout.write(`ATTACK ${name}: ${result}\n`);
}

function main(): void {
  attempt('open the TPM', () => {
    using tpm = new Tpm('device:/dev/tpmrm0');
    return `${tpm.readPcrs([11]).size}`;
  });
  process.stdout.write('ATTACKS DONE\n');
  process.on('SIGTERM', () => process.exit(0));
  setInterval(() => undefined, 60_000);
}

main();

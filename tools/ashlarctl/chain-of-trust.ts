/** The judge's checks, gathered into the links of the chain from the chip to the services. */
import type { JudgeCheck, Verdict } from '../../src/measure/judge.ts';

export interface ChainStep {
  readonly title: string;
  readonly text: string;
  readonly outcome: JudgeCheck['outcome'];
  /** Why it is not proven: of each check that failed or was not done. */
  readonly reasons: readonly { readonly outcome: JudgeCheck['outcome']; readonly text: string }[];
}

interface Link {
  readonly title: string;
  readonly checks: readonly string[];
  readonly text: string;
  /** It has no check of its own, and holds when the link before it does. */
  readonly isConsequence?: boolean;
}

const links: readonly Link[] = [
  {
    title: 'The TPM is genuine',
    checks: ['ek-template', 'ek-certificate', 'ek-chain'],
    text: 'Its endorsement key was made from the standard template, and its maker’s certificate is about this key.',
  },
  {
    title: 'The attestation key lives in that TPM',
    checks: ['ak-attributes', 'activation'],
    text: 'Only that TPM could open the challenge, and only because it holds this key, which signs nothing but its own statements.',
  },
  {
    title: 'The statement is fresh, and from this connection',
    checks: [
      'nonce',
      'tls-key',
      'qualifying-data',
      'quote-type',
      'quote-signer',
      'quote-signature',
      'quote-selection',
      'pcr-digest',
    ],
    text: 'The quote signs the nonce, the challenge’s secret, the TLS key, and the values of PCR 0 to 15.',
  },
  {
    title: 'Firmware',
    checks: ['event-log', 'replay'],
    text: 'The event log explains the registers digest by digest. Firmware is recorded by it, not compared with a known version.',
  },
  {
    title: 'Secure Boot policy',
    checks: ['secure-boot', 'pcr-7'],
    text: 'Secure Boot was on, with keys that are known: the firmware ran only what the operator’s key has signed.',
  },
  {
    title: 'Boot application',
    checks: ['pcr-4'],
    text: 'Firmware started the image itself, and no other program before it.',
  },
  {
    title: 'Kernel, initramfs and command line',
    checks: ['pcr-11', 'pcr-12-13'],
    text: 'Every part of the image is the allowed one, nothing was injected, and its init has closed the door to the sealed key.',
  },
  {
    title: 'System and services',
    checks: ['pcr-11', 'pcr-12-13'],
    text: 'The measured initramfs holds the root hash of the one system partition that it opens; every service is in there, under dm-verity.',
    isConsequence: true,
  },
  {
    title: 'Node parameters and data',
    checks: ['pcr-14', 'pcr-15'],
    text: 'What the operator gave this node, and which data volume it opened, are measured; they are the node’s own.',
  },
];

export function chainOfTrust(verdict: Verdict): ChainStep[] {
  return links.map(({ title, text, checks: names, isConsequence = false }) => {
    const checks = verdict.checks.filter(({ name }) => names.includes(name));
    const open = checks.filter(({ outcome }) => outcome !== 'passed');
    const reasons = open.map((check) => ({ outcome: check.outcome, text: `${check.title}: ${check.detail}` }));
    return {
      title,
      text,
      outcome: worst(checks),
      reasons: isConsequence ? reasons.slice(0, 1).map(hanging) : reasons,
    };
  });
}

const hanging = ({ outcome }: ChainStep['reasons'][number]) => ({ outcome, text: 'It hangs on the link before it.' });

function worst(checks: readonly JudgeCheck[]): JudgeCheck['outcome'] {
  const order = ['failed', 'not-done'] as const;
  return order.find((outcome) => checks.some((check) => check.outcome === outcome)) ?? 'passed';
}

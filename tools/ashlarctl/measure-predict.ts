/** `ashlarctl measure predict`: what a machine's TPM will say after it has booted a UKI. */
import { createHash } from 'node:crypto';
import { authenticodeDigest } from '../../src/formats/authenticode.ts';
import { decodePe, findPeSection } from '../../src/formats/pe.ts';
import { type PcrPrediction, zeroPcr } from '../../src/measure/pcr.ts';
import { predictPcr4 } from '../../src/measure/pcr4.ts';
import { predictPcr5 } from '../../src/measure/pcr5.ts';
import { findAuthority, predictPcr7 } from '../../src/measure/pcr7.ts';
import { predictPcr9 } from '../../src/measure/pcr9.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { predictPcr12 } from '../../src/measure/pcr12.ts';
import { command, UsageError } from '../host/command-line.ts';
import { printJson } from './command-options.ts';
import { readDiskGpt } from './disk-gpt.ts';
import { decodeInput, readInputFile } from './input-file.ts';
import { readSecureBootVariable } from './secure-boot-files.ts';
import { printable } from './table.ts';

const maxUkiBytes = 512 * 1024 * 1024;

const keys = (variable: string) =>
  ({
    type: 'string',
    value: 'FILE',
    multiple: true,
    summary: `what ${variable} holds: a certificate, .esl, .auth or a file of efivarfs`,
  }) as const;

export const measurePredict = command({
  name: 'predict',
  summary: 'the PCRs that a UKI will leave, with every digest on the way',
  description:
    'Of the SHA-256 bank. PCR 7 needs --db, --pk and --kek; PCR 5 needs --disk or --network. What cannot be predicted from\nwhat was given is left out, and said. The JSON can be given to: ashlarctl measure log FILE --pcrs',
  options: {
    db: keys('db'),
    pk: keys('PK'),
    kek: keys('KEK'),
    dbx: {
      ...keys('dbx'),
      summary: 'what dbx holds; the word dummy for the list that virt-fw-vars enrols; none unless given',
    },
    owner: {
      type: 'string',
      value: 'GUID',
      summary: 'owner of the entries made from certificates (the file owner-guid)',
    },
    'secure-boot': {
      type: 'string',
      value: 'STATE',
      choices: ['on', 'off'],
      default: 'on',
      summary: "the firmware's Secure Boot",
    },
    'stub-phase': {
      type: 'string',
      value: 'PHASE',
      choices: ['firmware', 'enter-initrd', 'leave-initrd'],
      default: 'leave-initrd',
      summary: 'when: as the stub leaves PCR 11, while data may be unsealed, or on a running node',
    },
    disk: { type: 'string', value: 'FILE', summary: 'the disk (image) whose partition table firmware will measure' },
    network: { type: 'boolean', summary: 'booted from the network: there is no partition table' },
    'failed-entries': {
      type: 'integer',
      value: 'N',
      default: 0,
      maximum: 100,
      summary: 'boot entries tried in vain before',
    },
    'load-options': {
      type: 'string',
      value: 'TEXT',
      default: '',
      summary: 'of the boot entry; taken with Secure Boot off',
    },
    'smbios-cmdline': {
      type: 'string',
      value: 'TEXT',
      default: '',
      summary: 'SMBIOS string io.systemd.stub.kernel-cmdline-extra',
    },
    json: { type: 'boolean', summary: 'print JSON' },
  },
  positionals: [{ name: 'uki', summary: 'the finished image (.efi)', required: true }],
  async run(values, { print, progress }) {
    if (values.disk !== undefined && values.network) throw new UsageError('--disk and --network exclude each other');
    const uki = await readInputFile(values.uki, 'the UKI', maxUkiBytes);
    const variables = {
      pk: await readSecureBootVariable(values.pk, values.owner),
      kek: await readSecureBootVariable(values.kek, values.owner),
      db: await readSecureBootVariable(values.db, values.owner),
      dbx: await readSecureBootVariable(values.dbx, values.owner),
    };
    const disk = values.disk === undefined ? undefined : await readDiskGpt(values.disk);
    const isSecureBootOn = values['secure-boot'] === 'on';
    const notes: string[] = [];
    const predicted = new Map<number, PcrPrediction>();
    decodeInput(values.uki, () => {
      if (findPeSection(decodePe(uki), '.linux') === undefined)
        throw new Error('it is a PE image but no UKI: there is no .linux section');
      predicted.set(4, predictPcr4(uki, { isSecureBootOn, failedBootEntries: values['failed-entries'] }));
      const bootedFrom = values.network ? 'network' : disk;
      if (bootedFrom === undefined) notes.push('PCR 5 is left out: give --disk FILE or --network');
      else predicted.set(5, predictPcr5({ bootedFrom }));
      const missing = isSecureBootOn
        ? (['db', 'pk', 'kek'] as const).filter((name) => variables[name].length === 0)
        : [];
      if (missing.length > 0)
        notes.push(`PCR 7 is left out: give ${missing.map((name) => `--${name}`).join(', ')} too`);
      else
        predicted.set(
          7,
          predictPcr7({ variables, isSecureBootOn, ...findAuthority(uki, { variables, isSecureBootOn }) }),
        );
      const smbiosCommandLine = values['smbios-cmdline'];
      const loadOptions = isSecureBootOn ? '' : values['load-options'];
      if (isSecureBootOn && values['load-options'] !== '')
        notes.push('the load options are not taken: Secure Boot is on and the UKI has a command line of its own');
      predicted.set(9, predictPcr9(uki, { loadOptions, commandLineExtra: smbiosCommandLine }));
      predicted.set(11, predictPcr11OfUki(uki)[values['stub-phase']]);
      predicted.set(12, predictPcr12({ loadOptions, smbiosCommandLine }));
      predicted.set(13, { value: zeroPcr(), steps: [] });
    });
    const pcr11 = predictPcr11OfUki(uki);
    if (values.json) {
      printJson(print, {
        uki: { sha256: createHash('sha256').update(uki).digest('hex'), authenticode: hex(authenticodeDigest(uki)) },
        secureBoot: values['secure-boot'],
        stubPhase: values['stub-phase'],
        pcrs: { sha256: Object.fromEntries([...predicted].map(([pcr, { value }]) => [pcr, hex(value)])) },
        pcr11: Object.fromEntries(
          Object.entries<PcrPrediction>({ ...pcr11 }).map(([phase, { value }]) => [phase, hex(value)]),
        ),
        steps: Object.fromEntries([...predicted].map(([pcr, prediction]) => [pcr, stepsOf(prediction)])),
        notes,
      });
      return;
    }
    for (const [pcr, { value, steps }] of predicted) {
      print(`${`PCR ${pcr}`.padEnd(7)} ${hex(value)}`);
      for (const { description, digest } of steps)
        print(`        + ${hex(digest)}\n          ${printable(description)}`);
    }
    for (const note of notes) progress.note(note);
  },
});

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const stepsOf = ({ steps }: PcrPrediction): unknown[] =>
  steps.map(({ description, digest, value }) => ({ description, digest: hex(digest), value: hex(value) }));

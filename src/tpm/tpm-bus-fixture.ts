/** Listens on the bus of a software TPM, and changes its answers: who can do this to a real TPM has a logic analyser. */
import { once } from 'node:events';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { SoftwareTpm } from './swtpm-fixture.ts';

export interface BusTransfer {
  readonly command: Uint8Array;
  /** What the TPM said. */
  readonly response: Uint8Array;
  /** What was passed on. */
  readonly answer: Uint8Array;
}

/** @internal */
export type BusOrder =
  | { readonly kind: 'tell' }
  | { readonly kind: 'forget' }
  | { readonly kind: 'change'; readonly commandCode: number; readonly response: Uint8Array };

/** @internal */
export type BusReport = { readonly kind: 'done' } | { readonly kind: 'transfers'; readonly transfers: BusTransfer[] };

export interface TpmBus extends AsyncDisposable {
  /** TCTI of the TPM with the listener on the way. */
  readonly tcti: string;
  /** Everything since the start, or since {@link forget}. */
  transfers(): Promise<BusTransfer[]>;
  /** The names of the commands since then, as in Part 2, 6.5.2. */
  commands(): Promise<string[]>;
  forget(): Promise<void>;
  /** The next answer to this command is these bytes instead. */
  change(command: string, response: Uint8Array): Promise<void>;
}

export async function tapTpm(machine: SoftwareTpm): Promise<TpmBus> {
  const from = join(machine.directory, 'tapped');
  const to = join(machine.directory, 'socket');
  const worker = new Worker(new URL('./tpm-bus-worker.ts', import.meta.url), { workerData: { from, to } });
  await once(worker, 'message');
  const order = async (message: BusOrder): Promise<BusTransfer[]> => {
    const answered = once(worker, 'message');
    worker.postMessage(message);
    const [report] = (await answered) as [BusReport];
    return report.kind === 'transfers' ? report.transfers : [];
  };
  return {
    tcti: `swtpm:path=${from}`,
    transfers: () => order({ kind: 'tell' }),
    commands: async () => (await order({ kind: 'tell' })).map(({ command }) => commandName(command)),
    async forget() {
      await order({ kind: 'forget' });
    },
    async change(command, response) {
      const code = Object.entries(COMMAND_NAMES).find(([, name]) => name === command)?.[0];
      if (code === undefined) throw new RangeError(`cannot change the answer to ${command}: there is no such command`);
      await order({ kind: 'change', commandCode: Number(code), response });
    },
    async [Symbol.asyncDispose]() {
      await worker.terminate();
    },
  };
}

function commandName(command: Uint8Array): string {
  const code = Buffer.from(command).readUInt32BE(6);
  return COMMAND_NAMES[code] ?? `0x${code.toString(16)}`;
}

/** TPM_CC (TCG TPM 2.0 Library, Part 2, 6.5.2). */
const COMMAND_NAMES: Readonly<Record<number, string>> = {
  0x0000011f: 'NV_UndefineSpaceSpecial',
  0x00000120: 'EvictControl',
  0x00000121: 'HierarchyControl',
  0x00000122: 'NV_UndefineSpace',
  0x00000124: 'ChangeEPS',
  0x00000125: 'ChangePPS',
  0x00000126: 'Clear',
  0x00000127: 'ClearControl',
  0x00000128: 'ClockSet',
  0x00000129: 'HierarchyChangeAuth',
  0x0000012a: 'NV_DefineSpace',
  0x0000012b: 'PCR_Allocate',
  0x0000012c: 'PCR_SetAuthPolicy',
  0x0000012d: 'PP_Commands',
  0x0000012e: 'SetPrimaryPolicy',
  0x0000012f: 'FieldUpgradeStart',
  0x00000130: 'ClockRateAdjust',
  0x00000131: 'CreatePrimary',
  0x00000132: 'NV_GlobalWriteLock',
  0x00000133: 'GetCommandAuditDigest',
  0x00000134: 'NV_Increment',
  0x00000135: 'NV_SetBits',
  0x00000136: 'NV_Extend',
  0x00000137: 'NV_Write',
  0x00000138: 'NV_WriteLock',
  0x00000139: 'DictionaryAttackLockReset',
  0x0000013a: 'DictionaryAttackParameters',
  0x0000013b: 'NV_ChangeAuth',
  0x0000013c: 'PCR_Event',
  0x0000013d: 'PCR_Reset',
  0x0000013e: 'SequenceComplete',
  0x0000013f: 'SetAlgorithmSet',
  0x00000140: 'SetCommandCodeAuditStatus',
  0x00000141: 'FieldUpgradeData',
  0x00000142: 'IncrementalSelfTest',
  0x00000143: 'SelfTest',
  0x00000144: 'Startup',
  0x00000145: 'Shutdown',
  0x00000146: 'StirRandom',
  0x00000147: 'ActivateCredential',
  0x00000148: 'Certify',
  0x00000149: 'PolicyNV',
  0x0000014a: 'CertifyCreation',
  0x0000014b: 'Duplicate',
  0x0000014c: 'GetTime',
  0x0000014d: 'GetSessionAuditDigest',
  0x0000014e: 'NV_Read',
  0x0000014f: 'NV_ReadLock',
  0x00000150: 'ObjectChangeAuth',
  0x00000151: 'PolicySecret',
  0x00000152: 'Rewrap',
  0x00000153: 'Create',
  0x00000154: 'ECDH_ZGen',
  0x00000155: 'HMAC',
  0x00000156: 'Import',
  0x00000157: 'Load',
  0x00000158: 'Quote',
  0x00000159: 'RSA_Decrypt',
  0x0000015b: 'HMAC_Start',
  0x0000015c: 'SequenceUpdate',
  0x0000015d: 'Sign',
  0x0000015e: 'Unseal',
  0x00000160: 'PolicySigned',
  0x00000161: 'ContextLoad',
  0x00000162: 'ContextSave',
  0x00000163: 'ECDH_KeyGen',
  0x00000164: 'EncryptDecrypt',
  0x00000165: 'FlushContext',
  0x00000167: 'LoadExternal',
  0x00000168: 'MakeCredential',
  0x00000169: 'NV_ReadPublic',
  0x0000016a: 'PolicyAuthorize',
  0x0000016b: 'PolicyAuthValue',
  0x0000016c: 'PolicyCommandCode',
  0x0000016d: 'PolicyCounterTimer',
  0x0000016e: 'PolicyCpHash',
  0x0000016f: 'PolicyLocality',
  0x00000170: 'PolicyNameHash',
  0x00000171: 'PolicyOR',
  0x00000172: 'PolicyTicket',
  0x00000173: 'ReadPublic',
  0x00000174: 'RSA_Encrypt',
  0x00000176: 'StartAuthSession',
  0x00000177: 'VerifySignature',
  0x00000178: 'ECC_Parameters',
  0x00000179: 'FirmwareRead',
  0x0000017a: 'GetCapability',
  0x0000017b: 'GetRandom',
  0x0000017c: 'GetTestResult',
  0x0000017d: 'Hash',
  0x0000017e: 'PCR_Read',
  0x0000017f: 'PolicyPCR',
  0x00000180: 'PolicyRestart',
  0x00000181: 'ReadClock',
  0x00000182: 'PCR_Extend',
  0x00000183: 'PCR_SetAuthValue',
  0x00000184: 'NV_Certify',
  0x00000185: 'EventSequenceComplete',
  0x00000186: 'HashSequenceStart',
  0x00000187: 'PolicyPhysicalPresence',
  0x00000188: 'PolicyDuplicationSelect',
  0x00000189: 'PolicyGetDigest',
  0x0000018a: 'TestParms',
  0x0000018b: 'Commit',
  0x0000018c: 'PolicyPassword',
  0x0000018d: 'ZGen_2Phase',
  0x0000018e: 'EC_Ephemeral',
  0x0000018f: 'PolicyNvWritten',
  0x00000190: 'PolicyTemplate',
  0x00000191: 'CreateLoaded',
  0x00000192: 'PolicyAuthorizeNV',
  0x00000193: 'EncryptDecrypt2',
  0x00000194: 'AC_GetCapability',
  0x00000195: 'AC_Send',
  0x00000196: 'Policy_AC_SendSelect',
  0x00000197: 'CertifyX509',
  0x00000198: 'ACT_SetTimeout',
};

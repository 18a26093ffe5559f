/**
 * What sits on the wires between a process and its TPM, for tests: passes bytes on, writes them down, and changes
 * answers when told. A Worker, because the process that talks to the TPM is blocked meanwhile.
 */
import { once } from 'node:events';
import { connect, createServer, type Server } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import type { BusOrder, BusReport, BusTransfer } from './tpm-bus-fixture.ts';

const { from, to } = workerData as { from: string; to: string };
const port = parentPort;
if (port === null) throw new Error('cannot run tpm-bus-worker: it is for a Worker');

const transfers: BusTransfer[] = [];
const changes: (BusOrder & { kind: 'change' })[] = [];

/** TPM commands and responses: u16 tag, u32 size of the whole, u32 code. */
function wholeMessage(bytes: Buffer): boolean {
  return bytes.length >= 10 && bytes.length >= bytes.readUInt32BE(2);
}

function changed(command: Buffer, response: Buffer): Buffer {
  const code = command.readUInt32BE(6);
  const position = changes.findIndex((change) => change.commandCode === code);
  const change = changes[position];
  if (change === undefined) return response;
  changes.splice(position, 1);
  return Buffer.from(change.response);
}

function pass(listenAt: string, connectTo: string, isData: boolean): Server {
  return createServer((client) => {
    const tpm = connect(connectTo);
    let command: Buffer = Buffer.alloc(0);
    let response: Buffer = Buffer.alloc(0);
    client.on('data', (chunk: Buffer) => {
      if (isData) command = Buffer.concat([command, chunk]);
      tpm.write(chunk);
    });
    tpm.on('data', (chunk: Buffer) => {
      if (!isData) return client.write(chunk);
      response = Buffer.concat([response, chunk]);
      if (!wholeMessage(response)) return;
      const answer = changed(command, response);
      transfers.push({ command, response, answer });
      [command, response] = [Buffer.alloc(0), Buffer.alloc(0)];
      return client.write(answer);
    });
    const end = (): void => {
      client.destroy();
      tpm.destroy();
    };
    for (const socket of [client, tpm]) socket.on('close', end).on('error', end);
  }).listen(listenAt);
}

const servers = [pass(from, to, true), pass(`${from}.ctrl`, `${to}.ctrl`, false)];
await Promise.all(servers.map((server) => once(server, 'listening')));

const report = (message: BusReport): void => port.postMessage(message);
port.on('message', (order: BusOrder) => {
  if (order.kind === 'change') changes.push(order);
  if (order.kind === 'forget') transfers.length = 0;
  report(order.kind === 'tell' ? { kind: 'transfers', transfers } : { kind: 'done' });
});
report({ kind: 'done' });

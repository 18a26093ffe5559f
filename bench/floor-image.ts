/**
 * The floor: how fast a machine of this kind can be. The same firmware, stub and kernel as Ashlar, Secure Boot and TPM
 * included, and an init that is 33 bytes of machine code: it prints one line and rests.
 */
import { encodeCpio } from '../src/formats/cpio.ts';

export const FLOOR_LINE = 'floor: init runs';

const CODE_ADDRESS = 0x400000;
const HEADERS_BYTES = 64 + 56;

/** An initramfs with this init and a console for it to print to. */
export function floorInitramfs(): Buffer {
  return Buffer.concat([
    ...encodeCpio([
      { path: 'dev', type: 'directory', mode: 0o755 },
      { path: 'dev/console', type: 'character-device', mode: 0o600, major: 5, minor: 1 },
      { path: 'init', type: 'file', mode: 0o755, data: floorInit() },
    ]),
  ]);
}

/** A static ELF executable for x86-64 (System V ABI): write(1, line), then pause() for ever, as bare system calls. */
export function floorInit(): Buffer {
  const text = Buffer.from(`${FLOOR_LINE}\n`);
  const textAddress = (code: Buffer) => CODE_ADDRESS + HEADERS_BYTES + code.length;
  const codeFor = (address: number) =>
    Buffer.concat([
      // write(1, text, length)
      loadEax(1),
      Buffer.from([0xbf, 1, 0, 0, 0]), // mov edi, 1
      Buffer.from([0xbe]), // mov esi, address
      u32(address),
      Buffer.from([0xba]), // mov edx, length
      u32(text.length),
      SYSCALL,
      // pause(), again and again: init must not end
      loadEax(34),
      SYSCALL,
      Buffer.from([0xeb, 0xf7]), // jmp back over the jump, the system call and the mov
    ]);
  const code = codeFor(textAddress(codeFor(0)));
  const size = HEADERS_BYTES + code.length + text.length;
  const header = Buffer.alloc(HEADERS_BYTES);
  header.write('\x7fELF', 0, 'latin1');
  header.set([2, 1, 1], 4); // 64 bits, little-endian, version 1
  header.writeUInt16LE(2, 16); // ET_EXEC
  header.writeUInt16LE(62, 18); // x86-64
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(CODE_ADDRESS + HEADERS_BYTES), 24);
  header.writeBigUInt64LE(64n, 32); // program headers follow
  header.writeUInt16LE(64, 52);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(1, 56);
  header.writeUInt32LE(1, 64); // PT_LOAD
  header.writeUInt32LE(5, 68); // readable, executable
  header.writeBigUInt64LE(BigInt(CODE_ADDRESS), 80);
  header.writeBigUInt64LE(BigInt(CODE_ADDRESS), 88);
  header.writeBigUInt64LE(BigInt(size), 96);
  header.writeBigUInt64LE(BigInt(size), 104);
  header.writeBigUInt64LE(4096n, 112);
  return Buffer.concat([header, code, text]);
}

const SYSCALL = Buffer.from([0x0f, 0x05]);

function loadEax(value: number): Buffer {
  return Buffer.concat([Buffer.from([0xb8]), u32(value)]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

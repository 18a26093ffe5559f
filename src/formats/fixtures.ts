/** Small inputs and oracles for the tests of this folder and its users. Nothing that ships imports it. */
import { spawnSync } from 'node:child_process';

/** A reason to skip a test that asks a tool for its opinion, or false when the tool is here. */
export function skipWithout(tool: string): string | false {
  return spawnSync('sh', ['-c', 'command -v -- "$1"', 'sh', tool]).status === 0 ? false : `${tool} is not installed`;
}

/** A PE32+ EFI application laid out like the systemd stub, with one `.text` and one `.sbat` section. Not runnable. */
export function minimalPe(
  options: { text?: Uint8Array; dllCharacteristics?: number; trailing?: Uint8Array } = {},
): Uint8Array {
  const text = options.text ?? Buffer.from('the code');
  const sbat = Buffer.from('sbat,1\n');
  const headers = Buffer.alloc(0x600);
  headers.write('MZ');
  headers.writeUInt32LE(0x80, 0x3c);
  headers.write('PE\0\0', 0x80);
  headers.writeUInt16LE(0x8664, 0x84);
  headers.writeUInt16LE(2, 0x86);
  headers.writeUInt32LE(0x12345678, 0x88);
  headers.writeUInt16LE(240, 0x94);
  headers.writeUInt16LE(0x22e, 0x96);
  const optional = 0x98;
  headers.writeUInt16LE(0x20b, optional);
  headers.writeBigUInt64LE(0x1_4df1_0000n, optional + 24);
  headers.writeUInt32LE(0x1000, optional + 32);
  headers.writeUInt32LE(0x200, optional + 36);
  headers.writeUInt32LE(0x3000, optional + 56);
  headers.writeUInt32LE(0x600, optional + 60);
  headers.writeUInt16LE(10, optional + 68);
  headers.writeUInt16LE(options.dllCharacteristics ?? 0x160, optional + 70);
  headers.writeUInt32LE(16, optional + 108);
  const rawSize = Math.ceil(text.length / 0x200) * 0x200;
  const section = (index: number, name: string, size: number, address: number, raw: number, pointer: number) => {
    const at = optional + 240 + index * 40;
    headers.write(name, at);
    headers.writeUInt32LE(size, at + 8);
    headers.writeUInt32LE(address, at + 12);
    headers.writeUInt32LE(raw, at + 16);
    headers.writeUInt32LE(pointer, at + 20);
    headers.writeUInt32LE(0x6000_0020, at + 36);
  };
  section(0, '.text', text.length, 0x1000, rawSize, 0x600);
  section(1, '.sbat', sbat.length, 0x2000 + Math.floor(rawSize / 0x1000) * 0x1000, 0x200, 0x600 + rawSize);
  const body = Buffer.alloc(rawSize + 0x200);
  body.set(text);
  body.set(sbat, rawSize);
  return Buffer.concat([headers, body, options.trailing ?? new Uint8Array(0)]);
}

/** A repeatable source of numbers in [0, 1) for mutation tests (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** Copies of `bytes` with a few bytes changed, or the end cut off: what a decoder must survive. */
export function* mutations(
  bytes: Uint8Array,
  options: { seed: number; count: number; window?: number },
): Generator<Uint8Array> {
  const random = seededRandom(options.seed);
  const window = Math.min(options.window ?? bytes.length, bytes.length);
  const interesting = [0x00, 0x01, 0x7f, 0x80, 0xff];
  for (let i = 0; i < options.count; i++) {
    if (i % 8 === 7) {
      yield bytes.slice(0, Math.floor(random() * bytes.length));
      continue;
    }
    const copy = bytes.slice();
    const changes = 1 + Math.floor(random() * 4);
    for (let change = 0; change < changes; change++) {
      const at = Math.floor(random() * window);
      copy[at] =
        random() < 0.5 ? (interesting[Math.floor(random() * interesting.length)] ?? 0) : Math.floor(random() * 256);
    }
    yield copy;
  }
}

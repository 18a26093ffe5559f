/** Small inputs and oracles for the tests of this folder and its users. Nothing that ships imports it. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';

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
    // Not slice(), which of a Buffer would be a view, and the next copy a copy of this one.
    const copy = new Uint8Array(bytes);
    const changes = 1 + Math.floor(random() * 4);
    for (let change = 0; change < changes; change++) {
      const at = Math.floor(random() * window);
      copy[at] =
        random() < 0.5 ? (interesting[Math.floor(random() * interesting.length)] ?? 0) : Math.floor(random() * 256);
    }
    yield copy;
  }
}

/** An empty variables image like OVMF's, 16 KiB with a store of 8 KiB. */
export function emptyVariableStore(): Uint8Array {
  const image = Buffer.alloc(16 * 1024, 0xff);
  image.fill(0, 0, 72);
  image.set(Buffer.from('8d2bf1ff96768b4ca9852747075b4f50', 'hex'), 16);
  image.writeBigUInt64LE(BigInt(image.length), 32);
  image.write('_FVH', 40, 'latin1');
  image.writeUInt32LE(0x0004_feff, 44);
  image.writeUInt16LE(72, 48);
  image.writeUInt8(2, 55);
  image.writeUInt32LE(4, 56);
  image.writeUInt32LE(4096, 60);
  let sum = 0;
  for (let i = 0; i < 72; i += 2) sum += image.readUInt16LE(i);
  image.writeUInt16LE(-sum & 0xffff, 50);
  image.set(Buffer.from('782cf3aa7b949a43a1802e144ec37792', 'hex'), 72);
  image.writeUInt32LE(8 * 1024, 88);
  image.set([0x5a, 0xfe, 0, 0, 0, 0, 0, 0], 92);
  return image;
}

/** A crypto-agile event log with SHA-1 and SHA-256 digests of each event's data, or the SHA-256 digest that is given. */
export function encodeEventLog(
  events: readonly { pcr: number; type: number; data: Uint8Array; digest?: Uint8Array }[],
): Uint8Array {
  const u32 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  const header = Buffer.concat([
    Buffer.from('Spec ID Event03\0', 'latin1'),
    u32(0),
    Uint8Array.of(0, 2, 0, 2),
    u32(2),
    Uint8Array.of(0x04, 0, 20, 0, 0x0b, 0, 32, 0),
    Uint8Array.of(0),
  ]);
  const records = events.map(({ pcr, type, data, digest }) => {
    const sha1 = createHash('sha1').update(data).digest();
    const sha256 = digest ?? createHash('sha256').update(data).digest();
    return Buffer.concat([
      u32(pcr),
      u32(type),
      u32(2),
      Uint8Array.of(4, 0),
      sha1,
      Uint8Array.of(0x0b, 0),
      sha256,
      u32(data.length),
      data,
    ]);
  });
  return Buffer.concat([u32(0), u32(3), Buffer.alloc(20), u32(header.length), header, ...records]);
}

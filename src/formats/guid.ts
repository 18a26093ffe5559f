/** GUIDs as UEFI stores them: the first three groups little-endian, the last two in reading order (UEFI App. A). */

const pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** The 16 bytes of a GUID in UEFI's mixed order. @throws RangeError when the text is not a GUID. */
export function encodeGuid(text: string): Uint8Array {
  if (!pattern.test(text))
    throw new RangeError(`cannot encode GUID: ${JSON.stringify(text)} is not of the form 8-4-4-4-12 hex digits`);
  return swapGroups(Buffer.from(text.replaceAll('-', ''), 'hex'));
}

/** Lower-case text of 16 bytes in UEFI's mixed order. */
export function decodeGuid(bytes: Uint8Array): string {
  return formatUuid(swapGroups(bytes));
}

/** Writes 16 bytes as a UUID in reading order, as the PARTUUID of a system partition is made from its root hash. */
export function formatUuid(bytes: Uint8Array): string {
  if (bytes.length !== 16) throw new RangeError(`cannot format UUID: ${bytes.length} bytes instead of 16`);
  return Buffer.from(bytes)
    .toString('hex')
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

function swapGroups(bytes: Uint8Array): Uint8Array {
  const swapped = Buffer.from(bytes);
  if (swapped.length !== 16) throw new RangeError(`cannot decode GUID: ${bytes.length} bytes instead of 16`);
  swapped.subarray(0, 4).reverse();
  swapped.subarray(4, 6).reverse();
  swapped.subarray(6, 8).reverse();
  return swapped;
}

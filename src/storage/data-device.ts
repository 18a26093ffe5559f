/** The data partition as a row of bytes: what is read of its header, and each write, durable before the next. */
import { closeSync, fsyncSync, openSync } from 'node:fs';
import { readAt, writeAt } from './partition-table.ts';

export interface DataDevice {
  /** `/dev/vda4`. */
  readonly path: string;
  read(offset: number, length: number): Buffer;
  /** Returns when the bytes are on the medium. A power cut in it leaves some of them. */
  write(offset: number, bytes: Uint8Array): void;
}

export function dataDevice(path: string): DataDevice {
  return {
    path,
    read(offset, length) {
      const fd = openSync(path, 'r');
      try {
        return readAt(fd, offset, length);
      } finally {
        closeSync(fd);
      }
    },
    write(offset, bytes) {
      const fd = openSync(path, 'r+');
      try {
        writeAt(fd, offset, bytes);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
    },
  };
}

/**
 * The power button: KEY_POWER from any input device (uapi/linux/input.h). An input device cannot be a stream in Node.js
 * (libuv refuses the file type) and a blocking read would take one of its four threads for ever, so the devices are
 * opened non-blocking and looked at four times a second: about two microseconds each time.
 */
import { closeSync, constants, openSync, readdirSync, readSync } from 'node:fs';

const POLL_MS = 250;
/** struct input_event on 64-bit: 16 bytes of time, u16 type, u16 code, s32 value. */
const EVENT_BYTES = 24;
const EV_KEY = 1;
const KEY_POWER = 116;
const PRESSED = 1;

/** True when a run of input events holds a press of the power button. */
export function hasPowerPress(events: Buffer): boolean {
  for (let at = 0; at + EVENT_BYTES <= events.length; at += EVENT_BYTES)
    if (
      events.readUInt16LE(at + 16) === EV_KEY &&
      events.readUInt16LE(at + 18) === KEY_POWER &&
      events.readInt32LE(at + 20) === PRESSED
    )
      return true;
  return false;
}

/** Calls back for each press. Devices plugged in later are found too. */
export function watchPowerButton(onPress: () => void, directory = '/dev/input'): Disposable {
  const open = new Map<string, number>();
  const buffer = Buffer.alloc(EVENT_BYTES * 64);
  let polls = 0;
  const poll = () => {
    // Looking for new devices costs a directory read: once in about eight seconds is enough.
    if (polls % 32 === 0) openNew(directory, open);
    polls += 1;
    for (const [name, fd] of open) {
      try {
        const length = readSync(fd, buffer, 0, buffer.length, null);
        if (hasPowerPress(buffer.subarray(0, length))) onPress();
      } catch (error) {
        if (error instanceof Error && 'code' in error && error.code === 'EAGAIN') continue;
        closeSync(fd); // unplugged
        open.delete(name);
      }
    }
  };
  const timer = setInterval(poll, POLL_MS);
  poll();
  return {
    [Symbol.dispose]: () => {
      clearInterval(timer);
      for (const fd of open.values()) closeSync(fd);
    },
  };
}

function openNew(directory: string, open: Map<string, number>): void {
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch {
    return; // no input devices at all
  }
  for (const name of names) {
    if (!name.startsWith('event') || open.has(name)) continue;
    try {
      open.set(name, openSync(`${directory}/${name}`, constants.O_RDONLY | constants.O_NONBLOCK));
    } catch {
      // Gone between listing and opening; the next look decides.
    }
  }
}

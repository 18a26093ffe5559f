/** ioctl(2) with an optional buffer, or an integer, as its one argument. */
import { libcFunction } from './libc.ts';

const ioctlBuffer = libcFunction('int ioctl(int fd, unsigned long request, void *argument)');
const ioctlNumber = libcFunction('int ioctl(int fd, unsigned long request, long argument)');

/**
 * Calls ioctl; the kernel may write into `argument` when it is a buffer.
 *
 * @returns the call's non-negative result. Throws `LinuxError`.
 */
export function ioctl(fd: number, request: number, argument: Uint8Array | number | null = null): number {
  return typeof argument === 'number' ? ioctlNumber(fd, request, argument) : ioctlBuffer(fd, request, argument);
}

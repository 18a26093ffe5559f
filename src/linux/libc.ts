/**
 * The one place that loads libc. Everything Node.js cannot ask the kernel for goes through a function bound here:
 * a thin call that turns -1 into a `LinuxError` naming the system call, its arguments and errno.
 *
 * Calls are synchronous. koffi's `.async` runs on libuv's four threads, where one blocking call stalls every file
 * operation of the process; what blocks belongs in a Worker or a child process.
 */
import { constants } from 'node:os';
import koffi from 'koffi';

/** What a libc function may be given: buffers are passed by address and may be written to by the kernel. */
export type LibcArgument = number | bigint | string | Uint8Array | null;

/** A system call that failed. `code` is errno's name (`EBUSY`), `errno` its positive number. */
export class LinuxError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly arguments: readonly string[];

  constructor(syscall: string, errno: number, args: readonly LibcArgument[]) {
    const code = errnoName(errno);
    const shown = args.map(describeArgument);
    super(`cannot ${syscall}(${shown.join(', ')}): ${code}`);
    this.name = 'LinuxError';
    this.code = code;
    this.errno = errno;
    this.syscall = syscall;
    this.arguments = shown;
  }
}

/** True when `error` is a failed system call with one of the named errnos (`isErrno(error, 'EBUSY', 'ENOENT')`). */
export function isErrno(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && codes.includes(error.code);
}

const library = koffi.load('libc.so.6');

/**
 * Binds a libc function that returns -1 and sets errno on failure.
 *
 * @param prototype as in C, e.g. `int mount(const char *source, const char *target, …)`. Variadic functions are bound
 *   with the fixed arguments they are used with, which is the same calling convention on x86-64 for integers and
 *   pointers.
 * @returns a function that returns libc's result, or throws `LinuxError`.
 */
export function libcFunction(prototype: string): (...args: LibcArgument[]) => number {
  const call = library.func(prototype);
  const name = call.info.name;
  return (...args) => {
    const result: unknown = call(...args);
    // long-returning functions may come back as bigint when they exceed 2^53; none of ours does.
    const value = Number(result);
    if (value === -1) throw new LinuxError(name, koffi.errno(), args);
    return value;
  };
}

/** The address of a buffer, for structures that hold pointers. The caller keeps the buffer alive during the call. */
export function addressOf(buffer: Uint8Array): bigint {
  return koffi.address(buffer);
}

function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(constants.errno)) if (value === errno) return name;
  return `errno ${errno}`;
}

/** Contents of buffers are never shown: they may hold keys. */
function describeArgument(argument: LibcArgument): string {
  if (argument === null) return 'NULL';
  if (typeof argument === 'string') return JSON.stringify(argument);
  if (typeof argument === 'object') return `<${argument.byteLength} bytes>`;
  return argument > 0xffff ? `0x${argument.toString(16)}` : argument.toString();
}

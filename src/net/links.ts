/** Network interfaces as the kernel shows them, and switching one on (netdevice(7)). */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { ioctl } from '../linux/ioctl.ts';
import { libcFunction } from '../linux/libc.ts';

export interface Link {
  name: string;
  /** Ethernet with a device behind it: not a bridge, a tunnel or a virtual pair. */
  isHardware: boolean;
  /** Hardware address, lower case with colons; empty when there is none. */
  address: string;
  /** Administratively up. */
  isUp: boolean;
  /** A cable, or what stands for one, is plugged in. Always false while the link is not up. */
  hasCarrier: boolean;
}

const ARPHRD_ETHER = 1;
const IFF_UP = 0x1;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
/** struct ifreq on x86-64: 16 bytes of name, a union of 24. */
const IFREQ_BYTES = 40;
const IFNAMSIZ = 16;

/** Every interface, by name. */
export function listLinks(sysfs = '/sys'): Link[] {
  const directory = `${sysfs}/class/net`;
  return readdirSync(directory)
    .filter((name) => existsSync(`${directory}/${name}/flags`))
    .sort()
    .map((name) => {
      const value = (file: string) => readSysfs(`${directory}/${name}/${file}`);
      const isEthernet = Number(value('type')) === ARPHRD_ETHER;
      return {
        name,
        isHardware: isEthernet && existsSync(`${directory}/${name}/device`),
        address: value('address'),
        isUp: (Number(value('flags')) & IFF_UP) !== 0,
        hasCarrier: value('carrier') === '1',
      };
    });
}

/** Switches an interface on. Throws when there is none of that name or it refuses. */
export function setLinkUp(name: string): void {
  const nameBytes = Buffer.from(name, 'ascii');
  if (nameBytes.length === 0 || nameBytes.length >= IFNAMSIZ) {
    throw new Error(`cannot switch on the interface ${JSON.stringify(name)}: a name has 1 to ${IFNAMSIZ - 1} bytes`);
  }
  const socket = libcFunction('int socket(int domain, int type, int protocol)');
  const close = libcFunction('int close(int fd)');
  const fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    const request = Buffer.alloc(IFREQ_BYTES);
    nameBytes.copy(request);
    ioctl(fd, SIOCGIFFLAGS, request);
    request.writeInt16LE(request.readInt16LE(IFNAMSIZ) | IFF_UP, IFNAMSIZ);
    ioctl(fd, SIOCSIFFLAGS, request);
  } finally {
    close(fd);
  }
}

/** `carrier` cannot be read while a link is down (EINVAL), and a link may go away between two reads. */
function readSysfs(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

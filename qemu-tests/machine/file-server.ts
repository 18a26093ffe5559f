/** One file over HTTP, at port 80 under its own name. A process of its own, because it runs in a network namespace. */
import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename } from 'node:path';

const [path = ''] = process.argv.slice(2);
const { size } = statSync(path);

createServer((request, response) => {
  process.stderr.write(`${request.method} ${request.url}\n`);
  if (request.url !== `/${basename(path)}`) {
    response.writeHead(404).end();
    return;
  }
  // EDK II asks for the size first, by HEAD, and wants it named.
  response.writeHead(200, { 'content-length': size, 'content-type': 'application/efi' });
  if (request.method === 'HEAD') response.end();
  else createReadStream(path).pipe(response);
}).listen(80, '0.0.0.0');

// @NAME@: what runs in the enclave, an HTTP server on its loopback.
'use strict';

const http = require('node:http');

function answer(request, response) {
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ enclave: '@NAME@', path: request.url }) + '\n');
}

const server = http.createServer(answer);

if (require.main === module) {
  server.listen(8080, '127.0.0.1', () => console.log('@NAME@ serves HTTP on vsock port 5000'));
}

module.exports = { server };

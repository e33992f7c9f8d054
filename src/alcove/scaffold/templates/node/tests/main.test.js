'use strict';

const assert = require('node:assert');
const test = require('node:test');
const { server } = require('../app/main.js');

test('it answers with its name', async () => {
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  try {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/x`);
    assert.deepStrictEqual(await answer.json(), { enclave: '@NAME@', path: '/x' });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

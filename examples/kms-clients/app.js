// An ordinary Node.js program with AWS's SDK v3: a data key, and the same again from its ciphertext.
//
//     node app.js KEY
//
// It knows nothing of enclaves: `alcove-enclave kms-proxy -- node app.js` gives it an endpoint and credentials.
'use strict';

const { createHash } = require('node:crypto');
const { KMSClient, GenerateDataKeyCommand, DecryptCommand } = require('@aws-sdk/client-kms');

async function dataKey(KeyId) {
  const kms = new KMSClient({});
  const made = await kms.send(new GenerateDataKeyCommand({ KeyId, KeySpec: 'AES_256' }));
  const again = await kms.send(new DecryptCommand({ CiphertextBlob: made.CiphertextBlob }));
  if (Buffer.compare(Buffer.from(made.Plaintext), Buffer.from(again.Plaintext)) !== 0) {
    throw new Error('the ciphertext opens to another key');
  }
  return {
    sha256: createHash('sha256').update(made.Plaintext).digest('hex'),
    ciphertext: Buffer.from(made.CiphertextBlob).toString('hex'),
    key_id: again.KeyId,
  };
}

dataKey(process.argv[2]).then(
  (found) => console.log(JSON.stringify(found)),
  (error) => {
    console.error(`${error.name}: ${error.message}`);
    process.exitCode = 1;
  },
);

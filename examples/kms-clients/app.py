"""An ordinary boto3 program: it gets a data key, and gets it again from its ciphertext, as envelope encryption does.

    app.py KEY

Of enclaves it knows one line, `install()`. It prints JSON: the key's hash, so that a test can compare it, and never the
key.
"""

from __future__ import annotations

import hashlib
import json
import sys

import boto3

from alcove.sdk.boto3 import install


def data_key(key_id: str) -> dict[str, str]:
    """Make a data key and decrypt its ciphertext; both must be the same."""
    kms = boto3.client("kms")
    made = kms.generate_data_key(KeyId=key_id, KeySpec="AES_256")
    again = kms.decrypt(CiphertextBlob=made["CiphertextBlob"])
    if again["Plaintext"] != made["Plaintext"]:
        raise RuntimeError("the ciphertext opens to another key")
    return {
        "sha256": hashlib.sha256(made["Plaintext"]).hexdigest(),
        "ciphertext": made["CiphertextBlob"].hex(),
        "key_id": again["KeyId"],
    }


if __name__ == "__main__":
    install()
    print(json.dumps(data_key(sys.argv[1])))

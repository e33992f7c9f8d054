"""@NAME@: what runs in the enclave.

It waits on vsock port 5000 for one JSON line and answers with one:

    {"ciphertext": base64, "environment": {"AWS_ACCESS_KEY_ID": …, "AWS_SECRET_ACCESS_KEY": …, "AWS_REGION": …}}
        → {"sha256": hex of the plaintext}, or {"error": …}

Replace `answer` by what your enclave is for. The parent is not trusted: whatever it sends, the program goes on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import boto3

from alcove.sdk import entropy, nsm, vsock
from alcove.sdk.boto3 import install

PORT = 5000
MAX_LINE = 65536
CALLER_SECONDS = 30.0
CA = Path("/app/trust/kms-ca.pem")  # pins the KMS's certificate; without it public authorities are trusted
ALLOWED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_KMS")


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Decrypt a secret that only this image may have, and give its hash."""
    given = {name: str(value) for name, value in request.get("environment", {}).items() if name in ALLOWED}
    session = boto3.Session(
        given.get("AWS_ACCESS_KEY_ID"),
        given.get("AWS_SECRET_ACCESS_KEY"),
        given.get("AWS_SESSION_TOKEN"),
        region_name=given.get("AWS_REGION"),
    )
    install(session)  # from here on KMS calls carry an attestation document
    kms = session.client("kms", endpoint_url=given.get("AWS_ENDPOINT_URL_KMS"))
    secret = kms.decrypt(CiphertextBlob=base64.b64decode(request["ciphertext"]))["Plaintext"]
    return {"sha256": hashlib.sha256(secret).hexdigest()}


def respond(line: bytes) -> bytes:
    """The answer to one line, as a line."""
    try:
        found = answer(json.loads(line))
    except Exception as error:  # noqa: BLE001 - the boundary: the parent is told, and may ask again
        found = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(found).encode() + b"\n"


def main() -> None:
    """Seed the random generator before any key is made, then serve one caller after the other."""
    entropy.seed(nsm.default())
    if CA.exists():
        os.environ["AWS_CA_BUNDLE"] = str(CA)
    with vsock.listen(PORT) as listener:
        print(f"@NAME@ waits on vsock port {PORT}", flush=True)
        while True:
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(CALLER_SECONDS)
                try:
                    stream.sendall(respond(stream.makefile("rb").readline(MAX_LINE)))
                except OSError:
                    continue


if __name__ == "__main__":
    main()

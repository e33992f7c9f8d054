"""The enclave's program: it decrypts a secret that only this image may have, and tells no more than its hash.

On vsock port 5000 it answers one JSON line with one JSON line:

    {"op": "decrypt", "ciphertext": base64, "key_id": ARN, "region": …, "endpoint_host": "name[:port]",
     "credentials": {"access_key_id", "secret_access_key"[, "session_token"]}}      → {"sha256": hex of the secret}
    {"op": "attest", "nonce": hex}                                                  → {"document": base64}
    whatever fails                                                                  → {"error": {"type", "message"}}
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from alcove.sdk import clock, entropy, vsock
from alcove.sdk.errors import KmsError
from alcove.sdk.nsm import Nsm

PORT = 5000
MAX_LINE = 65536
CALLER_SECONDS = 30.0


def decrypt(nsm: Nsm, request: dict[str, Any]) -> dict[str, Any]:
    """Ask KMS for the secret, and give its hash: the proof that it was here."""
    from alcove.sdk.kms import AttestedKms, Credentials  # noqa: PLC0415 - takes seconds under emulation

    clock.correct(nsm)
    kms = AttestedKms(
        request["region"],
        Credentials(**request["credentials"]),
        request["endpoint_host"],
        ca_file="/app/ca.pem",
        attester=nsm,
    )
    secret = kms.decrypt(base64.b64decode(request["ciphertext"]), key_id=request["key_id"])
    return {"sha256": hashlib.sha256(secret).hexdigest()}


def attest(nsm: Nsm, request: dict[str, Any]) -> dict[str, Any]:
    """A document with the caller's nonce, for anybody to verify."""
    document = nsm.attestation(nonce=bytes.fromhex(request["nonce"]))
    return {"document": base64.b64encode(document).decode()}


OPERATIONS = {"decrypt": decrypt, "attest": attest}


def answer(nsm: Nsm, line: bytes) -> dict[str, Any]:
    """The answer to one line. The caller is not trusted: whatever it sends, the program goes on."""
    try:
        request = json.loads(line)
        return OPERATIONS[request["op"]](nsm, request)
    except KmsError as error:
        return {"error": {"type": error.kind, "message": error.message}}
    except Exception as error:  # noqa: BLE001 - the boundary: the parent is told, and may ask again
        return {"error": {"type": type(error).__name__, "message": str(error)}}


def main() -> None:
    """Seed the random generator before any key is made, then serve one caller after the other."""
    nsm = Nsm()
    entropy.seed(nsm)
    with vsock.listen(PORT) as listener:
        print(f"waiting on vsock port {PORT}", flush=True)
        while True:
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(CALLER_SECONDS)
                try:
                    line = stream.makefile("rb").readline(MAX_LINE)
                    stream.sendall(json.dumps(answer(nsm, line)).encode() + b"\n")
                except OSError:
                    continue


if __name__ == "__main__":
    main()

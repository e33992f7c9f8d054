"""The Python code that people copy to check attestation documents, as a program of its own: a peer for the benchmark.

It is written here after the shape that such code has everywhere, and is no verifier: it decodes with cbor2, lets
pyOpenSSL build a path from the chain in the document, and checks the signature with `cryptography`. It checks no
syntax, constraint, limit, time of the document or policy.

    python attestation_peer.py DOCUMENT ROOT.pem SECONDS COUNT    prints {"seconds": for COUNT documents, …}
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from OpenSSL import crypto  # type: ignore[import-not-found, unused-ignore]  # the benchmark goes without it, too


def verify(document: bytes, root: bytes, at: datetime) -> dict[str, Any]:
    """The usual steps."""
    protected, _, payload, signature = cbor2.loads(document)
    fields: dict[str, Any] = cbor2.loads(payload)
    certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, fields["certificate"])
    store = crypto.X509Store()
    store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, root))
    for entry in fields["cabundle"][1:]:
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, entry))
    store.set_time(at.replace(tzinfo=None))
    crypto.X509StoreContext(store, certificate).verify_certificate()
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = (int.from_bytes(half) for half in (signature[:48], signature[48:]))
    key = certificate.to_cryptography().public_key()
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA384()))
    return fields


def main(document: str, root: str, at: str, count: str) -> None:
    """Print how long it takes."""
    data, pem, when = Path(document).read_bytes(), Path(root).read_bytes(), datetime.fromtimestamp(int(at), UTC)
    verify(data, pem, when)
    start = time.perf_counter()
    for _ in range(int(count)):
        verify(data, pem, when)
    seconds = time.perf_counter() - start
    versions = {name: importlib.metadata.version(name) for name in ("cbor2", "pyOpenSSL", "cryptography")}
    print(json.dumps({"seconds": seconds} | versions))


if __name__ == "__main__":
    main(*sys.argv[1:])

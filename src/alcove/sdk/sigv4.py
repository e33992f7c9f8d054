"""Sign a request with AWS Signature Version 4, header form (kms.md §22.1).

Core: a request and a secret in, the Authorization header out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TERMINATOR: Final = "aws4_request"


def authorization(
    headers: Mapping[str, str],
    body: bytes,
    *,
    access_key_id: str,
    secret_access_key: str,
    region: str,
    service: str,
    method: str = "POST",
    path: str = "/",
) -> str:
    """The value of the Authorization header.

    Args:
        headers: The headers to sign: all of these, and no others. `host` and `x-amz-date`
            (YYYYMMDDTHHMMSSZ) must be among them. Names in any case.
        body: The request's body, which is signed by its SHA-256.
        access_key_id: Names the secret.
        secret_access_key: The secret.
        region: Such as "us-east-1".
        service: Such as "kms".
        method: The HTTP method.
        path: The URI path, already encoded; the query is always empty here.

    Raises:
        ValueError: A header that must be signed is missing.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    if not {"host", "x-amz-date"} <= lower.keys():
        raise ValueError("host and x-amz-date must be signed")
    moment = lower["x-amz-date"]
    scope = f"{moment[:8]}/{region}/{service}/{TERMINATOR}"
    digest = hashlib.sha256(canonical_request(lower, body, method=method, path=path)).hexdigest()
    text = f"{ALGORITHM}\n{moment}\n{scope}\n{digest}"
    key = b"AWS4" + secret_access_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    names = ";".join(sorted(lower))
    return f"{ALGORITHM} Credential={access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"


def canonical_request(headers: Mapping[str, str], body: bytes, *, method: str = "POST", path: str = "/") -> bytes:
    """Step 1 of kms.md §22.1; header names in lower case."""
    lines = [method, path, ""]
    lines += [f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)]
    lines += ["", ";".join(sorted(headers)), hashlib.sha256(body).hexdigest()]
    return "\n".join(lines).encode()

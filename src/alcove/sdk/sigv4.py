"""Sign and verify a request with AWS Signature Version 4, header form (kms.md §22.1).

Core: a request and a secret in, the Authorization header out.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TERMINATOR: Final = "aws4_request"
MAX_SKEW: Final = 300.0  # seconds (kms.md §22.2)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=(?P<key>[^/, ]+)/(?P<date>\d{8})/(?P<region>[^/, ]+)/(?P<service>[^/, ]+)"
    r"/aws4_request, *SignedHeaders=(?P<names>[^, ]+), *Signature=(?P<signature>[0-9a-f]{64})"
)
_MOMENT = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z")


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


def verify(
    headers: Mapping[str, str],
    body: bytes,
    *,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None,
    region: str,
    service: str,
    now: float,
) -> None:
    """Check that a POST to `/` is signed with this access key, for this Region and service, in the last five minutes.

    Args:
        headers: All headers, names in lower case.
        body: The body, which the signature covers.
        access_key_id: The one that is accepted.
        secret_access_key: Its secret.
        session_token: What x-amz-security-token must be, or None when there must be none.
        region: The Region of the scope.
        service: The service of the scope.
        now: Seconds since the epoch.

    Raises:
        ValueError: It is not; the message says why, and nothing of a secret.
    """
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise ValueError("the request has no AWS4-HMAC-SHA256 signature")
    if (found["region"], found["service"]) != (region, service):
        raise ValueError(f"the request is signed for {found['region']}/{found['service']}, not {region}/{service}")
    names = found["names"].split(";")
    must = {"host", "x-amz-date", "x-amz-target", *(name for name in headers if name.startswith("x-amz-"))}
    if not must <= set(names) or not set(names) <= headers.keys():
        raise ValueError("host and every x-amz- header must be signed")
    moment = _MOMENT.fullmatch(headers["x-amz-date"])
    if moment is None or headers["x-amz-date"][:8] != found["date"]:
        raise ValueError("the request has no date")
    if abs(calendar.timegm((*map(int, moment.groups()), 0, 0, 0)) - now) > MAX_SKEW:
        raise ValueError("the request's date is not now")
    token = headers.get("x-amz-security-token", "").encode()
    right = authorization(
        {name: headers[name] for name in names},
        body,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        region=region,
        service=service,
    )
    fits = hmac.compare_digest(found["signature"].encode(), right[-64:].encode())
    fits &= hmac.compare_digest(token, (session_token or "").encode())
    if not fits & hmac.compare_digest(found["key"].encode(), access_key_id.encode()):
        raise ValueError("the request is signed with another access key")

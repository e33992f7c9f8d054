"""Who signed this request: AWS Signature Version 4, header form (kms.md §22).

Core: a request, a time and a way to find secrets in; an access key id out.

The recipe, numbered as the code is:
    1 exactly one Authorization header, and nothing that could be read twice
    2 the algorithm, the scope, the date of the scope
    3 the time, ±5 minutes
    4 the signed headers: sorted, present, and every x-amz-* header among them
    5 the payload hash
    6 the key: known, and its session token there exactly when it must be
    7 the signature, in constant time
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote, unquote

from alcove.kms.errors import KmsError

ALGORITHM: Final = "AWS4-HMAC-SHA256"
MAX_SKEW: Final = timedelta(minutes=5)  # §22.2
TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"
SINGLE: Final = frozenset(
    {"host", "x-amz-date", "x-amz-target", "x-amz-security-token", "content-type", "authorization"}
)  # §22.2 "no repeated"
MISMATCH: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 +Credential=([^,\s]+), *SignedHeaders=([^,\s]+), *Signature=([0-9a-f]{64})"
)
_DUMMY_SECRET = "unknown access keys cost the same work"  # noqa: S105 - §22.2, not a secret


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """An HTTP request as received; header names in lower case, values undecoded text."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Every value of one header."""
        return [value for key, value in self.headers if key == name]

    def value(self, name: str) -> str | None:
        """The first value of one header, or None."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class Scope:
    """The parts of a credential scope."""

    access_key_id: str
    date: str
    region: str
    service: str

    @property
    def text(self) -> str:
        """The scope as it is signed."""
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True)
class Secret:
    """What verification needs of an access key; temporary keys have a token and an end."""

    secret: str
    token: str | None = None
    expires: datetime | None = None


def authenticate(
    request: SignedRequest,
    *,
    now: datetime,
    regions: Sequence[str],
    find: Callable[[str], Secret | None],
    service: str = "kms",
) -> str:
    """The access key id that signed the request.

    Args:
        request: The request as received.
        now: Time of receipt, aware.
        regions: Regions that are served.
        find: Gives the secret of an access key id, or None.
        service: The service that the scope must name.

    Raises:
        KmsError: In the classes and words of §22.2.
    """
    scope, signed, signature = _authorization(request)  # 1
    stamp = _time_of(request)
    _check_scope(scope, stamp, regions, service)  # 2
    _check_skew(stamp, now)  # 3
    _check_headers(request, signed)  # 4
    _check_payload(request)  # 5
    known = find(scope.access_key_id)
    secret = known or Secret(_DUMMY_SECRET)
    text = string_to_sign(canonical_request(request, signed), stamp, scope)
    expected = hmac.new(signing_key(secret.secret, scope), text.encode(), hashlib.sha256).hexdigest()
    equal = hmac.compare_digest(expected, signature)
    _check_key(known, request.value("x-amz-security-token"), now)  # 6
    if not equal:  # 7
        raise _invalid(MISMATCH)
    return scope.access_key_id


def region_of(request: SignedRequest) -> str:
    """The Region that an authenticated request is signed for."""
    return (request.value("authorization") or "").split("/", 3)[2]  # its form was checked


def signed_value(request: SignedRequest, name: str) -> str | None:
    """A header's value, which the signature of an authenticated request must cover.

    Raises:
        KmsError: InvalidSignatureException; the header is there and is not signed.
    """
    value = request.value(name)
    if value is not None and name not in _authorization(request)[1]:
        raise _invalid(f"the header {name} must be signed")
    return value


def canonical_request(request: SignedRequest, signed: Sequence[str]) -> str:
    """The canonical request of §22.1.1."""
    lines = [f"{name}:{','.join(' '.join(v.split()) for v in request.values(name))}" for name in signed]
    pairs = (part.partition("=") for part in request.query.split("&") if part)
    query = sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    digest = hashlib.sha256(request.body).hexdigest()
    parts = [request.method, request.path or "/", "&".join(f"{n}={v}" for n, v in query), *lines, ""]
    return "\n".join([*parts, ";".join(signed), digest])


def string_to_sign(canonical: str, stamp: str, scope: Scope) -> str:
    """The string to sign of §22.1.2."""
    return "\n".join([ALGORITHM, stamp, scope.text, hashlib.sha256(canonical.encode()).hexdigest()])


def signing_key(secret: str, scope: Scope) -> bytes:
    """The derived key of §22.1.3, 32 bytes."""
    key = b"AWS4" + secret.encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _authorization(request: SignedRequest) -> tuple[Scope, list[str], str]:
    headers = request.values("authorization")
    if "X-Amz-Signature" in request.query or "X-Amz-Algorithm" in request.query:
        raise _incomplete("presigned requests are not served")
    if not headers:
        raise KmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    for name in sorted(SINGLE):
        if len(request.values(name)) > 1:
            raise _incomplete(f"the header {name} is there more than once")
    match = _AUTHORIZATION.fullmatch(headers[0].strip())
    if match is None:
        raise _incomplete(
            f"Authorization must be '{ALGORITHM} Credential=…, SignedHeaders=…, Signature=…' with 64 hex digits"
        )
    credential, names, signature = match.groups()
    parts = credential.split("/")
    if len(parts) != 5:
        raise _invalid("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term")
    if parts[4] != "aws4_request":
        raise _invalid("Credential should be scoped with a valid terminator: 'aws4_request'")
    return Scope(*parts[:4]), names.split(";"), signature


def _time_of(request: SignedRequest) -> str:
    stamp = request.value("x-amz-date") or request.value("date") or ""
    if not re.fullmatch(r"\d{8}T\d{6}Z", stamp, re.ASCII):
        raise _incomplete("x-amz-date must be there, in the form YYYYMMDDTHHMMSSZ")
    return stamp


def _check_scope(scope: Scope, stamp: str, regions: Sequence[str], service: str) -> None:
    if scope.region not in regions:
        raise _invalid(f"Credential should be scoped to a valid Region, not {scope.region}")
    if scope.service != service:
        raise _invalid(f"Credential should be scoped to correct service: '{service}'")
    if scope.date != stamp[:8]:
        raise _invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")


def _check_skew(stamp: str, now: datetime) -> None:
    try:
        time = datetime.strptime(stamp, TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise _incomplete("x-amz-date is not a date") from None
    shown = now.strftime(TIME_FORMAT)
    if time < now - MAX_SKEW:
        limit = (now - MAX_SKEW).strftime(TIME_FORMAT)
        raise _invalid(f"Signature expired: {stamp} is now earlier than {limit} ({shown} - 5 min.)")
    if time > now + MAX_SKEW:
        limit = (now + MAX_SKEW).strftime(TIME_FORMAT)
        raise _invalid(f"Signature not yet current: {stamp} is still later than {limit} ({shown} + 5 min.)")


def _check_headers(request: SignedRequest, signed: Sequence[str]) -> None:
    present = {name for name, _ in request.headers}
    if list(signed) != sorted(set(signed)) or any(name != name.lower() for name in signed):
        raise _invalid("SignedHeaders must be sorted, in lower case and without repetition")
    missing = [name for name in signed if name not in present]
    if missing:
        raise _invalid(f"signed headers are missing from the request: {', '.join(missing)}")
    needed = {name for name in present if name.startswith("x-amz-")} | {"host"}
    needed |= set() if "x-amz-date" in present else {"date"}
    unsigned = sorted(needed - set(signed))
    if unsigned:
        raise _invalid(f"headers must be signed: {', '.join(unsigned)}")


def _check_payload(request: SignedRequest) -> None:
    claimed = request.value("x-amz-content-sha256")
    if claimed is None:
        return
    if not hmac.compare_digest(claimed.encode(), hashlib.sha256(request.body).hexdigest().encode()):
        raise _invalid("x-amz-content-sha256 is not the SHA-256 of the body")


def _check_key(known: Secret | None, token: str | None, now: datetime) -> None:
    right = known is not None and hmac.compare_digest((known.token or "").encode(), (token or "").encode())
    if known is None or not right:
        raise KmsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if known.expires is not None and known.expires <= now:
        raise KmsError("ExpiredTokenException", "The security token included in the request is expired")


def _encoded(text: str) -> str:
    return quote(unquote(text), safe="-_.~")


def _invalid(message: str) -> KmsError:
    return KmsError("InvalidSignatureException", message)


def _incomplete(message: str) -> KmsError:
    return KmsError("IncompleteSignatureException", message)

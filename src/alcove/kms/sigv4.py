"""Who signed this request: AWS Signature Version 4, in the header or presigned (kms.md §22).

Core: a request, a time and a way to find secrets in; the scope of the signature out.

The recipe, numbered as the code is:
    1 exactly one signature, in the Authorization header or in the query, and nothing that could be read twice
    2 the algorithm, the scope, the date of the scope
    3 the time, ±5 minutes; a presigned request until it expires
    4 the signed headers: sorted, present, and every x-amz-* header among them
    5 the payload hash
    6 the key: known, and its session token there exactly when it must be
    7 the signature, in constant time
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from alcove.kms.claim import ALGORITHM, Claim, Scope, SignedRequest, incomplete, invalid, read_claim
from alcove.kms.errors import KmsError

MAX_SKEW: Final = timedelta(minutes=5)  # §22.2
TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"
MAX_KEPT: Final = 1024  # characters of the names of a request's headers under which a check is remembered
MISMATCH: Final = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
_DUMMY_SECRET = "unknown access keys cost the same work"  # noqa: S105 - §22.2, not a secret


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
    regions: Collection[str],
    find: Callable[[str], Secret | None],
    service: str = "kms",
) -> Scope:
    """The scope in which the request is signed: by which access key, for which Region.

    Args:
        request: The request as received.
        now: Time of receipt, aware.
        regions: Regions that are served.
        find: Gives the secret of an access key id, or None.
        service: The service that the scope must name.

    Raises:
        KmsError: In the classes and words of §22.2.
    """
    claim = read_claim(request)  # 1
    scope = claim.scope
    _check_scope(scope, claim.stamp, regions, service)  # 2
    _check_time(claim, now)  # 3
    _check_headers(request, claim)  # 4
    payload = hashlib.sha256(request.body).hexdigest()
    _check_payload(request, payload)  # 5
    known = find(scope.access_key_id)
    secret = known or Secret(_DUMMY_SECRET)
    text = string_to_sign(canonical_request(request, claim.signed, claim.query, payload), claim.stamp, scope)
    mac = _signer(secret.secret, scope.date, scope.region, scope.service).copy()
    mac.update(text.encode())
    expected = mac.finalize().hex()
    equal = hmac.compare_digest(expected, claim.signature)
    _check_key(known, claim.token, now)  # 6
    if not equal:  # 7
        raise invalid(MISMATCH)
    return scope


def signed_value(request: SignedRequest, name: str) -> str | None:
    """A header's value, which the signature of an authenticated request must cover.

    Raises:
        KmsError: InvalidSignatureException; the header is there and is not signed.
    """
    value = request.value(name)
    if value is not None and name not in read_claim(request).signed:
        raise invalid(f"the header {name} must be signed")
    return value


def canonical_request(
    request: SignedRequest, signed: Sequence[str], query: str = "", payload: str | None = None
) -> str:
    """The canonical request of §22.1.1; `query` is the canonical one, `payload` the hash of the body if it is known."""
    if request.repeats:
        lines = [f"{name}:{','.join([' '.join(v.split()) for v in request.values(name)])}" for name in signed]
    else:
        first = request.first
        lines = [f"{name}:{' '.join(first.get(name, '').split())}" for name in signed]
    digest = payload or hashlib.sha256(request.body).hexdigest()
    return "\n".join((request.method, request.path or "/", query, *lines, "", ";".join(signed), digest))


def string_to_sign(canonical: str, stamp: str, scope: Scope) -> str:
    """The string to sign of §22.1.2."""
    return f"{ALGORITHM}\n{stamp}\n{scope.text}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


def signing_key(secret: str, scope: Scope) -> bytes:
    """The derived key of §22.1.3, 32 bytes."""
    key = b"AWS4" + secret.encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


@functools.lru_cache(maxsize=1024)
def _signer(secret: str, date: str, region: str, service: str) -> HMAC:
    """An HMAC under the derived key, to be copied; kept, so that a client's next request costs one HMAC, not five.

    It does not depend on the access key id, of which strangers can make up as many and as long ones as they like.
    """
    return HMAC(signing_key(secret, Scope("", date, region, service)), SHA256())


def _check_scope(scope: Scope, stamp: str, regions: Collection[str], service: str) -> None:
    if scope.region not in regions:
        raise invalid(f"Credential should be scoped to a valid Region, not {scope.region}")
    if scope.service != service:
        raise invalid(f"Credential should be scoped to correct service: '{service}'")
    if scope.date != stamp[:8]:
        raise invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")


def _check_time(claim: Claim, now: datetime) -> None:
    stamp = claim.stamp
    try:
        time = _moment(stamp)
    except ValueError:
        raise incomplete("the date of the signature is not a date") from None
    if abs(time - now) <= MAX_SKEW and claim.expires is None:
        return
    shown = now.strftime(TIME_FORMAT)
    age, unit = MAX_SKEW, "5 min."
    if claim.expires is not None:
        age, unit = timedelta(seconds=claim.expires), f"{claim.expires} s"
    if time < now - age:
        limit = (now - age).strftime(TIME_FORMAT)
        raise invalid(
            f"Signature expired: {stamp} is now earlier than {limit} ({shown} - {unit or f'{claim.expires} s'})"
        )
    if time > now + MAX_SKEW:
        limit = (now + MAX_SKEW).strftime(TIME_FORMAT)
        raise invalid(f"Signature not yet current: {stamp} is still later than {limit} ({shown} + 5 min.)")


@functools.lru_cache(maxsize=1024)
def _moment(stamp: str) -> datetime:
    """The time of a stamp; a second's requests share it."""
    return datetime.strptime(stamp, TIME_FORMAT).replace(tzinfo=UTC)


def _check_headers(request: SignedRequest, claim: Claim) -> None:
    present = tuple(request.first)
    short = sum(map(len, present)) + sum(map(len, claim.signed)) <= MAX_KEPT  # strangers choose both
    known = _wrong_headers if short else _wrong_headers.__wrapped__
    wrong = known(claim.signed, present, presigned=claim.expires is not None)
    if wrong:
        raise invalid(wrong)


@functools.lru_cache(maxsize=1024)
def _wrong_headers(signed: tuple[str, ...], present: tuple[str, ...], *, presigned: bool) -> str:
    """What is wrong with the names of signed headers, or nothing; all requests of a client have the same ones."""
    if list(signed) != sorted(set(signed)) or any(name != name.lower() for name in signed):
        return "SignedHeaders must be sorted, in lower case and without repetition"
    missing = [name for name in signed if name not in present]
    if missing:
        return f"signed headers are missing from the request: {', '.join(missing)}"
    needed = {name for name in present if name.startswith("x-amz-")}
    needed |= {"host"} if presigned or "x-amz-date" in needed else {"host", "date"}
    unsigned = needed.difference(signed)
    return f"headers must be signed: {', '.join(sorted(unsigned))}" if unsigned else ""


def _check_payload(request: SignedRequest, digest: str) -> None:
    claimed = request.value("x-amz-content-sha256")
    if claimed is not None and not hmac.compare_digest(claimed.encode(), digest.encode()):
        raise invalid("x-amz-content-sha256 is not the SHA-256 of the body")


def _check_key(known: Secret | None, token: str | None, now: datetime) -> None:
    if known is None or not _same_token(known.token, token):
        raise KmsError("UnrecognizedClientException", "The security token included in the request is invalid.")
    if known.expires is not None and known.expires <= now:
        raise KmsError("ExpiredTokenException", "The security token included in the request is expired")


def _same_token(known: str | None, given: str | None) -> bool:
    if not known or not given:  # whether there is one is no secret
        return not known and not given
    return hmac.compare_digest(known.encode(), given.encode())

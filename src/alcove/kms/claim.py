"""What a request says of its signature, in its Authorization header or in its query (kms.md §22.1, §22.2).

Core: a request in; a `Claim` out, of which nothing is believed yet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from alcove.kms.errors import KmsError

ALGORITHM: Final = "AWS4-HMAC-SHA256"
MAX_KEPT: Final = 512  # characters of an Authorization header, up to its signature, that are kept
MAX_EXPIRES: Final = 604_800  # seconds: seven days, for presigned requests
SINGLE: Final = frozenset(
    {"host", "x-amz-date", "x-amz-target", "x-amz-security-token", "content-type", "authorization"}
)  # §22.2 "no repeated"
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 +Credential=([^,\s]+), *SignedHeaders=([^,\s]+), *Signature=")
_DIGITS: Final = 64  # of a signature
_HEX = re.compile(r"[0-9a-f]{64}")
_STAMP = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_QUERY: Final = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
_SIGNATURE: Final = "X-Amz-Signature"
_TOKEN: Final = "X-Amz-Security-Token"  # noqa: S105 - a name


@dataclass(slots=True)
class SignedRequest:
    """An HTTP request as received; header names in lower case, values undecoded text.

    Nobody changes one; frozen, it would take three times as long to make.

    Attributes:
        first: The first value of each header.
        repeats: Whether a header is there more than once.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    first: Mapping[str, str] = field(init=False, repr=False, compare=False)
    repeats: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.first = dict(self.headers)
        self.repeats = len(self.first) != len(self.headers)
        if self.repeats:
            self.first = dict(reversed(self.headers))

    def values(self, name: str) -> list[str]:
        """Every value of one header."""
        return [value for other, value in self.headers if other == name]

    def value(self, name: str) -> str | None:
        """The first value of one header, or None."""
        return self.first.get(name)

    def parameters(self) -> list[tuple[str, str]]:
        """The parameters of the query, decoded; a plus sign is one."""
        parts = (part.partition("=") for part in self.query.split("&") if part)
        return [(unquote(name), unquote(value)) for name, _, value in parts]

    @property
    def presigned(self) -> bool:
        """Whether the query has a signature, or a part of one."""
        return "X-Amz-" in self.query and any(n in {_SIGNATURE, "X-Amz-Algorithm"} for n, _ in self.parameters())


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


class Claim(NamedTuple):
    """A signature and what it is of.

    Attributes:
        signed: Names of the signed headers.
        signature: 64 hexadecimal digits.
        stamp: When it was made, ``YYYYMMDDTHHMMSSZ``.
        token: The session token, or None.
        query: The canonical query string.
        expires: For how many seconds a presigned request is good; None for one that is signed in its header.
    """

    scope: Scope
    signed: tuple[str, ...]
    signature: str
    stamp: str
    token: str | None
    query: str
    expires: int | None = None


def read_claim(request: SignedRequest) -> Claim:
    """What a request says of its signature.

    Raises:
        KmsError: In the classes and words of §22.2.
    """
    header = request.first.get("authorization")
    presigned = request.presigned
    if header is not None and presigned:
        raise incomplete("a request is signed in its Authorization header or in its query, not in both")
    if header is None and not presigned:
        raise KmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    if request.repeats:
        for name in sorted(SINGLE):
            if len(request.values(name)) > 1:
                raise incomplete(f"the header {name} is there more than once")
    return _presigned(request) if header is None else _signed(request, header)


def token_of(request: SignedRequest) -> str | None:
    """The session token that a request has, or None."""
    if not request.presigned:
        return request.value("x-amz-security-token")
    return next((value for name, value in request.parameters() if name == _TOKEN), None)


def incomplete(message: str) -> KmsError:
    """An IncompleteSignatureException."""
    return KmsError("IncompleteSignatureException", message)


def invalid(message: str) -> KmsError:
    """An InvalidSignatureException."""
    return KmsError("InvalidSignatureException", message)


def _signed(request: SignedRequest, header: str) -> Claim:
    header = header.strip()
    before, signature = header[:-_DIGITS], header[-_DIGITS:]
    found = (_named if len(before) <= MAX_KEPT else _named.__wrapped__)(before)
    if found is None or not _HEX.fullmatch(signature):
        raise incomplete(
            f"Authorization must be '{ALGORITHM} Credential=…, SignedHeaders=…, Signature=…' with {_DIGITS} hex digits"
        )
    headers = request.first
    stamp = _checked(headers.get("x-amz-date") or headers.get("date") or "", "x-amz-date")
    query = _canonical(request.parameters()) if request.query else ""
    return Claim(*found, signature, stamp, headers.get("x-amz-security-token"), query)


@functools.lru_cache(maxsize=4096)
def _named(text: str) -> tuple[Scope, tuple[str, ...]] | None:
    """Scope and signed headers: the same in all requests of a client on one day, so they are kept.

    Args:
        text: An Authorization header up to its signature.
    """
    match = _AUTHORIZATION.fullmatch(text)
    return (_scope(match[1]), tuple(match[2].split(";"))) if match else None


def _presigned(request: SignedRequest) -> Claim:
    pairs = request.parameters()
    names = [name for name, _ in pairs if name.startswith("X-Amz-")]
    if len(set(names)) != len(names):
        raise incomplete("a parameter of the signature is there more than once")
    given = dict(pairs)
    missing = [f"X-Amz-{name}" for name in _QUERY if f"X-Amz-{name}" not in given]
    if missing:
        raise incomplete(f"the query must have {', '.join(missing)}")
    if given["X-Amz-Algorithm"] != ALGORITHM or not _HEX.fullmatch(given[_SIGNATURE]):
        raise incomplete(f"X-Amz-Algorithm must be {ALGORITHM}, and {_SIGNATURE} {_DIGITS} hex digits")
    seconds = given["X-Amz-Expires"]
    if not re.fullmatch(r"[0-9]{1,6}", seconds, re.ASCII) or not 1 <= int(seconds) <= MAX_EXPIRES:
        raise incomplete(f"X-Amz-Expires must be from 1 to {MAX_EXPIRES}")
    if request.value("x-amz-security-token") is not None:
        raise incomplete(f"a presigned request has its session token in {_TOKEN}")
    return Claim(
        _scope(given["X-Amz-Credential"]),
        tuple(given["X-Amz-SignedHeaders"].split(";")),
        given[_SIGNATURE],
        _checked(given["X-Amz-Date"], "X-Amz-Date"),
        given.get(_TOKEN),
        _canonical([(name, value) for name, value in pairs if name != _SIGNATURE]),
        int(seconds),
    )


def _scope(credential: str) -> Scope:
    parts = credential.split("/")
    if len(parts) != 5:
        raise invalid("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term")
    if parts[4] != "aws4_request":
        raise invalid("Credential should be scoped with a valid terminator: 'aws4_request'")
    return Scope(*parts[:4])


def _checked(stamp: str, name: str) -> str:
    if not _STAMP.fullmatch(stamp):
        raise incomplete(f"{name} must be there, in the form YYYYMMDDTHHMMSSZ")
    return stamp


def _canonical(pairs: list[tuple[str, str]]) -> str:
    """The canonical query string of §22.1."""
    return "&".join(f"{name}={value}" for name, value in sorted((_encoded(n), _encoded(v)) for n, v in pairs))


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")

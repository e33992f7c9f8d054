"""The chain from a trusted root to the leaf: steps 6, 8, 9 and 10 of the recipe in `verify`.

Core: DER in, a verified chain out.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final, Generic, TypeVar

from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.document import START, AttestationDocument, Standing, standing
from alcove.errors import AttestationError

MAX_CHAIN: Final = 10  # attestation.md §6: certificates from root to leaf; the platform has five
DEFAULT_CACHE_SIZE: Final = 256

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Recent(Generic[_K, _V]):
    """So many values, the least recently used dropped first; threads may share them."""

    __slots__ = ("_size", "_values")

    def __init__(self, size: int) -> None:
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._size = size

    def get(self, key: _K) -> _V | None:
        value = self._values.pop(key, None)  # out and in again: atomic steps
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: _K, value: _V) -> None:
        self._values[key] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


class ChainCache:
    """Chains whose links and constraints hold (steps 6, 8, 10), the least recently used dropped first.

    The key is the chain itself, every byte of it from the root to the leaf. What depends on the call is never cached:
    trust in the root, dates, revocation, the document's own signature. Threads may share a cache.

    Beside them, for each enclave, what stands in all of its documents (`document.Standing`), which steps 4 and 5 then
    need not read again. Only a verified document leaves something here.

    Args:
        size: How many chains to keep, and enclaves, at least one; a document takes two entries, of at most ten
            certificates each.

    Raises:
        ValueError: There is no room for a chain.
    """

    __slots__ = ("_standing", "chains")

    def __init__(self, size: int = DEFAULT_CACHE_SIZE) -> None:
        if size < 1:
            raise ValueError("a cache holds at least one chain")
        self.chains: _Recent[tuple[bytes, ...], tuple[Certificate, ...]] = _Recent(size)
        self._standing: _Recent[bytes, Standing] = _Recent(size)

    def standing(self, start: bytes) -> Standing | None:
        """What stood in the last verified document with this start."""
        return self._standing.get(start)

    def note(self, payload: bytes, claims: AttestationDocument) -> None:
        """Keep what stands in a verified document, when it is not from here that it was read."""
        before = self._standing.get(payload[:START])
        if before is not None and before.fields.cabundle is claims.cabundle:
            return
        found = standing(payload, claims)
        if found is not None:
            self._standing.put(found.start, found)

    def __len__(self) -> int:
        return len(self.chains)


def verified_chain(
    cabundle: tuple[bytes, ...], certificate: bytes, cache: ChainCache | None = None
) -> tuple[Certificate, ...]:
    """Steps 6, 8 and 10: the parsed chain, root first and leaf last, every link and constraint of which holds.

    Args:
        cabundle: DER of the authorities, the first one trusted by the caller.
        certificate: DER of the leaf.
        cache: Verified chains to reuse and add to.

    Raises:
        AttestationError: A certificate, a link or a constraint is wrong.
    """
    if len(cabundle) >= MAX_CHAIN:
        raise AttestationError(f"a chain of {len(cabundle) + 1} certificates; {MAX_CHAIN} are allowed", step=8)
    key = (*cabundle, certificate)
    # A leaf lives for hours and the authorities above it for a day at least: they are kept for themselves, too.
    # The empty entry keeps the two sorts of key apart.
    authorities_key = (*cabundle, b"")
    authorities = None
    if cache is not None:
        chain = cache.chains.get(key)
        if chain is not None:
            return chain
        authorities = cache.chains.get(authorities_key)
    # 6. Strict parsing.
    parsed = authorities or _parse_authorities(cabundle)
    leaf = parse_entry(certificate, "certificate")
    # 8. and 10.
    if authorities is None:
        _check_authorities(parsed)
        if cache is not None:
            cache.chains.put(authorities_key, parsed)
    _check_link(parsed[-1], leaf)
    _check_leaf(leaf)
    chain = (*parsed, leaf)
    if cache is not None:
        cache.chains.put(key, chain)
    return chain


def _parse_authorities(cabundle: tuple[bytes, ...]) -> tuple[Certificate, ...]:
    below = (parse_entry(entry, f"cabundle[{index}]") for index, entry in enumerate(cabundle[1:], 1))
    return (_parse_root(cabundle[0]), *below)


@lru_cache(maxsize=16)  # the caller trusts it, and so it is known before any document comes
def _parse_root(data: bytes) -> Certificate:
    return parse_entry(data, "cabundle[0]")


def parse_entry(data: bytes, name: str) -> Certificate:
    """Step 6: one certificate of a document; AttestationError when it is none."""
    try:
        return parse_certificate(data)
    except ValueError as error:
        raise AttestationError(f"{name}: {error}", step=6) from error


def _check_link(parent: Certificate, child: Certificate) -> None:
    # 8. Name and signature.
    if not child.is_signed_by(parent):
        raise AttestationError(f"{child.common_name} was not issued by {parent.common_name}", step=8)


def _check_authorities(parsed: tuple[Certificate, ...]) -> None:
    for parent, child in pairwise(parsed):
        _check_link(parent, child)
    for index, authority in enumerate(parsed):
        _check_authority(authority, below=len(parsed) - 1 - index)


def check_validity(certificate: Certificate, time: datetime) -> None:
    """Step 9: `certificate` is valid at `time`, both ends included; AttestationError otherwise."""
    if time < certificate.not_before:
        raise AttestationError(
            f"{certificate.common_name} is not valid before {certificate.not_before.isoformat()}", step=9
        )
    if time > certificate.not_after:
        raise AttestationError(
            f"{certificate.common_name} expired at {certificate.not_after.isoformat()}",
            step=9,
            hint="leaves live for three hours; an archived document is checked at its own time",
        )


def _check_authority(certificate: Certificate, *, below: int) -> None:
    # 10. `below` counts the authorities under this one.
    constraints = certificate.basic_constraints
    if constraints is None or not constraints.critical or not constraints.is_authority:
        raise _unfit(certificate, "is no certificate authority")
    if constraints.path_length is not None and below > constraints.path_length:
        raise _unfit(certificate, f"allows {constraints.path_length} authorities below it and has {below}")
    if not certificate.signs_certificates:
        raise _unfit(certificate, "may not sign certificates")
    _check_critical(certificate)


def _check_leaf(certificate: Certificate) -> None:
    # 10. The leaf signs data and nothing else.
    constraints = certificate.basic_constraints
    if constraints is None or constraints.is_authority:
        raise _unfit(certificate, "does not say that it is no certificate authority")
    if not certificate.signs_data:
        raise _unfit(certificate, "may not sign data")
    _check_critical(certificate)


def _check_critical(certificate: Certificate) -> None:
    if certificate.unknown_critical:
        raise _unfit(certificate, f"has an unknown critical extension {certificate.unknown_critical[0]}")


def _unfit(certificate: Certificate, message: str) -> AttestationError:
    return AttestationError(f"{certificate.common_name} {message}", step=10)

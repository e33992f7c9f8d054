"""What a verified document must say: small objects that combine (attestation.md §5.2 step 13).

Core: a document in; nothing out, or PolicyError.

A policy that pins anything refuses an enclave in debug mode, whose PCR0, PCR1, PCR2 and PCR8 are zero, unless
`UnsafeAcceptDebugMode` stands beside it in the same `AllOf`. There is no empty policy: "accept whatever is genuine" has
a name, `GenuineOnly`, for those who decide elsewhere.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from alcove.attestation.document import MAX_PCRS, PCR_SIZES, AttestationDocument
from alcove.errors import PolicyError, UsageError

IMAGE_PCRS: Final = (0, 1, 2)  # zero in debug mode and never otherwise
DEBUG_PCRS: Final = (0, 1, 2, 8)  # zero in debug mode; PCR8 is zero for an unsigned image too
STEP: Final = 13

_DIGEST_HEX: Final = 96
_PCR_NAME: Final = re.compile(r"PCR([0-9]|[12][0-9]|3[01])", re.IGNORECASE)


class Policy(Protocol):
    """Something that accepts or refuses what a genuine document says."""

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Return when the document is acceptable.

        Args:
            document: Verified up to step 12.
            allow_debug: Whether a policy around this one accepts debug mode.

        Raises:
            PolicyError: It is not.
        """


@dataclass(frozen=True, slots=True)
class GenuineOnly:
    """Accepts every genuine document, debug mode included: for the KMS, whose key policies decide."""

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Accept."""


@dataclass(frozen=True, slots=True)
class UnsafeAcceptDebugMode:
    """Accepts debug mode, for itself and for the policies beside it in an `AllOf`.

    Unsafe: anyone on the parent reads a debug enclave's console, and its registers say nothing about its image.
    """

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Accept."""


@dataclass(frozen=True, slots=True)
class NoDebugMode:
    """Accepts every genuine document of an enclave that is not in debug mode."""

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse zero in PCR0, PCR1 or PCR2, unless debug mode is accepted around this policy."""
        zero = [index for index in IMAGE_PCRS if index in document.pcrs and not any(document.pcrs[index])]
        if zero and not allow_debug:
            raise PolicyError(
                f"PCR{zero[0]} is zero: the enclave runs in debug mode",
                step=STEP,
                hint="run the enclave without debug mode, or accept debug mode by name",
            )


@dataclass(frozen=True, slots=True)
class PCR:
    """Register `index` holds exactly `value` (32, 48 or 64 bytes)."""

    index: int
    value: bytes

    def __post_init__(self) -> None:
        """Raises ValueError for an index or a size that no register has."""
        if not 0 <= self.index < MAX_PCRS or len(self.value) not in PCR_SIZES:
            raise ValueError(f"PCR{self.index} of {len(self.value)} bytes cannot be")

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another value, a missing register and a zero that proves nothing."""
        NoDebugMode().check(document, allow_debug=allow_debug)
        found = document.pcrs.get(self.index)
        if found is None:
            raise PolicyError(f"PCR{self.index} is expected and the document does not have it", step=STEP)
        if not hmac.compare_digest(found, self.value):
            raise PolicyError(f"PCR{self.index} is {found.hex()} and not {self.value.hex()}", step=STEP)
        if self.index in DEBUG_PCRS and not any(found) and not allow_debug:
            raise PolicyError(f"PCR{self.index} is expected to be zero, which proves nothing", step=STEP)


@dataclass(frozen=True, slots=True)
class ImageSHA384:
    """The image: PCR0 under the name that KMS's condition key gives it."""

    value: bytes

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another image."""
        PCR(0, self.value).check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of `policies`, of which there is at least one."""

    policies: Sequence[Policy]

    def __post_init__(self) -> None:
        """Raises ValueError for an empty list."""
        _not_empty(self.policies)

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse what any of them refuses."""
        allow_debug = allow_debug or any(isinstance(policy, UnsafeAcceptDebugMode) for policy in self.policies)
        for policy in self.policies:
            policy.check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of `policies`."""

    policies: Sequence[Policy]

    def __post_init__(self) -> None:
        """Raises ValueError for an empty list."""
        _not_empty(self.policies)

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse what all of them refuse."""
        reasons = []
        for policy in self.policies:
            try:
                policy.check(document, allow_debug=allow_debug)
            except PolicyError as error:
                reasons.append(error.message)
            else:
                return
        raise PolicyError("; ".join(reasons), step=STEP)


def _not_empty(policies: Sequence[Policy]) -> None:
    if not policies:
        raise ValueError("an empty policy would decide nothing")


def policy_from_data(raw: object, *, allow_debug: bool = False) -> Policy:
    """The policy that a parsed JSON or YAML file describes.

    Args:
        raw: ``{"PCR0": hex, "PCR8": [hex, hex], "ImageSha384": hex}``; of a list, any value will do. The whole answer
            of ``build-enclave`` is taken too: the object under ``Measurements``, with its ``HashAlgorithm``.
        allow_debug: Accept debug mode.

    Raises:
        UsageError: It describes no policy.
    """
    if isinstance(raw, Mapping) and set(raw) == {"Measurements"}:
        raw = raw["Measurements"]
    if not isinstance(raw, Mapping):
        raise UsageError("a policy is a mapping of registers to digests", hint='such as {"PCR0": "<96 hex digits>"}')
    policies = [_entry(name, value) for name, value in raw.items() if name != "HashAlgorithm"]
    if not policies:
        raise UsageError("the policy names no register, and would accept everything")
    return AllOf([*policies, UnsafeAcceptDebugMode()] if allow_debug else policies)


def _entry(name: object, value: object) -> Policy:
    match = _PCR_NAME.fullmatch(str(name))
    if match is None and str(name).lower() != "imagesha384":
        raise UsageError(f"`{name}` is no register", hint="PCR0 to PCR31, or ImageSha384")
    index = int(match[1]) if match else 0
    values = value if isinstance(value, list) else [value]
    choices = [PCR(index, _digest(name, item)) for item in values]
    if not choices:
        raise UsageError(f"`{name}` lists no digest")
    return choices[0] if len(choices) == 1 else AnyOf(choices)


def _digest(name: object, value: object) -> bytes:
    try:
        if isinstance(value, str) and len(value) == _DIGEST_HEX:
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise UsageError(f"`{name}` is not a digest of {_DIGEST_HEX} hexadecimal digits")

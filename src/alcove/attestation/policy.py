"""What a verified document must say: small objects that combine (attestation.md §5.2 step 13).

Core: a document in; nothing out, or PolicyError.

    AllOf([ImageSHA384(pcr0), PCR(1, pcr1), PCR(2, pcr2)])       this image, under this kernel
    AllOf([SignedBy(certificate), Role("arn:aws:iam::…")])       whatever this signer signed, on a parent of this role
    AnyOf([AllOf([…]), AllOf([…])])                              the old version or the new one

A policy that pins anything refuses an enclave in debug mode, whose PCR0, PCR1, PCR2 and PCR8 are zero, unless
`UnsafeAcceptDebugMode` stands beside it in the same `AllOf`. There is no empty policy: "accept whatever is genuine" has
a name, `GenuineOnly`, for those who decide elsewhere. `policy_file` reads policies from files.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation.document import MAX_PCRS, PCR_SIZES, AttestationDocument
from alcove.attestation.pem import certificates_from_pem
from alcove.errors import PolicyError

IMAGE_PCRS: Final = (0, 1, 2)  # zero in debug mode and never otherwise
DEBUG_PCRS: Final = (0, 1, 2, 8)  # zero in debug mode; PCR8 is zero for an unsigned image too
STEP: Final = 13

_ROLE_PCR: Final = 3  # eif.md §2
_PARENT_PCR: Final = 4
_SIGNER_PCR: Final = 8
_ZERO: Final = bytes(48)
_INSTANCE_ID: Final = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_ROLE_ARN: Final = re.compile(r"arn:[a-z-]+:iam::[0-9]{12}:role/[!-~]{1,576}")


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
        """Refuse no PCR0, and zero in PCR0, PCR1 or PCR2, unless debug mode is accepted around this policy."""
        if allow_debug:
            return
        if 0 not in document.pcrs:
            raise PolicyError("the document does not have PCR0, and so may be of an enclave in debug mode", step=STEP)
        zero = [index for index in IMAGE_PCRS if index in document.pcrs and not any(document.pcrs[index])]
        if zero:
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

    def __post_init__(self) -> None:
        """Raises ValueError for anything but 48 bytes."""
        if len(self.value) != len(_ZERO):
            raise ValueError(f"a SHA-384 of {len(self.value)} bytes cannot be")

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another image."""
        PCR(0, self.value).check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class SignedBy:
    """The image was signed with this certificate (its DER): PCR8."""

    certificate: bytes

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The signer whose certificate is the first in a PEM file, as for signing; ValueError when there is none."""
        return cls(certificates_from_pem(pem)[0].public_bytes(Encoding.DER))

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse an image that was signed with another certificate, or not at all."""
        digest = hashlib.sha384(self.certificate).digest()
        PCR(_SIGNER_PCR, extended(digest)).check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class Parent:
    """The enclave runs on the instance with this id: PCR4."""

    instance_id: str

    def __post_init__(self) -> None:
        """Raises ValueError for what is no instance id."""
        if not _INSTANCE_ID.fullmatch(self.instance_id):
            raise ValueError(f"{self.instance_id!r:.40} is no instance id such as i-0123456789abcdef0")

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another parent."""
        PCR(_PARENT_PCR, extended(self.instance_id.encode())).check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class Role:
    """The parent has this IAM role: PCR3."""

    arn: str

    def __post_init__(self) -> None:
        """Raises ValueError for what is no role's ARN."""
        if not _ROLE_ARN.fullmatch(self.arn):
            raise ValueError(f"{self.arn!r:.80} is no role such as arn:aws:iam::123456789012:role/name")

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another role, and none."""
        PCR(_ROLE_PCR, extended(self.arn.encode())).check(document, allow_debug=allow_debug)


@dataclass(frozen=True, slots=True)
class UserData:
    """The enclave put exactly this into user_data, as a protocol that binds something to the document has it."""

    value: bytes

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse other user data, and none; empty is not none."""
        NoDebugMode().check(document, allow_debug=allow_debug)
        _check_field("user_data", document.user_data, self.value)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The enclave put exactly this into public_key, such as the key of a connection."""

    value: bytes

    def check(self, document: AttestationDocument, *, allow_debug: bool = False) -> None:
        """Refuse another key, and none."""
        NoDebugMode().check(document, allow_debug=allow_debug)
        _check_field("public_key", document.public_key, self.value)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of `policies`, of which there is at least one."""

    policies: Sequence[Policy]

    def __post_init__(self) -> None:
        """Raises ValueError for an empty list."""
        object.__setattr__(self, "policies", _not_empty(self.policies))

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
        """Raises ValueError for an empty list, and for a choice that would make the others meaningless."""
        object.__setattr__(self, "policies", _not_empty(self.policies))
        if any(_pins_nothing(policy) for policy in self.policies):
            raise ValueError("a choice that pins nothing would accept everything; put UnsafeAcceptDebugMode beside it")

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


def extended(data: bytes) -> bytes:
    """A fresh register after one extend by `data` (eif.md §2)."""
    return hashlib.sha384(_ZERO + data).digest()


def _check_field(name: str, found: bytes | None, expected: bytes) -> None:
    if found is None or not hmac.compare_digest(found, expected):
        raise PolicyError(f"{name} is not the expected one", step=STEP)


def _pins_nothing(policy: Policy) -> bool:
    if isinstance(policy, AllOf):
        return all(_pins_nothing(each) for each in policy.policies)
    return isinstance(policy, UnsafeAcceptDebugMode | GenuineOnly)


def _not_empty(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    if not policies:
        raise ValueError("an empty policy would decide nothing")
    return tuple(policies)

"""Certificate revocation lists (RFC 5280 §5), for verifiers that want them: a part of step 10 of `verify`'s recipe.

Core: lists and a chain in; nothing out, or AttestationError.

AWS tells verifiers not to fetch its lists (attestation.md §5.2), and nothing is fetched here: the caller brings them,
as DER or PEM. What is checked:

 a. A list belongs to an authority of the chain when it bears its name and is signed by its key. Roots share one name,
    so a list whose key identifier is another's belongs to another chain and is passed over; any other list that bears
    the name and lacks the signature is an error.
 b. The newest list of each authority is not outdated at the chosen time. A list that is newer than that time only
    knows more.
 c. No certificate is on a list of its issuer, whenever and for whatever reason it was put there: the holder of a stolen
    key writes any time into a document. A certificate is known by issuer and serial number and not by its bytes, since
    a signature has a twin (attestation.md §1).

An authority without a list revokes nothing. Delta and indirect lists, and critical extensions, are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

from alcove.attestation.certificate import Certificate
from alcove.codec import der
from alcove.errors import AttestationError, InputError

STEP: Final = 10
MAX_FILE: Final = 1 << 20  # bytes; some 25,000 entries
MAX_LISTS: Final = 64

_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_CRL_SIGN: Final = 0x02  # RFC 5280 §4.2.1.3, bit 6


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One list. Nothing about it is trusted before its signature was checked."""

    issuer: bytes
    key_id: bytes | None
    this_update: datetime
    next_update: datetime
    serials: frozenset[int]
    signed: bytes
    signature: bytes

    def is_signed_by(self, authority: Certificate) -> bool:
        """One P-384 verification."""
        try:
            authority.public_key.verify(self.signature, self.signed, ECDSA(SHA384()))
        except (InvalidSignature, ValueError):
            return False
        return True


class RevocationLists:
    """The lists that a verifier goes by. Signatures that held are remembered."""

    __slots__ = ("_lists", "_proven")

    def __init__(self, lists: Sequence[RevocationList]) -> None:
        self._lists = tuple(lists)
        self._proven: set[tuple[int, bytes]] = set()

    @classmethod
    def from_files(cls, *files: bytes) -> RevocationLists:
        """The lists in some files, each one list in DER or any number of them in PEM.

        Raises:
            InputError: A file holds something else, is larger than `MAX_FILE`, or there are more than `MAX_LISTS`.
        """
        if any(len(file) > MAX_FILE for file in files):
            raise InputError(f"a revocation list has more than {MAX_FILE} bytes")
        found = [entry for file in files for entry in _entries(file)]
        if len(found) > MAX_LISTS:
            raise InputError(f"{len(found)} revocation lists; {MAX_LISTS} are allowed")
        return cls([parse_list(entry) for entry in found])

    def __len__(self) -> int:
        return len(self._lists)

    def check(self, chain: Sequence[Certificate], at: datetime) -> None:
        """Steps a to c, for a chain from the root to the leaf whose links hold already.

        Args:
            chain: The certificates, root first.
            at: The chosen time, aware.

        Raises:
            AttestationError: A certificate is revoked; a list is forged, outdated or by an authority that signs none.
        """
        for authority, child in pairwise(chain):
            lists = [entry for index, entry in enumerate(self._lists) if self._applies(index, entry, authority)]
            if lists and (newest := max(entry.next_update for entry in lists)) < at:
                raise _refused(f"the revocation list of {authority.common_name} ran out at {newest.isoformat()}")
            if any(child.serial in entry.serials for entry in lists):
                raise _refused(f"{child.common_name} was revoked by {authority.common_name}")

    def _applies(self, index: int, entry: RevocationList, authority: Certificate) -> bool:
        # a. Name, then key.
        if entry.issuer != authority.subject:
            return False
        if (index, authority.der) in self._proven:
            return True
        if not entry.is_signed_by(authority):
            if entry.key_id not in {None, _key_id(authority)}:
                return False
            raise _refused(f"the revocation list of {authority.common_name} was not signed by it")
        if not (authority.key_usage or 0) & _CRL_SIGN:
            raise _refused(f"{authority.common_name} may not sign revocation lists")
        if len(self._proven) < MAX_LISTS * 4:
            self._proven.add((index, authority.der))
        return True


def _entries(file: bytes) -> list[bytes]:
    blocks = _PEM.findall(file)
    if blocks and b"-----" in _PEM.sub(b"", file):  # a block that lost its head or its end would revoke nothing
        raise _no_list("a part of the file is damaged")
    return blocks or [file]


def parse_list(data: bytes) -> RevocationList:
    """The list in `data`, DER or PEM; InputError for anything else."""
    try:
        load = x509.load_pem_x509_crl if data.startswith(b"-----") else x509.load_der_x509_crl
        return _checked(load(data))
    except _UNREADABLE:
        raise _no_list("it cannot be read") from None


def _checked(crl: x509.CertificateRevocationList) -> RevocationList:
    if crl.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise _no_list("the signature algorithm is not ecdsa-with-SHA384")
    if crl.next_update_utc is None:
        raise _no_list("it does not say when it runs out")
    entries = list(crl)
    for extensions in (crl.extensions, *(entry.extensions for entry in entries)):
        if any(extension.critical for extension in extensions):
            raise _no_list("it has a critical extension, as delta and indirect lists have")
    fields = der.parse(crl.tbs_certlist_bytes).children(der.SEQUENCE, "tbsCertList")
    if fields[0].tag != der.INTEGER:
        raise _no_list("it is of version 1")
    if not fields[2].children(der.SEQUENCE, "issuer"):
        raise _no_list("it does not say whose it is")
    return RevocationList(
        issuer=fields[2].raw,  # version, signature, issuer: RFC 5280 §5.1.2
        key_id=_authority_key_id(crl),
        this_update=crl.last_update_utc,
        next_update=crl.next_update_utc,
        serials=frozenset(entry.serial_number for entry in entries),
        signed=crl.tbs_certlist_bytes,
        signature=crl.signature,
    )


def _authority_key_id(crl: x509.CertificateRevocationList) -> bytes | None:
    try:
        return crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def _key_id(authority: Certificate) -> bytes:
    """RFC 5280 §4.2.1.2 method 1, which the platform and we use."""
    point = authority.public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha1(point, usedforsecurity=False).digest()


def _no_list(reason: str) -> InputError:
    return InputError(f"this is no revocation list that we take: {reason}", hint="give a CRL in DER or PEM")


def _refused(message: str) -> AttestationError:
    return AttestationError(message, step=STEP)

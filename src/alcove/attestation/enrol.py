"""A fleet under one root: a parent asks, the authority answers, and no private key travels.

    parent     `ca request`        makes a key, keeps it, and prints a request (PKCS #10)
    authority  `ca issue-parent`   signs what was asked for and prints the chain, root first
    parent     `ca install`        checks the chain against its key and puts both in their place

What a parent is given is a level. With a **regional** certificate it makes everything below by itself for twenty days,
while the root is away, and can make any instance's name. With a **zonal** one that is five days. With an **instance**
one it is a day, for the one name that the authority signed.
"""

from __future__ import annotations

import contextlib
import re
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from alcove.attestation.authority import Authority
from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.files import PRIVATE, PUBLIC, locked, make_directory, read_file, remove_file, write_file
from alcove.attestation.pem import certificates_from_pem
from alcove.attestation.place import Level, Place
from alcove.attestation.root_key import plain_pem
from alcove.attestation.store import Entry, Store, fingerprint, pem
from alcove.errors import InputError, MachineError, UsageError

MAX_REQUEST: Final = 1 << 14  # bytes; ours have about 500
MAX_ANSWER: Final = 1 << 14  # bytes; ours have up to 4000
_COMMON_NAME: Final = re.compile(r"(i-[0-9a-f]{17})\.([a-z0-9-]{1,20})\.aws\.nitro-enclaves")
_PATH_LENGTHS: Final = {Level.REGIONAL: 2, Level.ZONAL: 1, Level.INSTANCE: 0}


def make_request(store: Store, place: Place) -> bytes:
    """A request for the parent `place`, PEM; its key is kept and used again until the answer is installed."""
    path = store.request_key_path(place.region)
    with locked(store.directory):
        if path.exists():
            key = _request_key(store, place.region)
        else:
            key = ec.generate_private_key(ec.SECP384R1())
            make_directory(path.parent)
            write_file(path, plain_pem(key), PRIVATE)
    name = f"{place.instance_id}.{place.region}.aws.nitro-enclaves"
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA384()).public_bytes(Encoding.PEM)


def read_request(data: bytes) -> tuple[Place, ec.EllipticCurvePublicKey]:
    """Who asks, and the key that it proves to have; InputError when `data` is no request of a parent."""
    if len(data) > MAX_REQUEST:
        raise InputError(f"a request has at most {MAX_REQUEST} bytes")
    try:
        request = x509.load_pem_x509_csr(data)
        valid, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise InputError("this is no certificate request in PEM", hint="make one with `alcove ca request`") from None
    if not valid:
        raise InputError("the request was not signed with the key that is in it")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError("the request's key is not of P-384")
    names = request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    match = _COMMON_NAME.fullmatch(str(names[0].value)) if len(names) == 1 else None
    if match is None:
        raise InputError("the request does not name a parent", hint="CN is i-<17 hex>.<region>.aws.nitro-enclaves")
    try:
        return Place(match[2], match[1]), key
    except UsageError as error:
        raise InputError(error.message) from None


def answer(authority: Authority, name: str, request: bytes, level: Level, now: datetime) -> bytes:
    """The chain for the parent that made `request`, PEM, root first; kept under `name`, which only we use.

    Raises:
        UsageError: The name cannot be.
        InputError: The request is none.
        MachineError: The issuer's key cannot be used.
    """
    path = authority.store.parent_path(name)
    place, key = read_request(request)
    with locked(authority.store.directory):
        above: list[Entry] = []
        if level is not Level.REGIONAL:
            above = authority.chain(place, Level.REGIONAL if level is Level.ZONAL else Level.ZONAL, now)
        made = authority.issue(place, level, above[-1] if above else None, key, now)
        chain = [authority.certificate, *(entry.certificate for entry in above), made]
        authority.store.write_public(path, *chain)
    return b"".join(map(pem, chain))


def install(store: Store, data: bytes, place: Place, now: datetime, *, replace_root: bool = False) -> Level:
    """Put an answer, and the key of its request, in their places below the root that it brings.

    Args:
        store: The parent's own directory.
        data: What `answer` returned.
        place: Who the parent is.
        now: The time, aware.
        replace_root: Whether another root of this machine gives way; its key is then removed.

    Returns:
        The level that the parent was given.

    Raises:
        InputError: It is no such chain, or not of our key, or not for us.
        UsageError: This machine has another root.
    """
    certificates, level = _checked_chain(data, place, now)
    with locked(store.directory):
        key = _request_key(store, place.region)
        if certificates[-1].public_key() != key.public_key():
            raise InputError(
                "the certificate is not for this machine's request", hint="make another with `alcove ca request`"
            )
        _install_root(store, certificates[0], replace=replace_root)
        names = [*_PATH_LENGTHS][: len(certificates) - 2]
        for name, certificate in zip(names, certificates[1:-1], strict=True):
            store.write_entry(store.chain_path(place.region, name), certificate, None)
        last = place.instance_id if level is Level.INSTANCE else level
        store.write_entry(store.chain_path(place.region, last), certificates[-1], key)
        remove_file(store.request_key_path(place.region))
    return level


def _checked_chain(data: bytes, place: Place, now: datetime) -> tuple[list[x509.Certificate], Level]:
    if len(data) > MAX_ANSWER:
        raise InputError(f"a chain for a parent has at most {MAX_ANSWER} bytes")
    try:
        certificates = certificates_from_pem(data)
        parsed = [parse_certificate(certificate.public_bytes(Encoding.DER)) for certificate in certificates]
    except ValueError as error:
        raise InputError(f"this is no chain of certificates: {error}") from None
    if not 2 <= len(parsed) <= 1 + len(Level):
        raise InputError(f"a chain of {len(parsed)} certificates; a parent is given two to four, root first")
    level = [*Level][len(parsed) - 2]
    for parent, child in pairwise([parsed[0], *parsed]):
        if not child.is_signed_by(parent):
            raise InputError(f"{child.common_name} was not issued by {parent.common_name}")
        if not child.not_before <= now <= child.not_after:
            raise InputError(f"{child.common_name} is not valid now", hint="look at the machine's clock")
    for expected, certificate in zip(Level, parsed[1:], strict=False):
        _check_level(certificate, expected, place)
    return certificates, level


def _check_level(certificate: Certificate, level: Level, place: Place) -> None:
    constraints = certificate.basic_constraints
    if constraints is None or not constraints.is_authority or constraints.path_length != _PATH_LENGTHS[level]:
        raise InputError(f"{certificate.common_name} is no {level} authority")
    who = place.instance_id if level is Level.INSTANCE else ""
    if not certificate.common_name.endswith(f"{who}.{place.region}.aws.nitro-enclaves"):
        raise InputError(f"{certificate.common_name} is for another Region or machine than this one")


def _install_root(store: Store, certificate: x509.Certificate, *, replace: bool) -> None:
    if not store.root_path.exists():
        write_file(store.root_path, pem(certificate), PUBLIC)
        return
    with contextlib.suppress(MachineError):
        if fingerprint(store.root()) == fingerprint(certificate):
            return
    if not replace:
        raise UsageError(
            f"this machine has another root than {fingerprint(certificate)}",
            hint="--replace-root makes that a former root and removes its key",
        )
    Authority(store).adopt_root(certificate)


def _request_key(store: Store, region: str) -> ec.EllipticCurvePrivateKey:
    path = store.request_key_path(region)
    if not path.exists():
        raise UsageError(f"this machine has not asked for a certificate in {region}", hint="`alcove ca request`")
    try:
        key = load_pem_private_key(read_file(path), password=None)
    except (ValueError, TypeError):
        raise MachineError(f"`{path}` is damaged", hint="remove it and make another request") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MachineError(f"the key in `{path}` is of another kind", hint="remove it and make another request")
    return key

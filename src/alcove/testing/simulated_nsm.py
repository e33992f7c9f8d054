"""A security module in this process, for tests of what runs in enclaves: no machine is started.

    with SimulatedNSM(pcrs={"PCR0": "ab…"}) as nsm:
        document = alcove.sdk.nsm.attest(nonce=b"n")      # the SDK asks this module now
        verify(document, roots=[nsm.root], policy=PCR(0, nsm.pcr(0)), at=datetime.now(UTC), nonce=b"n")

Everything is as in an enclave: the module that our device serves, real signatures, a certificate chain of AWS's shape,
registers that extend and lock. The one difference is the root, which is made here, lives as long as the object and is
trusted by nobody who is not told to. It holds its keys in memory beside the application: it protects nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import pki
from alcove.attestation.attester import Attester, ParentIdentity
from alcove.attestation.pki import Issuer
from alcove.attestation.verify import Root
from alcove.devices.nsm.module import NsmModule
from alcove.sdk import nsm as sdk
from alcove.types import ZERO_PCR

REGION: Final = "us-east-1"
MEASURED: Final = (0, 1, 2, 4)  # non-zero in an ordinary launch (nsm.md §6)
HIDDEN_IN_DEBUG: Final = (0, 1, 2, 8)  # nsm.md §6.1

Pcrs = Mapping[int, bytes | str] | Mapping[str, bytes | str]
"""Registers by their number or by `PCR<number>`, 48 bytes each or hex: build-enclave's `Measurements` will do."""


class SimulatedNSM:
    """A module with a root of its own; a context manager that makes it the process's module.

    Args:
        pcrs: Registers 0 to 15 that differ from the default: 0, 1, 2 and 4 are fixed and non-zero, the others zero.
        debug: Zero the registers that are zero in debug mode.
        clock: The time of documents, aware.
        parent: The `parent` of another module: two enclaves of one machine, with one root.
    """

    def __init__(
        self,
        pcrs: Pcrs | None = None,
        *,
        debug: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        parent: ParentIdentity | None = None,
    ) -> None:
        self._clock = clock
        self.parent: Final = _make_parent(clock()) if parent is None else parent
        self.enclave_id: Final = f"{self.parent.instance_id}-enc{secrets.token_hex(8)}"
        self._attester = Attester(self.parent, self.enclave_id)
        self._stack = contextlib.ExitStack()
        self.boot(pcrs, debug=debug)

    @property
    def root(self) -> Root:
        """What a verifier must trust."""
        return Root.from_pem(self.root_pem)

    @property
    def root_pem(self) -> bytes:
        """The root's certificate, PEM."""
        return x509.load_der_x509_certificate(self.parent.cabundle[0]).public_bytes(Encoding.PEM)

    def boot(self, pcrs: Pcrs | None = None, *, debug: bool = False) -> None:
        """Start the module anew with these registers, as another image would; what was extended is gone."""
        registers = {index: hashlib.sha384(b"simulated PCR%d" % index).digest() for index in MEASURED}
        given = {name: value for name, value in (pcrs or {}).items() if name != "HashAlgorithm"}
        registers |= {_index(name): _value(name, value) for name, value in given.items()}
        if debug:
            registers |= dict.fromkeys(HIDDEN_IN_DEBUG, ZERO_PCR)
        self._module = NsmModule(self.enclave_id, registers, self._attest, os.urandom)

    def pcr(self, index: int) -> bytes:
        """A register's value, 48 bytes."""
        return sdk.Nsm(self).describe_pcr(index).data

    def exchange(self, request: bytes) -> bytes:
        """Answer a request; see `alcove.sdk.nsm.Channel`."""
        return self._module.handle(request)

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        self._stack.enter_context(sdk.using(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _attest(
        self, pcrs: Mapping[int, bytes], user_data: bytes | None, nonce: bytes | None, public_key: bytes | None
    ) -> bytes:
        now = self._clock()
        return self._attester.document(pcrs, user_data=user_data, nonce=nonce, public_key=public_key, now=now)


def _make_parent(now: datetime) -> ParentIdentity:
    """A root and the chain below it, in memory alone."""
    instance_id = f"i-{secrets.token_hex(9)[:17]}"
    names = {"region": REGION, "label": secrets.token_hex(8), "crl": str(uuid.uuid4())}
    root = pki.issue_root(_key(), serial=_serial(), now=now)
    regional_key, zonal_key, instance_key = _key(), _key(), _key()
    regional = Issuer(
        pki.issue_regional(root, regional_key.public_key(), serial=_serial(), now=now, **names), regional_key
    )
    zonal = Issuer(pki.issue_zonal(regional, zonal_key.public_key(), serial=_serial(), now=now, **names), zonal_key)
    certificate = pki.issue_instance(
        zonal, instance_key.public_key(), region=REGION, instance_id=instance_id, serial=_serial(), now=now
    )
    instance = Issuer(certificate, instance_key)
    bundle = tuple(issuer.der for issuer in (root, regional, zonal, instance))
    return ParentIdentity(instance_id, REGION, bundle, instance)


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _serial() -> int:
    return secrets.randbits(120) | 1


def _index(name: int | str) -> int:
    text = str(name).upper().removeprefix("PCR")
    if not text.isdecimal() or int(text) >= 16:
        raise ValueError(f"{name!r} is not a register that is measured at boot: 0 to 15, or PCR0 to PCR15")
    return int(text)


def _value(name: int | str, value: bytes | str) -> bytes:
    data = bytes.fromhex(value) if isinstance(value, str) else value
    if len(data) != len(ZERO_PCR):
        raise ValueError(f"{name}: a register has {len(ZERO_PCR)} bytes, not {len(data)}")
    return data

"""A provisioning service over a real KMS and a simulated security module."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.orders import Envelope
from alcove.apps.acm.provisioning import ImagePolicy, Provisioner
from alcove.apps.acm.token import Slots
from alcove.sdk.kms import AttestedKms, Credentials
from alcove.sdk.nsm import Nsm
from alcove.testing.local_kms import LocalKms
from alcove.testing.simulated_nsm import SimulatedNSM

PIN = "a-long-enough-pin"


class Tcp:
    """The way to the KMS that an enclave has through its parent."""

    def __init__(self, port: int) -> None:
        self._port = port

    def connect(self) -> socket.socket:
        """A fresh stream."""
        return socket.create_connection(("127.0.0.1", self._port), 30)


class ParentsPort:
    """The same through the socket where an enclave's connection to a port of its parent arrives."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self) -> socket.socket:
        """A fresh stream."""
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(30)
        stream.connect(str(self._path))
        return stream


class Clock:
    """Seconds that go when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@dataclass
class Parts:
    """One image on one machine: KMS, security module, and services that come and go."""

    kms: LocalKms
    nsm: SimulatedNSM
    key_id: str
    clock: Clock = field(default_factory=Clock)

    def service(self, **policy: Any) -> tuple[Provisioner, Slots]:
        """A fresh service, as after a start of the enclave."""
        slots = Slots(self.clock)
        chosen = ImagePolicy(**({"kms_keys": (self.key_id,), "full_profile": True} | policy))
        made = Provisioner(slots, chosen, self.connect, Nsm(self.nsm), now=lambda: datetime.now(UTC))
        return made, slots

    def connect(self, envelope: Envelope, port: Path | None = None) -> AttestedKms:
        """The SDK's own client, by TCP or through a port of the parent's."""
        secret = Credentials(envelope.access_key_id, envelope.secret_access_key, envelope.session_token)
        return AttestedKms(
            envelope.region, secret, envelope.endpoint, ca_file=str(self.kms.ca_file),
            transport=Tcp(self.kms.port) if port is None else ParentsPort(port), attester=Nsm(self.nsm),
        )  # fmt: skip

    def envelope(self, **change: Any) -> dict[str, Any]:
        """What the agent sends."""
        environment = self.kms.environment
        members = {
            "region": "us-east-1",
            "access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
            "session_token": "",
            "endpoint": f"localhost:{self.kms.port}",
        }
        return {"Kms": members | change}

    def encrypted(self, key: KeyPair, **parameters: Any) -> str:
        """A key as AWS exports it: KMS's ciphertext of the PEM, in base64."""
        return self.kms.encrypt(self.key_id, pem(key), **parameters)

    def token(self, label: str = "web", **change: Any) -> dict[str, Any]:
        """A token with keys."""
        return {"label": label, "pin": PIN, "envelope_key": self.envelope()} | change


def pem(key: KeyPair) -> bytes:
    return key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def aws_key(encrypted: str, **change: Any) -> dict[str, Any]:
    """A key as AWS's agent sends it."""
    return {"encrypted_pem_b64": encrypted, "id": 1, "label": "acm-key", "cert_pem": None} | change


def chain_pem(*chain: x509.Certificate) -> str:
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)


@contextmanager
def parts(directory: Path) -> Iterator[Parts]:
    """A KMS whose key only this image can use."""
    with SimulatedNSM() as nsm, LocalKms(directory, roots=[nsm.root]) as kms:
        yield Parts(kms, nsm, kms.create_key({"PCR0": nsm.pcr(0)}))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
